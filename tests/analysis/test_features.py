"""Features made visible, on networks whose answer is known by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import models
from jaxcnn.analysis import deconvnet, inversion, layer_fields
from jaxcnn.analysis import feature_maximization as maximization
from jaxcnn.analysis.invariance import invariance, transform, transformation_matrices
from jaxcnn.errors import UserError
from jaxcnn.models.network import Network
from jaxcnn.ops.lrn import local_response_norm
from jaxcnn.ops.pool import max_pool


class Chain(Network):
    """Convolutions with the maps `conv1`, `conv2`, ..., and the means of the last map as logits."""

    kernels: tuple[tuple[int, int], ...] = ((3, 4),)  # size, features
    relu: bool = False
    pool: bool = False
    branch: str = ''

    def forward(self, x, train, maps):
        """See `Network.forward`."""
        for i, (size, features) in enumerate(self.kernels, 1):
            y = self.conv(features, size)(x)
            if self.relu:
                y = nn.relu(y)
            if self.branch == 'skip' and i > 1:
                y += x
            if self.branch == 'concatenate' and i > 1:
                y = jnp.concatenate([y, x], -1)
            if self.branch == 'gate' and i > 1:
                y *= self.dense(features)(y.mean((1, 2), keepdims=True))
            if self.branch == 'swish':
                y = nn.swish(y)
            if self.branch == 'lrn':
                y = local_response_norm(y, alpha=1.0)
            maps[f'conv{i}'] = x = y
            if self.pool:
                x = max_pool(x, 2)
        return x.mean((1, 2))


def chain(size=8, channels=2, **fields):
    network = Chain(num_classes=4, **fields)
    images = jax.random.normal(jax.random.key(0), (3, size, size, channels))
    variables = jax.jit(network.init)(jax.random.key(1), images)
    return network, jax.tree.map(lambda x: x, variables), images


# deconvnet


def test_deconvnet_of_a_linear_stack_is_the_transposed_convolution_within_the_field():
    network, variables, images = chain(12, kernels=((3, 3), (5, 4)))
    params = jax.tree.map(lambda x: x + 0.3 if x.ndim == 1 else x, variables['params'])  # biases have no part in it
    channels, positions = jnp.asarray([0, 3, 1]), jnp.asarray([[6, 5], [0, 0], [11, 4]])
    maps = network.apply({'params': params}, images, features=True)[1]['conv2']
    projections = deconvnet.project(network, {'params': params}, images, channels, positions, 'conv2')
    fields = layer_fields.map_fields(network, variables, (12, 12, 2))
    assert fields['conv2'].size == (7, 7)
    kernels = [params[f'Conv_{i}']['kernel'] for i in (0, 1)]
    for n in range(3):
        signal = np.zeros((1, 12, 12, 4), np.float32)
        index = (*map(int, positions[n]), int(channels[n]))
        signal[0][index] = maps[n][index]
        for kernel in reversed(kernels):
            signal = jax.lax.conv_transpose(signal, kernel, (1, 1), 'SAME', transpose_kernel=True)
        np.testing.assert_allclose(projections[n], signal[0], rtol=1e-4, atol=1e-5)
        box = fields['conv2'].box(*index[:2]).inside((12, 12))
        outside = np.array(projections[n])
        assert abs(outside).max() > 0
        outside[box.top:box.bottom, box.left:box.right] = 0
        assert not outside.any()


def test_deconvnet_rectifies_the_signal_and_unpools_it_at_the_switches():
    """The definition by hand: transpose, put at the maximum of its window, rectify, transpose."""
    network, variables, images = chain(6, kernels=((3, 3), (3, 2)), relu=True, pool=True)
    kernels = [variables['params'][f'Conv_{i}']['kernel'] for i in (0, 1)]
    channels, positions = jnp.asarray([0, 1, 1]), jnp.asarray([[1, 1], [2, 0], [0, 2]])
    maps = network.apply(variables, images, features=True)[1]
    projections = deconvnet.project(network, variables, images, channels, positions, 'conv2')
    for n in range(3):
        signal = np.zeros((1, 3, 3, 2), np.float32)
        index = (*map(int, positions[n]), int(channels[n]))
        signal[0][index] = maps['conv2'][n][index]
        pooled_signal = jax.lax.conv_transpose(signal, kernels[1], (1, 1), 'SAME', transpose_kernel=True)[0]
        unpooled = np.zeros((6, 6, 3), np.float32)
        for row, column, channel in np.ndindex(3, 3, 3):
            window = maps['conv1'][n][2 * row:2 * row + 2, 2 * column:2 * column + 2, channel]
            if window.max() > 0:  # in a window that is off the place does not matter to us
                switch = np.unravel_index(int(window.argmax()), (2, 2))
                unpooled[2 * row + switch[0], 2 * column + switch[1], channel] = max(pooled_signal[row, column, channel], 0)
            elif pooled_signal[row, column, channel] > 0:
                unpooled[2 * row, 2 * column, channel] = pooled_signal[row, column, channel]
        expected = jax.lax.conv_transpose(unpooled[None], kernels[0], (1, 1), 'SAME', transpose_kernel=True)[0]
        np.testing.assert_allclose(projections[n], expected, rtol=1e-4, atol=1e-5)


def test_the_positions_of_maxima_are_exact_for_a_bfloat16_network():
    network, variables, _ = chain(kernels=((1, 1),), channels=1)
    images = np.zeros((2, 4, 600, 1), np.float32)
    images[0, 3, 515] = images[1, 2, 514] = 1
    variables = {'params': jax.tree.map(jnp.ones_like, variables['params'])}
    activations, positions = deconvnet.channel_maxima(network.clone(dtype='bfloat16'), variables, images, 'conv1')
    assert (activations.dtype, positions.tolist()) == (jnp.float32, [[[3, 515]], [[2, 514]]])


def test_deconvnet_divides_by_the_local_response_normalisation_of_the_image():
    network, variables, images = chain(8, branch='lrn')
    kernel = variables['params']['Conv_0']['kernel']
    before = network.clone(branch='').apply(variables, images, features=True)[1]['conv1']
    after = network.apply(variables, images, features=True)[1]['conv1']
    channels = jnp.asarray([0, 1, 3])
    projections = deconvnet.project(network, variables, images, channels, jnp.full((3, 2), 4), 'conv1')
    for n, c in enumerate([0, 1, 3]):
        signal = after[n, 4, 4, c] ** 2 / before[n, 4, 4, c]
        np.testing.assert_allclose(projections[n, 3:6, 3:6], signal * kernel[..., c], rtol=1e-4, atol=1e-6)


def test_planted_patches_are_the_strongest_and_their_projections_show_them():
    patch = np.array([[1, -1, 1], [-1, 1, -1], [1, -1, 1]], np.float32)
    network, variables, _ = chain(16, 1, kernels=((3, 1),), relu=True)
    variables['params']['Conv_0'] = {'kernel': jnp.asarray(patch[..., None, None]), 'bias': jnp.asarray([-2.0])}
    rng = np.random.default_rng(0)
    images = rng.uniform(-0.3, 0.3, (40, 16, 16, 1)).astype(np.float32)
    planted = rng.permutation(40)[:9]
    corners = rng.integers(0, 14, (9, 2))
    for rank, (image, (row, column)) in enumerate(zip(planted, corners, strict=True)):
        images[image, row:row + 3, column:column + 3, 0] = (1 - 0.05 * rank) * patch
    activations, positions = deconvnet.channel_maxima(network, variables, jnp.asarray(images), 'conv1')
    strongest = deconvnet.strongest_images(np.asarray(activations))
    np.testing.assert_array_equal(strongest[0], planted)
    np.testing.assert_array_equal(positions[planted, 0], corners + 1)
    projections = deconvnet.project(network, variables, jnp.asarray(images[planted]), jnp.zeros(9, int),
                                    positions[planted, 0], 'conv1')
    field = layer_fields.map_fields(network, variables, (16, 16, 1))['conv1']
    for projection, position, activation in zip(projections, positions[planted, 0], activations[planted, 0], strict=True):
        box = field.box(*map(int, position))
        np.testing.assert_allclose(projection[box.top:box.bottom, box.left:box.right, 0], activation * patch, rtol=1e-5)


@pytest.mark.parametrize(('fields', 'message'), [
    ({'branch': 'skip'}, 'adds arrays'), ({'branch': 'concatenate'}, 'concatenates arrays'),
    ({'branch': 'gate'}, 'multiplies arrays'), ({'branch': 'swish'}, 'not ReLU')])
def test_networks_without_a_deconvolutional_network_say_why(fields, message):
    network, variables, _ = chain(kernels=((3, 4), (3, 4)), **fields)
    with pytest.raises(UserError, match=f"from 'conv2': (it|its activation is) {message}"):
        deconvnet.check_plain(network, variables, (8, 8, 2), 'conv2')


@pytest.mark.parametrize(('name', 'size', 'fields', 'is_plain'), [
    ('shallow_cnn', 16, {}, True), ('lenet5', 28, {}, False), ('lenet5', 28, {'activation': 'relu'}, True),
    ('nin_cifar', 32, {}, True), ('sequential', 32, {}, True), ('resnet20_cifar', 16, {'blocks': (1, 1, 1)}, False),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in [
        ('alexnet', 63, {}, True), ('zfnet', 63, {}, True), ('vgg11_bn', 32, {}, True), ('lenet_mnist', 28, {}, True),
        ('googlenet', 64, {}, False), ('mobilenet_v2', 64, {}, False), ('t2t_vit_14', 224, {}, False)])])
def test_the_trace_tells_plain_networks_from_others(name, size, fields, is_plain):
    network = models.create(name, 10, **fields)
    image_shape = (size, size, 1 if name.startswith('lenet') else 3)
    variables = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    obstacles = deconvnet.find_obstacles(network, variables, image_shape)
    assert bool([*obstacles.values()][-1]) != is_plain, obstacles


# activation maximisation


@pytest.mark.parametrize('fourier', [False, True])
def test_maximising_a_linear_channel_converges_to_its_kernel(fourier):
    network, variables, _ = chain(9, 3, kernels=((9, 4),))
    kernels = variables['params']['Conv_0']['kernel']
    result = maximization.maximize(network, variables, jnp.arange(4), (9, 9, 3), 'conv1', steps=100, objective='center',
                                   fourier=fourier)
    alone = maximization.maximize(network, variables, [2], (9, 9, 3), 'conv1', steps=100, objective='center',
                                  fourier=fourier)
    np.testing.assert_allclose(alone.images[0], result.images[2], rtol=1e-3, atol=1e-4)
    for image, kernel in zip(result.images, np.moveaxis(kernels, -1, 0), strict=True):
        if fourier:  # the kernel times the squared weight of each frequency, of which the real transform has half
            rows, columns = np.meshgrid(np.fft.fftfreq(9), np.fft.fftfreq(9), indexing='ij')
            weight = np.where(columns, 2, 1) / np.maximum(np.hypot(rows, columns), 1 / 9) ** 2
            kernel = np.fft.ifft2(np.fft.fft2(kernel, axes=(0, 1)) * weight[..., None], axes=(0, 1)).real
        cosine = (image * kernel).sum() / jnp.linalg.norm(image) / jnp.linalg.norm(kernel)
        assert cosine > 0.999
    assert (jnp.diff(result.responses) > 0).all()


def test_maximising_ends_where_a_response_runs_away_or_stops_growing():
    network, variables, _ = chain(9, 3, kernels=((3, 4),))
    result = maximization.maximize(network, variables, jnp.arange(2), (9, 9, 3), 'conv1', steps=200, objective='center',
                                   limit=jnp.asarray([1.0, jnp.inf]))
    assert result.responses[0, result.steps[0]] >= 1 > result.responses[0, result.steps[0] - 1]
    assert jnp.isnan(result.responses[0, result.steps[0] + 1:]).all()
    decayed = maximization.maximize(network, variables, jnp.arange(2), (9, 9, 3), 'conv1', steps=200, objective='center',
                                    l2=0.2)
    assert (decayed.steps >= 2 * maximization.WINDOW).all()
    assert (decayed.steps < 100).all()


def test_maximising_starts_where_every_unit_is_off():
    network, variables, _ = chain(9, 3, kernels=((3, 4),), relu=True)
    variables['params']['Conv_0']['bias'] = jnp.full(4, -1.0)
    result = maximization.maximize(network, variables, jnp.arange(4), (9, 9, 3), 'conv1', steps=100)
    assert not result.responses[:, 0].any()
    assert (result.responses[:, -1] > 0.1).all()


def test_classes_jitter_and_decorrelated_colours(tmp_path):
    images = np.random.default_rng(0).normal(size=(50, 4, 4, 3)) @ np.array([[1, 0.9, 0], [0, 0.2, 0], [0, 0, 0.5]])
    matrix = maximization.color_matrix_of(images)
    covariance = np.cov(images.reshape(-1, 3), rowvar=False)
    np.testing.assert_allclose(matrix @ matrix.T * covariance[0, 0] / (matrix @ matrix.T)[0, 0], covariance, atol=1e-6)
    network, variables, _ = chain(8, 3, kernels=((3, 4),), relu=True)
    result = maximization.maximize(
        network, variables, jnp.arange(3), (8, 8, 3), maximization.LOGITS, steps=20, jitter=2, blur=0.4,
        total_variation=0.1, fourier=True, color_matrix=jnp.asarray(matrix))
    logits = network.apply(variables, result.images)
    np.testing.assert_allclose(result.responses[:, -1], logits[jnp.arange(3), jnp.arange(3)], rtol=1e-4)
    assert (result.responses[:, -1] > result.responses[:, 0]).all()
    displayed = maximization.display(np.asarray(result.images))
    assert displayed.min() >= 0
    assert displayed.max() <= 1


# inversion, invariance, receptive fields


def test_inverting_an_invertible_feature_recovers_the_image():
    network, variables, images = chain(6, 2, kernels=((1, 2),))
    variables['params']['Conv_0']['kernel'] = jnp.asarray([[1.0, 0.5], [-0.5, 1.0]])[None, None]
    result = inversion.invert(network, variables, images, 'conv1', steps=300, total_variation=0.0, norm=0.0)
    np.testing.assert_allclose(result.images, images, atol=0.01)
    assert (result.errors < 1e-4).all()
    smooth = inversion.invert(network, variables, images, 'conv1', steps=300, total_variation=1.0, beta=2.0)
    assert (inversion.variation(smooth.images, 2) < 0.5 * inversion.variation(images, 2)).all()
    assert (smooth.errors > result.errors).all()


def test_transformations_and_their_distances():
    network, variables, _ = chain(8, 1, kernels=((1, 2), (1, 4)))
    pixels = jnp.zeros((1, 8, 8, 1)).at[0, 2, 3].set(1)
    down = transform(pixels, transformation_matrices((8, 8, 1), 'translation', [0, 0.25]))
    np.testing.assert_allclose(down[0], pixels, atol=1e-6)
    assert float(down[1, 0, 4, 3, 0]) == pytest.approx(1)
    turned = transform(pixels, transformation_matrices((8, 8, 1), 'rotation', [90]))
    assert float(turned[0, 0, 4, 2, 0]) == pytest.approx(1, abs=1e-4)  # right of the centre and up goes up and left
    larger = transform(jnp.roll(pixels, 1, 1), transformation_matrices((8, 8, 1), 'scale', [2]))
    assert float(larger[0, 0].sum()) == pytest.approx(4, abs=0.1)
    result = invariance(network, variables, pixels, down, jnp.asarray([1]), ('conv1', 'conv2'))
    assert result.distances.shape == (2, 1, 2)
    kernel = variables['params']['Conv_0']['kernel'][0, 0, 0]
    expected = jnp.linalg.norm(kernel) * jnp.linalg.norm(down[1] - pixels)
    np.testing.assert_allclose(result.distances[:, 0, 0], [0, expected], atol=1e-5)
    np.testing.assert_allclose(result.probabilities[0], jax.nn.softmax(network.apply(variables, pixels))[:, 1], rtol=1e-5)


def test_the_effective_field_is_within_the_theoretical_one():
    network, variables, images = chain(24, kernels=((3, 3), (5, 4)), relu=True, pool=True)
    field = layer_fields.map_fields(network, variables, (24, 24, 2))['conv2']
    assert (field.size, field.stride) == ((12, 12), (2, 2))
    for row, column in ((5, 6), (0, 11)):
        strength = np.array(layer_fields.effective_field(network, variables, images, row, column, 'conv2'))
        assert strength.max() == 1
        assert 1 < layer_fields.effective_size(strength) <= 12
        box = field.box(row, column).inside((24, 24))
        strength[box.top:box.bottom, box.left:box.right] = 0
        assert not strength.any()
