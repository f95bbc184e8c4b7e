"""Checks of the arrays that people hand over, in a file or from Python: what is wrong with one, and how to convert it."""

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcnn.errors import UserError

_CHANNELS = (1, 3, 4)  # of grey, RGB and RGBA images: the length by which an axis of channels is recognised


def check_images(name: str, images: Any, shape: Sequence[int] | None = None, how: str = 'crop') -> np.ndarray:
    """Images as the data pipeline takes them.

    Args:
      name: of the array, for the message and for the conversion that the message proposes.
      images: uint8 (N, H, W, C), or (N, H, W) where C is 1; an array, or what NumPy makes an array of.
      shape: (H, W, C) that the images must have; without it, C must be 1 or 3.
      how: `config.data.resize`, for the conversion.

    Returns:
      uint8 (N, H, W, C).

    Raises:
      UserError: another dtype, rank, number of channels or size; the message holds the conversion, where there is one.
    """
    try:
        x = np.asarray(images)
    except (ValueError, TypeError, RuntimeError) as e:  # a ragged list; a tensor with gradients or on another device
        raise UserError(f'{name} cannot be made into one array: {" ".join(str(e).split())[:200]}') from e
    if x.ndim == 3 and (shape is None or (shape[-1] == 1 and x.shape != tuple(shape))):
        x = x[..., None]
    fits = x.shape[1:] == tuple(shape) if shape else x.shape[-1:] in ((1,), (3,))
    if x.dtype == np.uint8 and x.ndim == 4 and fits:
        return x
    got = np.asarray(images)
    wanted = '(N, {}, {}, {})'.format(*shape) if shape else '(N, H, W), (N, H, W, 1) or (N, H, W, 3)'
    values = ''
    if x.size and x.dtype.kind in 'fiu' and x.dtype != np.uint8:
        values = f' with values from {x.min():g} to {x.max():g}'
    raise UserError(f'{name} must be uint8 {wanted}, got {got.dtype} {got.shape}{values}; {_advice(name, got, shape, how)}')


def _advice(name: str, x: np.ndarray, shape: Sequence[int] | None, how: str) -> str:
    """How to make images of an array that is none."""
    if x.dtype.kind not in 'fiub':
        return 'it must hold the values of pixels'
    height, width, channels = shape or (0, 0, 0)
    code = name
    if x.ndim == 2 and shape and channels == 1 and x.shape[1] == height * width:  # of colours, the order is unknown
        code, size = f'{code}.reshape(-1, {height}, {width}, 1)', tuple(shape)
    else:
        if x.ndim == 2 and channels == 1:  # one image (H, W)
            code, x = f'{code}[None, ..., None]', x[None, ..., None]
        elif x.ndim == 3 and not shape:  # grey images, which need no further axis
            x = x[..., None]
        elif x.ndim == 3 and x.shape[1:] == (height, width) and len(x) != channels:  # grey images
            code, x = f'{code}[..., None]', x[..., None]
        elif x.ndim == 3:  # one image (H, W, C) or (C, H, W)
            code, x = f'{code}[None]', x[None]
        if x.ndim != 4:
            return f'images have 3 or 4 axes, and this has {x.ndim}; are images and labels exchanged?'
        orders = {(0, 1, 2, 3): '', (0, 2, 3, 1): '.transpose(0, 2, 3, 1)', (3, 0, 1, 2): '.transpose(3, 0, 1, 2)'}
        sizes = {order: tuple(x.shape[axis] for axis in order[1:]) for order in orders}
        order = next((o for o in orders if shape and sizes[o] == tuple(shape)),
                     next((o for o in orders if sizes[o][-1] in _CHANNELS), None))
        if order is None:
            return f'no axis of channels, of length {channels or "1 or 3"}, is where NHWC, NCHW or HWCN has it'
        code, size = code + orders[order], sizes[order]
    weighted = False
    if size[-1] == 4 != channels:
        code, size = f'{code}[..., :3]', (*size[:2], 3)
    if channels == 3 and size[-1] == 1:
        code = f'{code}.repeat(3, -1)'
    elif channels == 1 and size[-1] == 3:
        code, weighted = f'({code} @ [0.299, 0.587, 0.114])[..., None]', True
    pixels = _pixels(code, x, weighted)
    if pixels is None:
        return 'pass the pixels from 0 to 255, as they were before any normalisation, which is done here'
    if shape and size[:2] != (height, width):
        pixels = f'np.stack([jaxcnn.data.cache.resize(image, ({height}, {width}), {how!r}) for image in {pixels}])'
    return f'convert with {pixels}' if pixels != name else 'its last axis must hold the channels'


