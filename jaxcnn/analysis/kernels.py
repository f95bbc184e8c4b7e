"""The kernel with which a network's first convolution looks at the image."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxcnn.analysis.receptive_field import called_jaxpr
from jaxcnn.models import Network
from jaxcnn.optim import path_name


def first_kernel(network: Network, variables: Any, image_shape: Sequence[int]) -> str:
    """Return the path of the kernel of the first convolution, such as `params/Conv_0/kernel`; '' if the first layer with
    parameters is none.

    Args:
      network: the network.
      variables: its variables, or their shapes.
      image_shape: (H, W, C) of its images.
    """
    network = network.clone(conv_implementation='xla')
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda variables, images: network.apply(variables, images, train=False))(variables, images).jaxpr
    paths = [path_name(path) for path, _ in jax.tree.leaves_with_path(variables)]
    return _first_product(jaxpr, [*paths, _IMAGE])[1] or ''


_IMAGE = '*'  # the source of arrays that depend on the images


def _first_product(jaxpr: Any, inputs: Sequence[str | None]) -> tuple[list[str | None], str | None]:
    """Return the sources of a jaxpr's outputs, and the kernel of the first convolution of the images; '' if it is a product,
    None if there is neither. The source of an array is a variable that it is computed from alone, or `_IMAGE`.
    """
    sources = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(v: Any) -> str | None:
        return None if hasattr(v, 'val') else sources.get(v)
    for eqn in jaxpr.eqns:
        operands = [read(v) for v in eqn.invars]
        if call := called_jaxpr(eqn, operands):
            results, kernel = _first_product(*call)
            if kernel is not None:
                return results, kernel
        elif eqn.primitive.name in ('conv_general_dilated', 'dot_general') and _IMAGE in operands:
            is_convolution = eqn.primitive.name == 'conv_general_dilated' and operands[0] == _IMAGE
            return [None] * len(jaxpr.outvars), (operands[1] or '') if is_convolution else ''
        else:
            operand_sources = {name for name in operands if name}
            if _IMAGE in operand_sources:
                operand_sources = {_IMAGE}
            source = operand_sources.pop() if len(operand_sources) == 1 else None
            results = [source] * len(eqn.outvars)
        sources.update(zip(eqn.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars], None
