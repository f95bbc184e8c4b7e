"""Pooling of regions of interest (RoIs) of feature maps: RoIAlign, RoI max pooling and spatial pyramid pooling.

Feature maps are (..., H, W, C) and regions are boxes (..., R, 4), `x0, y0, x1, y1` in the coordinates of `ops.boxes`, with
the same leading axes. The leading axes are processed in a loop, which is faster on the CPU than `vmap`, and the regions in
parts of bounded memory. The results can be differentiated with respect to the features; they have no gradient with respect
to the boxes. A coordinate of NaN gives NaN in RoIAlign, and counts as 0 elsewhere.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcnn.errors import UserError
from jaxcnn.ops import region_parts
from jaxcnn.ops.boxes import area, as_float, coordinates
from jaxcnn.ops.region_parts import in_parts, over_images, over_parts
from jaxcnn.ops.window_maxima import pool_windows

MAX_ROWS = 1 << 19  # values of the intermediate result of RoIAlign by matrix products
_Samples = tuple[jax.Array, jax.Array]  # points and weights
_Side = int | jax.Array  # height or width of the feature map, or those (R, 1, 1) of the feature maps of the regions
MAX_GATHERED_SAMPLES = 2  # RoIAlign with more samples per bin along an axis uses matrix products


def _samples(begin: jax.Array, end: jax.Array, size: int, side: _Side, sampling_ratio: int) -> _Samples:
    """Return the sampling points of RoIAlign along an axis.

    Args:
      begin: (R,), first coordinates of the regions on the feature map.
      end: (R,), last coordinates.
      size: number of bins.
      side: height or width of the feature map, or of that of each region if `sampling_ratio` is above 0.
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


