"""The ONNX exporter against JAX: each primitive on random inputs in onnxruntime, layouts, names and types."""

import collections
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import onnxruntime
import pytest

from jaxcnn import models
from jaxcnn.errors import UserError
from jaxcnn.export import onnx
from jaxcnn.ops.pool import as_reduce_window, avg_pool, max_pool
from jaxcnn.ops.tanh import tanh

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(3, 2, 2, 6)).astype(np.float32)
MATRIX = RNG.normal(size=(4, 3)).astype(np.float32)


def run(model, x):
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=['CPUExecutionProvider'])
    return session.run(None, {'images': x})[0]


def convolve(x, **arguments):
    arguments = dict(window_strides=(1, 1), padding='SAME') | arguments
    return jax.lax.conv_general_dilated(x, KERNEL, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), **arguments)


# functions of x (N, 6, 5, 4), one for each primitive or form of one
FUNCTIONS = {
    'groups, strides, dilation': lambda x: convolve(x, feature_group_count=2, window_strides=(2, 1), rhs_dilation=(1, 2)),
    'uneven padding': lambda x: convolve(x[..., :2], padding=((0, 2), (1, 0))),
    'depthwise': lambda x: jax.lax.conv_general_dilated(x, KERNEL[:, :, :1, :4], (1, 1), 'VALID', feature_group_count=4,
                                                        dimension_numbers=('NHWC', 'HWIO', 'NHWC')),
    'scale and bias after a convolution': lambda x: (1 - (convolve(x[..., 1:3]) - np.arange(6)) * np.arange(6.0)) / 3,
    'scale along another axis': lambda x: convolve(x[..., 1:3]) * np.arange(5)[:, None] - np.arange(6)[:, None, None],
    'two uses of a convolution': lambda x: (y := convolve(x[..., 1:3])) * 2 + y,
    'a convolution after a transposition': lambda x: convolve(x.transpose(0, 2, 1, 3)[..., 2:]).transpose(0, 3, 1, 2),
    'max_pool': lambda x: max_pool(x, 3, 2, 1, ceil=True),
    'max_pool with wide padding': lambda x: max_pool(x, 2, 3, 1, ceil=True),
    'avg_pool': lambda x: avg_pool(x, 3, 2, 1, ceil=True),
    'avg_pool within the image': lambda x: avg_pool(x, 3, 2, 1, count_padding=False),
    'reduction of channels': lambda x: convolve(x[..., :2]).max(-1),
    'reduction of rows': lambda x: convolve(x[..., :2]).sum(1),
    'mean and variance': lambda x: (x - x.mean((1, 2, 3), keepdims=True)) / x.std((1, 2, 3), keepdims=True),
    'reductions': lambda x: x.min(2) + x.prod(2, where=x > 0) + x.argmax(2),
    'flatten': lambda x: convolve(x[..., :2]).reshape(x.shape[0], -1),
    'flatten one pixel': lambda x: max_pool(x[:, :5], 5).reshape(x.shape[0], -1),
    'dense': lambda x: x.reshape(x.shape[0], -1, 4) @ MATRIX + 1,
    'dense from the left': lambda x: jnp.einsum('dc,nhwc->nhdw', MATRIX.T, x),
    'attention': lambda x: jnp.einsum('nhwc,nhvc->nhwv', nn.softmax(x), x),
    'layer norm': lambda x: nn.LayerNorm().apply({'params': {'scale': np.arange(4.0), 'bias': np.ones(4)}}, x),
    'concatenation of orders': lambda x: jnp.concatenate([x, convolve(x[..., :2]), x[..., ::-1]], -1),
    'stack and split': lambda x: jnp.stack(jnp.split(convolve(x[..., :2]), 3, -1), 1),
    'a token for each image': lambda x: jnp.concatenate([
        jnp.broadcast_to(MATRIX, (x.shape[0], 1, 4, 3)), x[:, :, :4, 1:]], 1),
    'pad and crop': lambda x: jax.lax.pad(convolve(x[..., :2]), 0.5, [(0, 0, 0), (1, 2, 0), (-1, 3, 0), (2, 0, 0)]),
    'slices': lambda x: x[:, 1:-1:2, ::-1, 2:],
    'rows and columns': lambda x: x[:, jnp.array([0, 5, 2])[:, None], jnp.array([4, 1])],
    'one row': lambda x: x[:, 3],
    'every second pixel': lambda x: convolve(x[..., :2])[:, ::2, ::2],
    'dynamic slice': lambda x: jax.vmap(lambda y: jax.lax.dynamic_slice(y, (1, 4, 0), (3, 2, 4)))(x),
    'resize': lambda x: jax.image.resize(x, (x.shape[0], 9, 3, 4), 'linear', antialias=True),
    'selection': lambda x: jnp.where((x > 0) & ~(x > 1) | (x <= -1), x, jnp.sign(x)),
    'comparisons': lambda x: (x != 1.0) * 1.0 + (x < 0) * 2.0 + (x >= 0.5) + (jnp.floor(x) == 0),
    'clamp': lambda x: jnp.clip(x, -0.5, 0.7) + jax.lax.clamp(0.1, x, 0.2),
    'roots and powers': lambda x: jax.lax.rsqrt(x ** 2 + 1) + x ** -3 + abs(x) ** 0.3 + jnp.sqrt(abs(x)),
    'exponentials': lambda x: jnp.expm1(x) + jnp.log1p(abs(x)) + jnp.exp(-x) + jnp.log(abs(x)),
    'rounding': lambda x: jnp.round(4 * x) + jnp.ceil(x) + jnp.fmod(x, 0.3) + jnp.isfinite(x),
    'sines': lambda x: jnp.sin(x) * jnp.cos(x),
    'integers': lambda x: (x * 10).astype(jnp.int32).astype(jnp.float32),
    'activations': lambda x: sum(f(x) for f in (nn.relu6, nn.elu, nn.selu, nn.silu, nn.hard_swish, jax.nn.mish, nn.gelu,
                                                tanh, nn.sigmoid, nn.softplus, nn.leaky_relu)),
    'exact gelu': lambda x: nn.gelu(x, approximate=False),
    'a position drawn from a constant key': lambda x: jax.vmap(functools.partial(
        lambda key, y: y[jax.random.randint(jax.random.fold_in(key, 1), (), 0, 6)], jax.random.key(0)))(x),
    'remat and jit': lambda x: jax.checkpoint(jax.jit(lambda y: y * 2))(x),
    'a constant for each image': lambda x: jnp.ones((x.shape[0], 3)) * np.arange(3) + x[:, :3, 0, 0],
}


