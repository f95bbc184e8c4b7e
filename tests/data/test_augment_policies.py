"""AutoAugment, RandAugment and TrivialAugment apply the ops of PIL and draw them as their papers say."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from jaxcnn.data import augment
from jaxcnn.data.augment import policies
from jaxcnn.errors import UserError

SPACES = {'auto': policies.AugmentationSpace(10), 'wide': policies.AugmentationSpace(
    31, shear=0.99, translate=32.0, rotate=135.0, enhance=0.99, posterize=6)}
GEOMETRIC = ('shear_x', 'shear_y', 'translate_x', 'translate_y', 'rotate')


def apply_pil(image, op, amount, fill=0):
    """Apply one op to a PIL image, with the calls of torchvision's and the authors' code."""
    colour = (fill,) * len(image.getbands()) if len(image.getbands()) > 1 else fill

    def transform(*matrix):
        return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=colour)
    enhance = {'brightness': ImageEnhance.Brightness, 'color': ImageEnhance.Color, 'contrast': ImageEnhance.Contrast,
               'sharpness': ImageEnhance.Sharpness}
    if op in enhance:
        return enhance[op](image).enhance(1 + amount)
    return {
        'shear_x': lambda: transform(1, amount, 0, 0, 1, 0), 'shear_y': lambda: transform(1, 0, 0, amount, 1, 0),
        'translate_x': lambda: transform(1, 0, -amount, 0, 1, 0), 'translate_y': lambda: transform(1, 0, 0, 0, 1, -amount),
        'rotate': lambda: image.rotate(amount, Image.Resampling.NEAREST, fillcolor=colour),
        'posterize': lambda: ImageOps.posterize(image, 8 - int(amount)),
        'solarize': lambda: ImageOps.solarize(image, amount), 'autocontrast': lambda: ImageOps.autocontrast(image),
        'equalize': lambda: ImageOps.equalize(image), 'invert': lambda: ImageOps.invert(image), 'identity': lambda: image,
    }[op]()


@pytest.fixture(scope='module')
def transform_image():
    """The function `(image, ops, amounts)` that applies each op to the image, compiled once for each shape."""
    run = jax.jit(jax.vmap(lambda image, op, amount: policies.transform(image, op, amount, 128), (None, 0, 0)))
    return lambda image, ops, amounts: np.asarray(run(jnp.float32(image), jnp.asarray(ops), jnp.asarray(amounts)))


@pytest.mark.parametrize('space', SPACES)
@pytest.mark.parametrize('kind', ['photo', 'grey', 'noise', 'constant'])
def test_every_op_at_every_magnitude_equals_pils(photo, transform_image, space, kind):
    pixels = {'photo': photo(), 'grey': photo()[..., :1], 'noise': np.random.default_rng(0).integers(0, 256, (24, 20, 3)),
              'constant': np.full((24, 20, 3), 77)}[kind].astype(np.uint8)
    values = SPACES[space].values(pixels.shape)
    cases = [(i, sign * x) for i, row in enumerate(values) for x in row
             for sign in ((1, -1) if i < len(policies.SIGNED) else (1,))]
    ops, amounts = np.array([c[0] for c in cases]), np.array([c[1] for c in cases], np.float32)
    results = transform_image(pixels, ops, amounts)
    image = Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0])
    effective = set()
    for result, op, amount in zip(results, ops, amounts, strict=True):
        name = policies.OPS[op]
        expected = np.asarray(apply_pil(image, name, round(float(amount), 5), 128), np.float32).reshape(pixels.shape)
        differs = (result != expected).any(-1)
        # blends that are whole numbers up to a rounding error may differ by 1
        assert differs.mean() <= (0.01 if name in GEOMETRIC else 0.05), (name, amount, np.abs(result - expected).max())
        if name not in GEOMETRIC:
            assert np.abs(result - expected).max() <= 1, (name, amount)
        if (result != pixels).any():
            effective.add(name)
    assert kind != 'photo' or effective == set(policies.OPS) - {'identity'}


def test_each_policy_has_25_sub_policies_of_two_ops():
    for policy in policies.POLICIES.values():
        assert len(policy) == 25
        for sub in policy:
            assert len(sub) == 2
            assert all(op in policies.OPS and 0 <= p <= 1 and m in range(10) for op, p, m in sub)


def is_distributed_as(samples, probabilities):
    """Return whether samples (op, amount) have the given probabilities, by a chi-squared test that pools rare ones."""
    counts = collections.Counter(samples)
    assert set(counts) <= set(probabilities), set(counts) - set(probabilities)
    rare = {pair for pair, p in probabilities.items() if p * len(samples) < 10}
    common = [pair for pair in probabilities if pair not in rare]
    observed = [counts[pair] for pair in common] + [sum(counts[pair] for pair in rare)]
    expected = [probabilities[pair] for pair in common] + [sum(probabilities[pair] for pair in rare)]
    if expected[-1] * len(samples) < 10:
        observed, expected = observed[:-1], expected[:-1]
    assert len(expected) > 5
    return stats.chisquare(observed, np.array(expected) * sum(observed) / sum(expected)).pvalue > 1e-4


def draw_samples(sampler, count, shape=(32, 32, 3)):
    """Return for each position in the sequence of ops the samples (op, amount)."""
    ops, amounts = jax.jit(jax.vmap(lambda key: sampler(key, shape)))(jax.random.split(jax.random.key(7), count))
    return [[(policies.OPS[o], round(float(a), 4)) for o, a in zip(column_ops, column_amounts, strict=True)]
            for column_ops, column_amounts in zip(np.asarray(ops).T, np.asarray(amounts).T, strict=True)]


def add_probability(probabilities, op, amount, p):
    """Add the probability of an op; if its amount may be negative, each sign has half of it."""
    signs = (1, -1) if op in policies.SIGNED else (1,)
    for sign in signs:
        probabilities[op, round(sign * float(np.float32(amount)), 4) + 0.0] += p / len(signs)


@pytest.mark.parametrize('policy', ['cifar10', 'imagenet'])
def test_auto_augment_draws_from_its_table(policy):
    table = policies.POLICIES[policy]
    amounts = policies.AugmentationSpace(10).values((32, 32, 3))
    for position, samples in enumerate(draw_samples(policies.sub_policy_sampler(table), 20000)):
        probabilities = collections.defaultdict(float)
        for sub_policy in table:
            op, p, magnitude = sub_policy[position]
            add_probability(probabilities, op, amounts[policies.OPS.index(op), magnitude], p / 25)
            add_probability(probabilities, 'identity', 0, (1 - p) / 25)
        assert is_distributed_as(samples, probabilities)


def test_auto_augment_draws_both_ops_from_the_same_sub_policy():
    table = policies.CIFAR10
    first, second = draw_samples(policies.sub_policy_sampler(table), 2000)
    pairs = {(a[0], b[0]) for a, b in zip(first, second, strict=True)}
    permitted = {(a, b) for sub in table for a in (sub[0][0], 'identity') for b in (sub[1][0], 'identity')}
    assert pairs <= permitted
    assert len(pairs) > 0.8 * len(permitted)


def test_rand_augment_draws_14_ops_uniformly_at_one_magnitude_and_trivial_augment_at_any():
    ops = [op for op in policies.OPS if op != 'invert']
    assert len(ops) == 14
    amounts = policies.AugmentationSpace(31).values((32, 32, 3))
    for samples in draw_samples(policies.op_sampler(2, policies.AugmentationSpace(31), 9), 10000):
        probabilities = collections.defaultdict(float)
        for op in ops:
            add_probability(probabilities, op, amounts[policies.OPS.index(op), 9], 1 / 14)
        assert is_distributed_as(samples, probabilities)
    wide = SPACES['wide'].values((32, 32, 3))
    probabilities = collections.defaultdict(float)
    for op in ops:
        for amount in wide[policies.OPS.index(op)]:
            add_probability(probabilities, op, amount, 1 / 14 / 31)
    samples, = draw_samples(policies.op_sampler(1, SPACES['wide'], None), 20000)
    assert is_distributed_as(samples, probabilities)


def test_magnitudes_have_the_amounts_of_the_papers():
    """Cubuk et al. 2019, table 6, and torchvision's 31 levels; Müller & Hutter 2021, table 1, wide."""
    auto, wide = (dict(zip(policies.OPS, space.values((331, 662, 3)), strict=True)) for space in SPACES.values())
    assert np.allclose([auto[op][-1] for op in ('shear_x', 'rotate', 'color', 'posterize', 'solarize')],
                       [0.3, 30, 0.9, 4, 0])
    assert (auto['translate_y'][-1], auto['translate_x'][-1]) == (150, 300)
    assert np.allclose(auto['posterize'], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    assert np.allclose([wide[op][-1] for op in ('shear_y', 'rotate', 'contrast', 'translate_x', 'posterize', 'solarize')],
                       [0.99, 135, 0.99, 32, 6, 0])
    assert all(row[0] == (255 if op == 'solarize' else 0) for table in (auto, wide) for op, row in table.items())


@pytest.mark.parametrize(('text', 'sampler'), [
    pytest.param('auto_augment("cifar10", 0.5)', policies.sub_policy_sampler(policies.CIFAR10), marks=pytest.mark.slow),
    pytest.param('auto_augment("imagenet", 0.5)', policies.sub_policy_sampler(policies.IMAGENET), marks=pytest.mark.slow),
    ('rand_augment(2, 20, 0.5)', policies.op_sampler(2, policies.AugmentationSpace(31), 20)),
    ('trivial_augment(0.5)', policies.op_sampler(1, SPACES['wide'], None)),
])
def test_a_policy_applies_the_drawn_ops_of_pil_in_order(photo, apply_to_image, text, sampler):
    pixels = photo()
    keys = jax.random.split(jax.random.key(8), 60)
    op, = augment.parse_pipeline(text).ops
    results, (ops, amounts) = apply_to_image(keys, np.float32(pixels / 255), op, lambda key, x: sampler(key, x.shape))
    num_equal = 0
    for result, ops_of_image, amounts_of_image in zip(results, ops, amounts, strict=True):
        image = Image.fromarray(pixels)
        for index, amount in zip(ops_of_image, amounts_of_image, strict=True):
            image = apply_pil(image, policies.OPS[index], round(float(amount), 5), 128)
        num_equal += np.mean(np.abs(255 * result - np.asarray(image)).max(-1) > 1.5) < 0.05
    assert num_equal >= 57  # if one pixel is rounded in the other direction, equalizing changes many others


@pytest.mark.parametrize(('text', 'channels', 'line'), [
    ('auto_augment("svhn")', 3, "unknown policy of auto_augment 'svhn'; known: cifar10, imagenet"),
    ('auto_augment', 3, "auto_augment.*missing.*'policy'"),
    ('rand_augment(2, 31)', 3, 'rand_augment.magnitude: expected a number between 0 and 30, got 31'),
    ('rand_augment(0)', 3, 'rand_augment.num_ops: expected a whole number of at least 1, got 0'),
    ('trivial_augment(300)', 3, 'trivial_augment.fill: expected a number between 0 and 1, got 300'),
    ('trivial_augment', 4, 'trivial_augment: expected images of 1 or 3 channels, got 4'),
])
def test_an_invalid_argument_is_reported_in_one_line(text, channels, line):
    with pytest.raises(UserError, match=line) as error:
        augment.parse_pipeline(text)(jax.random.key(0), jnp.zeros((24, 24, channels)))
    assert '\n' not in str(error.value)
