"""Reading a user's pictures and preparing them as a data set was prepared."""

import io
import os
import shutil
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from jaxcnn.data import picture
from jaxcnn.data.resizing import resize
from jaxcnn.errors import UserError

MNIST = {'size': 28, 'box': 20, 'by_mass': True}
DIGITS = {'size': 8, 'box': 8, 'by_mass': False}
INFO = {'image_shape': [28, 28, 1], 'ink': MNIST}
PHOTO = {'image_shape': [16, 16, 3], 'ink': None}


def draw_seven(background=255, ink=0, size=(300, 240), shift=(0, 0), scale=1.0):
    """Return a large 7 with a bar, without any symmetry, drawn with wide antialiased strokes: uint8 (H, W)."""
    oversampling = 4
    image = Image.new('L', (size[0] * oversampling, size[1] * oversampling), background)
    pen = ImageDraw.Draw(image)
    points = [(90, 50), (190, 55), (120, 190)]
    bar = [(105, 120), (165, 118)]
    for line in (points, bar):
        pen.line([((x * scale + shift[0]) * oversampling, (y * scale + shift[1]) * oversampling) for x, y in line], fill=ink,
                 width=int(14 * scale * oversampling), joint='curve')
    return np.asarray(image.resize(size, Image.Resampling.BOX))


def bounding_box(framed):
    """Return top, bottom, left and right of the values above 0, the ends being exclusive."""
    rows, columns = np.flatnonzero((framed > 0).any(1)), np.flatnonzero((framed > 0).any(0))
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


def absolute_difference(a, b):
    return np.abs(a.astype(int) - b.astype(int))


@pytest.fixture(scope='module')
def reference():
    return picture.frame_ink(draw_seven(), MNIST)


# framing


@pytest.mark.parametrize(('background', 'ink'), [(255, 0), (0, 255), (230, 40), (30, 180), (120, 60), (100, 140)])
def test_ink_of_either_tone_becomes_light_on_black(reference, background, ink):
    framed = picture.frame_ink(draw_seven(background, ink), MNIST)
    assert framed.shape == (28, 28, 1)
    assert framed.dtype == np.uint8
    for side in (framed[0], framed[-1], framed[:, 0], framed[:, -1]):
        assert not side.any()
    assert framed.max() >= 250
    assert absolute_difference(framed, reference).mean() < 4


@pytest.mark.parametrize('ink', [MNIST, DIGITS, {'size': 28, 'box': 20, 'by_mass': False}])
@pytest.mark.parametrize('size', [(300, 240), (240, 400)])
def test_a_picture_and_its_negative_give_the_same_frame(ink, size):
    image = draw_seven(size=size)
    assert absolute_difference(picture.frame_ink(image, ink), picture.frame_ink(255 - image, ink)).max() <= 1


def test_ink_fills_the_box(reference):
    for image in (draw_seven(), draw_seven(scale=0.4), draw_seven(scale=0.15), draw_seven().T):
        top, bottom, left, right = bounding_box(picture.frame_ink(image, MNIST)[..., 0])
        assert 19 <= max(bottom - top, right - left) <= 20
    top, bottom, left, right = bounding_box(reference[..., 0])
    assert bottom - top > right - left  # it was drawn with 154 x 114 pixels
    assert abs((right - left) / (bottom - top) - 114 / 154) < 0.1


def test_ink_is_centred_by_its_centre_of_mass(reference):
    for image in (draw_seven(), draw_seven(size=(400, 400), shift=(150, 150)), draw_seven(scale=0.5)):
        framed = picture.frame_ink(image, MNIST)[..., 0].astype(float)
        y, x = (framed.sum(1 - axis) @ (np.arange(28) + 0.5) / framed.sum() for axis in (0, 1))
        assert abs(y - 14) <= 0.5 + 1e-6
        assert abs(x - 14) <= 0.5 + 1e-6
    # the centre of the bounding box is elsewhere
    top, bottom, left, right = bounding_box(reference[..., 0])
    assert max(abs(top + bottom - 28), abs(left + right - 28)) >= 2


