"""Augmentation against plain NumPy with the same drawn parameters, and the distribution of what is drawn."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.data import augment
from jaxcnn.data.augment import erase, geometry, registry
from jaxcnn.errors import UserError

HEIGHT, WIDTH = 5, 7
IMAGE = np.random.default_rng(0).uniform(0.01, 1, (HEIGHT, WIDTH, 3)).astype(np.float32)


KEYS = jax.random.split(jax.random.key(0), 2500)


def many(op, image=IMAGE, keys=KEYS[:400]):
    """What `op`, or each of several ops, makes of one image under many keys; in one compiled call."""
    ops = op if isinstance(op, list) else [op]
    results = jax.jit(jax.vmap(lambda key: [f(key, jnp.asarray(image)) for f in ops]))(keys)
    return np.asarray(results) if isinstance(op, list) else np.asarray(results[0])


def is_uniform(counts):
    """Within five deviations of a binomial count."""
    total, share = counts.sum(), 1 / len(counts)
    return np.abs(counts - total * share).max() < 5 * np.sqrt(total * share * (1 - share))


def test_pad_crop_cuts_the_padded_image_where_it_draws_and_every_place_alike():
    modes = ['constant', 'reflect', 'edge', 'symmetric']
    draw = [lambda key, _: jax.random.randint(key, (2,), 0, 5)]
    top, left = many(draw, keys=KEYS)[0].T
    results = many([geometry.pad_crop(2, mode) for mode in modes], keys=KEYS)
    for mode, crops in zip(modes, results, strict=True):
        padded = np.pad(IMAGE, ((2, 2), (2, 2), (0, 0)), mode=mode)
        np.testing.assert_array_equal(
            crops, [padded[i:i + HEIGHT, j:j + WIDTH] for i, j in zip(top, left, strict=True)])
    assert is_uniform(np.bincount(5 * top + left, minlength=25))


def test_flip_lr_mirrors_columns_with_its_probability():
    chances = [0.0, 0.2, 0.5, 1.0]
    for p, results in zip(chances, many([geometry.flip_lr(p) for p in chances], keys=KEYS), strict=True):
        mirrored = (results == IMAGE[:, ::-1]).all((1, 2, 3))
        assert (mirrored | (results == IMAGE).all((1, 2, 3))).all()
        assert abs(mirrored.mean() - p) <= 5 * np.sqrt(p * (1 - p) / len(KEYS))


def test_alternating_flips_show_every_image_both_ways_in_two_epochs_in_turn():
    """On each image of many epochs, wherever it comes in its batch and whatever the step's key is."""
    count = len(KEYS)
    images = jnp.broadcast_to(IMAGE, (count, *IMAGE.shape))
    own = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(7), i))(jnp.arange(count))
    pipeline = augment.pipeline('pad(1)|alternating_flip|center_crop(5)')
    run = jax.jit(lambda keys, own, epochs: pipeline.batch(
        keys, {'image': images}, None, lambda x: x, None, (own, epochs))['image'])
    ways = []
    for epoch in range(4):
        order = np.random.default_rng(epoch).permutation(count)
        found = np.asarray(run(jax.random.split(jax.random.key(epoch), count), own[order], jnp.full(count, epoch)))
        mirrored = (found == IMAGE[:, ::-1][:, 1:6]).all((1, 2, 3))
        assert (mirrored | (found == IMAGE[:, 1:6]).all((1, 2, 3))).all()
        ways.append(mirrored[np.argsort(order)])
    assert abs(ways[0].mean() - 0.5) <= 5 * np.sqrt(0.25 / count)
    for before, after in itertools.pairwise(ways):
        np.testing.assert_array_equal(before, ~after)


@pytest.mark.parametrize('p', [0, 1])
def test_flip_lr_takes_a_whole_number_for_its_probability(p):
    expected = IMAGE[:, ::-1] if p else IMAGE
    np.testing.assert_array_equal(augment.pipeline(f'flip_lr({p})')(KEYS[0], jnp.asarray(IMAGE)), expected)


