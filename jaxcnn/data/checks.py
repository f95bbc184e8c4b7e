"""Checks of images, labels and class names in arrays that users pass. Errors contain code that converts the array."""

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcnn.errors import UserError

_CHANNELS = (1, 3, 4)  # lengths by which the channel axis of grey, RGB and RGBA images is recognised
# by orders of axes that are recognised, given as the axes that become (N, H, W, C), the code that transposes an array
_TRANSPOSES = {(0, 1, 2, 3): '', (0, 2, 3, 1): '.transpose(0, 2, 3, 1)', (3, 0, 1, 2): '.transpose(3, 0, 1, 2)'}


def check_images(name: str, images: Any, shape: Sequence[int] | None = None, resize_mode: str = 'crop') -> np.ndarray:
    """Return images as the data pipeline expects them.

    Args:
      name: the name of the array, for errors and for the conversion in their hints.
      images: uint8 (N, H, W, C), or (N, H, W) if C is 1; an array, or whatever NumPy converts to one.
      shape: the shape (H, W, C) that the images must have. Without it, C must be 1 or 3.
      resize_mode: `config.data.resize`, for the conversion.

    Returns:
      uint8 (N, H, W, C).

    Raises:
      UserError: the array has another type, rank, number of channels or size. The hint gives a conversion if there is one.
    """
    try:
        array = np.asarray(images)
    except (ValueError, TypeError, RuntimeError) as e:  # a ragged list; a tensor with gradients or on another device
        raise UserError(f'{name} does not form one array: {" ".join(str(e).split())[:200]}') from e
    is_grey = array.ndim == 3 and (shape is None or (shape[-1] == 1 and array.shape != tuple(shape)))
    x = array[..., None] if is_grey else array
    has_shape = x.shape[1:] == tuple(shape) if shape else x.shape[-1:] in ((1,), (3,))
    if x.dtype == np.uint8 and x.ndim == 4 and has_shape:
        return x
    expected = '(N, {}, {}, {})'.format(*shape) if shape else '(N, H, W), (N, H, W, 1) or (N, H, W, 3)'
    values = ''
    if x.size and x.dtype.kind in 'fiu' and x.dtype != np.uint8:
        values = f' with values from {x.min():g} to {x.max():g}'
    raise UserError(f'{name} must be uint8 {expected}, got {array.dtype} {array.shape}{values}',
                    hint=_conversion_hint(name, array, shape, resize_mode))


def _conversion_hint(name: str, x: np.ndarray, shape: Sequence[int] | None, resize_mode: str) -> str:
    """Return the hint with the code that converts an array to images, or with the reason why there is none."""
    if x.dtype.kind not in 'fiub':
        return 'it must hold the values of pixels'
    height, width, channels = shape or (0, 0, 0)
    if x.ndim == 2 and channels == 1 and x.shape[1] == height * width:  # of RGB pixels the order would be unknown
        code, size = f'{name}.reshape(-1, {height}, {width}, 1)', (height, width, channels)
    else:
        code, x = _add_axes(name, x, shape)
        if x.ndim != 4:
            return f'images have 3 or 4 axes, and this array has {x.ndim}; are images and labels swapped?'
        sizes = {order: tuple(x.shape[axis] for axis in order[1:]) for order in _TRANSPOSES}  # (H, W, C)
        fitting = [order for order in sizes if shape and sizes[order] == tuple(shape)]
        plausible = [order for order in sizes if sizes[order][-1] in _CHANNELS]
        if not fitting and not plausible:
            return f'no axis of NHWC, NCHW or HWCN images is a channel axis of length {channels or "1 or 3"}'
        order = [*fitting, *plausible][0]
        code, size = code + _TRANSPOSES[order], sizes[order]
    is_weighted = False
    if size[-1] == 4 != channels:  # the alpha channel is dropped
        code, size = f'{code}[..., :3]', (*size[:2], 3)
    if channels == 3 and size[-1] == 1:
        code = f'{code}.repeat(3, -1)'
    elif channels == 1 and size[-1] == 3:
        code, is_weighted = f'({code} @ [0.299, 0.587, 0.114])[..., None]', True
    pixels = _pixels_code(code, x, is_weighted)
    if pixels is None:
        return 'pass the pixels from 0 to 255, as they were before any normalisation, which jaxcnn does itself'
    if shape and size[:2] != (height, width):
        resized = f'jaxcnn.data.resizing.resize(image, ({height}, {width}), {resize_mode!r})'
        pixels = f'np.stack([{resized} for image in {pixels}])'
    return f'convert with {pixels}' if pixels != name else 'its last axis must hold the channels'


