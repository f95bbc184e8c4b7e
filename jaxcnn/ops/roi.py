"""Pooling of regions of interest (RoIs) of feature maps: RoIAlign, RoI max pooling and spatial pyramid pooling.

Feature maps are (..., H, W, C) and regions are boxes (..., R, 4), `x0, y0, x1, y1` in the coordinates of `ops.boxes`, with
the same leading axes. The leading axes are processed in a loop, which is faster on the CPU than `vmap`, and the regions in
parts of bounded memory. The results can be differentiated with respect to the features; they have no gradient with respect
to the boxes. A coordinate of NaN gives NaN in RoIAlign, and counts as 0 elsewhere.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.errors import UserError
from jaxcnn.ops.boxes import as_float, coordinates

MAX_PART = 1 << 21  # values of the result for the regions that are processed at a time
MAX_ROWS = 1 << 19  # values of the intermediate result of RoIAlign by matrix products
MAX_TABLES = 1 << 24  # values of the tables of maxima for the channels that are processed at a time
_Tree = Any  # an array, or a pytree of arrays of one shape
_Samples = tuple[jax.Array, jax.Array]  # points and weights
MAX_GATHERED_SAMPLES = 2  # RoIAlign with more samples per bin along an axis uses matrix products


def _over_images(pool: Callable[[jax.Array, jax.Array], jax.Array], features: jax.Array, regions: jax.Array) -> jax.Array:
    """Apply a function of (H, W, C) and (R, ...) to each image of (..., H, W, C) and (..., R, ...)."""
    lead = features.shape[:-3]
    if lead != regions.shape[:len(lead)]:
        raise UserError(f'the features {features.shape} and the regions {regions.shape} have different leading axes')
    if not lead:
        return pool(features, regions)
    pooled = lax.map(lambda image: pool(*image), (features.reshape(-1, *features.shape[-3:]),
                                                  regions.reshape(-1, *regions.shape[len(lead):])))
    return pooled.reshape(*lead, *pooled.shape[1:])


def _in_parts(arrays: _Tree, part: int) -> _Tree:
    """Pad arrays (R, ...) with zeros and reshape them to (parts, regions of a part, ...)."""
    count = len(jax.tree.leaves(arrays)[0])
    part = max(1, min(part, count))
    parts = -(-count // part)
    return jax.tree.map(lambda x: jnp.pad(x, [(0, parts * part - count)] + [(0, 0)] * (x.ndim - 1)).reshape(
        parts, part, *x.shape[1:]), arrays)


def _over_parts(pool: Callable[[jax.Array], jax.Array], regions: jax.Array, part: int) -> jax.Array:
    """Apply a function to `part` regions (R, ...) at a time, and compute it again for its gradient."""
    if len(regions) <= max(1, part):
        return pool(regions)
    pooled = lax.map(jax.checkpoint(pool), _in_parts(regions, part))
    return pooled.reshape(-1, *pooled.shape[2:])[:len(regions)]


def _samples(begin: jax.Array, end: jax.Array, size: int, side: int, sampling_ratio: int) -> _Samples:
    """Return the sampling points of RoIAlign along an axis.

    Args:
      begin: (R,), first coordinates of the regions on the feature map.
      end: (R,), last coordinates.
      size: number of bins.
      side: height or width of the feature map.
      sampling_ratio: samples per bin, or 0 for as many as there are pixels in the bin, rounded up.

    Returns:
      The points (R, size, samples), clipped to the centres of the pixels, and their weights, which add up to 1 in each bin
      unless points are outside the feature map.
    """
    bins = ((end - begin) / size)[:, None, None]
    most = sampling_ratio or side // size + 1
    samples = jnp.clip(jnp.ceil(bins), 0, most) if sampling_ratio == 0 else jnp.full_like(bins, sampling_ratio)
    index, safe = jnp.arange(most), jnp.maximum(samples, 1)
    points = begin[:, None, None] + jnp.arange(size)[:, None] * bins + (index + 0.5) * (bins / safe)
    is_inside = (points >= -1) & (points <= side) & (index < samples)
    return jnp.clip(points, 0, side - 1), jnp.where(is_inside, 1 / safe, 0)


def _align_by_gathering(features: jax.Array, y: _Samples, x: _Samples) -> jax.Array:
    """Add up the four neighbours of each sampling point.

    XLA fuses the sum into one loop, which reads whole rows of channels.
    """
    h, w, channels = features.shape

    def neighbors(points: jax.Array, weights: jax.Array, side: int) -> tuple[jax.Array, jax.Array]:
        lower = jnp.floor(points)
        fraction, lower = points - lower, lower.astype(jnp.int32)
        return (jnp.concatenate([lower, jnp.minimum(lower + 1, side - 1)], axis=-1),
                jnp.concatenate([(1 - fraction) * weights, fraction * weights], axis=-1))

    rows, row_weights = neighbors(*y, h)
    columns, column_weights = neighbors(*x, w)
    pixels = features.reshape(h * w, channels)
    total = jnp.zeros((), features.dtype)
    for i in range(rows.shape[-1]):
        for j in range(columns.shape[-1]):
            index = rows[:, :, None, i] * w + columns[:, None, :, j]
            weight = row_weights[:, :, None, i] * column_weights[:, None, :, j]
            total = total + weight[..., None] * pixels.at[index].get(mode='clip')
    return total


def _align_by_products(features: jax.Array, y: _Samples, x: _Samples) -> jax.Array:
    """Interpolate columns and then rows by matrix products."""
    h, w, channels = features.shape

    def matrix(points: jax.Array, weights: jax.Array, side: int) -> jax.Array:
        """Return the weights (R, bins, side) of the pixels in the mean of each bin."""
        distance = jnp.abs(points[..., None] - jnp.arange(side))
        return jnp.sum(jnp.maximum(1 - distance, 0) * weights[..., None], axis=2)

    rows, columns = matrix(*y, h), matrix(*x, w)
    multiply = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    strips = multiply('rqw,wk->rqk', columns, features.transpose(1, 0, 2).reshape(w, h * channels))
    return multiply('rph,rqhc->rpqc', rows, strips.reshape(*strips.shape[:2], h, channels))


@jax.named_scope('roi_align')
def roi_align(features: jax.Array, boxes: jax.Array, size: int, spatial_scale: float = 1.0, sampling_ratio: int = 2,
              aligned: bool = True) -> jax.Array:
    """Return the means of bilinear samples in the bins of each region (He et al. 2017, Mask R-CNN).

    An empty region gives 0 if the number of samples depends on its size, and otherwise the samples at its position. Samples
    more than a pixel outside the map are 0.

    Args:
      features: (..., H, W, C).
      boxes: (..., R, 4) in pixels of the image.
      size: number of bins along each axis.
      spatial_scale: pixels of the feature map per pixel of the image: 1 / stride.
      sampling_ratio: samples per bin along each axis; 0 for as many as the bin has pixels, rounded up (for a box larger than
        the feature map, as many as for one of its size).
      aligned: take the centres of pixels to be at half-integer coordinates, as is right for these boxes. False is the first
        published version, in which they are at integers and regions have sides of at least 1 pixel (torchvision's default).

    Returns:
      (..., R, size, size, C) in the type of `features`.
    """
    boxes = lax.stop_gradient(as_float(boxes))

    def align(features: jax.Array, boxes: jax.Array) -> jax.Array:
        h, w, channels = features.shape
        wide = as_float(features)
        by_gathering = 0 < sampling_ratio <= MAX_GATHERED_SAMPLES

        def pool(boxes: jax.Array) -> jax.Array:
            x0, y0, x1, y1 = coordinates(boxes) * spatial_scale - (0.5 if aligned else 0)
            if not aligned:
                x1, y1 = jnp.maximum(x1, x0 + 1), jnp.maximum(y1, y0 + 1)
            y, x = (_samples(begin, end, size, side, sampling_ratio) for begin, end, side in ((y0, y1, h), (x0, x1, w)))
            return (_align_by_gathering if by_gathering else _align_by_products)(wide, y, x)

        part = MAX_PART // (size ** 2 * channels) if by_gathering else MAX_ROWS // (size * h * channels)
        return _over_parts(pool, boxes, part).astype(features.dtype)
    return _over_images(align, features, boxes)


class _Maximum(NamedTuple):
    """Maxima, and the indices of their pixels in the feature map."""

    value: jax.Array
    pixel: jax.Array


def _largest_value(*values: jax.Array) -> jax.Array:
    return functools.reduce(jnp.maximum, values)


def _largest(*maxima: _Maximum) -> _Maximum:
    """Return the largest of some maxima; where several are equal, with the lowest index of a pixel."""
    value = _largest_value(*(maximum.value for maximum in maxima))
    no_pixel = jnp.iinfo(jnp.int32).max
    pixels = (jnp.where(maximum.value == value, maximum.pixel, no_pixel) for maximum in maxima)
    return _Maximum(value, functools.reduce(jnp.minimum, pixels))


def _max_tables(pixels: _Tree, rows: int, columns: int, combine: Callable[..., _Tree]) -> _Tree:
    """Return the maxima (levels of columns, levels of rows, H, W, C) of all windows whose sides are powers of 2.

    Args:
      pixels: (H, W, C).
      rows: largest height of a window that will be needed.
      columns: largest width of a window that will be needed.
      combine: returns the largest of several maxima.
    """
    def double(pixels: _Tree, axis: int, largest: int) -> _Tree:
        side = jax.tree.leaves(pixels)[0].shape[axis]

        def widen(table: _Tree, level: jax.Array) -> tuple[_Tree, _Tree]:
            following = jnp.minimum(jnp.arange(side) + (1 << level), side - 1)
            return combine(table, jax.tree.map(lambda x: jnp.take(x, following, axis, mode='clip'), table)), table

        # In a loop, XLA computes each table from the last one; otherwise it would compute each from the pixels.
        return lax.scan(widen, pixels, jnp.arange(largest.bit_length()))[1]
    return double(double(pixels, 0, rows), 2, columns)


class _WindowMaxima:
    """Looks up the maxima of the bins of windows of a feature map.

    The maximum of a bin is that of four windows with sides of powers of 2 that cover it.

    Args:
      pixels: the features (H, W, C), or with `combine=_largest` a `_Maximum` of them.
      smallest: smallest number of bins along an axis, which defines the largest bin.
      combine: returns the largest of several maxima.
    """

    def __init__(self, pixels: _Tree, smallest: int, combine: Callable[..., _Tree]):
        self.shape = h, w, channels = jax.tree.leaves(pixels)[0].shape
        self.largest, self.combine = _largest_bins(h, w, smallest), combine
        tables = _max_tables(pixels, *self.largest, combine)
        self.table = jax.tree.map(lambda x: x.reshape(-1, channels), tables)

    def __call__(self, windows: jax.Array, size: int) -> tuple[_Tree, jax.Array]:
        """Return the maxima (R, size ** 2, C) of the bins of windows, and which bins (R, size ** 2, 1) have pixels."""
        h, w, channels = self.shape
        x0, y0, x1, y1 = windows.T

        def cover(begin: jax.Array, end: jax.Array, side: int, largest: int) -> tuple:
            """Return the level, the positions of the two windows that cover each bin, and the bins that have pixels."""
            first, last = _bins(begin, end, size, side)
            level = sum(((last - first >= 1 << i) for i in range(1, largest.bit_length())), jnp.zeros_like(first))
            return level, jnp.minimum(first, side - 1), jnp.maximum(last - (1 << level), 0), last > first

        y_level, *y, has_rows = cover(y0, y1, h, self.largest[0])
        x_level, *x, has_columns = cover(x0, x1, w, self.largest[1])
        level = x_level[:, None, :] * self.largest[0].bit_length() + y_level[:, :, None]
        maxima = self.combine(*(
            jax.tree.map(lambda table, index=(level * h + row[:, :, None]) * w + column[:, None, :]:
                         table.at[index].get(mode='clip').reshape(-1, size ** 2, channels), self.table)
            for row in y for column in x))
        return maxima, (has_rows[:, :, None] & has_columns[:, None, :]).reshape(-1, size ** 2, 1)


def _largest_bins(height: int, width: int, smallest: int) -> tuple[int, int]:
    """Return the largest height and width of a bin if there are at least `smallest` of them along an axis.

    The bins of `side + 1` pixels have `(side + 1) / size`, rounded up, or one more where they begin within a pixel.
    """
    rows, columns = (min(side, -(-(side + 1) // smallest) + 1) for side in (height, width))
    return rows, columns


def _bins(begin: jax.Array, end: jax.Array, size: int, side: int) -> tuple[jax.Array, jax.Array]:
    """Return the first and the end pixels (R, size) of the bins of windows (R,) along an axis, clipped to the map."""
    length, index = (end - begin)[:, None], jnp.arange(size)
    return (jnp.clip(begin[:, None] + index * length // size, 0, side),
            jnp.clip(begin[:, None] - (-(index + 1) * length) // size, 0, side))


def _over_channels(pool: Callable[..., jax.Array], smallest: int, *arrays: jax.Array) -> jax.Array:
    """Apply a function of (H, W, C) and (R, B, C) to groups of channels whose tables of maxima have a bounded size."""
    h, w, channels = arrays[0].shape
    rows, columns = _largest_bins(h, w, smallest)
    largest = MAX_TABLES // (rows.bit_length() * columns.bit_length() * h * w)
    groups = next(n for n in range(1, channels + 1) if channels % n == 0 and (channels // n <= largest or n == channels))
    if groups == 1:
        return pool(*arrays)
    pooled = lax.map(lambda group: pool(*group), tuple(
        jnp.moveaxis(x.reshape(*x.shape[:2], groups, -1), 2, 0) for x in arrays))
    return jnp.moveaxis(pooled, 0, 2).reshape(*pooled.shape[1:3], channels)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _pool_windows(features: jax.Array, windows: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
    """Return the maxima of the bins of windows of a feature map.

    The gradient of JAX would add to all tables of maxima. This one adds to the pixel of each maximum.

    Args:
      features: (H, W, C).
      windows: (R, 4) int32, x0, y0 and the ends x1, y1; none is larger than the feature map by more than a pixel.
      sizes: numbers of bins along each axis; the results of all of them are concatenated.

    Returns:
      (R, sum of size ** 2, C); 0 for empty bins.
    """
    def pool(features: jax.Array) -> jax.Array:
        maxima = _WindowMaxima(features, min(sizes), _largest_value)

        def lookup(windows: jax.Array, size: int) -> jax.Array:
            values, exists = maxima(windows, size)
            return jnp.where(exists, values, 0)

        return jnp.concatenate([
            _over_parts(functools.partial(lookup, size=size), windows, MAX_PART // (size ** 2 * features.shape[-1]))
            for size in sizes], axis=1)
    return _over_channels(pool, min(sizes), features)


def _pool_windows_forward(features: jax.Array, windows: jax.Array, sizes: tuple[int, ...]) -> tuple:
    return _pool_windows(features, windows, sizes), (features, windows)


def _pool_windows_backward(sizes: tuple[int, ...], saved: tuple, g: jax.Array) -> tuple:
    def gradient(features: jax.Array, g: jax.Array) -> jax.Array:
        h, w, channels = features.shape
        pixel = jnp.broadcast_to(jnp.arange(h * w, dtype=jnp.int32).reshape(h, w, 1), features.shape)
        maxima = _WindowMaxima(_Maximum(features, pixel), min(sizes), _largest)
        total, first = jnp.zeros(h * w * channels, g.dtype), 0
        for size in sizes:
            def pixels(windows: jax.Array, size: int = size) -> jax.Array:
                maximum, exists = maxima(windows, size)
                index = maximum.pixel * channels + jnp.arange(channels)
                return jnp.where(exists & (maximum.pixel < h * w), index, h * w * channels)  # nothing is added there

            def add(total: jax.Array, part: tuple) -> tuple[jax.Array, None]:
                return total.at[part[0]].add(part[1]), None

            # Two loops, because XLA would compute the pixels element by element while it adds to them.
            part = MAX_PART // (size ** 2 * channels)
            indices = _over_parts(pixels, windows, part)
            total = lax.scan(add, total, _in_parts((indices, g[:, first:first + size ** 2]), part))[0]
            first += size ** 2
        return total.reshape(features.shape)
    features, windows = saved
    return _over_channels(gradient, min(sizes), features, g), None


_pool_windows.defvjp(_pool_windows_forward, _pool_windows_backward)


@jax.named_scope('roi_max_pool')
def roi_max_pool(features: jax.Array, boxes: jax.Array, size: int, spatial_scale: float = 1.0) -> jax.Array:
    """Return the maxima of the bins of each region, whose coordinates are rounded to pixels (Girshick 2015, Fast R-CNN).

    As in the paper's code, a region contains the pixels of both of its rounded corners, neighbouring bins may share pixels,
    and an empty bin gives 0. Boxes are clipped to the feature map. Of values that tie for a maximum, the first one by rows
    gets its gradient.

    Args:
      features: (..., H, W, C).
      boxes: (..., R, 4) in pixels of the image.
      size: number of bins along each axis.
      spatial_scale: pixels of the feature map per pixel of the image: 1 / stride.

    Returns:
      (..., R, size, size, C) in the type of `features`.
    """
    h, w = features.shape[-3:-1]
    rounded = jnp.floor(as_float(boxes) * spatial_scale + 0.5)
    rounded = jnp.clip(jnp.nan_to_num(rounded), 0, jnp.asarray([w, h, w, h])).astype(jnp.int32)
    low, high = rounded[..., :2], rounded[..., 2:]
    windows = jnp.concatenate([low, jnp.maximum(high, low) + 1], axis=-1)
    pooled = _over_images(functools.partial(_pool_windows, sizes=(size,)), as_float(features), windows)
    return pooled.reshape(*pooled.shape[:-2], size, size, pooled.shape[-1]).astype(features.dtype)


def response_geometry(layers: Sequence[tuple[int, int, int]]) -> tuple[int, float]:
    """Return the distance between the centres of neighbouring receptive fields, and the centre of the first.

    Args:
      layers: kernel size, stride and padding of each convolution and pooling, in their order.

    Returns:
      `stride` and `first_center` for `map_to_features`, in pixels; the centre of the first pixel of the image is 0.5.
    """
    stride, first_center = 1, 0.5
    for kernel, layer_stride, padding in layers:
        first_center += ((kernel - 1) / 2 - padding) * stride
        stride *= layer_stride
    return stride, first_center


def map_to_features(boxes: jax.Array, shape: Sequence[int], stride: int, first_center: float = 0.5) -> jax.Array:
    """Return the windows of a feature map that correspond to regions of the image (He et al. 2014, SPP-Net, appendix A).

    A window contains the responses whose receptive fields have their centres inside the region. For a region without such a
    response, it is the response between its edges.

    Args:
      boxes: (..., 4) in pixels of the image.
      shape: height and width of the feature map.
      stride: distance between the centres of the receptive fields, in pixels: the product of all strides.
      first_center: centre of the first receptive field; 0.5, that of the first pixel, if each layer with a kernel of size k
        is padded by floor(k / 2). See `response_geometry`.

    Returns:
      (..., 4) int32: the first responses x0, y0 and the ends x1, y1, at least one response.
    """
    positions = jnp.nan_to_num((as_float(boxes) - first_center) / stride)
    sides = jnp.asarray(tuple(shape)[::-1])
    # The clipping bounds values before they are converted to integers; the second one is to the feature map.
    positions = jnp.clip(positions, -1, jnp.concatenate([sides] * 2) + 1)
    begin = jnp.floor(positions[..., :2]).astype(jnp.int32) + 1
    end = jnp.ceil(positions[..., 2:]).astype(jnp.int32)
    nearest = (begin + end - 1) // 2
    begin, end = jnp.where(end > begin, begin, nearest), jnp.where(end > begin, end, nearest + 1)
    begin = jnp.clip(begin, 0, sides - 1)
    return jnp.concatenate([begin, jnp.clip(end, begin + 1, sides)], axis=-1)


@jax.named_scope('spatial_pyramid_pool')
def spatial_pyramid_pool(features: jax.Array, boxes: jax.Array, stride: int, first_center: float = 0.5,
                         levels: Sequence[int] = (1, 2, 3, 6)) -> jax.Array:
    """Return the maxima of each region in the bins of a spatial pyramid (He et al. 2014, SPP-Net).

    Regions are mapped to the feature map by `map_to_features`. Bins begin with the pixel that contains their first edge and
    end with that of their last, so none is empty.

    Args:
      features: (..., H, W, C).
      boxes: (..., R, 4) in pixels of the image.
      stride: of the feature map.
      first_center: of `map_to_features`.
      levels: numbers of bins along each axis; the default has 50 bins.

    Returns:
      (..., R, sum of level ** 2, C) in the type of `features`: the levels in their order, and the bins of each by rows.
    """
    windows = map_to_features(boxes, features.shape[-3:-1], stride, first_center)
    return _over_images(functools.partial(_pool_windows, sizes=tuple(levels)), as_float(features), windows).astype(
        features.dtype)
