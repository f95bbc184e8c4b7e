"""Tests of pipelines and of the basic augmentations against NumPy with the same random numbers."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.data import augment
from jaxcnn.data.augment import erase, geometry
from jaxcnn.errors import UserError
from jaxcnn.registry import undo_registrations

HEIGHT, WIDTH = 5, 7
IMAGE = np.random.default_rng(0).uniform(0.01, 1, (HEIGHT, WIDTH, 3)).astype(np.float32)


KEYS = jax.random.split(jax.random.key(0), 2500)


def apply_to_image(*ops, keys=KEYS[:400]):
    """Return the results of each op for `IMAGE` and each key, computed in one compiled call."""
    results = jax.jit(jax.vmap(lambda key: [op(key, jnp.asarray(IMAGE)) for op in ops]))(keys)
    return [np.asarray(result) for result in results]


def is_uniform(counts):
    """Return whether each count is within five standard deviations of its binomial distribution."""
    total, probability = counts.sum(), 1 / len(counts)
    return np.abs(counts - total * probability).max() < 5 * np.sqrt(total * probability * (1 - probability))


def test_pad_crop_crops_the_padded_image_at_uniform_positions():
    modes = ['constant', 'reflect', 'edge', 'symmetric']
    positions, = apply_to_image(lambda key, _: jax.random.randint(key, (2,), 0, 5), keys=KEYS)
    top, left = positions.T
    results = apply_to_image(*[geometry.pad_crop(2, mode) for mode in modes], keys=KEYS)
    for mode, crops in zip(modes, results, strict=True):
        padded = np.pad(IMAGE, ((2, 2), (2, 2), (0, 0)), mode=mode)
        np.testing.assert_array_equal(
            crops, [padded[i:i + HEIGHT, j:j + WIDTH] for i, j in zip(top, left, strict=True)])
    assert is_uniform(np.bincount(5 * top + left, minlength=25))


def test_flip_lr_mirrors_columns_with_probability_p():
    probabilities = [0.0, 0.2, 0.5, 1.0]
    all_results = apply_to_image(*map(geometry.flip_lr, probabilities), keys=KEYS)
    for p, results in zip(probabilities, all_results, strict=True):
        mirrored = (results == IMAGE[:, ::-1]).all((1, 2, 3))
        assert (mirrored | (results == IMAGE).all((1, 2, 3))).all()
        assert abs(mirrored.mean() - p) <= 5 * np.sqrt(p * (1 - p) / len(KEYS))


def test_alternating_flip_mirrors_every_image_in_one_of_two_consecutive_epochs():
    """The position in the batch and the key of the step do not matter."""
    count = len(KEYS)
    images = jnp.broadcast_to(IMAGE, (count, *IMAGE.shape))
    image_keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(7), i))(jnp.arange(count))
    pipeline = augment.parse_pipeline('pad(1)|alternating_flip|center_crop(5)')
    run = jax.jit(lambda step_keys, image_keys, epochs: pipeline.batch(
        step_keys, {'image': images}, None, lambda x: x, None, (image_keys, epochs))['image'])
    mirrored_by_epoch = []
    for epoch in range(4):
        order = np.random.default_rng(epoch).permutation(count)
        step_keys = jax.random.split(jax.random.key(epoch), count)
        results = np.asarray(run(step_keys, image_keys[order], jnp.full(count, epoch)))
        mirrored = (results == IMAGE[:, ::-1][:, 1:6]).all((1, 2, 3))
        assert (mirrored | (results == IMAGE[:, 1:6]).all((1, 2, 3))).all()
        mirrored_by_epoch.append(mirrored[np.argsort(order)])
    assert abs(mirrored_by_epoch[0].mean() - 0.5) <= 5 * np.sqrt(0.25 / count)
    for before, after in itertools.pairwise(mirrored_by_epoch):
        np.testing.assert_array_equal(before, ~after)


@pytest.mark.parametrize('p', [0, 1])
def test_flip_lr_accepts_a_whole_number_as_probability(p):
    expected = IMAGE[:, ::-1] if p else IMAGE
    np.testing.assert_array_equal(augment.parse_pipeline(f'flip_lr({p})')(KEYS[0], jnp.asarray(IMAGE)), expected)


def cutout_of_paper(y, x, size, fill):
    """Return `IMAGE` with the paper's square around (y, x), cut off at the borders."""
    image = IMAGE.copy()
    image[max(y - size // 2, 0):y - size // 2 + size, max(x - size // 2, 0):x - size // 2 + size] = fill
    return image


def test_cutout_fills_a_square_with_a_uniform_centre():
    arguments = [(1, 0.5), (2, 0.0), (3, 1.0), (4, 0.25)]
    centres, = apply_to_image(lambda key, _: jax.random.randint(key, (2,), 0, jnp.array([HEIGHT, WIDTH])), keys=KEYS)
    results = apply_to_image(*[erase.cutout(size, fill) for size, fill in arguments], keys=KEYS)
    for (size, fill), images in zip(arguments, results, strict=True):
        np.testing.assert_array_equal(images, [cutout_of_paper(y, x, size, fill) for y, x in centres])
    assert is_uniform(np.bincount(WIDTH * centres[:, 0] + centres[:, 1], minlength=HEIGHT * WIDTH))


class VariantsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_a_pipeline_returns_the_same_with_and_without_vmap_and_jit(self):
        op = augment.parse_pipeline('pad_crop(2)|flip_lr|cutout(3)')
        images = jnp.asarray(np.random.default_rng(1).uniform(size=(3, *IMAGE.shape)).astype(np.float32))
        batched = jax.jit(jax.vmap(op))(KEYS[:3], images)
        single = jnp.stack([self.variant(op)(key, image) for key, image in zip(KEYS[:3], images, strict=True)])
        chex.assert_trees_all_equal(batched, single)
        assert not np.array_equal(batched, images)


@pytest.mark.parametrize('text', ['pad_crop(2)', 'flip_lr', 'cutout(3)', 'pad_crop(2)|flip_lr|cutout(3)'])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_ops_preserve_shape_and_dtype(text, dtype):
    image = jax.ShapeDtypeStruct((6, 4, 1), dtype)
    result = jax.eval_shape(augment.parse_pipeline(text), KEYS[0], image)
    assert (result.shape, result.dtype) == (image.shape, image.dtype)


# ---- pipelines


def test_ops_are_applied_in_order_each_with_its_own_key():
    first, second = erase.cutout(3, fill=0.25), geometry.pad_crop(2, mode='edge')
    result, expected = apply_to_image(
        augment.parse_pipeline('cutout(3, fill=0.25) | pad_crop(2, mode="edge")'),
        lambda key, image: second(jax.random.fold_in(key, 1), first(jax.random.fold_in(key, 0), image)))
    np.testing.assert_array_equal(result, expected)
    # the square covers the image; only padding that comes after it can be black
    pad_first, cutout_first = apply_to_image(augment.parse_pipeline('pad_crop(4)|cutout(20, 0.5)'),
                                             augment.parse_pipeline('cutout(20, 0.5)|pad_crop(4)'))
    assert (pad_first == 0.5).all()
    assert set(np.unique(cutout_first)) == {0, 0.5}


def test_a_repeated_op_draws_independently():
    results, = apply_to_image(augment.parse_pipeline('flip_lr|flip_lr'))
    mirrored = (results == IMAGE[:, ::-1]).all((1, 2, 3))
    assert 140 < mirrored.sum() < 260


@pytest.mark.parametrize('text', ['', '  '])
def test_an_empty_pipeline_is_none(text):
    assert augment.parse_pipeline(text) is None


@pytest.mark.parametrize('deterministic', [False, True])
def test_a_registered_augmentation_is_known_by_its_name(deterministic):
    def darken(factor):
        return lambda key, image: image * factor

    with undo_registrations():
        augment.register(darken, deterministic=deterministic)
        assert 'darken' in augment.names()
        assert ('darken' in augment.names(deterministic=True)) == deterministic
        pipeline = augment.parse_pipeline('darken(0.5)', deterministic)
        np.testing.assert_allclose(pipeline(KEYS[0], IMAGE), IMAGE / 2)
    assert 'darken' not in augment.names()
    assert 'darken' not in augment.names(deterministic=True)


@pytest.mark.parametrize(('text', 'line'), [
    ('pad_corp(4)', r"unknown augmentation 'pad_corp'; nearest: pad_crop"),
    ('flip', r"unknown augmentation 'flip'; nearest: flip_ud, flip_lr"),
    ('pad_crop(4, mod="edge")', r"unknown argument of augmentation pad_crop 'mod'; nearest: mode"),
    ('pad_crop(4, mode="egde")', r"unknown mode of pad_crop 'egde'; nearest: edge"),
    ('pad_crop', r"augmentation pad_crop.*missing.*'pad'"),
    ('pad_crop(1, "edge", 3)', r'augmentation pad_crop.*too many'),
    ('pad_crop(0)', r'pad_crop\.pad: expected a whole number of at least 1, got 0'),
    ('pad_crop(1.5)', r'pad_crop\.pad: expected a whole number of at least 1, got 1\.5'),
    ('flip_lr(1.5)', r'flip_lr\.p: expected a number between 0 and 1, got 1\.5'),
    ('flip_lr("a")', r"flip_lr\.p: expected a number between 0 and 1, got 'a'"),
    ('cutout(0)', r'cutout\.size: expected a whole number of at least 1, got 0'),
    ('cutout(4, 2)', r'cutout\.fill: expected a number between 0 and 1, got 2'),
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
def test_an_invalid_pipeline_is_reported_in_one_line(text, line):
    with pytest.raises(UserError, match=line) as error:
        augment.parse_pipeline(text)
    assert '\n' not in str(error.value)