def _pixels(code: str, x: np.ndarray, weighted: bool) -> str | None:
    """An expression that makes the values of `code`, those of `x`, uint8 pixels; None where their range is unknown.

    `weighted`: the values of `code` are means over channels.
    """
    if x.dtype == np.uint8:
        return f'{code}.round().astype(np.uint8)' if weighted else code
    if x.dtype == bool:
        return f'(255 * {code}).astype(np.uint8)'
    least, most = (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)
    whole = x.dtype.kind in 'iu'
    if whole and least >= 0 and most <= 255:
        return f'{code}.round().astype(np.uint8)' if weighted else f'{code}.astype(np.uint8)'
    if x.dtype == np.uint16:
        return f'({code} / 257).round().astype(np.uint8)'
    for low, high, scaled in ((0, 1, f'(255 * {code})'), (-1, 1, f'(127.5 * ({code} + 1))'), (0, 255, code)):
        if not whole and low <= least and most <= high:
            return f'{scaled}.round().astype(np.uint8)'
    return None


def check_labels(name: str, labels: np.ndarray, count: int) -> np.ndarray:
    """Labels of `count` images.

    Args:
      name: of the array, as in `check_images`.
      labels: whole numbers (N,) or (N, 1), as Keras has CIFAR's.
      count: N.

    Returns:
      (N,) of the dtype that they have.

    Raises:
      UserError: they are not so many, or no whole numbers; the message holds the conversion.
    """
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.shape == (count,) and flat.dtype.kind in 'iu':
        return flat
    if flat.ndim == 2 and len(flat) == count:
        advice = (f'; config.task=multilabel takes several classes for each image; convert one-hot labels '
                  f'with {name}.argmax(1)')
    elif flat.shape != (count,):
        advice = ''
    elif flat.dtype.kind == 'b' or (flat.dtype.kind == 'f' and (flat == np.round(flat)).all()):
        advice = f'; convert with {name}.astype(np.int64)'
    else:
        advice = f'; {number_classes(name)}'
    raise UserError(f'{name} must be {count} integers, which number the classes from 0, got {labels.dtype} {labels.shape}'
                    f'{advice}')


def check_label_sets(name: str, labels: np.ndarray, count: int) -> np.ndarray:
    """Check the labels of `count` images of any number of classes each.

    Args:
      name: of the array, as in `check_images`.
      labels: 0 and 1, (N, classes).
      count: N.

    Returns:
      uint8 (N, classes).

    Raises:
      UserError: The array has another shape or other values.
    """
    if labels.ndim != 2 or len(labels) != count or labels.dtype.kind not in 'biuf':
        hint = '; config.task=classification takes one class for each image' if labels.shape == (count,) else ''
        raise UserError(f'{name} must be 0 and 1, ({count}, classes), got {labels.dtype} {labels.shape}{hint}')
    if labels.size and not np.isin(labels, (0, 1)).all():
        image, label = (int(i[0]) for i in np.nonzero(~np.isin(labels, (0, 1))))
        raise UserError(f'{name} must be 0 and 1, got {labels[image, label]} for image {image} and class {label}')
    return labels.astype(np.uint8)


def number_classes(name: str) -> str:
    """How to number classes that labels do not number, in each part alike."""
    return (f'number the classes with {name} = np.searchsorted(class_names, {name}), where class_names = '
            'np.unique(labels) of the labels of all parts')


def check_class_names(names: np.ndarray) -> list[str]:
    """Class names, in the order of their labels, of strings, UTF-8 bytes or numbers (classes,).

    Raises:
      UserError: another rank, bytes that are not UTF-8, or one name of two classes.
    """
    if names.ndim != 1:
        raise UserError(f'class_names must be one name for each class, got an array of shape {names.shape}')
    try:
        texts = [name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist()]
    except UnicodeDecodeError as e:
        raise UserError(f'class_names must be strings, or bytes in UTF-8, got {e.object!r}') from e
    first: dict[str, int] = {}
    for label, text in enumerate(texts):
        if (other := first.setdefault(unicodedata.normalize('NFC', text), label)) != label:
            raise UserError(f'class_names: classes {other} and {label} are both called {text!r}; names must differ')
    return texts
