"""The deconvolutional network of Zeiler & Fergus 2013, "Visualizing and understanding convolutional networks".

An activation is projected back to the pixels that caused it: max pooling is inverted by the positions of the maxima (the
switches), the signal goes through a ReLU where the network has one, and the filters are transposed. Biases are left out, and
local response normalisation divides by the values that it had for the image. All of this is the vector-Jacobian product of a
network whose ReLUs have another gradient; see `tracing.with_relu_gradient`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.analysis import tracing
from jaxcnn.analysis.attribution import map_parts
from jaxcnn.analysis.receptive_field import called_jaxpr
from jaxcnn.errors import UserError
from jaxcnn.models import Network

# the functions of the divisor of local response normalisation
_DIVISOR = ('integer_pow', 'square', 'pow', 'rsqrt', 'log', 'exp')
# primitives of activations that have no place in a deconvolutional network
_OTHER_ACTIVATIONS = ('tanh', 'logistic', 'erf', 'erfc', 'expm1', 'log1p', 'min', 'clamp', 'select_n')
_VERBS = {'add': 'adds', 'sub': 'subtracts', 'concatenate': 'concatenates', 'mul': 'multiplies', 'div': 'divides',
          'dot_general': 'multiplies', 'conv_general_dilated': 'convolves'}


@functools.partial(jax.jit, static_argnames=('network', 'layer'))
def channel_maxima(network: Network, variables: Any, images: jax.Array, layer: str) -> tuple[jax.Array, jax.Array]:
    """Return the strongest activation of each channel of a feature map for each image, and its position.

    Args:
      network: the network.
      variables: its variables.
      images: (N, H, W, C), normalised.
      layer: name of the feature map.

    Returns:
      Activations, float32 (N, channels), and positions (N, channels, 2) as row and column of the map.
    """
    def of_part(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        feature_map = _feature_map(network, variables, x, layer)
        flat = feature_map.reshape(len(x), -1, feature_map.shape[-1])
        positions = jnp.divmod(flat.argmax(1), feature_map.shape[2])
        return flat.max(1).astype(jnp.float32), jnp.stack(positions, -1)
    activations, positions = map_parts(of_part, images)
    return activations, positions


def strongest_images(activations: np.ndarray, count: int = 9) -> np.ndarray:
    """Return the images with the strongest activations (N, channels) of each channel: (channels, count), strongest first."""
    return np.argsort(-activations, 0, kind='stable')[:count].T


@functools.partial(jax.jit, static_argnames=('network', 'layer'))
def project(network: Network, variables: Any, images: jax.Array, channels: jax.Array, positions: jax.Array,
            layer: str) -> jax.Array:
    """Project one activation of each image back to the pixels; all other activations of the feature map are set to 0.

    Args:
      network: the network, for which `check_plain` must hold.
      variables: its variables.
      images: (N, H, W, C), normalised.
      channels: (N,) channel of the activation of each image.
      positions: (N, 2) its row and column.
      layer: name of the feature map.

    Returns:
      (N, H, W, C).
    """
    def of_part(x: jax.Array, c: jax.Array, position: jax.Array) -> jax.Array:
        function = tracing.with_relu_gradient(
            lambda x: _feature_map(network, variables, x, layer), x, 'deconvnet', fixed=_DIVISOR, required=False)
        feature_map, transpose = jax.vjp(function, x)
        index = jnp.arange(len(x)), position[:, 0], position[:, 1], c
        projection: jax.Array = transpose(jnp.zeros_like(feature_map).at[index].set(feature_map[index]))[0]
        return projection
    return map_parts(of_part, images, channels, positions)


def _feature_map(network: Network, variables: Any, images: jax.Array, layer: str) -> jax.Array:
    feature_map: jax.Array = network.apply(variables, images, train=False, features=True)[1][layer]
    return feature_map


# ---- which networks have a deconvolutional network


def check_plain(network: Network, variables: Any, image_shape: Sequence[int], layer: str) -> None:
    """Check that a feature map is computed by convolutions, max or average pooling, ReLUs and normalisation in one chain.

    Raises:
      UserError: The network has a skip connection, a branch, attention or another activation before the map.
    """
    obstacles = find_obstacles(network, variables, image_shape)
    if obstacles[layer]:
        plain = [name for name, obstacle in obstacles.items() if not obstacle]
        raise UserError(f'{type(network).__name__} has no deconvolutional network from {layer!r}: {obstacles[layer]}',
                        hint=f'these layers have one: {", ".join(plain)}' if plain else
                        'use guided_backprop or gradcam for this network')


def find_obstacles(network: Network, variables: Any, image_shape: Sequence[int]) -> dict[str, str]:
    """Return for each feature map the reason why it has no deconvolutional network, or '' if it has one.

    The trace decides: an operation combines arrays that stem from different convolutions, or it is of an activation other
    than ReLU.
    """
    network = network.clone(conv_implementation='xla')
    names: list[str] = []

    def apply(variables: Any, images: jax.Array) -> list[jax.Array]:
        maps = network.apply(variables, images, train=False, features=True)[1]
        names[:] = maps
        return list(maps.values())
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    jaxpr = jax.make_jaxpr(apply)(variables, images).jaxpr
    outputs = _Origins().walk(jaxpr, [None] * (len(jaxpr.invars) - 1) + [0])
    return {name: origin if isinstance(origin, str) else '' for name, origin in zip(names, outputs, strict=True)}


Origin = int | str | None


class _Origins:
    """A walk over a trace that finds which convolution or product each array stems from.

    The origin of an array is None if it does not depend on the images, the number of a convolution or product (0 for the
    images themselves), or a text that says why there is no deconvolutional network.
    """

    def __init__(self) -> None:
        self._count = 0

    def walk(self, jaxpr: Any, inputs: Sequence[Origin]) -> list[Origin]:
        """Return the origins of a jaxpr's outputs."""
        origins: dict[Any, Origin] = dict(zip(jaxpr.invars, inputs, strict=True))

        def read(v: Any) -> Origin:
            return None if hasattr(v, 'val') else origins.get(v)
        for eqn in jaxpr.eqns:
            origins.update(zip(eqn.outvars, self._visit(eqn, [read(v) for v in eqn.invars]), strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _visit(self, eqn: Any, operands: Sequence[Origin]) -> list[Origin]:
        name = eqn.primitive.name
        dependent = {origin for origin in operands if origin is not None}
        if not dependent:
            return [None] * len(eqn.outvars)
        if call := called_jaxpr(eqn, operands):
            return self.walk(*call)
        origin: Origin = next((o for o in dependent if isinstance(o, str)), next(iter(dependent)))
        is_product = name in ('conv_general_dilated', 'dot_general')
        if not isinstance(origin, str):
            if len(dependent) > 1 or (is_product and None not in operands):
                verb = _VERBS.get(name, f'combines (by {name})')
                origin = (f'it {verb} arrays that stem from different convolutions, as in a skip connection, a branch or '
                          'attention')
            elif name in _OTHER_ACTIVATIONS:
                origin = f'its activation is not ReLU (its trace has {name})'
            elif is_product:
                self._count += 1
                origin = self._count
        return [origin] * len(eqn.outvars)
