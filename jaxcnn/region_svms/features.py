"""The features of regions: what the dense layers of a classifier get."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.models.detection.region_classifier import RegionClassifier
from jaxcnn.ops.region_parts import over_parts


def feature_name(index: int) -> str:
    """Return the name of the input of a dense layer: `pool5` for the first one, and then `fc6`, `fc7` and so on."""
    return f'fc{index + 5}' if index else 'pool5'


def region_features(network: RegionClassifier, variables: Any, image: jax.Array, boxes: jax.Array) -> dict[str, jax.Array]:
    """Return the features of the regions of an image, as the network computes them in evaluation.

    Args:
      network: R-CNN or SPP-Net.
      variables: its variables.
      image: (H, W, C), normalised.
      boxes: (R, 4) in pixels of the image.

    Returns:
      (R, F) by name: `pool5`, what the first dense layer gets; `fc6` and `fc7`, the outputs of the dense layers after the
      activation, as many as there are; and `logits`, (R, classes + 1).
    """
    def apply(boxes: jax.Array) -> dict[str, jax.Array]:
        features: dict[str, jax.Array] = {}

        def record(call: Any, args: Sequence[Any], kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            output = call(*args, **kwargs)
            if isinstance(context.module, nn.Dense) and context.method_name == '__call__':
                features[feature_name(len(features))] = args[0].astype(jnp.float32)
                logits.append(output)
            return output
        logits: list[jax.Array] = []
        with nn.intercept_methods(record):
            network.apply(variables, image[None], train=False, proposals={
                'proposals': boxes[None], 'proposal_valid': jnp.ones((1, len(boxes)), bool)})
        return {**features, 'logits': logits[-1].astype(jnp.float32)}

    # R-CNN classifies as many regions at a time, in a loop whose values cannot be recorded.
    part = getattr(network, 'region_part', len(boxes))
    shapes = jax.eval_shape(apply, boxes[:1])

    def flat(boxes: jax.Array) -> jax.Array:
        features = apply(boxes)
        return jnp.concatenate([features[name].reshape(len(boxes), -1) for name in shapes], 1)
    values = over_parts(flat, boxes, part)
    ends = [0]
    for x in shapes.values():
        ends.append(ends[-1] + x.size)
    return {name: values[:, ends[i]:ends[i + 1]] for i, name in enumerate(shapes)}
