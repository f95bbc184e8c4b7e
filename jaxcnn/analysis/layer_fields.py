"""Receptive fields of feature maps: the theoretical one from the trace, and the effective one from gradients."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcnn.analysis.attribution import map_parts
from jaxcnn.analysis.receptive_field import ReceptiveField, called_jaxpr, propagate
from jaxcnn.models import Network


class Box(NamedTuple):
    """A rectangle of pixels, which may reach beyond the image: rows from `top` to `bottom`, exclusive."""

    top: int
    bottom: int
    left: int
    right: int

    def inside(self, image_shape: Sequence[int]) -> 'Box':
        """Return the part inside an image of shape (H, W, ...)."""
        height, width = image_shape[:2]
        return Box(*(min(max(edge, 0), side) for edge, side in zip(self, (height, height, width, width), strict=True)))


class MapField(NamedTuple):
    """The receptive field of the elements of a feature map; pairs are (height, width), in pixels.

    Attributes:
      first: first and last pixel of the element at row 0 and column 0, padding included, along each axis; infinite if each
        element depends on all pixels.
      stride: distance between the fields of neighbouring elements.
      image_shape: (H, W, C).
    """

    first: tuple[tuple[float, float], tuple[float, float]]
    stride: tuple[int, int]
    image_shape: tuple[int, ...]

    @property
    def size(self) -> tuple[float, float]:
        """The size, infinite if each element depends on all pixels."""
        (top, bottom), (left, right) = self.first
        return bottom - top + 1, right - left + 1

    def box(self, row: int, column: int) -> Box:
        """Return the field of the element at a row and column; the image where each element depends on all pixels."""
        edges: list[int] = []
        for (low, high), stride, index, side in zip(self.first, self.stride, (row, column), self.image_shape, strict=False):
            bounded = math.isfinite(high - low)
            edges += [int(low) + index * stride, int(high) + index * stride + 1] if bounded else [0, side]
        return Box(*edges)


def map_fields(network: Network, variables: Any, image_shape: Sequence[int]) -> dict[str, MapField]:
    """Return the theoretical receptive field of each feature map by name, in the order of computation.

    Args:
      network: the network.
      variables: its variables, or their shapes.
      image_shape: (H, W, C) of the images.
    """
    network = network.clone(conv_implementation='xla')
    names: list[str] = []

    def apply(images: jax.Array) -> list[jax.Array]:
        maps = network.apply(variables, images, train=False, features=True)[1]
        names[:] = maps
        return list(maps.values())
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    trace = jax.make_jaxpr(apply)(images)
    outputs = _walk(trace.jaxpr, [ReceptiveField.of_images(images.shape)])
    return {name: MapField(((field.low[0], field.high[0]), (field.low[1], field.high[1])), (field.jump[0], field.jump[1]),
                           tuple(image_shape))
            for name, field in zip(names, outputs, strict=True) if field is not None}


def _walk(jaxpr: Any, inputs: Sequence[ReceptiveField | None]) -> list[ReceptiveField | None]:
    """Return the receptive fields of a jaxpr's outputs; None for outputs that do not depend on the images."""
    fields = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(v: Any) -> ReceptiveField | None:
        return None if hasattr(v, 'val') else fields.get(v)
    for eqn in jaxpr.eqns:
        operands = [read(v) for v in eqn.invars]
        if all(field is None for field in operands):
            continue
        call = called_jaxpr(eqn, operands)
        fields.update(zip(eqn.outvars, _walk(*call) if call else propagate(eqn, operands), strict=True))
    return [read(v) for v in jaxpr.outvars]


@functools.partial(jax.jit, static_argnames=('network', 'layer'))
def effective_field(network: Network, variables: Any, images: jax.Array, row: Any, column: Any, layer: str) -> jax.Array:
    """Return how much the element of a feature map at a row and column depends on each pixel (Luo et al. 2016,
    "Understanding the effective receptive field in deep convolutional neural networks").

    Args:
      network: the network.
      variables: its variables.
      images: (N, H, W, C), normalised; the paper uses random ones.
      row, column: the element.
      layer: name of the feature map.

    Returns:
      (H, W), the root mean square over images and input channels of the gradient of the mean over the map's channels; the
      largest value is 1, or all are 0.
    """
    def of_part(x: jax.Array) -> jax.Array:
        def element(x: jax.Array) -> jax.Array:
            maps = network.apply(variables, x, train=False, features=True)[1]
            return maps[layer][:, row, column].astype(jnp.float32).mean(-1).sum()
        return (jax.grad(element)(x) ** 2).mean(-1)
    strength = jnp.sqrt(map_parts(of_part, images).mean(0))
    return strength / jnp.maximum(strength.max(), jnp.finfo(jnp.float32).tiny)


def effective_size(strength: Any) -> float:
    """Return the side of the square with as many pixels as have at least 4.55 % of the largest value, as in the paper."""
    return math.sqrt(float((strength >= 1 - 0.9545).sum()))
