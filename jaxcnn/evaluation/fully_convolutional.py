"""Networks in a form that takes images of any size."""

import functools
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp

from jaxcnn.errors import UserError
from jaxcnn.experiment import Experiment
from jaxcnn.models import Network
from jaxcnn.models.plain import Plain


def fully_convolutional(experiment: Experiment) -> Network:
    """Return the network of an experiment in the form that maps images of any size to scores, with the same parameters.

    Networks with global average pooling have this form already. The dense layers of VGG, AlexNet and other `Plain` networks
    become convolutions (Simonyan & Zisserman 2015, section 3.2), whose output is a map of scores.
    """
    network, (height, width, _) = experiment.network, experiment.image_shape
    if isinstance(network, Plain) and network.head == 'dense' and height == width:
        return network.clone(head='dense_conv', window=network.last_map_size(height))
    return network


def check_any_size(experiment: Experiment, network: Network, variables: Any) -> None:
    """Check that a network, and the normalisation before it, take images of other sizes than in training.

    Raises:
      UserError: They do not.
    """
    height, width, channels = experiment.image_shape
    normalize = experiment.preprocessor.normalize
    for factor in (2, 3):  # a flattened map of one other size may by chance have the length of that in training
        images = jax.ShapeDtypeStruct((1, 2 * height, factor * width, channels), jnp.float32)
        try:
            jax.eval_shape(normalize, images)
        except (TypeError, ValueError) as e:
            raise UserError(f'the normalisation {experiment.config.data.normalize!r} takes images of {height} x {width} '
                            'pixels only, because each pixel has its own statistics', field='--protocol dense',
                            hint='ten_crop and multi_crop keep this size') from e
        try:
            jax.eval_shape(functools.partial(network.apply, train=False), variables, images)
        except (TypeError, ValueError, flax.errors.FlaxError) as e:
            raise UserError(f'the network {experiment.config.model.name} takes images of {height} x {width} pixels only, '
                            'because its dense layers have a weight for each position', field='--protocol dense',
                            hint='networks with global average pooling, VGG and AlexNet take images of any size; ten_crop '
                            'and multi_crop suit every network') from e
