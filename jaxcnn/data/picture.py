"""A person's own picture, brought into the form of the data set that a network was trained on."""

import contextlib
import functools
import io
import logging
import os
import struct
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from jaxcnn.data.decode import resize
from jaxcnn.errors import UserError, as_text

# Pillow's formats of pictures; not its stubs, nor documents, films and icons.
FORMATS = ('JPEG', 'MPO', 'PNG', 'WEBP', 'AVIF', 'HEIF', 'JPEG2000', 'GIF', 'BMP', 'DIB', 'TIFF', 'PPM', 'QOI', 'TGA', 'PCX')
_WITHOUT_SIGNATURE = ('TGA', 'PCX')  # other files may pass for one of these
_HEIC = (b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx', b'mif1', b'msf1')  # the brands at byte 8 of such files
MOST_PIXELS = 1 << 26  # of what is decoded before Pillow has judged whether its size is an attack
log = logging.getLogger('jaxcnn')
with contextlib.suppress(ImportError):  # the plugin for HEIC, which is not required
    import pillow_heif
    pillow_heif.register_heif_opener()
warnings.filterwarnings('ignore', module=r'PIL\.')  # of metadata and of sizes, and they do not name the file


@functools.cache
def endings() -> frozenset[str]:
    """Endings, in lower case and with the dot, of the files that `read` decodes with the plugins that are installed."""
    Image.init()
    return frozenset(ending for ending, kind in Image.registered_extensions().items()
                     if kind in FORMATS and kind in Image.OPEN)


def is_picture(path: str | os.PathLike) -> bool:
    """Whether the content of a file, whatever its name, begins as a picture that `read` decodes."""
    Image.init()
    try:
        with Image.open(path, formats=[kind for kind in FORMATS if kind in Image.OPEN and kind not in _WITHOUT_SIGNATURE]):
            return True
    except Exception:  # Pillow's plugins raise many kinds of error
        return False


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation, 1 to 8; 1, as the pixels are stored, where the EXIF block cannot be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises many kinds of error for EXIF blocks that are damaged
        return 1


def _upright(pixels: np.ndarray, orientation: Any) -> np.ndarray:
    """Pixels (H, W, ...) as stored, turned and mirrored as the EXIF orientation says."""
    if orientation not in range(2, 9):
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    rows, columns = -1 if orientation in (3, 4, 7, 8) else 1, -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(pixels[::rows, ::columns])


def _plain_jpeg(content: bytes) -> np.ndarray | None:
    """What Pillow gives, several times as fast, of a whole JPEG file in grey or YCbCr."""
    import simplejpeg
    if not content.startswith(b'\xff\xd8\xff'):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        if colours not in ('Gray', 'YCbCr') or height * width > MOST_PIXELS:
            return None
        pixels = simplejpeg.decode_jpeg(content, 'RGB')
    except ValueError:  # Pillow says what is wrong with it
        return None
    if b'Exif\0\0' not in content:
        return pixels
    try:
        with Image.open(io.BytesIO(content)) as file:
            return _upright(pixels, _orientation(file))
    except Exception:  # as in `_orientation`
        return pixels


# The tags of a TIFF file that its pixels and their orientation depend on.
_TIFF_TAGS = {254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325,
              332, 338, 339, 347, *range(512, 522), 529, 530, 531, 532, 50674}


def _without_metadata(content: bytes) -> bytes:
    """A PNG or TIFF file reduced to its first picture and the orientation; other files as they are.

    Metadata that is odd or large makes Pillow refuse the picture, or libtiff print to stderr.
    """
    if content.startswith(b'\x89PNG\r\n\x1a\n'):
        chunks, start = [content[:8]], 8
        while start < len(content):
            end = start + 12 + int.from_bytes(content[start:start + 4], 'big')
            if content[start + 4:start + 8] in (b'IHDR', b'PLTE', b'tRNS', b'eXIf', b'IDAT', b'IEND'):
                chunks.append(content[start:end])
            start = end
        return b''.join(chunks)
    if content.startswith((b'II*\0', b'MM\0*')):
        order = '<' if content.startswith(b'II') else '>'
        with contextlib.suppress(struct.error):  # a truncated file
            start, = struct.unpack_from(f'{order}I', content, 4)
            count, = struct.unpack_from(f'{order}H', content, start)
            entries = [(struct.unpack_from(f'{order}H12x', content, at)[0], content[at:at + 12])
                       for at in range(start + 2, start + 2 + 12 * count, 12)]
            required = [entry for tag, entry in entries if tag in _TIFF_TAGS]
            directory = struct.pack(f'{order}H', len(required)) + b''.join(required) + bytes(4)
            return content[:start] + directory + content[start + len(directory):]
    return content


def read(path: str | os.PathLike, mode: str) -> np.ndarray:
    """The picture as a viewer shows it: uint8 (H, W) for mode `L`, (H, W, 3) for `RGB`; alpha is laid over white.

    Of the metadata only the EXIF orientation is read; where that cannot be read, the picture is taken as it is stored.

    Raises:
      UserError: the file is missing or no picture.
    """
    content = b''
    try:
        with open(path, 'rb', buffering=0) as opened:  # all of it at once
            content = opened.read()
        if not content:
            raise UserError('empty file')
        if mode == 'RGB' and (decoded := _plain_jpeg(content)) is not None:
            return decoded
        with Image.open(io.BytesIO(_without_metadata(content))) as file:
            file.load()
            image: Image.Image = file
            if image.mode.startswith('I;16') or (image.mode == 'I' and file.format in ('PNG', 'PPM')):
                image = Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8))  # PIL's own would clip them
            if image.mode in ('I', 'F'):
                raise UserError('has pixels of 32 bits, and nothing says which value is white; save it with 8 or 16')
            if image.has_transparency_data:
                image = image.convert('RGBA')
                image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
            return _upright(np.asarray(image.convert(mode)), _orientation(file))
    except FileNotFoundError:
        raise UserError(f'{as_text(path)}: no such file') from None
    except Exception as e:  # Pillow's decoders raise many kinds of error
        reason = getattr(e, 'strerror', None) or str(e)
        if isinstance(e, UnidentifiedImageError):
            heic = content[4:8] == b'ftyp' and content[8:12] in _HEIC
            reason = 'HEIC, which the package pillow-heif reads' if heic else 'not a picture'
        raise UserError(f'{as_text(path)}: {" ".join(reason.split())}') from None