class _Neighbors(NamedTuple):
    """The pixels next to the sampling points, along both axes.

    Attributes:
      rows: (R, size, 2 * samples) int32, index of the first pixel of the row.
      columns: (R, size, 2 * samples) int32, position of the pixel in its row.
      row_weights, column_weights: of the same shapes; a pixel counts with the product of the two.
    """

    rows: jax.Array
    columns: jax.Array
    row_weights: jax.Array
    column_weights: jax.Array

    @classmethod
    def of_samples(cls, y: _Samples, x: _Samples, height: _Side, width: _Side, first: _Side = 0) -> '_Neighbors':
        """Return the neighbours of samples along y and x on a feature map that begins with the pixel `first`."""
        def along_axis(points: jax.Array, weights: jax.Array, side: _Side) -> tuple[jax.Array, jax.Array]:
            lower = jnp.floor(points)
            fraction, lower = points - lower, lower.astype(jnp.int32)
            return (jnp.concatenate([lower, jnp.minimum(lower + 1, side - 1)], axis=-1),
                    jnp.concatenate([(1 - fraction) * weights, fraction * weights], axis=-1))
        rows, row_weights = along_axis(*y, height)
        columns, column_weights = along_axis(*x, width)
        return cls(rows * width + first, columns, row_weights, column_weights)

    def pair(self, i: int | jax.Array, j: int | jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the indices (R, size, size) and the weights (R, size, size, 1) of neighbours i along y and j along x."""
        rows, row_weights = (lax.dynamic_index_in_dim(a, i, 2) for a in (self.rows, self.row_weights))
        columns, column_weights = (lax.dynamic_index_in_dim(a, j, 2).swapaxes(1, 2)
                                   for a in (self.columns, self.column_weights))
        return rows + columns, (row_weights * column_weights)[..., None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _gather(pixels: jax.Array, neighbors: _Neighbors, part: int) -> jax.Array:
    """Return the weighted sums (R, size, size, C) of the neighbours of the samples in each bin.

    XLA fuses the sum into one loop, which reads whole rows of channels. The gradient of JAX would have an array of the size
    of all pixels for each neighbour; this one adds to a single array.

    Args:
      pixels: (P, C), those of the feature map by rows, or of several feature maps one after the other.
      neighbors: of R regions.
      part: number of regions that are processed at a time.
    """
    def pool(neighbors: _Neighbors) -> jax.Array:
        count, total = neighbors.rows.shape[-1], jnp.zeros((), pixels.dtype)
        for i, j in np.ndindex(count, count):
            index, weight = neighbors.pair(i, j)
            total = total + weight * pixels.at[index].get(mode='clip')
        return total
    return over_parts(pool, neighbors, part)


def _gather_forward(pixels: jax.Array, neighbors: _Neighbors, part: int) -> tuple:
    return _gather(pixels, neighbors, part), (pixels[:, :0], neighbors)


def _gather_backward(part: int, saved: tuple, g: jax.Array) -> tuple:
    without_channels, neighbors = saved
    count = neighbors.rows.shape[-1]

    def add_part(total: jax.Array, regions: tuple) -> tuple[jax.Array, None]:
        neighbors, g = regions

        def add(total: jax.Array, pair: jax.Array) -> tuple[jax.Array, None]:
            index, weight = neighbors.pair(pair // count, pair % count)
            return total.at[index].add(weight * g, mode='clip'), None
        return lax.scan(add, total, jnp.arange(count ** 2))
    zeros = jnp.zeros((len(without_channels), g.shape[-1]), g.dtype)
    return lax.scan(add_part, zeros, in_parts((neighbors, g), part))[0], None


_gather.defvjp(_gather_forward, _gather_backward)


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

        def samples(boxes: jax.Array) -> tuple[_Samples, _Samples]:
            return _samples_of_boxes(coordinates(boxes) * spatial_scale, size, h, w, sampling_ratio, aligned)

        def pool(boxes: jax.Array) -> jax.Array:
            return _align_by_products(wide, *samples(boxes))

        if 0 < sampling_ratio <= MAX_GATHERED_SAMPLES:
            neighbors = _Neighbors.of_samples(*samples(boxes), h, w)
            part = region_parts.MAX_PART // (size ** 2 * channels)
            pooled = _gather(wide.reshape(h * w, channels), neighbors, part)
        else:
            pooled = over_parts(pool, boxes, MAX_ROWS // (size * h * channels))
        return pooled.astype(features.dtype)
    return over_images(align, features, boxes)


def _samples_of_boxes(coordinates: jax.Array, size: int, height: _Side, width: _Side, sampling_ratio: int,
                      aligned: bool) -> tuple[_Samples, _Samples]:
    """Return the sampling points along y and x of boxes whose coordinates (4, R) on the feature map are given."""
    x0, y0, x1, y1 = coordinates - (0.5 if aligned else 0)
    if not aligned:
        x1, y1 = jnp.maximum(x1, x0 + 1), jnp.maximum(y1, y0 + 1)
    return _samples(y0, y1, size, height, sampling_ratio), _samples(x0, x1, size, width, sampling_ratio)


def pyramid_level(boxes: jax.Array, smallest: int, largest: int, canonical_size: float = 224,
                  canonical_level: int = 4) -> jax.Array:
    """Return the level of a feature pyramid from which each box is pooled (Lin et al. 2017, FPN, equation 1).

    It is `canonical_level + log2(sqrt(area) / canonical_size)`, rounded down.

    Args:
      boxes: (..., 4) in pixels of the image.
      smallest: lowest level, for small boxes; the stride of level k is `2 ** k`.
      largest: highest level.
      canonical_size: side of a square box on `canonical_level`; the default is the size of the images of ImageNet.
      canonical_level: its level.

    Returns:
      (...) int32; `smallest` for empty boxes and NaN.
    """
    sides = jnp.nan_to_num(jnp.sqrt(area(boxes)), posinf=jnp.inf) / canonical_size
    level = jnp.floor(canonical_level + jnp.log2(sides) + 1e-6)  # as in Detectron and torchvision
    return jnp.clip(level, smallest, largest).astype(jnp.int32)


def _level_indices(boxes: jax.Array, strides: Sequence[int], count: int, canonical_size: float,
                   canonical_level: int) -> jax.Array:
    """Return the index among `count` feature maps of that from which each box is pooled; see `pyramid_level`.

    Raises:
      UserError: The strides are no powers of 2 that follow each other, or there is not one for each map.
    """
    first = int(math.log2(strides[0]))
    if list(strides) != [2 ** (first + i) for i in range(count)]:
        raise UserError(f'{count} levels of a pyramid need strides such as 4, 8, 16, each twice the one before, got '
                        f'{tuple(strides)}')
    return pyramid_level(boxes, first, first + count - 1, canonical_size, canonical_level) - first


@jax.named_scope('multilevel_roi_align')
def multilevel_roi_align(maps: Sequence[jax.Array], boxes: jax.Array, strides: Sequence[int], size: int,
                         sampling_ratio: int = 2, aligned: bool = True, canonical_size: float = 224,
                         canonical_level: int = 4) -> jax.Array:
    """Return RoIAlign of each region from one level of a feature pyramid (Lin et al. 2017, FPN).

    It costs about as much as `roi_align` from one level, as each region reads the pixels of its level only.

    Args:
      maps: (..., H, W, C) of each level, from the finest to the coarsest.
      boxes: (..., R, 4) in pixels of the image.
      strides: of the levels; each is twice the one before.
      size: number of bins along each axis.
      sampling_ratio: samples per bin along each axis, at least 1.
      aligned: see `roi_align`; torchvision's `MultiScaleRoIAlign` has False.
      canonical_size, canonical_level: see `pyramid_level`.

    Returns:
      (..., R, size, size, C) in the type of the maps.

    Raises:
      UserError: The strides are no powers of 2 that follow each other, or there is not one for each map.
    """
    if sampling_ratio < 1:
        raise UserError(f'RoIAlign from several levels needs a sampling_ratio of at least 1, got {sampling_ratio}')
    channels, boxes = maps[0].shape[-1], lax.stop_gradient(as_float(boxes))
    shapes = [x.shape[-3:-1] for x in maps]
    first_pixels = [0, *itertools.accumulate(h * w for h, w in shapes)][:-1]
    scales = jnp.asarray([1 / stride for stride in strides], jnp.float32)
    table = jnp.asarray([[h, w, first] for (h, w), first in zip(shapes, first_pixels, strict=True)], jnp.int32)

    def align(pixels: jax.Array, boxes: jax.Array) -> jax.Array:
        level = _level_indices(boxes, strides, len(maps), canonical_size, canonical_level)
        height, width, first = table[level].T[..., None, None]
        samples = _samples_of_boxes(coordinates(boxes) * scales[level], size, height, width, sampling_ratio, aligned)
        neighbors = _Neighbors.of_samples(*samples, height, width, first)
        return _gather(pixels[:, 0], neighbors, region_parts.MAX_PART // (size ** 2 * channels)).astype(maps[0].dtype)
    pixels = jnp.concatenate([as_float(x).reshape(*x.shape[:-3], -1, 1, channels) for x in maps], axis=-3)
    return over_images(align, pixels, boxes)


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
    windows = _rounded_windows(as_float(boxes) * spatial_scale, jnp.asarray([w, h]))
    pooled = over_images(functools.partial(pool_windows, sizes=(size,)), as_float(features), windows)
    return pooled.reshape(*pooled.shape[:-2], size, size, pooled.shape[-1]).astype(features.dtype)


def _rounded_windows(boxes: jax.Array, sides: jax.Array) -> jax.Array:
    """Return the windows (..., 4) int32 of RoI max pooling, for boxes (..., 4) on feature maps of these widths and heights
    (..., 2). They end at most one pixel after the feature map."""
    rounded = jnp.nan_to_num(jnp.floor(boxes + 0.5))
    rounded = jnp.clip(rounded, 0, jnp.concatenate([sides, sides], axis=-1)).astype(jnp.int32)
    low, high = rounded[..., :2], rounded[..., 2:]
    return jnp.concatenate([low, jnp.maximum(high, low) + 1], axis=-1)


@jax.named_scope('multilevel_roi_max_pool')
def multilevel_roi_max_pool(maps: Sequence[jax.Array], boxes: jax.Array, strides: Sequence[int], size: int,
                            canonical_size: float = 224, canonical_level: int = 4) -> jax.Array:
    """Return `roi_max_pool` of each region from one level of a feature pyramid.

    Args:
      maps: (..., H, W, C) of each level, from the finest to the coarsest.
      boxes: (..., R, 4) in pixels of the image.
      strides: of the levels; each is twice the one before.
      size: number of bins along each axis.
      canonical_size, canonical_level: see `pyramid_level`.

    Returns:
      (..., R, size, size, C) in the type of the maps.

    Raises:
      UserError: The strides are no powers of 2 that follow each other, or there is not one for each map.
    """
    boxes = as_float(boxes)
    level = _level_indices(boxes, strides, len(maps), canonical_size, canonical_level)
    scales = jnp.asarray([1 / stride for stride in strides], jnp.float32)
    sides = jnp.asarray([x.shape[-3:-1][::-1] for x in maps])
    stacked, first_rows = stack_maps(maps)
    windows = _rounded_windows(boxes * scales[level][..., None], sides[level])
    windows += jnp.asarray([[0, row, 0, row] for row in first_rows])[level]
    pooled = over_images(functools.partial(pool_windows, sizes=(size,)), as_float(stacked), windows)
    pooled = jnp.where(pooled == -jnp.inf, 0, pooled)  # bins that have only pixels between the levels
    return pooled.reshape(*pooled.shape[:-2], size, size, pooled.shape[-1]).astype(maps[0].dtype)


def stack_maps(maps: Sequence[jax.Array]) -> tuple[jax.Array, list[int]]:
    """Return feature maps (..., H, W, C) below each other in one map, and the first row of each.

    To the right of each map and below it is at least one pixel of -inf, so that the maximum of a window that begins in a map
    and ends one pixel after it is that of the map's pixels.
    """
    width = max(x.shape[-2] for x in maps) + 1
    padded = [jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(0, 1), (0, width - x.shape[-2]), (0, 0)], constant_values=-jnp.inf)
              for x in maps]
    return jnp.concatenate(padded, axis=-3), [0, *itertools.accumulate(x.shape[-3] for x in padded)][:-1]


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
    return over_images(functools.partial(pool_windows, sizes=tuple(levels)), as_float(features), windows).astype(
        features.dtype)