def test_ink_is_centred_by_its_bounding_box_if_the_data_set_was():
    framed = picture.frame_ink(draw_seven(), {'size': 28, 'box': 20, 'by_mass': False})[..., 0]
    top, bottom, left, right = bounding_box(framed)
    assert abs(top + bottom - 28) <= 1
    assert abs(left + right - 28) <= 1


def test_the_position_of_the_ink_does_not_matter(reference):
    for shift in ((-60, -20), (80, 30)):
        assert absolute_difference(picture.frame_ink(draw_seven(shift=shift), MNIST), reference).mean() < 2
    assert not np.array_equal(picture.frame_ink(draw_seven().T, MNIST), reference)


def test_a_given_tone_overrides_the_border():
    image = draw_seven(size=(300, 240))[40:205, 70:205]  # closely cropped
    image = np.where(np.pad(np.zeros((161, 131), bool), 2, constant_values=True), 0, image)  # in a black frame
    assert not np.array_equal(picture.frame_ink(image, MNIST, 'auto'), picture.frame_ink(image, MNIST, 'dark'))
    np.testing.assert_array_equal(picture.frame_ink(image, MNIST, 'auto'), picture.frame_ink(image, MNIST, 'light'))
    for background, ink, tone in ((255, 0, 'dark'), (0, 255, 'light')):
        np.testing.assert_array_equal(picture.frame_ink(draw_seven(background, ink), MNIST, tone),
                                      picture.frame_ink(draw_seven(background, ink), MNIST))


@pytest.mark.parametrize('level', [0, 128, 255])
def test_a_picture_of_one_grey_value_becomes_black(level):
    for ink in (MNIST, DIGITS):
        framed = picture.frame_ink(np.full((50, 40), level, np.uint8), ink)
        assert framed.shape == (ink['size'], ink['size'], 1)
        assert not framed.any()


def test_shade_and_grain_of_the_paper_are_removed(reference):
    image = draw_seven(255, 50).astype(float)
    height, width = image.shape
    shade = np.linspace(0.85, 1.0, width)[None, :] * np.linspace(1.0, 0.9, height)[:, None]
    grain = np.random.default_rng(0).normal(0, 3, image.shape)
    paper = np.clip(image * shade + grain, 0, 255).astype(np.uint8)
    framed = picture.frame_ink(paper, MNIST)
    assert absolute_difference(framed, reference).mean() < 6
    assert (framed[reference == 0] < 60).all()


@pytest.mark.parametrize('shape', [(1, 2), (2, 1), (3, 400), (400, 3)])
def test_pictures_of_extreme_shapes_are_framed(shape):
    image = np.zeros(shape, np.uint8)
    image[-1, -1] = 255
    assert picture.frame_ink(image, MNIST).shape == (28, 28, 1)


def test_two_distant_specks_are_framed():
    image = np.full((3000, 3000), 255, np.uint8)
    image[0, 0] = image[-1, -1] = 0  # dust on a blank scan
    framed = picture.frame_ink(image, MNIST)
    assert framed.shape == (28, 28, 1)


def test_ink_for_the_data_set_digits_is_eight_pixels_high():
    framed = picture.frame_ink(draw_seven(), DIGITS)
    assert framed.shape == (8, 8, 1)
    top, bottom, _, _ = bounding_box(framed[..., 0])
    assert bottom - top == 8


# files


def save(image, path, **fields):
    image.save(path, **fields)
    return path


def rotated_jpeg(folder):
    """Write a JPEG that is stored rotated, with the EXIF orientation that tells viewers to rotate it back."""
    exif = Image.Exif()
    exif[0x0112] = 6  # viewers rotate it by 90 degrees clockwise
    return save(Image.fromarray(draw_seven()).transpose(Image.Transpose.ROTATE_90), folder / 'r.jpg', exif=exif, quality=95)


