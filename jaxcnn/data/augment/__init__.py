"""Augmentation: pure functions of a key and a float image in [0, 1], which run inside the compiled training step.

A pipeline is a string of registered augmentations such as `'random_resized_crop(64)|flip_lr|mixup(0.2)'`. They are applied
in this order, each with its own key. There are five kinds of ops:

- an image op, `(key, image) -> image`, which leaves every object where it is;
- a `Geometric` op, which moves pixels and tells by which affine map, so that boxes are moved with them;
- a `Mix`, which mixes an image with the image of the row before it in the batch;
- an `Attack` on the network that is being trained;
- a `ByEpoch` op, which depends on the epoch.

To add an augmentation, write a function from its arguments to such an op, and put `@register` above it, or
`@register(deterministic=True)` if it draws no random numbers.
"""

from jaxcnn.data.augment import adversarial, affine, color, corruptions, erase, geometry, mixing, policies
from jaxcnn.data.augment.box_targets import move_boxes
from jaxcnn.data.augment.file_crops import FileCrops, split_pipeline
from jaxcnn.data.augment.registry import (
    AUGMENTATIONS,
    Attack,
    ByEpoch,
    Geometric,
    Gradient,
    Mix,
    Op,
    Pipeline,
    TargetMixer,
    Transformed,
    describe,
    names,
    parse_pipeline,
    register,
)

__all__ = ['AUGMENTATIONS', 'Attack', 'ByEpoch', 'FileCrops', 'Geometric', 'Gradient', 'Mix', 'Op', 'Pipeline',
           'TargetMixer', 'Transformed', 'adversarial', 'affine', 'color', 'corruptions', 'describe', 'erase', 'geometry',
           'mixing', 'move_boxes', 'names', 'parse_pipeline', 'policies', 'register', 'split_pipeline']
