"""AutoAugment, RandAugment and TrivialAugment against PIL, and what they draw against their tables."""

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

SPACES = {'auto': policies.Space(10), 'wide': policies.Space(31, shear=0.99, translate=32.0, rotate=135.0, enhance=0.99,
                                                             posterize=6)}
MOVES = ('shear_x', 'shear_y', 'translate_x', 'translate_y', 'rotate')


def by_pil(image, op, amount, fill=0):
    """One op on a PIL image, as torchvision's and the authors' code call it."""
    colour = (fill,) * len(image.getbands()) if len(image.getbands()) > 1 else fill

    def moved(*matrix):
        return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=colour)
    enhance = {'brightness': ImageEnhance.Brightness, 'color': ImageEnhance.Color, 'contrast': ImageEnhance.Contrast,
               'sharpness': ImageEnhance.Sharpness}
    if op in enhance:
        return enhance[op](image).enhance(1 + amount)
    return {
        'shear_x': lambda: moved(1, amount, 0, 0, 1, 0), 'shear_y': lambda: moved(1, 0, 0, amount, 1, 0),
        'translate_x': lambda: moved(1, 0, -amount, 0, 1, 0), 'translate_y': lambda: moved(1, 0, 0, 0, 1, -amount),
        'rotate': lambda: image.rotate(amount, Image.Resampling.NEAREST, fillcolor=colour),
        'posterize': lambda: ImageOps.posterize(image, 8 - int(amount)),
        'solarize': lambda: ImageOps.solarize(image, amount), 'autocontrast': lambda: ImageOps.autocontrast(image),
        'equalize': lambda: ImageOps.equalize(image), 'invert': lambda: ImageOps.invert(image), 'identity': lambda: image,
    }[op]()


@pytest.fixture(scope='module')
def after():
    """`transform` of one image under many ops and amounts, compiled once for a shape."""
    run = jax.jit(jax.vmap(lambda image, op, amount: policies.transform(image, op, amount, 128), (None, 0, 0)))
    return lambda image, *drawn: np.asarray(run(jnp.asarray(image, jnp.float32), *map(jnp.asarray, drawn)))


@pytest.mark.parametrize('space', SPACES)
@pytest.mark.parametrize('picture', ['photo', 'grey', 'noise', 'even'])
def test_every_op_at_every_magnitude_is_pils(photo, after, space, picture):
    pixels = {'photo': photo(), 'grey': photo()[..., :1], 'noise': np.random.default_rng(0).integers(0, 256, (24, 20, 3)),
              'even': np.full((24, 20, 3), 77)}[picture].astype(np.uint8)
    values = SPACES[space].values(pixels.shape)
    cases = [(i, sign * x) for i, row in enumerate(values) for x in row
             for sign in ((1, -1) if i < len(policies.SIGNED) else (1,))]
    ops, amounts = np.array([c[0] for c in cases]), np.array([c[1] for c in cases], np.float32)
    found = after(pixels, ops, amounts)
    image = Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0])
    seen = set()
    for result, op, amount in zip(found, ops, amounts, strict=True):
        name = policies.OPS[op]
        expected = np.asarray(by_pil(image, name, round(float(amount), 5), 128), np.float32).reshape(pixels.shape)
        other = (result != expected).any(-1)
        # blends that are whole numbers but for rounding
        assert other.mean() <= (0.01 if name in MOVES else 0.05), (name, amount, np.abs(result - expected).max())
        if name not in MOVES:
            assert np.abs(result - expected).max() <= 1, (name, amount)
        seen |= {name} if (result != pixels).any() else set()
    assert picture != 'photo' or seen == set(policies.OPS) - {'identity'}


def test_the_tables_have_25_sub_policies_of_two_ops():
    for policy in policies.POLICIES.values():
        assert len(policy) == 25
        for sub in policy:
            assert len(sub) == 2
            assert all(op in policies.OPS and 0 <= p <= 1 and m in range(10) for op, p, m in sub)


def is_drawn_from(drawn, expected):
    """Whether the pairs (op, amount) come with those probabilities: a dictionary."""
    counts = collections.Counter(drawn)
    assert set(counts) <= set(expected), set(counts) - set(expected)
    total, rare = sum(counts.values()), {k for k, p in expected.items() if p * sum(counts.values()) < 10}
    often = [k for k in expected if k not in rare]
    observed = [counts[k] for k in often] + [sum(counts[k] for k in rare)]
    chances = [expected[k] for k in often] + [sum(expected[k] for k in rare)]
    if chances[-1] * total < 10:
        observed, chances = observed[:-1], chances[:-1]
    assert len(chances) > 5
    return stats.chisquare(observed, np.array(chances) * sum(observed) / sum(chances)).pvalue > 1e-4


def pairs(draw, count, shape=(32, 32, 3)):
    ops, amounts = jax.jit(jax.vmap(lambda key: draw(key, shape)))(jax.random.split(jax.random.key(7), count))
    return [[(policies.OPS[o], round(float(a), 4)) for o, a in zip(column_ops, column_amounts, strict=True)]
            for column_ops, column_amounts in zip(np.asarray(ops).T, np.asarray(amounts).T, strict=True)]


def add(expected, op, amount, chance):
    """An op with two directions takes either with half the chance."""
    signs = (1, -1) if op in policies.SIGNED else (1,)
    for sign in signs:
        expected[op, round(sign * float(np.float32(amount)), 4) + 0.0] += chance / len(signs)