def rgba(folder):
    """Write black ink on a transparent background whose hidden colour is black."""
    alpha = Image.fromarray(255 - draw_seven())
    image = Image.new('RGBA', alpha.size, (0, 0, 0, 0))
    image.putalpha(alpha)
    return save(image, folder / 'a.png')


def palette(folder):
    image = Image.fromarray(np.where(draw_seven() < 128, 0, 1).astype(np.uint8), mode='P')
    image.putpalette([200, 20, 20, 240, 240, 230])
    return save(image, folder / 'p.png')


def transparent_palette(folder):
    image = Image.fromarray(np.where(draw_seven() < 128, 0, 1).astype(np.uint8), mode='P')
    image.putpalette([0, 0, 0, 0, 0, 0])
    return save(image, folder / 't.gif', transparency=1)


FILES = {
    'grey': lambda folder: save(Image.fromarray(draw_seven()), folder / 'g.png'),
    'white on black': lambda folder: save(Image.fromarray(draw_seven(0, 255)), folder / 'n.png'),
    'rgb': lambda folder: save(Image.merge('RGB', [Image.fromarray(draw_seven(g, i)) for g, i in (
        (250, 20), (240, 30), (200, 120))]), folder / 'c.png'),
    'rgba': rgba,
    'palette': palette,
    'transparent palette': transparent_palette,
    '16 bits': lambda folder: save(Image.fromarray(draw_seven().astype(np.uint16) * 257), folder / 's.png'),
    'faint 16 bits': lambda folder: save(Image.fromarray(draw_seven(200, 90).astype(np.uint16) * 257), folder / 'f.tif'),
    'one bit': lambda folder: save(Image.fromarray(draw_seven()).convert('1', dither=Image.Dither.NONE), folder / 'b.png'),
    'cmyk': lambda folder: save(Image.fromarray(draw_seven()).convert('RGB').convert('CMYK'), folder / 'k.jpg', quality=95),
    'rotated': rotated_jpeg,
    'jpeg noise': lambda folder: save(Image.fromarray(draw_seven(230, 30)), folder / 'j.jpg', quality=12),
    'webp': lambda folder: save(Image.fromarray(draw_seven()).convert('RGB'), folder / 'w.webp', quality=60),
}


@pytest.mark.parametrize('kind', FILES)
def test_every_kind_of_file_gives_the_same_frame(tmp_path, reference, kind):
    framed = picture.load(FILES[kind](tmp_path), INFO)
    assert framed.shape == (28, 28, 1)
    assert framed.dtype == np.uint8
    assert absolute_difference(framed, reference).mean() < 6, kind


