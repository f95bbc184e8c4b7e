"""Attributions of networks whose answer is known by hand, their memory, and the checks of attributions."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import models
from jaxcnn.analysis import attribution, attribution_checks, class_activation, occlusion
from jaxcnn.errors import UserError

PATCH = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]], np.float32)
METHODS = [attribution.saliency, attribution.gradient_x_input, attribution.smoothgrad, attribution.integrated_gradients,
           attribution.guided_backprop, attribution.deconvolution, class_activation.gradcam,
           class_activation.gradcam_plus_plus, class_activation.layercam, class_activation.scorecam, occlusion.occlusion]


@pytest.fixture(scope='module')
def detector():
    """A network whose class 1 detects the patch and whose class 0 detects its negative, and images with a patch each."""
    network = models.create('sequential', 2, layers='conv(2)|relu|max_pool(16)|flatten|dense')
    images = np.zeros((3, 16, 16, 1), np.float32)
    for image, (row, column) in zip(images, [(1, 1), (11, 3), (6, 12)], strict=True):
        image[row:row + 3, column:column + 3, 0] = PATCH
    variables = jax.jit(network.init)(jax.random.key(0), images)
    params = jax.tree.map(jnp.zeros_like, variables['params'])
    conv, dense = params
    kernel = 2 * PATCH - 1
    params[conv] = {'kernel': jnp.stack([-kernel, kernel], -1)[:, :, None], 'bias': jnp.full(2, -3.0)}
    params[dense]['kernel'] = 2 * jnp.eye(2)
    return network, {'params': params}, images, np.ones(3, int)


@pytest.mark.parametrize('method', METHODS, ids=lambda method: method.__name__)
def test_every_method_points_at_a_planted_patch(detector, method):
    maps = np.abs(np.asarray(method(*detector)))
    maps = maps.sum(-1) if maps.ndim == 4 else maps
    inside = np.zeros_like(maps)
    for i, (row, column) in enumerate([(1, 1), (11, 3), (6, 12)]):
        inside[i, row - 1:row + 4, column - 1:column + 4] = 1  # the receptive field of a convolution reaches a pixel further
        peak = np.unravel_index(maps[i].argmax(), maps[i].shape)
        assert inside[i][peak]
    assert ((maps * inside).sum((1, 2)) > 0.6 * maps.sum((1, 2))).all()
    if 'layer' in inspect.signature(method).parameters:
        with pytest.raises(UserError, match="unknown feature map 'conv9'; nearest: conv1"):
            method(*detector, layer='conv9')


def test_class_activation_maps_have_the_form_of_the_papers(detector):
    """The map is 2 at one pixel and 0 elsewhere, and the gradient of the score is 2 at this pixel and 0 elsewhere."""
    for method, value in [
            (class_activation.gradcam, 2 * 2 / 256), (class_activation.layercam, 2 * 2),
            (class_activation.gradcam_plus_plus, 2 * 2 * 2 ** 2 / (2 * 2 ** 2 + 2 * 2 ** 3)),
            (class_activation.scorecam, 2 / 2)]:  # the pixel alone does not raise the score, as the empty channel
        expected = np.zeros((3, 16, 16))
        for i, (row, column) in enumerate([(2, 2), (12, 4), (7, 13)]):
            expected[i, row, column] = value
        np.testing.assert_allclose(method(*detector), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('method', METHODS[-5:], ids=lambda method: method.__name__)
def test_maps_of_a_bfloat16_network_are_float32_and_can_be_ranked(detector, method):
    network, *arguments = detector
    maps = [np.asarray(method(net, *arguments)) for net in (network, network.clone(dtype='bfloat16'))]
    assert maps[1].dtype == np.float32
    np.testing.assert_allclose(maps[1], maps[0], atol=0.01 * np.abs(maps[0]).max())
    maps = [values.reshape(3, 16, 16) for values in maps]
    assert (attribution_checks.rank_correlation(*maps) > 0.5).all()


def test_the_gradients_of_a_linear_network_have_closed_forms():
    network = models.create('sequential', 3, layers='flatten|dense')
    images = jax.random.normal(jax.random.key(0), (40, 4, 4, 2))
    variables = jax.jit(network.init)(jax.random.key(1), images)
    classes = np.arange(40) % 3
    weights = np.asarray(jax.tree.leaves(variables['params'])[1]).T.reshape(3, 4, 4, 2)[classes]
    arguments = network, variables, images, classes

    def assert_close(actual, expected):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    assert_close(attribution.saliency(*arguments), abs(weights))
    assert_close(attribution.gradient_x_input(*arguments), weights * images)
    assert_close(attribution.smoothgrad(*arguments, samples=3), weights)
    for rule in attribution.QUADRATURE_RULES:
        values = attribution.integrated_gradients(*arguments, steps=5, baseline=0.5, rule=rule)
        assert_close(values, weights * (images - 0.5))
        assert_close(*attribution.completeness(*arguments, values, 0.5))
    baselines = jnp.linspace(0, 1, 40)[:, None, None, None]  # one for each image
    values = attribution.integrated_gradients(*arguments, steps=2, baseline=baselines)
    assert_close(values, weights * (images - baselines))
    assert_close(*attribution.completeness(*arguments, values, baselines))
    assert_close(occlusion.occlusion(*arguments, size=1, fill=0.5), (weights * (images - 0.5)).sum(-1))
    with pytest.raises(UserError, match='the network has none'):
        attribution.guided_backprop(*arguments)


@pytest.fixture(scope='module')
def shallow():
    network = models.create('sequential', 4, layers='conv(6)|norm|relu|max_pool(2)|conv(8)|norm|relu|flatten|dense')
    images = jax.random.normal(jax.random.key(0), (5, 12, 12, 3))
    variables = jax.tree.map(lambda x: x + 0.2 * jnp.cos(jnp.arange(x.size)).reshape(x.shape),
                             jax.jit(network.init)(jax.random.key(1), images))
    return network, variables, images, np.arange(5) % 4


def test_integrated_gradients_are_complete_the_more_steps_the_better(shallow):
    errors = []
    for steps in (4, 256):
        values = attribution.integrated_gradients(*shallow, steps=steps)
        total, difference = attribution.completeness(*shallow, values)
        errors.append(float(abs(total - difference).max() / abs(difference).max()))
    assert errors[1] < 0.002
    assert errors[1] < errors[0] / 4


def test_the_sum_over_steps_is_that_of_each_step_whatever_the_size_of_a_part():
    rows = jnp.arange(7.0)
    for size in (1, 3, 7, 100):
        result = attribution.sum_over_steps(lambda step, x: x ** 2 * step, 6, rows, size=size)
        np.testing.assert_allclose(result, 15 * np.arange(7) ** 2)
        pairs = attribution.map_steps(lambda row, step: 10 * row + step, 7, 6, size)
        np.testing.assert_array_equal(pairs, 10 * np.arange(7)[:, None] + np.arange(6))


def test_smoothgrad_depends_on_the_seed_alone(shallow):
    first, again, other = (attribution.smoothgrad(*shallow, samples=4, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert abs(first - other).max() > 1e-3
    network, variables, images, classes = shallow
    single = attribution.smoothgrad(network, variables, images[:1], classes[:1], samples=4)
    np.testing.assert_allclose(single[0], first[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(('method', 'option', 'images'), [
    (attribution.integrated_gradients, 'steps', 2), (attribution.smoothgrad, 'samples', 40)])
def test_500_steps_need_no_more_memory_than_50(shallow, method, option, images):
    network, variables, examples, _ = shallow
    shape = jax.ShapeDtypeStruct((images, *examples.shape[1:]), jnp.float32)
    classes = jax.ShapeDtypeStruct((images,), int)
    sizes = [method.lower(network, variables, shape, classes, **{option: steps}).compile().memory_analysis()
             .temp_size_in_bytes for steps in (50, 500)]
    assert sizes[1] < 1.02 * sizes[0]  # the numbers of the steps


@pytest.mark.parametrize(('method', 'options', 'message'), [
    (attribution.integrated_gradients, {'steps': 0}, 'steps: expected a positive integer, got 0'),
    (attribution.integrated_gradients, {'rule': 'left'}, "unknown quadrature rule 'left'"),
    (attribution.integrated_gradients, {'rule': 'trapezoid', 'steps': 1}, 'needs at least 2 steps'),
    (attribution.smoothgrad, {'noise': -1.0}, 'noise: expected a number of at least 0'),
    (occlusion.occlusion, {'size': 13}, 'expected at most the side of the image, 12, got 13'),
    (occlusion.occlusion, {'size': 2, 'stride': 3}, 'expected at most the size of the square, 2, got 3')])
def test_wrong_options_are_named(shallow, method, options, message):
    with pytest.raises(UserError, match=message):
        method(*shallow, **options)


def test_occlusion_responses_fall_where_the_square_covers_the_patch(detector):
    network, variables, images, _ = detector
    responses = occlusion.occlusion_responses(*detector, size=3, stride=1)
    unchanged = np.asarray(jax.nn.softmax(network.apply(variables, images)))[:, 1]
    assert list(responses['channel']) == [1, 1, 1]
    for i, (row, column) in enumerate([(1, 1), (11, 3), (6, 12)]):
        assert responses['probability'][i, row, column] < 0.51  # no evidence is left for either class
        assert responses['activation'][i, row, column] == pytest.approx(0)
        far = (row + 8) % 14, (column + 8) % 14
        assert responses['probability'][i][far] == pytest.approx(unchanged[i], rel=1e-5)
        assert responses['best_class'][i][far] == 1


def test_the_square_has_at_most_28_positions_in_a_side_by_default():
    assert all(max(occlusion.Grid.for_images((side, side, 3)).shape) <= 28 for side in range(2, 300))
    assert occlusion.Grid.for_images((34, 34, 3)).shape == (28, 28)


def test_deletion_and_insertion_prefer_the_map_of_the_patch(detector):
    network, variables, images, _ = detector
    patch, reverse = (np.abs(images[..., 0]) * sign for sign in (1, -1))
    for curve, sign in [(attribution_checks.deletion_curve, 1), (attribution_checks.insertion_curve, -1)]:
        areas = [attribution_checks.area_under(np.asarray(curve(*detector, maps, steps=16))) for maps in (patch, reverse)]
        assert (sign * areas[0] < sign * areas[1] - 0.2).all()
    curve = attribution_checks.deletion_curve(*detector, patch, steps=16)
    np.testing.assert_allclose(curve[:, 0], jax.nn.softmax(network.apply(variables, images))[:, 1], rtol=1e-5)
    np.testing.assert_allclose(curve[:, -1], 0.5, rtol=1e-5)


def test_layers_are_randomised_from_the_top(shallow):
    network, variables, images, _ = shallow
    shape = images.shape[1:]
    trained = jax.tree.map(lambda x: x + 1, variables)
    stages = attribution_checks.cascading_randomisation(network, trained, shape, seed=5)
    changed = [sum(bool((a != b).any()) for a, b in zip(jax.tree.leaves(trained), jax.tree.leaves(stage), strict=True))
               for stage in stages.values()]
    assert changed == [2, 8, 14]  # the dense layer; with each convolution, its bias and the four arrays of BatchNorm
    assert len(attribution_checks.cascading_randomisation(network, trained, shape, stages=2)) == 2
    assert all('Dense' in name or 'dense' in name for name in list(stages)[:1])
    resnet = models.create('resnet20_cifar', 3, width=4, blocks=(2, 2, 2))
    order = attribution_checks.layers_in_order(resnet, (16, 16, 3))
    numbers = [int(path[0].split('_')[1]) for group in order for path in group if path[0].startswith('Conv')]
    assert numbers == list(range(len(numbers)))  # not in the order of text, where 10 comes before 2


def test_rank_correlation():
    maps = np.random.default_rng(0).normal(size=(2, 6, 6))
    np.testing.assert_allclose(attribution_checks.rank_correlation(maps, -3 * maps), 1)
    np.testing.assert_allclose(attribution_checks.rank_correlation(maps, -3 * maps, absolute=False), -1)
    np.testing.assert_allclose(attribution_checks.rank_correlation(maps, 1 / maps), -1)
    np.testing.assert_array_equal(attribution_checks.rank_correlation(maps, np.zeros_like(maps)), 0)