@pytest.mark.parametrize('policy', ['cifar10', 'imagenet'])
def test_auto_augment_draws_from_its_table(policy):
    table = policies.POLICIES[policy]
    values = policies.Space(10).values((32, 32, 3))
    for place, drawn in enumerate(pairs(policies.drawn_sub_policy(table), 20000)):
        expected = collections.defaultdict(float)
        for sub in table:
            op, p, magnitude = sub[place]
            add(expected, op, values[policies.OPS.index(op), magnitude], p / 25)
            add(expected, 'identity', 0, (1 - p) / 25)
        assert is_drawn_from(drawn, expected)


def test_the_ops_of_a_sub_policy_are_drawn_together():
    table = policies.CIFAR10
    first, second = pairs(policies.drawn_sub_policy(table), 2000)
    together = {(a[0], b[0]) for a, b in zip(first, second, strict=True)}
    permitted = {(a, b) for sub in table for a in (sub[0][0], 'identity') for b in (sub[1][0], 'identity')}
    assert together <= permitted
    assert len(together) > 0.8 * len(permitted)


def test_rand_augment_draws_14_ops_evenly_at_one_magnitude_and_trivial_augment_at_any():
    ops = [op for op in policies.OPS if op != 'invert']
    assert len(ops) == 14
    values = policies.Space(31).values((32, 32, 3))
    for drawn in pairs(policies.drawn_ops(2, policies.Space(31), 9), 10000):
        expected = collections.defaultdict(float)
        for op in ops:
            add(expected, op, values[policies.OPS.index(op), 9], 1 / 14)
        assert is_drawn_from(drawn, expected)
    wide = SPACES['wide'].values((32, 32, 3))
    expected = collections.defaultdict(float)
    for op in ops:
        for amount in wide[policies.OPS.index(op)]:
            add(expected, op, amount, 1 / 14 / 31)
    drawn, = pairs(policies.drawn_ops(1, SPACES['wide'], None), 20000)
    assert is_drawn_from(drawn, expected)


def test_magnitudes_are_those_of_the_papers():
    """Cubuk et al. 2019, table 6, and torchvision's 31 levels; Müller & Hutter 2021, table 1, wide."""
    auto, wide = (dict(zip(policies.OPS, space.values((331, 662, 3)), strict=True)) for space in SPACES.values())
    assert np.allclose([auto[op][-1] for op in ('shear_x', 'rotate', 'color', 'posterize', 'solarize')],
                       [0.3, 30, 0.9, 4, 0])
    assert (auto['translate_y'][-1], auto['translate_x'][-1]) == (150, 300)
    assert np.allclose(auto['posterize'], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    assert np.allclose([wide[op][-1] for op in ('shear_y', 'rotate', 'contrast', 'translate_x', 'posterize', 'solarize')],
                       [0.99, 135, 0.99, 32, 6, 0])
    assert all(row[0] == (255 if op == 'solarize' else 0) for table in (auto, wide) for op, row in table.items())


@pytest.mark.parametrize(('text', 'draw'), [
    ('auto_augment("cifar10", 0.5)', policies.drawn_sub_policy(policies.CIFAR10)),
    ('auto_augment("imagenet", 0.5)', policies.drawn_sub_policy(policies.IMAGENET)),
    ('rand_augment(3, 20, 0.5)', policies.drawn_ops(3, policies.Space(31), 20)),
    ('trivial_augment(0.5)', policies.drawn_ops(1, SPACES['wide'], None)),
])
def test_a_policy_is_pils_ops_one_after_the_other(photo, under, text, draw):
    pixels = photo()
    keys = jax.random.split(jax.random.key(8), 60)
    op, = augment.pipeline(text).ops
    found, (ops, amounts) = under(keys, np.float32(pixels / 255), op, lambda key, x: draw(key, x.shape))
    close = 0
    for result, applied, strengths in zip(found, ops, amounts, strict=True):
        image = Image.fromarray(pixels)
        for which, amount in zip(applied, strengths, strict=True):
            image = by_pil(image, policies.OPS[which], round(float(amount), 5), 128)
        close += np.mean(np.abs(255 * result - np.asarray(image)).max(-1) > 1.5) < 0.05
    assert close >= 57  # equalising after a pixel has rounded the other way moves more of them


@pytest.mark.parametrize(('text', 'channels', 'line'), [
    ('auto_augment("svhn")', 3, "unknown policy of auto_augment 'svhn'; known: cifar10, imagenet"),
    ('auto_augment', 3, "auto_augment.*missing.*'policy'"),
    ('rand_augment(2, 31)', 3, 'rand_augment: magnitude must be between 0 and 30, got 31'),
    ('rand_augment(0)', 3, 'rand_augment: num_ops must be a whole number of at least 1, got 0'),
    ('trivial_augment(300)', 3, 'trivial_augment: fill must be between 0 and 1, got 300'),
    ('trivial_augment', 4, 'policies need images of 1 or 3 channels, got 4'),
])
def test_a_wrong_policy_is_told_in_one_line(text, channels, line):
    with pytest.raises(UserError, match=line) as error:
        augment.pipeline(text)(jax.random.key(0), jnp.zeros((24, 24, channels)))
    assert '\n' not in str(error.value)
