"""Tokens-to-token vision transformers."""

import functools
import math
import runpy

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import models
from jaxcnn.errors import UserError
from jaxcnn.models import t2t_vit
from jaxcnn.training.state import run_once

SMALL = {'depth': 2, 'embed': 12, 'heads': 3, 'token_dim': 8}
SPLITS_64 = ((7, 2, 3), (3, 2, 1), (3, 2, 1))


def shapes(*side, **fields):
    network = models.create('t2t_vit_14', **fields)
    return jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, *side, 3))))['params']


def count(tree):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(('tokens', 'parameters'), [('performer', 21_465_806), ('transformer', 21_465_422)])
def test_networks_for_64_pixels_have_as_many_parameters_as_published(tokens, parameters):
    assert count(shapes(64, 64, tokens=tokens, splits=SPLITS_64, num_classes=1000)) == parameters


def test_layer_norm_is_exact_to_rounding_where_the_mean_is_many_deviations():
    """The first layer of the network, a LayerNorm, sees patches of images with a mean of 1,000."""
    network = models.create('t2t_vit_14', **SMALL, splits=((1, 1, 0), (1, 1, 0)))
    images = np.random.default_rng(0).normal(size=(1, 8, 8, 48)).astype(np.float32) + 1000
    outputs = []

    def record(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if isinstance(context.module, nn.LayerNorm):
            outputs.append(output)
        return output

    @jax.jit
    def first_norm(x):
        with nn.intercept_methods(record):
            network.init(jax.random.key(0), x)
        return outputs[0]
    exact = np.float64(images) - np.float64(images).mean(-1, keepdims=True)
    exact /= np.sqrt((exact ** 2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(first_norm(images), exact.reshape(1, 64, 48), atol=1e-3)


def test_maps_are_the_grids_of_tokens():
    network = models.create('t2t_vit_14', **SMALL)

    def maps(network, *side):
        _, named = jax.eval_shape(lambda x: network.init_with_output(jax.random.key(0), x, features=True)[0],
                                  jax.ShapeDtypeStruct((2, *side, 3), jnp.float32))
        return {name: x.shape[1:] for name, x in named.items()}
    assert maps(network, 224, 160) == {
        'tokens1': (56, 40, 8), 'tokens2': (28, 20, 8),
        'tokens': (14, 10, 12), 'block1': (14, 10, 12), 'block2': (14, 10, 12)}
    assert maps(network.copy(splits=SPLITS_64), 64, 64)['tokens'] == (8, 8, 12)


def test_it_works_on_images_that_leave_one_token_and_refuses_smaller_ones():
    assert shapes(3, 3, **SMALL)
    with pytest.raises(UserError, match='T2TViT needs images of at least 3 x 3 pixels, got 2 x 3'):
        shapes(2, 3, **SMALL)
    assert models.create('t2t_vit_14', splits=((5, 1, 0), (3, 2, 0))).min_image_size() == 7


# ---- the parts


@pytest.mark.parametrize(('size', 'stride', 'padding'), [(7, 4, 2), (3, 2, 1), (2, 3, 0)])
def test_a_soft_split_is_every_patch(size, stride, padding):
    x = np.random.default_rng(0).normal(size=(2, 9, 12, 3))
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    patches = np.asarray(jax.jit(t2t_vit.unfold, static_argnums=(1, 2, 3))(x, size, stride, padding))
    rows, columns = ((side + 2 * padding - size) // stride + 1 for side in (9, 12))
    assert patches.shape == (2, rows, columns, size * size * 3)
    for i, j in np.ndindex(rows, columns):
        patch = padded[:, i * stride:i * stride + size, j * stride:j * stride + size]
        np.testing.assert_array_equal(patches[:, i, j], np.float32(patch.reshape(2, -1)))


def test_positions_are_sinusoids():
    table = t2t_vit.positions(50, 6)
    for position, feature in np.ndindex(50, 6):
        angle = position / 10000 ** (feature // 2 * 2 / 6)
        assert table[position, feature] == pytest.approx((math.cos if feature % 2 else math.sin)(angle), abs=1e-5)


def test_random_directions_are_fixed_orthogonal_and_equally_long():
    w = t2t_vit.random_directions(0, 64)
    np.testing.assert_allclose(w @ w.T, 32 * np.eye(32), atol=1e-4)
    np.testing.assert_array_equal(w, t2t_vit.random_directions.__wrapped__(0, 64))
    assert np.abs(w - t2t_vit.random_directions(1, 64)).max() > 1


def test_stochastic_depth_leaves_out_the_last_block_for_some_images_and_never_the_first():
    network = models.create('t2t_vit_14', **SMALL, drop_path=0.7, splits=((3, 2, 1),))
    images = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype(np.float32)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype),
                             jax.eval_shape(network.init, jax.random.key(0), images))

    @functools.partial(jax.jit, compiler_options=run_once())
    def run(v, x):
        return (network.apply(v, x, features=True)[1],
                network.apply(v, x, train=True, features=True, rngs={'dropout': jax.random.key(1)})[1])
    evaluated, trained = run(variables, images)
    np.testing.assert_allclose(trained['block1'], evaluated['block1'], rtol=1e-5, atol=1e-6)
    same = np.all(np.asarray(trained['block1'] == trained['block2']), (1, 2, 3))
    assert 0.2 < same.mean() < 0.8  # two paths in a block: 0.49
    assert not np.any(np.all(np.asarray(evaluated['block1'] == evaluated['block2']), (1, 2, 3)))


# ---- PyTorch


@pytest.mark.torch
@pytest.mark.parametrize(('tokens', 'side', 'splits'), [
    ('performer', 48, ((7, 4, 2), (3, 2, 1), (3, 2, 1))), ('transformer', 24, ((7, 4, 2), (3, 2, 1))),
    pytest.param('performer', 12, ((3, 2, 1),), marks=pytest.mark.slow),
    pytest.param('transformer', 48, ((7, 4, 2), (3, 2, 1), (3, 2, 1)), marks=pytest.mark.slow)])
def test_logits_are_those_of_pytorch_with_the_same_weights(tokens, side, splits):
    torch = pytest.importorskip('torch')
    torch.manual_seed(0)
    peer = runpy.run_path('jaxcnn/benchmarks/torch_peer/networks.py')
    token_class = peer['Performer' if tokens == 'performer' else 'TokenTransformer']
    torch_network = peer['T2TViT'](5, token_class, splits, **SMALL).eval()
    for i, one in enumerate(torch_network.tokens):
        one.w.copy_(torch.from_numpy(t2t_vit.random_directions(i, SMALL['token_dim'])))
    unfolded = [torch_network.project, *(module for one in torch_network.tokens for module in (one.norm1, one.qkv))]
    torch_order, flax_order = [], []
    for module in torch_network.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.LayerNorm)):
            for values in module.parameters():
                torch.nn.init.normal_(values, 1.0 if values.ndim == 1 else 0.0, 0.3)
            module.register_forward_hook(lambda module, *_: torch_order.append(module))
    images = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    with torch.no_grad():
        expected = torch_network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()

    network = models.create('t2t_vit_14', **SMALL, tokens=tokens, splits=splits, num_classes=5)

    def listing(call, args, kwargs, context):
        if isinstance(context.module, (nn.Dense, nn.LayerNorm)) and context.method_name == '__call__':
            flax_order.append(context.module.name)
        return call(*args, **kwargs)
    with nn.intercept_methods(listing):
        params = jax.eval_shape(network.init, jax.random.key(0), images)['params']
    sizes = iter(size for size, *_ in splits for _ in range(2))
    filled = {'class_token': torch_network.first.detach().numpy()}
    for name, module in zip(flax_order, torch_order, strict=True):
        dense = isinstance(module, torch.nn.Linear)
        values = {('kernel' if dense else 'scale') if key == 'weight' else key: value.detach().numpy().T
                  for key, value in module.named_parameters()}
        if module in unfolded:  # (channel, row, column) to (row, column, channel)
            size = next(sizes)
            values |= {key: x.reshape(-1, size * size, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)
                       for key, x in values.items() if not (dense and key == 'bias')}
        filled[name] = values
    assert jax.tree.map(np.shape, filled) == jax.tree.map(np.shape, params)
    logits = jax.jit(network.apply, compiler_options=run_once())({'params': filled}, images)
    assert expected.std() > 0.05
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


# ---- what is refused


@pytest.mark.parametrize(('fields', 'line'), [
    ({'tokens': 'preformer'}, r"unknown tokens 'preformer'; nearest: performer"),
    ({'depth': -1}, r'depth must be at least 1, got -1'), ({'token_dim': 1}, r'token_dim must be at least 2, got 1'),
    ({'heads': 5}, r'5 heads do not divide 384 features'), ({'heads': 0}, r'heads must be at least 1, got 0'),
    ({'mlp_ratio': -3}, r'mlp_ratio must be large enough to leave one of 384 features, got -3'),
    ({'scale': -1.0}, r'scale must be at least 0, got -1\.0'),
    ({'drop_path': 1.0}, r'drop_path must be in \[0, 1\), got 1\.0'),
    ({'token_dropout': -0.1}, r'token_dropout must be in \[0, 1\), got -0\.1'),
    ({'splits': []}, r'splits must be tuples \(size, stride, padding\)'),
    ({'splits': [7, 4, 2]}, r'splits must be .* got \(7, 4, 2\)'),
    ({'splits': [[7, 4]]}, r'splits must be .* got \(\(7, 4\),\)'), ({'splits': [[3, 2, 3]]}, r'padding less than size'),
    ({'splits': [[3, 0, 1]]}, r'size and stride positive')])
def test_what_makes_no_network_is_reported_in_one_line(fields, line):
    with pytest.raises(UserError, match=line) as error:
        models.create('t2t_vit_14', **fields)
    assert '\n' not in str(error.value)
