"""Reading picture files, and preparing a user's pictures as the data set of a network was prepared."""

import contextlib
import functools
import io
import logging
import os
import struct
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from jaxcnn.data.crops import Crop
from jaxcnn.data.resizing import Resizing
from jaxcnn.errors import UserError, as_text, name_field

# formats that Pillow decodes, without stubs, documents, films and icons
FORMATS = ('JPEG', 'MPO', 'PNG', 'WEBP', 'AVIF', 'HEIF', 'JPEG2000', 'GIF', 'BMP', 'DIB', 'TIFF', 'PPM', 'QOI', 'TGA', 'PCX')
_WITHOUT_SIGNATURE = ('TGA', 'PCX')  # other files may be mistaken for one of these
_HEIC_BRANDS = (b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx', b'mif1', b'msf1')  # brands at byte 8 of HEIC files
MAX_PIXELS = 1 << 26  # larger pictures are left to Pillow, which checks for decompression bombs
log = logging.getLogger('jaxcnn')
with contextlib.suppress(ImportError):  # an optional plugin for HEIC
    import pillow_heif
    pillow_heif.register_heif_opener()
warnings.filterwarnings('ignore', module=r'PIL\.')  # about metadata and sizes, without the name of the file


@functools.cache
def endings() -> frozenset[str]:
    """Return the file extensions, in lower case and with the dot, that `read` decodes with the installed plugins."""
    Image.init()
    return frozenset(extension for extension, name in Image.registered_extensions().items()
                     if name in FORMATS and name in Image.OPEN)


def is_picture(path: str | os.PathLike) -> bool:
    """Return whether the content of a file, whatever its name, begins like a picture that `read` decodes."""
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN and name not in _WITHOUT_SIGNATURE]
    try:
        with Image.open(path, formats=formats):
            return True
    except Exception:  # Pillow's plugins raise many kinds of error
        return False


