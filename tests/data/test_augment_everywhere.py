"""Every registered augmentation returns the same images under jit, vmap, pmap and sharding, and they are in [0, 1]."""

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
    'corruption': 'corruption("motion_blur", 3)',
    'cutmix': 'cutmix(1)', 'cutout': 'cutout(4)', 'equalize': 'equalize(0.7)', 'fgsm': 'fgsm(0.03)', 'flip_lr': 'flip_lr',
    'flip_ud': 'flip_ud', 'gaussian_blur': 'gaussian_blur(5)', 'gaussian_noise': 'gaussian_noise(0.1)',
    'grayscale': 'grayscale(0.5)', 'hue': 'hue(0.2)', 'invert': 'invert',
    'large_scale_jitter': 'large_scale_jitter', 'mixup': 'mixup(0.3)', 'pad': 'pad(2)',
    'pad_crop': 'pad_crop(2)', 'pgd': 'pgd(0.03, 0.01, 3)', 'posterize': 'posterize(3)',
    'rand_augment': 'rand_augment(2, 9)', 'random_crop': 'random_crop(9)', 'random_erasing': 'random_erasing(0.7)',
    'random_resized_crop': 'random_resized_crop(9)', 'resize': 'resize(9)', 'rotate': 'rotate(30)',
    'salt_and_pepper': 'salt_and_pepper(0.2)', 'saturation': 'saturation(0.5)', 'scale': 'scale((0.7, 1.3))',
    'scale_jitter': 'scale_jitter(9, (9, 32))', 'sharpness': 'sharpness(0.9)', 'shear': 'shear(15)',
    'shorter_side': 'shorter_side(9)',
    'solarize': 'solarize(0.5)', 'translate': 'translate(0.2)', 'trivial_augment': 'trivial_augment',
}
PIPELINES = {name: augment.parse_pipeline(text) for name, text in TEXTS.items()}
IMAGE_OPS = {name: p for name, p in PIPELINES.items() if not isinstance(p.ops[0], (Mix, Attack, ByEpoch))}
DETERMINISTIC = {'center_crop', 'pad', 'resize', 'shorter_side'}
# one of each technique: branches one image at a time, a histogram by scatter, a warp by gather, random numbers per pixel
REPRESENTATIVE = {'color_jitter', 'equalize', 'rotate', 'gaussian_noise', 'pad'}
COUNT = 8


def test_the_lists_are_complete():
    assert set(TEXTS) == set(augment.names())
    assert set(augment.names(deterministic=True)) == DETERMINISTIC


@pytest.fixture(scope='module')
def batch(photo):
    images = jnp.stack([jnp.asarray(photo(24, 20, seed), jnp.float32) / 255 for seed in range(COUNT)])
    return jax.random.split(jax.random.key(11), COUNT), images


@pytest.fixture(scope='module', params=['representative', pytest.param('others', marks=pytest.mark.slow)])
def apply_ops(request):
    """The function that applies a group of ops to one image."""
    is_representative = request.param == 'representative'
    ops = {name: op for name, op in IMAGE_OPS.items() if (name in REPRESENTATIVE) == is_representative}
    return lambda key, image: {name: op(key, image) for name, op in ops.items()}


@pytest.fixture(scope='module')
def apply_to_batch(apply_ops):
    return jax.jit(jax.vmap(apply_ops))


@pytest.fixture(scope='module')
def expected(batch, apply_to_batch):
    return jax.tree.map(np.asarray, apply_to_batch(*batch))


@pytest.mark.parametrize('transform', ['jit', 'pmap', 'sharded'])
def test_every_op_returns_the_same_images(batch, apply_ops, expected, transform):
    if transform == 'jit':
        run = jax.jit(apply_ops)
        results = jax.tree.map(lambda *x: np.stack(x), *(run(key, image) for key, image in zip(*batch, strict=True)))
    elif transform == 'pmap':
        results = jax.pmap(apply_ops)(*batch)
    else:
        rows = NamedSharding(Mesh(np.array(jax.devices()[:8]), ('data',)), PartitionSpec('data'))
        results = jax.jit(jax.vmap(apply_ops), in_shardings=(rows, rows), out_shardings=rows)(*batch)
    for name, images in expected.items():
        differs = np.abs(np.asarray(results[name]) - images) > 1e-5
        assert differs.mean() < 0.002, name  # a value that is rounded in the other direction


def test_random_ops_depend_on_the_key_and_all_stay_in_range(batch, apply_to_batch, expected):
    keys, images = batch
    of_one_image = apply_to_batch(keys, jnp.stack([images[0]] * COUNT))
    for name, results in expected.items():
        assert ((results >= -1e-6) & (results <= 1 + 1e-6)).all(), name
        assert np.any(of_one_image[name] != of_one_image[name][:1]) == (name not in DETERMINISTIC), name


def test_every_op_returns_a_float32_image():
    for name, op in IMAGE_OPS.items():
        result = jax.eval_shape(op, jax.random.key(0), jax.ShapeDtypeStruct((24, 20, 3), jnp.float32))
        assert (result.ndim, result.shape[-1], result.dtype) == (3, 3, jnp.float32), name