def test_a_picture_is_read_as_a_viewer_shows_it(tmp_path):
    np.testing.assert_array_equal(picture.read(FILES['grey'](tmp_path), 'L'), draw_seven())
    assert absolute_difference(picture.read(rotated_jpeg(tmp_path), 'L'), draw_seven()).mean() < 2
    np.testing.assert_array_equal(picture.read(FILES['16 bits'](tmp_path), 'L'), draw_seven())
    assert picture.read(palette(tmp_path), 'RGB')[0, 0].tolist() == [240, 240, 230]
    assert picture.read(rgba(tmp_path), 'RGB')[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize('options', [{}, {'subsampling': 0}, {'subsampling': 1}, {'progressive': True}, {'quality': 10},
                                     {'restart_marker_rows': 1}], ids=str)
@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK', 'YCbCr'])
def test_a_jpeg_is_decoded_to_the_pixels_of_pillow(tmp_path, mode, options):
    rng = np.random.default_rng(0)
    for shape in ((64, 64), (37, 51), (1, 9)):
        pixels = rng.integers(0, 256, (*shape, 3)).cumsum(0).astype(np.uint8)
        Image.fromarray(pixels).convert(mode).save(tmp_path / 'a.jpg', **options)
        with Image.open(tmp_path / 'a.jpg') as image:
            np.testing.assert_array_equal(picture.read(tmp_path / 'a.jpg', 'RGB'), np.asarray(image.convert('RGB')))


def test_a_damaged_jpeg_is_read_or_refused_as_by_pillow(tmp_path):
    path = tmp_path / 'a.jpg'
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(path)
    intact, rng = path.read_bytes(), np.random.default_rng(1)
    outcomes = set()
    for _ in range(100):
        content = bytearray(intact[:rng.integers(3, len(intact))] if rng.random() < 0.5 else intact)
        for offset in rng.integers(3, len(content), rng.integers(0, 4)):
            content[offset] = rng.integers(256)
        path.write_bytes(content)
        try:
            with Image.open(path) as image:
                expected = np.asarray(image.convert('RGB'))
        except Exception:
            outcomes.add('refused')
            with pytest.raises(UserError):
                picture.read(path, 'RGB')
        else:
            outcomes.add('read')
            np.testing.assert_array_equal(picture.read(path, 'RGB'), expected)
    assert outcomes == {'refused', 'read'}


def test_framed_ink_gets_the_size_and_channels_of_the_training_images(tmp_path, reference):
    path = FILES['grey'](tmp_path)
    wide = picture.load(path, {'image_shape': [32, 32, 3], 'ink': MNIST})
    assert wide.shape == (32, 32, 3)
    for c in range(3):
        np.testing.assert_array_equal(wide[..., c:c + 1], resize(reference, (32, 32), 'crop'))


@pytest.mark.parametrize('shape', [(60, 100), (100, 60)])
def test_a_photograph_is_cropped_to_its_central_square_or_squashed(tmp_path, shape):
    content = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    path = save(Image.fromarray(content), tmp_path / 'photo.png')
    top, left = (shape[0] - 60) // 2, (shape[1] - 60) // 2
    square = content[top:top + 60, left:left + 60]
    np.testing.assert_array_equal(picture.load(path, PHOTO), resize(square, (16, 16), 'squash'))
    np.testing.assert_array_equal(picture.load(path, PHOTO, 'squash'), resize(content, (16, 16), 'squash'))
    grey = picture.load(path, {'image_shape': [16, 16, 1], 'ink': None})
    expected = np.asarray(Image.fromarray(content).convert('L'))[top:top + 60, left:left + 60, None]
    np.testing.assert_array_equal(grey, resize(expected, (16, 16), 'squash'))


def test_a_photograph_gets_the_shape_of_the_training_images(tmp_path):
    content = np.random.default_rng(0).integers(0, 256, (32, 40, 3), np.uint8)
    path = save(Image.fromarray(content), tmp_path / 'photo.png')
    info = {'image_shape': [32, 40, 3], 'ink': None}
    np.testing.assert_array_equal(picture.load(path, info), content)
    np.testing.assert_array_equal(picture.load(path, {**info, 'image_shape': [16, 10, 3]}),
                                  resize(content[:, 10:30], (16, 10), 'squash'))
    assert picture.load(path, {**info, 'image_shape': [16, 10, 3]}, 'squash').shape == (16, 10, 3)


def test_16_bits_are_scaled_and_32_bits_are_refused(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (6, 8))
    for kind in ('png', 'tif', 'pgm'):
        Image.fromarray((grey * 257).astype(np.uint16)).save(tmp_path / f'a.{kind}')
        np.testing.assert_array_equal(picture.read(tmp_path / f'a.{kind}', 'L'), grey)
    for kind in (np.float32, np.int32):
        Image.fromarray(grey.astype(kind)).save(tmp_path / 'b.tif')
        with pytest.raises(UserError, match=r'b\.tif: pixels of 32 bits have no defined white; save the picture with 8'):
            picture.read(tmp_path / 'b.tif', 'RGB')


# metadata


GRADIENT = np.uint8(np.add.outer(np.arange(24) * 4, np.arange(40) * 2))[..., None] * np.ones(3, np.uint8)


def encoded(kind, **options):
    """Return GRADIENT as the bytes of a file."""
    file = io.BytesIO()
    Image.fromarray(GRADIENT).save(file, kind, **options)
    return file.getvalue()


def exif(*entries):
    """Return an EXIF block of entries (tag, type, count, four bytes), with two NaN at byte 200."""
    block = b'II*\0' + struct.pack('<IH', 8, len(entries)) + b''.join(struct.pack('<HHI4s', *entry) for entry in entries)
    return block.ljust(200, b'\0') + struct.pack('<2d', float('nan'), float('nan'))


ROTATED = (0x0112, 3, 1, b'\6\0\0\0')
TEXT_AND_NAN = exif((0x010f, 12, 1, struct.pack('<I', 200)), ROTATED, (0x011a, 2, 4, b'abc\0'), (0x0128, 5, 1, bytes(4)),
                    (0x8769, 2, 4, b'xyz\0'), (0x8825, 2, 4, b'xyz\0'))


def with_exif(kind, block):
    """Return a file of a format with an EXIF block that Pillow would not write."""
    if kind == 'JPEG':
        block = b'Exif\0\0' + block
        return b'\xff\xd8\xff\xe1' + struct.pack('>H', 2 + len(block)) + block + encoded('JPEG', quality=100)[2:]
    return with_chunks((b'eXIf', block)) if kind == 'PNG' else encoded(kind, exif=block, lossless=True)


def with_chunks(*chunks):
    """Return a PNG file with additional chunks after its header."""
    content = encoded('PNG')
    return content[:33] + b''.join(struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
                                   for name, data in chunks) + content[33:]


def tiff_with_text_for_numbers():
    content = encoded('TIFF')
    offset, = struct.unpack_from('<I', content, 4)
    count, = struct.unpack_from('<H', content, offset)
    entries = [content[i:i + 12] for i in range(offset + 2, offset + 2 + 12 * count, 12)]
    entries += [struct.pack('<HHI4s', *entry) for entry in (ROTATED, (0x02bc, 3, 2, bytes(4)), (0x8769, 2, 4, b'xyz\0'))]
    entries.sort(key=lambda entry: struct.unpack_from('<H', entry))
    return (content[:4] + struct.pack('<I', len(content)) + content[8:]
            + struct.pack('<H', len(entries)) + b''.join(entries) + bytes(4))


LARGE = zlib.compress(b'x' * (3 << 20))


@pytest.mark.parametrize(('content', 'is_rotated'), [
    *((with_exif(kind, TEXT_AND_NAN), True) for kind in ('JPEG', 'PNG', 'WEBP')),
    *((with_exif(kind, b'no EXIF at all'), False) for kind in ('JPEG', 'PNG', 'WEBP')),
    (with_exif('JPEG', exif((0x0112, 2, 4, b'abc\0'))), False),
    (with_chunks((b'zTXt', b'Comment\0\0' + LARGE), (b'iCCP', b'profile\0\0' + LARGE), (b'eXIf', exif(ROTATED))), True),
    (with_chunks(*[(b'tEXt', b'Comment\0' + bytes(1 << 20))] * 65), False),
    (with_chunks((b'cHRM', b''), (b'iCCP', b'profile\0\1'), (b'pHYs', b'')), False),
    (tiff_with_text_for_numbers(), True),
], ids=['JPEG', 'PNG', 'WebP', 'JPEG no EXIF', 'PNG no EXIF', 'WebP no EXIF', 'JPEG orientation in words', 'PNG large',
        'PNG 65 MiB', 'PNG truncated chunks', 'TIFF'])
def test_pictures_with_invalid_metadata_are_read(tmp_path, content, is_rotated):
    (tmp_path / 'a').write_bytes(content)
    expected = np.rot90(GRADIENT, -1) if is_rotated else GRADIENT
    for mode, pixels in (('RGB', expected), ('L', expected[..., 0])):
        assert absolute_difference(picture.read(tmp_path / 'a', mode), pixels).max() <= 2


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'TIFF'])
@pytest.mark.parametrize('orientation', range(10))
def test_every_orientation_is_applied_as_by_pillow(tmp_path, kind, orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    content = encoded(kind, exif=tags)
    (tmp_path / 'a').write_bytes(content)
    with Image.open(io.BytesIO(content)) as image:
        np.testing.assert_array_equal(picture.read(tmp_path / 'a', 'RGB'), np.asarray(ImageOps.exif_transpose(image)))


def test_pillows_warnings_are_silenced(tmp_path):
    """This runs in a process of its own, because pytest has its own filters."""
    content = encoded('WEBP', exif=exif((0x010f, 3, 9, struct.pack('<I', 200))))
    (tmp_path / 'a').write_bytes(content)
    code = 'import sys; from PIL import Image; {}Image.open(sys.argv[1]).getexif().get(0x010f)'
    stderr = [subprocess.run([sys.executable, '-c', code.format(first), str(tmp_path / 'a')], capture_output=True, text=True,
                             check=True).stderr for first in ('', 'from jaxcnn.data import picture; ')]
    assert 'UserWarning' in stderr[0]
    assert not stderr[1]


# files that are not pictures


def text(path):
    path.write_text('a shopping list\n')


def truncated(path):
    Image.fromarray(draw_seven()).save(path, 'JPEG')
    path.write_bytes(path.read_bytes()[:-600])


def truncated_png(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(path, 'PNG')
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize('make', [text, lambda path: None, lambda path: path.write_bytes(b''), truncated, truncated_png,
                                  lambda path: path.mkdir(), lambda path: path.write_bytes(b'\xff\xd8\xff')],
                         ids=['text', 'missing', 'empty', 'truncated JPEG', 'truncated PNG', 'folder',
                              'JPEG header alone'])
@pytest.mark.parametrize('info', [INFO, PHOTO], ids=['ink', 'photo'])
def test_a_file_that_is_not_a_picture_is_reported_in_one_line(tmp_path, make, info):
    path = tmp_path / 'holiday.jpg'
    make(path)
    with pytest.raises(UserError) as error:
        picture.load(path, info)
    assert str(path) in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.filterwarnings('ignore::UserWarning')  # Pillow's about damaged TIFF files
@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'PPM'])
def test_a_randomly_damaged_file_is_read_or_named_in_the_error(tmp_path, kind):
    rng = np.random.default_rng(0)
    intact = tmp_path / 'intact'
    Image.fromarray(rng.integers(0, 256, (12, 9, 3), np.uint8)).save(intact, kind)
    content, path, errors = intact.read_bytes(), tmp_path / 'damaged', []
    for trial in range(60):
        damaged = bytearray(content[:rng.integers(1, len(content)) if trial % 2 else len(content)])
        for offset in rng.integers(0, len(damaged), 3):
            damaged[offset] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            assert picture.load(path, PHOTO).shape == (16, 16, 3)
        except UserError as e:
            errors.append(str(e))
    assert errors
    assert all(str(path) in line for line in errors)


def test_the_error_for_a_heic_file_names_the_package_that_reads_it(tmp_path):
    (tmp_path / 'a.heic').write_bytes(b'\0\0\0\x18ftypheic')
    with pytest.raises(UserError, match=r'a\.heic: HEIC, which the package pillow-heif reads'):
        picture.read(tmp_path / 'a.heic', 'RGB')


def test_reading_leaves_the_file_unchanged(tmp_path):
    path = FILES['grey'](tmp_path)
    before = shutil.copy(path, tmp_path / 'copy')
    picture.load(path, INFO)
    assert path.read_bytes() == before.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ['copy', 'g.png']