def _orientation(image: Image.Image) -> Any:
    """Return the EXIF orientation, 1 to 8, or 1, the orientation of the stored pixels, if the EXIF block is unreadable."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises many kinds of error for damaged EXIF blocks
        return 1


def _upright(pixels: np.ndarray, orientation: Any) -> np.ndarray:
    """Return stored pixels (H, W, ...) rotated and mirrored as the EXIF orientation demands."""
    if orientation not in range(2, 9):
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    row_step = -1 if orientation in (3, 4, 7, 8) else 1
    column_step = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(pixels[::row_step, ::column_step])


def _decode_jpeg(content: bytes, draw_crop: Callable[[int, int], Crop] | None = None) -> np.ndarray | None:
    """Return the pixels of an intact JPEG file in grey or YCbCr, or None for any other file.

    They are equal to Pillow's; this is several times as fast.

    Args:
      content: the content of the file.
      draw_crop: see `decode_crop`; None to return the full image.
    """
    import simplejpeg
    if not content.startswith(b'\xff\xd8\xff'):
        return None
    try:
        height, width, colour_space, _ = simplejpeg.decode_jpeg_header(content)
        if colour_space not in ('Gray', 'YCbCr') or height * width > MAX_PIXELS:
            return None
        orientation = _jpeg_orientation(content)
        if draw_crop is None:
            return _upright(simplejpeg.decode_jpeg(content, 'RGB'), orientation)
        is_turned = orientation in (5, 6, 7, 8)
        upright_size = (width, height) if is_turned else (height, width)
        crop = draw_crop(*upright_size)
        min_height, min_width = crop.smallest_size(*upright_size)[::-1 if is_turned else 1]
        # scales between 1/2 and 1 take longer than the full scale
        pixels = simplejpeg.decode_jpeg(content, 'RGB', min_height=min_height, min_width=min_width, min_factor=2)
    except ValueError:  # Pillow reports the reason
        return None
    return crop.apply(_upright(pixels, orientation), *upright_size)


def _jpeg_orientation(content: bytes) -> Any:
    """Return the EXIF orientation of a JPEG file, 1 to 8."""
    if b'Exif\0\0' not in content:
        return 1
    try:
        with Image.open(io.BytesIO(content)) as file:
            return _orientation(file)
    except Exception:  # as in `_orientation`
        return 1


# the tags of a TIFF file on which its pixels and their orientation depend
_TIFF_TAGS = {254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325,
              332, 338, 339, 347, *range(512, 522), 529, 530, 531, 532, 50674}


def _without_metadata(content: bytes) -> bytes:
    """Return a PNG or TIFF file reduced to its first picture and the orientation, and any other file unchanged.

    Invalid or large metadata makes Pillow refuse the picture, or libtiff print to stderr.
    """
    if content.startswith(b'\x89PNG\r\n\x1a\n'):
        return _png_without_metadata(content)
    if content.startswith((b'II*\0', b'MM\0*')):
        with contextlib.suppress(struct.error):  # the file is truncated
            return _tiff_without_metadata(content)
    return content


def _png_without_metadata(content: bytes) -> bytes:
    chunks, start = [content[:8]], 8
    while start < len(content):
        length, name = int.from_bytes(content[start:start + 4], 'big'), content[start + 4:start + 8]
        end = start + 12 + length
        if name in (b'IHDR', b'PLTE', b'tRNS', b'eXIf', b'IDAT', b'IEND'):
            chunks.append(content[start:end])
        start = end
    return b''.join(chunks)


def _tiff_without_metadata(content: bytes) -> bytes:
    byte_order = '<' if content.startswith(b'II') else '>'
    start, = struct.unpack_from(f'{byte_order}I', content, 4)
    count, = struct.unpack_from(f'{byte_order}H', content, start)
    required = []
    for offset in range(start + 2, start + 2 + 12 * count, 12):
        tag, = struct.unpack_from(f'{byte_order}H12x', content, offset)
        if tag in _TIFF_TAGS:
            required.append(content[offset:offset + 12])
    directory = struct.pack(f'{byte_order}H', len(required)) + b''.join(required) + bytes(4)
    return content[:start] + directory + content[start + len(directory):]


def read(path: str | os.PathLike, mode: str) -> np.ndarray:
    """Return the picture in a file as viewers show it; see `decode`.

    Raises:
      UserError: the file is missing or not a picture.
    """
    content = read_file(path)
    try:
        return decode(content, mode)
    except UserError as e:
        e.field = as_text(path)
        raise


def read_file(path: str | os.PathLike) -> bytes:
    """Return the content of a picture file, without decoding it.

    Raises:
      UserError: the file is missing, or cannot be read.
    """
    try:
        with open(path, 'rb', buffering=0) as file:  # unbuffered, because all of it is read at once
            return file.read()
    except FileNotFoundError:
        raise UserError('no such file', field=as_text(path)) from None
    except (OSError, ValueError) as e:  # a ValueError for a name with a zero byte
        raise UserError(getattr(e, 'strerror', None) or str(e), field=as_text(path)) from None


def decode(content: bytes, mode: str) -> np.ndarray:
    """Return a picture as viewers show it, with transparent pixels over white.

    The EXIF orientation is applied if it can be read; all other metadata is ignored.

    Args:
      content: the content of a picture file.
      mode: `L` or `RGB`.

    Returns:
      uint8, (H, W) for `L` and (H, W, 3) for `RGB`.

    Raises:
      UserError: the content is not a picture; the error does not name the file.
    """
    try:
        if not content:
            raise UserError('empty file')
        if mode == 'RGB' and (pixels := _decode_jpeg(content)) is not None:
            return pixels
        with Image.open(io.BytesIO(_without_metadata(content))) as opened:
            opened.load()
            return _upright(np.asarray(_to_8_bits(opened).convert(mode)), _orientation(opened))
    except UserError:
        raise
    except Exception as e:  # Pillow's decoders raise many kinds of error
        reason = getattr(e, 'strerror', None) or str(e)
        if isinstance(e, UnidentifiedImageError):
            is_heic = content[4:8] == b'ftyp' and content[8:12] in _HEIC_BRANDS
            reason = 'HEIC, which the package pillow-heif reads' if is_heic else 'not a picture'
        raise UserError(' '.join(reason.split())) from None


def decode_crop(content: bytes, mode: str, draw_crop: Callable[[int, int], Crop], is_exact: bool) -> np.ndarray:
    """Return a crop of a picture, which `decode` would return as a whole.

    Args:
      content: the content of a picture file.
      mode: `L` or `RGB`.
      draw_crop: returns the crop of a picture, given its height and width.
      is_exact: whether JPEG files are decoded at their full scale. Otherwise they are decoded at the smallest scale at which
        the crop is not enlarged; this is faster, and its pixels differ by a few levels.

    Returns:
      uint8 (h, w, C).

    Raises:
      UserError: the content is not a picture, or too small for the crop; the error does not name the file.
    """
    if mode == 'RGB' and not is_exact and (pixels := _decode_jpeg(content, draw_crop)) is not None:
        return pixels
    image = decode(content, mode)
    image = image.reshape(*image.shape[:2], -1)
    return draw_crop(*image.shape[:2]).apply(image, *image.shape[:2])


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Return an image with 8 bits per channel; transparent pixels are composited over white.

    Raises:
      UserError: the image has 32 bits per channel.
    """
    if image.mode.startswith('I;16') or (image.mode == 'I' and image.format in ('PNG', 'PPM')):
        # Pillow's conversion would clip values above 255
        return Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
    if image.mode in ('I', 'F'):
        raise UserError('pixels of 32 bits have no defined white', hint='save the picture with 8 or 16 bits')
    if image.has_transparency_data:
        image = image.convert('RGBA')
        return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return image


