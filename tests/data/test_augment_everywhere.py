"""Every registered op gives the same under jit, vmap, pmap and shards of a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcnn.data import augment
from jaxcnn.data.augment import Attack, ByEpoch, Mix

TEXTS = {
    'affine': 'affine(20, 0.1, (0.8, 1.2), 10)', 'alternating_flip': 'alternating_flip',
    'auto_augment': 'auto_augment("cifar10")',
    'autocontrast': 'autocontrast(0.7)', 'brightness': 'brightness(0.5)', 'center_crop': 'center_crop(9)',
    'channel_shift': 'channel_shift(0.2)', 'color_jitter': 'color_jitter(0.4, 0.4, 0.4, 0.1)', 'contrast': 'contrast(0.5)',
    'cutmix': 'cutmix(1)', 'cutout': 'cutout(4)', 'equalize': 'equalize(0.7)', 'fgsm': 'fgsm(0.03)', 'flip_lr': 'flip_lr',
    'flip_ud': 'flip_ud', 'gaussian_blur': 'gaussian_blur(5)', 'gaussian_noise': 'gaussian_noise(0.1)',
    'grayscale': 'grayscale(0.5)', 'hue': 'hue(0.2)', 'invert': 'invert', 'mixup': 'mixup(0.3)', 'pad': 'pad(2)',
    'pad_crop': 'pad_crop(2)', 'pgd': 'pgd(0.03, 0.01, 3)', 'posterize': 'posterize(3)',
    'rand_augment': 'rand_augment(2, 9)', 'random_crop': 'random_crop(9)', 'random_erasing': 'random_erasing(0.7)',
    'random_resized_crop': 'random_resized_crop(9)', 'resize': 'resize(9)', 'rotate': 'rotate(30)',
    'salt_and_pepper': 'salt_and_pepper(0.2)', 'saturation': 'saturation(0.5)', 'scale': 'scale((0.7, 1.3))',
    'scale_jitter': 'scale_jitter(9, (9, 32))', 'sharpness': 'sharpness(0.9)', 'shear': 'shear(15)',
    'solarize': 'solarize(0.5)', 'translate': 'translate(0.2)', 'trivial_augment': 'trivial_augment',
}
PIPELINES = {name: augment.pipeline(text) for name, text in TEXTS.items()}
ALONE = {name: p for name, p in PIPELINES.items() if not isinstance(p.ops[0], (Mix, Attack, ByEpoch))}
STEADY = {'center_crop', 'pad', 'resize'}
COUNT = 8


def test_no_op_is_forgotten():
    assert set(TEXTS) == set(augment.names())
    assert set(augment.names(steady=True)) == STEADY


@pytest.fixture(scope='module')
def batch(photo):
    images = jnp.stack([jnp.asarray(photo(24, 20, seed), jnp.float32) / 255 for seed in range(COUNT)])
    return jax.random.split(jax.random.key(11), COUNT), images


def all_of(key, image):
    return {name: p(key, image) for name, p in ALONE.items()}


@pytest.fixture(scope='module')
def of_batch():
    return jax.jit(jax.vmap(all_of))


@pytest.fixture(scope='module')
def vmapped(batch, of_batch):
    return jax.tree.map(np.asarray, of_batch(*batch))


@pytest.mark.parametrize('how', ['alone', 'pmap', 'sharded'])
def test_every_op_gives_the_same(batch, vmapped, how):
    if how == 'alone':
        run = jax.jit(all_of)
        found = jax.tree.map(lambda *x: np.stack(x), *(run(key, image) for key, image in zip(*batch, strict=True)))
    elif how == 'pmap':
        found = jax.pmap(all_of)(*batch)
    else:
        rows = NamedSharding(Mesh(np.array(jax.devices()[:8]), ('data',)), PartitionSpec('data'))
        found = jax.jit(jax.vmap(all_of), in_shardings=(rows, rows), out_shardings=rows)(*batch)
    for name, expected in vmapped.items():
        off = np.abs(np.asarray(found[name]) - expected) > 1e-5
        assert off.mean() < 0.002, name  # a level that rounds the other way


def test_every_op_that_draws_draws_anew_for_each_key_and_keeps_to_its_range(batch, vmapped, of_batch):
    keys, images = batch
    same = of_batch(keys, jnp.stack([images[0]] * COUNT))
    for name, results in vmapped.items():
        assert ((results >= -1e-6) & (results <= 1 + 1e-6)).all(), name
        assert np.any(same[name] != same[name][:1]) == (name not in STEADY), name
        assert np.asarray(results).dtype == np.float32, name