@pytest.mark.parametrize('name', FUNCTIONS)
def test_primitives_compute_what_they_do_in_jax(name):
    x = RNG.normal(size=(3, 6, 5, 4)).astype(np.float32)

    def function(_, x):
        with as_reduce_window():
            return FUNCTIONS[name](x)
    graph, output = onnx.to_graph(function, {}, x.shape[1:], np.float32)
    model = onnx.to_model(graph, output, x.shape[1:], dtype=np.float32)
    expected = np.asarray(jax.jit(function)(None, x))
    for count in (3, 1):
        result = run(model, x[:count])
        assert result.dtype == expected.dtype
        np.testing.assert_allclose(result, expected[:count], rtol=2e-5, atol=2e-5)


def network():
    """Return a small residual network, its variables, and the function that is exported."""
    model = models.create('resnet20_cifar', num_classes=5, width=4, blocks=(1, 1, 1), conv_implementation='xla')
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    variables = jax.tree.map(lambda x: RNG.uniform(-0.2 if x.ndim > 1 else 0.1, 0.3, x.shape).astype(np.float32), shapes)

    def function(variables, images):
        variables = jax.tree.map(lambda x: x.astype(jnp.float32), variables)
        with as_reduce_window():
            return model.apply(variables, images.astype(jnp.float32) / 255, train=False)
    return variables, function