def _otsu(grey: np.ndarray) -> int:
    """The level that parts grey values best in two: the largest variance between them (Otsu 1979)."""
    counts = np.bincount(grey.ravel(), minlength=256).astype(np.float64)
    below, total = np.cumsum(counts), counts.sum()
    weighted = np.cumsum(counts * np.arange(256))
    with np.errstate(divide='ignore', invalid='ignore'):
        between = (weighted[-1] * below / total - weighted) ** 2 / (below * (total - below))
    return int(np.nanargmax(np.where(np.isfinite(between), between, -1)))


def frame_ink(grey: np.ndarray, ink: Mapping[str, Any], ink_is: str = 'auto') -> np.ndarray:
    """Handwriting as its data set frames it: light ink on black, fitted into a box, centred.

    Args:
      grey: uint8 (H, W).
      ink: fields of `sources.Ink`.
      ink_is: `dark` or `light` against its ground; `auto`: the ground is what most of the border is.

    Returns:
      uint8 (size, size, 1). A picture of one nearly even grey comes out black.
    """
    size, box = ink['size'], ink['box']
    canvas = np.zeros((size, size, 1), np.uint8)
    if grey.min() == grey.max():
        return canvas
    light = grey > _otsu(grey)
    border = np.concatenate([light[0], light[-1], light[:, 0], light[:, -1]])
    ink_is_light = border.mean() < 0.5 if ink_is == 'auto' else ink_is == 'light'
    mask = light if ink_is_light else ~light
    ground, full = np.median(grey[~mask]), np.percentile(grey[mask], 95 if ink_is_light else 5)
    if abs(full - ground) < 16:  # nothing but paper
        return canvas
    strength = np.clip((grey - ground) / (full - ground), 0, 1)
    strength = np.clip((strength - 0.15) / 0.7, 0, 1)  # paper is never quite even
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    crop = strength[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
    scale = box / max(crop.shape)
    height, width = (max(1, round(side * scale)) for side in crop.shape)
    small = np.asarray(Image.fromarray((crop * 255).astype(np.uint8)).resize((width, height),
                                                                             Image.Resampling.BOX)).astype(np.float64)
    top, left = (size - height) / 2, (size - width) / 2
    if ink['by_mass'] and small.sum():
        top = size / 2 - (small.sum(1) @ (np.arange(height) + 0.5)) / small.sum()
        left = size / 2 - (small.sum(0) @ (np.arange(width) + 0.5)) / small.sum()
    y, x = (int(np.clip(round(v), 0, size - side)) for v, side in ((top, height), (left, width)))
    canvas[y:y + height, x:x + width, 0] = small
    return canvas


def load(path: str | os.PathLike, info: Mapping[str, Any], how: str = 'crop', ink_is: str = 'auto') -> np.ndarray:
    """A picture file as the network's input before normalisation.

    Args:
      path: of a PNG, JPEG or whatever Pillow reads, of any size.
      info: `data.json` of the workdir.
      how: `config.data.resize`; of photographs.
      ink_is: see `frame_ink`; of handwriting.

    Returns:
      uint8 (H, W, C).

    Raises:
      UserError: the file is missing or no picture.
    """
    height, width, channels = info['image_shape']
    if info['ink']:
        framed = frame_ink(read(path, 'L'), info['ink'], ink_is)
        if not framed.any():
            log.warning('%s: no handwriting found in it', os.fspath(path))
        return np.broadcast_to(resize(framed, (height, width), how), (height, width, channels))
    image = read(path, 'L' if channels == 1 else 'RGB')
    return resize(image.reshape(*image.shape[:2], channels), (height, width), how)
