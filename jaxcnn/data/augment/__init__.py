"""Augmentation: pure functions of a key and one float image in [0, 1], run inside the compiled step, example by example.

A pipeline is a string of registered ops, `'random_resized_crop(64)|flip_lr|mixup(0.2)'`, applied in that order, each
with a key of its own. Four kinds there are: an image op `(key, image) -> image`; a `Mix` of the image with that
of the row before it in the batch; an `Attack` against the network that is being trained; one `ByEpoch`, that
knows how often it has seen the image. To add one, write a function of its parameters that returns such a thing, and put
`@register` above it.
"""

from jaxcnn.data.augment import adversarial, color, erase, geometry, mixing, policies
from jaxcnn.data.augment.registry import (
    Attack,
    ByEpoch,
    Gradient,
    Mix,
    Op,
    Pipeline,
    TargetMixer,
    described,
    names,
    pipeline,
    register,
)

__all__ = ['Attack', 'ByEpoch', 'Gradient', 'Mix', 'Op', 'Pipeline', 'TargetMixer', 'adversarial', 'color', 'described',
           'erase', 'geometry', 'mixing', 'names', 'pipeline', 'policies', 'register']