def _otsu_threshold(grey: np.ndarray) -> int:
    """Return the threshold of grey values that maximises the variance between the two classes (Otsu 1979)."""
    counts = np.bincount(grey.ravel(), minlength=256).astype(np.float64)
    counts_below, total = np.cumsum(counts), counts.sum()
    sums_below = np.cumsum(counts * np.arange(256))
    with np.errstate(divide='ignore', invalid='ignore'):
        variance = (sums_below[-1] * counts_below / total - sums_below) ** 2 / (counts_below * (total - counts_below))
    return int(np.nanargmax(np.where(np.isfinite(variance), variance, -1)))


def _crop_ink(grey: np.ndarray, tone: str) -> np.ndarray | None:
    """Return the bounding box of the ink as its strength in [0, 1], or None if the picture shows only background.

    Args:
      grey: uint8 (H, W).
      tone: see `frame_ink`.
    """
    if grey.min() == grey.max():
        return None
    is_light = grey > _otsu_threshold(grey)
    if tone == 'auto':
        border = np.concatenate([is_light[0], is_light[-1], is_light[:, 0], is_light[:, -1]])
        tone = 'light' if border.mean() < 0.5 else 'dark'
    mask = is_light if tone == 'light' else ~is_light
    background, full_ink = np.median(grey[~mask]), np.percentile(grey[mask], 95 if tone == 'light' else 5)
    if abs(full_ink - background) < 16:
        return None
    strength = np.clip((grey - background) / (full_ink - background), 0, 1)
    strength = np.clip((strength - 0.15) / 0.7, 0, 1)  # removes the grain of the paper
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return strength[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]


def frame_ink(grey: np.ndarray, ink: Mapping[str, Any], tone: str = 'auto') -> np.ndarray:
    """Frame handwriting as its data set does: light ink on black, fitted into a box and centred.

    Args:
      grey: uint8 (H, W).
      ink: the fields of `sources.Ink`.
      tone: `dark` or `light`, the ink in comparison with its background; `auto` takes the larger part of the border as
        background.

    Returns:
      uint8 (size, size, 1), black if the picture has almost a single grey value.
    """
    size = ink['size']
    canvas = np.zeros((size, size, 1), np.uint8)
    crop = _crop_ink(grey, tone)
    if crop is None:
        return canvas
    scale = ink['box'] / max(crop.shape)
    height, width = (max(1, round(side * scale)) for side in crop.shape)
    crop_image = Image.fromarray((crop * 255).astype(np.uint8))
    resized = np.asarray(crop_image.resize((width, height), Image.Resampling.BOX)).astype(np.float64)
    top, left = (size - height) / 2, (size - width) / 2
    if ink['by_mass'] and resized.sum():
        top = size / 2 - (resized.sum(1) @ (np.arange(height) + 0.5)) / resized.sum()
        left = size / 2 - (resized.sum(0) @ (np.arange(width) + 0.5)) / resized.sum()
    y = int(np.clip(round(top), 0, size - height))
    x = int(np.clip(round(left), 0, size - width))
    canvas[y:y + height, x:x + width, 0] = resized
    return canvas


def load(path: str | os.PathLike, info: Mapping[str, Any], resize_mode: str = 'crop', tone: str = 'auto',
         draw_crop: Callable[[int, int], Crop] | None = None) -> np.ndarray:
    """Return a picture file as the network's input before augmentation and normalisation.

    Args:
      path: path of a picture of any size, in any format that Pillow reads.
      info: the content of the workdir's `data.json`.
      resize_mode: how photographs are resized; see `config.data.resize`.
      tone: tone of handwriting; see `frame_ink`.
      draw_crop: returns the crop of a photograph, given its height and width, instead of resizing; None for images that
        `resize_mode` brings to one size.

    Returns:
      uint8 (H, W, C).

    Raises:
      UserError: the file is missing or not a picture.
    """
    return load_with_resizing(path, info, resize_mode, tone, draw_crop)[0]


def load_with_resizing(path: str | os.PathLike, info: Mapping[str, Any], resize_mode: str = 'crop',
                       tone: str = 'auto', draw_crop: Callable[[int, int], Crop] | None = None,
                       ) -> tuple[np.ndarray, Resizing]:
    """Return what `load` returns, and how the picture, or the framed handwriting, was resized."""
    height, width, channels = info['image_shape']
    if info['ink']:
        image = frame_ink(read(path, 'L'), info['ink'], tone)
        if not image.any():
            log.warning('%s: no handwriting found', os.fspath(path))
    else:
        image = read(path, 'L' if channels == 1 else 'RGB')
        image = image.reshape(*image.shape[:2], channels)
    if draw_crop and not info['ink']:
        with name_field(as_text(path)):
            image = draw_crop(*image.shape[:2]).apply(image, *image.shape[:2])
    resizing = Resizing.between(image.shape[:2], (height, width), resize_mode)
    resized = resizing.apply(image)
    return np.broadcast_to(resized, (height, width, channels)) if info['ink'] else resized, resizing
