"""The common corruptions against the package imagecorruptions, Pillow and plain loops."""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxcnn.data import augment
from jaxcnn.data.augment import corruptions, filters, jpeg, weather
from jaxcnn.errors import UserError

DRAWS = 24


@pytest.fixture(scope='module')
def photograph(photo):
    return photo(48, 48, 0)


@pytest.fixture
def corrupt(monkeypatch):
    """The function `(image, severity, kind)` of imagecorruptions, whose result is not rounded to bytes.

    It gets what two of its kinds need that NumPy and scikit-image have removed.
    """
    package = pytest.importorskip('imagecorruptions')
    functions, skimage = pytest.importorskip('imagecorruptions.corruptions'), pytest.importorskip('skimage.filters')
    monkeypatch.setattr(np, 'float_', np.float64, raising=False)
    monkeypatch.setattr(functions, 'gaussian', lambda x, sigma=1, multichannel=False, **rest: skimage.gaussian(
        x, sigma, channel_axis=-1 if multichannel else None, **rest))
    return lambda image, severity, kind: np.float64(package.corruption_dict[kind](Image.fromarray(image), severity))


def op_of(kind, severity, constants='imagenet'):
    return corruptions.corruption(kind, severity, constants)


@pytest.mark.torch
def test_kinds_without_random_numbers_give_the_images_of_imagecorruptions(photograph, corrupt):
    kinds = {'defocus_blur': (1, 5), 'zoom_blur': (1, 5), 'brightness': (1, 5), 'contrast': (1, 5), 'pixelate': (1, 4),
             'jpeg_compression': (1, 5)}
    ops = {(kind, severity): op_of(kind, severity) for kind, severities in kinds.items() for severity in severities}
    key = jax.random.key(0)
    results = jax.jit(lambda x: {name: op(key, x) for name, op in ops.items()})(jnp.asarray(photograph, jnp.float32) / 255)
    for (kind, severity), result in results.items():
        difference = np.abs(np.asarray(result) * 255 - corrupt(photograph, severity, kind))
        if kind in ('pixelate', 'jpeg_compression'):  # these round intermediate results
            assert difference.mean() < 0.1, (kind, severity)
        else:
            assert difference.max() < 0.01, (kind, severity)
    assert {kind for kind, entry in corruptions.CORRUPTIONS.items() if not entry.is_random} == set(kinds)


def statistics(image):
    """Return the mean, the deviation and the differences of neighbours at three distances of an image (H, W, C)."""
    grey = np.float64(image).mean(-1)
    return [grey.mean(), grey.std(), *(np.abs(grey[i:] - grey[:-i]).mean() for i in (1, 2, 4)),
            *(np.abs(grey[:, i:] - grey[:, :-i]).mean() for i in (1, 2, 4))]


@pytest.mark.torch
@pytest.mark.parametrize('kind', ['gaussian_noise', 'impulse_noise', 'motion_blur', 'snow', *(
    pytest.param(kind, marks=pytest.mark.slow) for kind in ('shot_noise', 'glass_blur', 'fog', 'elastic_transform'))])
def test_random_kinds_have_the_distribution_of_imagecorruptions(photograph, corrupt, kind):
    """The means of eight statistics over many draws are those of the reference, within their standard errors."""
    severity = 4
    op = op_of(kind, severity)
    if kind == 'elastic_transform':  # the reference has other lengths than ImageNet-C, and no affine map
        lengths = 250 * 0.1 * 0.005, 0.01, 0
        op = functools.partial(lambda key, image: corruptions.elastic_transform(key, image, *lengths))
    image = jnp.asarray(photograph, jnp.float32) / 255
    draws = jax.jit(jax.vmap(op, (0, None)))(jax.random.split(jax.random.key(0), DRAWS), image)
    ours = np.array([statistics(np.asarray(x) * 255) for x in draws])
    np.random.seed(0)
    reference = np.array([statistics(corrupt(photograph, severity, kind)) for _ in range(DRAWS)])
    error = np.sqrt((ours.var(0) + reference.var(0)) / DRAWS) + 0.05
    assert (np.abs(ours.mean(0) - reference.mean(0)) / error).max() < 4
    assert np.abs(reference.mean(0) - statistics(photograph)).max() > 2  # it does something