def _add_axes(code: str, x: np.ndarray, shape: Sequence[int] | None) -> tuple[str, np.ndarray]:
    """Add the axes that an array lacks, if it holds grey images or a single image, to the array and to its code."""
    height, width, channels = shape or (0, 0, 0)
    if x.ndim == 2 and channels == 1:  # one image (H, W)
        return f'{code}[None, ..., None]', x[None, ..., None]
    if x.ndim != 3:
        return code, x
    if not shape:  # grey images, to which check_images adds the axis
        return code, x[..., None]
    if x.shape[1:] == (height, width) and len(x) != channels:  # grey images
        return f'{code}[..., None]', x[..., None]
    return f'{code}[None]', x[None]  # one image (H, W, C) or (C, H, W)


def _pixels_code(code: str, x: np.ndarray, is_weighted: bool) -> str | None:
    """Return the code that converts values to uint8 pixels, or None if their range is not recognised.

    Args:
      code: an expression.
      x: the values of the expression.
      is_weighted: whether the expression is a weighted mean over the channels of `x`, which is not a whole number.
    """
    if x.dtype == np.uint8:
        return f'{code}.round().astype(np.uint8)' if is_weighted else code
    if x.dtype == bool:
        return f'(255 * {code}).astype(np.uint8)'
    minimum, maximum = (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)
    is_integer = x.dtype.kind in 'iu'
    if is_integer and minimum >= 0 and maximum <= 255:
        return f'{code}.round().astype(np.uint8)' if is_weighted else f'{code}.astype(np.uint8)'
    if x.dtype == np.uint16:
        return f'({code} / 257).round().astype(np.uint8)'
    if is_integer:
        return None
    for low, high, scaled in ((0, 1, f'(255 * {code})'), (-1, 1, f'(127.5 * ({code} + 1))'), (0, 255, code)):
        if low <= minimum and maximum <= high:
            return f'{scaled}.round().astype(np.uint8)'
    return None


def check_labels(name: str, labels: np.ndarray, count: int) -> np.ndarray:
    """Return the labels of images that have one class each.

    Args:
      name: the name of the array, for errors and for the conversion in their hints.
      labels: integers (N,) or, as in Keras's CIFAR data sets, (N, 1).
      count: N, the number of images.

    Returns:
      (N,) of the same type.

    Raises:
      UserError: the array has another shape or type. The hint gives a conversion.
    """
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.shape == (count,) and flat.dtype.kind in 'iu':
        return flat
    if flat.ndim == 2 and len(flat) == count:
        hint = (f"config.task='multilabel' takes several classes for each image; convert one-hot labels with "
                f'{name}.argmax(1)')
    elif flat.shape != (count,):
        hint = None
    elif flat.dtype.kind == 'b' or (flat.dtype.kind == 'f' and (flat == np.round(flat)).all()):
        hint = f'convert with {name}.astype(np.int64)'
    else:
        hint = number_classes(name)
    raise UserError(f'{name} must be {count} integers, which number the classes from 0, got {labels.dtype} {labels.shape}',
                    hint=hint)


def check_label_sets(name: str, labels: np.ndarray, count: int) -> np.ndarray:
    """Return the labels of images that have any number of classes each.

    Args:
      name: the name of the array, for errors.
      labels: zeros and ones (N, classes).
      count: N, the number of images.

    Returns:
      uint8 (N, classes).

    Raises:
      UserError: the array has another shape or other values.
    """
    if labels.ndim != 2 or len(labels) != count or labels.dtype.kind not in 'biuf':
        hint = "config.task='classification' takes one class for each image" if labels.shape == (count,) else None
        raise UserError(f'{name} must be 0 and 1, ({count}, classes), got {labels.dtype} {labels.shape}', hint=hint)
    if labels.size and not np.isin(labels, (0, 1)).all():
        image, label = (int(i[0]) for i in np.nonzero(~np.isin(labels, (0, 1))))
        raise UserError(f'{name} must be 0 and 1, got {labels[image, label]} for image {image} and class {label}')
    return labels.astype(np.uint8)


def number_classes(name: str) -> str:
    """Return the hint that says how to convert labels of another type to class numbers, for all splits alike."""
    return (f'number the classes with {name} = np.searchsorted(class_names, {name}), where class_names = np.unique(labels) '
            'of the labels of all splits')


def check_class_names(names: np.ndarray) -> list[str]:
    """Return class names, in the order of their labels, as strings.

    Args:
      names: (classes,) strings, UTF-8 bytes or numbers.

    Raises:
      UserError: the array has another rank, a name is not UTF-8, or two classes have the same name.
    """
    if names.ndim != 1:
        raise UserError(f'class_names must be one name for each class, got an array of shape {names.shape}')
    try:
        texts = [name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist()]
    except UnicodeDecodeError as e:
        raise UserError(f'class_names must be strings, or bytes in UTF-8, got {e.object!r}') from e
    labels: dict[str, int] = {}
    for label, text in enumerate(texts):
        first_label = labels.setdefault(unicodedata.normalize('NFC', text), label)
        if first_label != label:
            raise UserError(f'class_names: classes {first_label} and {label} are both called {text!r}; names must differ')
    return texts
