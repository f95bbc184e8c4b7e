"""Feature pyramids against torchvision's, and the order in which the region proposal network predicts anchors."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.errors import UserError
from jaxcnn.models.detection.fpn import FPN
from jaxcnn.models.detection.rpn import RPNHead
from jaxcnn.ops.boxes import anchors

REFERENCE = np.load(pathlib.Path(__file__).parents[1] / 'ops' / 'detection_reference.npz')
MAPS = [REFERENCE[f'odd{i}'] for i in range(3)]  # 13 x 9, 7 x 5 and 4 x 3


@pytest.mark.parametrize(('extra', 'name'), [('pool', 'pool'), ('convolutions', 'p6p7')])
def test_a_pyramid_of_odd_sizes_is_that_of_torchvision(extra, name):
    names = {f'{ours}{i}': f'{name}_{theirs}_blocks.{i}.0' for i in range(3)
             for ours, theirs in (('lateral', 'inner'), ('output', 'layer'))}
    if extra == 'convolutions':
        names |= {'extra0': f'{name}_extra_blocks.p6', 'extra1': f'{name}_extra_blocks.p7'}
    params = {ours: {'kernel': REFERENCE[f'{theirs}.weight'].transpose(2, 3, 1, 0), 'bias': REFERENCE[f'{theirs}.bias']}
              for ours, theirs in names.items()}
    pyramid = FPN(6, extra=extra, conv_implementation='xla')
    shapes = jax.eval_shape(pyramid.init, jax.random.key(0), MAPS)['params']
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)
    expected = [f'{name}_odd{i}' for i in range(3)] + (['pool_pool'] if extra == 'pool' else ['p6p7_p6', 'p6p7_p7'])
    levels = jax.jit(pyramid.apply)({'params': params}, MAPS)
    for key, level in zip(expected, levels, strict=True):
        np.testing.assert_allclose(level, REFERENCE[key], atol=1e-5)


def test_a_pyramid_enlarges_maps_by_any_factor_and_reports_an_unknown_extra():
    """The backbone rounds sizes down, too: 7 x 7 after 3 x 3."""
    maps = [jnp.zeros((1, 7, 10, 2)), jnp.ones((1, 3, 5, 2)) * jnp.arange(3)[:, None, None]]
    weights = {'kernel': jnp.eye(2)[None, None], 'bias': jnp.zeros(2)}
    center = {'kernel': jnp.zeros((3, 3, 2, 2)).at[1, 1].set(jnp.eye(2)), 'bias': jnp.zeros(2)}
    params = {'lateral0': weights, 'lateral1': weights, 'output0': center, 'output1': center}
    finest, _ = FPN(2, conv_implementation='xla').apply({'params': params}, maps)
    assert finest[0, :, 9, 1].tolist() == [0, 0, 0, 1, 1, 2, 2]
    with pytest.raises(UserError, match='convolutions'):
        FPN(2, extra='convolution').init(jax.random.key(0), maps)


def test_predictions_of_the_rpn_are_in_the_order_of_the_anchors():
    """A network is made to predict, from maps of rows and columns, the upper left corner of each anchor."""
    boxes = np.asarray(anchors(3, 4, 16))
    rows, columns = np.mgrid[:3, :4]
    head = RPNHead(9, features=2, conv_implementation='xla')
    x = jnp.stack([columns, rows], axis=-1)[None].astype(jnp.float32)
    params = jax.tree.map(lambda x: jnp.zeros(x.shape), jax.eval_shape(head.init, jax.random.key(0), x)['params'])
    params['conv']['kernel'] = params['conv']['kernel'].at[1, 1].set(jnp.eye(2))
    for axis in range(2):  # target k of anchor a is feature 4 a + k
        params['boxes']['kernel'] = params['boxes']['kernel'].at[0, 0, axis, axis::4].set(16)
        params['boxes']['bias'] = params['boxes']['bias'].at[axis::4].set(boxes[:9, axis])
    params['objectness']['kernel'] = params['objectness']['kernel'].at[0, 0, :].set(jnp.array([[1], [100]]))
    params['objectness']['bias'] = jnp.arange(9) / 10
    logits, targets = jax.jit(head.apply)({'params': params}, x)
    np.testing.assert_allclose(targets[0, :, :2], boxes[:, :2], rtol=1e-6)
    positions = (columns + 100 * rows)[..., None] + np.arange(9) / 10
    np.testing.assert_allclose(logits[0], positions.ravel(), rtol=1e-6)
