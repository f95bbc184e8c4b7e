"""What the header of an image file says about it, and the properties of files that need attention before training."""

import dataclasses
import io
import os

from PIL import ExifTags, Image

from jaxcnn.data import picture  # also registers optional formats and silences Pillow's warnings about metadata

# by property, what jaxcnn does with such a file, in the order of the bits of `Header.properties`
PROPERTIES = {
    'EXIF orientation other than 1': 'rotated or mirrored as viewers show it',
    'CMYK': 'converted to RGB without the colour profile, so that colours may differ from a viewer',
    '16 bits per channel': 'reduced to 8 bits',
    'transparency': 'laid over white',
    'palette': 'converted to RGB',
    'several frames': 'the first frame is used',
    'extension of another format': 'the content decides on the format; other programs may refuse the file',
}
(ORIENTATION, CMYK, DEEP, TRANSPARENCY, PALETTE, FRAMES, EXTENSION) = (1 << bit for bit in range(len(PROPERTIES)))
_ALIASES = {'MPO': 'JPEG', 'DIB': 'BMP'}  # formats that share their extension with another one
_BITS_PER_SAMPLE = 258  # tag of TIFF files
# by a part of the reason why an image cannot be read, the kind of failure
_FAILURES = {
    'empty file': 'empty', 'truncated': 'truncated', 'not a picture': 'not an image', 'HEIC': 'HEIC',
    'no such file': 'missing',
    '32 bits': '32 bits per channel', 'not one of the classes': 'wrong label',
    'pixels (width x height), but': 'size differs from the annotation'}


@dataclasses.dataclass(frozen=True)
class Header:
    """The header of an image file.

    Attributes:
      format: Pillow's name of the format; '' if there is no file or its header cannot be read.
      num_bytes: the size of the file.
      properties: bits of the `PROPERTIES` that the file has.
    """

    format: str = ''
    num_bytes: int = 0
    properties: int = 0


def read_header(content: bytes, path: str) -> Header:
    """Return the header of an image file. What cannot be read is left out.

    Args:
      content: the content of the file.
      path: its path or name, of which only the extension matters.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            image_format = _ALIASES.get(str(image.format), str(image.format))
            has_properties = {
                ORIENTATION: image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9),
                CMYK: image.mode == 'CMYK',
                DEEP: _has_16_bits(image, content),
                TRANSPARENCY: image.has_transparency_data,
                PALETTE: image.mode in ('P', 'PA'),
                FRAMES: getattr(image, 'n_frames', 1) > 1,
                EXTENSION: _is_other_format(path, image_format),
            }
    except Exception:  # Pillow's plugins raise many kinds of errors; reading the image reports them
        return Header(num_bytes=len(content))
    return Header(image_format, len(content), sum(bit for bit, value in has_properties.items() if value))


def _has_16_bits(image: Image.Image, content: bytes) -> bool:
    """Return whether a file stores more than 8 bits per channel, which Pillow's mode says of grey images only."""
    if image.format == 'PNG':
        return content[24] == 16
    if image.format == 'TIFF':
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, (1,))  # type: ignore[attr-defined]
        return max(bits if isinstance(bits, tuple) else (bits,)) > 8
    return image.mode.startswith('I')


def _is_other_format(path: str, image_format: str) -> bool:
    """Return whether the extension of a file is that of another image format than its content's."""
    Image.init()
    named = Image.registered_extensions().get(os.path.splitext(path)[1].lower())
    return named in picture.FORMATS and _ALIASES.get(named, named) != image_format


def failure_kind(reason: str) -> str:
    """Return the kind of failure of an image that could not be read for this reason."""
    return next((kind for text, kind in _FAILURES.items() if text in reason), 'other errors')