def under_square(y, x, size, fill):
    """The image under the paper's square around (y, x), cut off at the borders."""
    image = IMAGE.copy()
    image[max(y - size // 2, 0):y - size // 2 + size, max(x - size // 2, 0):x - size // 2 + size] = fill
    return image


def test_cutout_fills_a_square_around_what_it_draws_and_every_centre_alike():
    variants = [(1, 0.5), (2, 0.0), (3, 1.0), (4, 0.25)]
    draw = [lambda key, _: jax.random.randint(key, (2,), 0, jnp.array([HEIGHT, WIDTH]))]
    centres = many(draw, keys=KEYS)[0]
    results = many([erase.cutout(*v) for v in variants], keys=KEYS)
    for variant, images in zip(variants, results, strict=True):
        np.testing.assert_array_equal(images, [under_square(y, x, *variant) for y, x in centres])
    assert is_uniform(np.bincount(WIDTH * centres[:, 0] + centres[:, 1], minlength=HEIGHT * WIDTH))


class VariantsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_a_pipeline_gives_the_same_vmapped_jitted_and_neither(self):
        op = augment.pipeline('pad_crop(2)|flip_lr|cutout(3)')
        images = jnp.asarray(np.random.default_rng(1).uniform(size=(3, *IMAGE.shape)).astype(np.float32))
        batched = jax.jit(jax.vmap(op))(KEYS[:3], images)
        single = jnp.stack([self.variant(op)(key, image) for key, image in zip(KEYS[:3], images, strict=True)])
        chex.assert_trees_all_equal(batched, single)
        assert not np.array_equal(batched, images)


@pytest.mark.parametrize('text', ['pad_crop(2)', 'flip_lr', 'cutout(3)', 'pad_crop(2)|flip_lr|cutout(3)'])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_an_op_keeps_shape_and_type(text, dtype):
    image = jax.ShapeDtypeStruct((6, 4, 1), dtype)
    result = jax.eval_shape(augment.pipeline(text), KEYS[0], image)
    assert (result.shape, result.dtype) == (image.shape, image.dtype)


# ---- pipelines


def test_ops_apply_in_their_order_each_with_a_key_of_its_own():
    first, second = erase.cutout(3, fill=0.25), geometry.pad_crop(2, mode='edge')
    result, expected = many([
        augment.pipeline('cutout(3, fill=0.25) | pad_crop(2, mode="edge")'),
        lambda key, image: second(jax.random.fold_in(key, 1), first(jax.random.fold_in(key, 0), image))])
    np.testing.assert_array_equal(result, expected)
    # everything is cut out before the black frame comes, or after it
    after, before = many([augment.pipeline('pad_crop(4)|cutout(20, 0.5)'), augment.pipeline('cutout(20, 0.5)|pad_crop(4)')])
    assert (after == 0.5).all()
    assert set(np.unique(before)) == {0, 0.5}


def test_the_same_op_twice_draws_twice():
    mirrored = (many(augment.pipeline('flip_lr|flip_lr')) == IMAGE[:, ::-1]).all((1, 2, 3))
    assert 140 < mirrored.sum() < 260


@pytest.mark.parametrize('text', ['', '  '])
def test_an_empty_pipeline_is_none(text):
    assert augment.pipeline(text) is None


def test_a_registered_op_joins_under_its_name(monkeypatch):
    monkeypatch.setattr(registry, '_OPS', dict(registry._OPS))

    @augment.register
    def darken(factor):
        return lambda key, image: image * factor

    assert 'darken' in augment.names()
    np.testing.assert_allclose(augment.pipeline('darken(0.5)')(KEYS[0], IMAGE), IMAGE / 2)


@pytest.mark.parametrize(('text', 'line'), [
    ('pad_corp(4)', r"unknown augmentation 'pad_corp'; nearest: pad_crop"),
    ('flip', r"unknown augmentation 'flip'; nearest: flip_ud, flip_lr"),
    ('pad_crop(4, mod="edge")', r"unknown argument of augmentation pad_crop 'mod'; nearest: mode"),
    ('pad_crop(4, mode="egde")', r"unknown mode of pad_crop 'egde'; nearest: edge"),
    ('pad_crop', r"augmentation pad_crop.*missing.*'pad'"),
    ('pad_crop(1, "edge", 3)', r'augmentation pad_crop.*too many'),
    ('pad_crop(0)', r'pad_crop: pad must be a whole number of at least 1, got 0'),
    ('pad_crop(1.5)', r'pad_crop: pad must be .* got 1\.5'),
    ('flip_lr(1.5)', r'flip_lr: p must be between 0 and 1, got 1\.5'),
    ('flip_lr("a")', r"flip_lr: p must be between 0 and 1, got 'a'"),
    ('cutout(0)', r'cutout: size must be a whole number of at least 1, got 0'),
    ('cutout(4, 2)', r'cutout: fill must be between 0 and 1, got 2'),
    ('flip_lr||flip_lr', r"config\.data\.augment: '' is not a name"),
    ('flip_lr|', r"config\.data\.augment: '' is not a name"),
    ('pad_crop(4', r"config\.data\.augment: 'pad_crop\(4' is not a name"),
    ('flip_lr,cutout(8)', r"config\.data\.augment: 'flip_lr,cutout\(8\)' is not a name.*; several are separated by '\|'"),
    ('pad_crop(2 * 2)', r'config\.data\.augment: .* is not a name'),
    ('pad_crop(__import__("os").getpid())', r'config\.data\.augment: .* is not a name'),
    ('__import__("os").getpid()', r'config\.data\.augment: .* is not a name'),
    ('__import__("os")', r"unknown augmentation '__import__'"),
    ('augment.flip_lr()', r'config\.data\.augment: .* is not a name'),
])
def test_a_wrong_pipeline_is_told_in_one_line(text, line):
    with pytest.raises(UserError, match=line) as error:
        augment.pipeline(text)
    assert '\n' not in str(error.value)