def test_glass_copies_one_pixel_after_the_other(photograph):
    max_shift = 2
    image = jnp.asarray(photograph, jnp.float32)[:20, :24]
    key = jax.random.key(3)
    expected = np.array(image)
    shifts = np.asarray(jax.random.randint(key, (2, 20, 24), -max_shift, max_shift))
    for row in range(20 - max_shift, max_shift, -1):
        for column in range(24 - max_shift, max_shift, -1):
            down, right = shifts[:, row, column]
            expected[row, column] = expected[row + down, column + right]
    np.testing.assert_array_equal(corruptions._copy_neighbours(key, image, max_shift), expected)
    assert (expected != image).mean() > 0.5


@pytest.mark.parametrize(('size', 'mode', 'quality'), [((40, 48), 'RGB', 80), ((37, 29), 'RGB', 25), ((33, 40), 'L', 40)])
def test_jpeg_is_that_of_pillow(photo, size, mode, quality):
    picture = Image.fromarray(photo(*size, 1)).convert(mode)
    file = io.BytesIO()
    picture.save(file, 'JPEG', quality=quality)
    expected = np.asarray(Image.open(file)).reshape(*size, -1)
    result = jax.jit(jpeg.compress, static_argnums=1)(
        jnp.asarray(picture, jnp.float32).reshape(*size, -1) / 255, quality)
    difference = np.abs(np.asarray(result) * 255 - expected)
    original = np.asarray(picture).reshape(*size, -1)
    assert difference.mean() < 0.06 * np.abs(np.float64(original) - expected).mean()


@pytest.mark.parametrize('severity', [1, pytest.param(5, marks=pytest.mark.slow)])
def test_pixels_of_cifar_are_those_of_pillow(photo, severity):
    image = photo(32, 32, 0)
    side = int(32 * corruptions.CORRUPTIONS['pixelate'].constants['cifar'][severity - 1])
    box = Image.Resampling.BOX
    expected = Image.fromarray(image).resize((side, side), box).resize((32, 32), box)
    result = op_of('pixelate', severity, 'auto')(None, jnp.asarray(image, jnp.float32) / 255)
    np.testing.assert_allclose(np.asarray(result) * 255, np.asarray(expected), atol=1.01)


@pytest.mark.slow
def test_the_random_affine_map_moves_three_points(photo):
    image = jnp.asarray(photo(32, 32, 0), jnp.float32) / 255
    shift = jax.random.uniform(jax.random.key(5), (3, 2), minval=-4, maxval=4)
    moved = filters.random_affine(jax.random.key(5), image, 4)
    for (x, y), (dx, dy) in zip([(26, 26), (26, 6), (6, 6)], np.asarray(shift), strict=True):
        before = np.asarray(filters.sample(image, jnp.array([[y]]), jnp.array([[x]]), 'mirror'))
        after = np.asarray(filters.sample(moved, jnp.array([[y + dy]]), jnp.array([[x + dx]]), 'mirror'))
        np.testing.assert_allclose(after, before, atol=0.12)  # interpolated twice


@pytest.mark.slow
def test_frost_has_the_colours_and_deviation_of_photographs():
    keys = jax.random.split(jax.random.key(0), 40)
    drawn = jax.jit(jax.vmap(lambda key: weather.frost(key, jnp.zeros((32, 32, 3)), 1.0, 1.0)))(keys)
    means, stds = np.asarray(drawn).mean((1, 2)), np.asarray(drawn).std((1, 2))
    np.testing.assert_allclose(means.mean(0), weather.FROST_MEANS.mean(0), atol=0.08)
    np.testing.assert_allclose(stds.mean(0), np.sqrt(1 - weather.LEVEL_SHARE ** 2) * weather.FROST_STDS.mean(0), rtol=0.15)
    assert len({tuple(row) for row in np.round(means, 2)}) > 10


@pytest.mark.parametrize(('text', 'line'), [
    ('corruption("smoke", 1)', "unknown kind of corruption 'smoke'"),
    ('corruption("fog", 6)', 'corruption.severity: expected 1 to 5, got 6'),
    ('corruption("fog", 1.5)', 'corruption.severity: expected a whole number of at least 1, got 1.5'),
    ('corruption("fog", 1, "mnist")', "unknown constants of corruption 'mnist'"),
])
def test_an_invalid_corruption_is_reported(text, line):
    with pytest.raises(UserError) as error:
        augment.parse_pipeline(text)
    assert line in str(error.value)