def test_one_transposition_remains_and_batch_norm_becomes_part_of_the_convolutions():
    variables, function = network()
    graph, output = onnx.to_graph(function, variables, (16, 16, 3))
    counts = collections.Counter(node.op for node in graph.nodes)
    assert counts['Transpose'] == 1
    assert counts['Conv'] == 7
    assert counts['Add'] == 4  # the sums of three blocks, and a bias of the dense layer
    assert counts['Mul'] == counts['Sub'] == 0
    assert {'Conv_0/kernel', 'Conv_6/kernel', 'Dense_0/kernel', 'Dense_0/bias'} <= set(graph.constants)
    assert len(graph.constants['Conv_0/kernel']) == 4
    images = RNG.integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)
    model = onnx.to_model(graph, output, (16, 16, 3), metadata={'class_names': 'a'})
    assert {entry.key: entry.value for entry in model.metadata_props} == {'class_names': 'a'}
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == 'batch'
    np.testing.assert_allclose(run(model, images), jax.jit(function)(variables, images), rtol=1e-4, atol=1e-5)


def test_a_network_that_is_applied_twice_has_its_weights_once():
    variables, function = network()

    def mirrored(variables, images):
        return function(variables, images) + function(variables, images[:, :, ::-1])
    once, twice = (onnx.to_graph(f, variables, (16, 16, 3))[0] for f in (function, mirrored))
    assert sum(x.nbytes for x in twice.constants.values()) < 1.02 * sum(x.nbytes for x in once.constants.values())
    assert {'Conv_0/kernel', 'Conv_0/bias', 'Conv_6/kernel'} <= set(twice.constants)


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_weights_of_16_bits_take_half_the_space_and_are_used_as_they_were_rounded(dtype):
    variables, function = network()
    rounded = jax.tree.map(lambda x: np.asarray(x).astype(dtype).astype(np.float32), variables)
    graph, output = onnx.to_graph(function, rounded, (16, 16, 3), fold=False)
    model, full = (onnx.to_model(graph, output, (16, 16, 3), weight_dtype=t) for t in (dtype, None))
    stored, unrounded = (sum(len(x.raw_data) for x in m.graph.initializer) for m in (model, full))
    assert stored < 0.6 * unrounded
    images = RNG.integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)
    np.testing.assert_allclose(run(model, images), jax.jit(function)(rounded, images), rtol=1e-4, atol=1e-5)


def test_an_unsupported_primitive_is_named_with_its_layer():
    class Sorter(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jnp.sort(nn.Dense(3)(x))
    variables = Sorter().init(jax.random.key(0), jnp.zeros((1, 4)))
    with pytest.raises(UserError, match=r'does not support sort of float32\[batch,3\] in Sorter') as error:
        onnx.to_graph(Sorter().apply, variables, (4,), np.float32)
    assert '--format=stablehlo' in str(error.value)


QUICK = 'lenet5', 'nin_cifar'


@pytest.mark.parametrize('name', [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in models.names('logits')])
def test_networks_of_the_zoo_compute_what_they_do_in_jax(name):
    (_, _, channels), _ = models.create(name).published_for()
    model = models.create(name, conv_implementation='xla')
    side, rng = max(32, model.min_image_size()), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, channels)))

    def draw(path, x):
        spread = (2 / np.prod(x.shape[:-1])) ** 0.5 if path[-1].key == 'kernel' else 0.1
        offset = 1 if path[-1].key in ('scale', 'var') else 0
        return (offset + spread * rng.normal(size=x.shape)).astype(np.float32)
    variables = jax.tree_util.tree_map_with_path(draw, shapes)

    def function(variables, images):
        with as_reduce_window():
            return model.apply(variables, images.astype(jnp.float32) / 255, train=False)
    graph, output = onnx.to_graph(function, variables, (side, side, channels))
    images = rng.integers(0, 256, (2, side, side, channels)).astype(np.uint8)
    expected = np.asarray(jax.jit(function)(variables, images))
    scale = np.abs(expected).max()
    assert np.isfinite(scale)
    assert np.ptp(expected, 0).max() > 1e-3 * scale  # the outputs depend on the images
    result = run(onnx.to_model(graph, output, (side, side, channels)), images)
    ops = collections.Counter(node.op for node in graph.nodes)
    difference = np.abs(result - expected).max() / scale
    # -rP shows this row of the table in docs/export.md
    print(f"| `{name}` | {side} | {ops.total()} | {ops['Conv']} | {ops['Transpose']} | {difference:.1e} |")
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4 * scale)
