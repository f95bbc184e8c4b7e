"""Erasing, mixing and attacks equal the algorithms of their papers, written in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxcnn import config, tasks
from jaxcnn.data import augment
from jaxcnn.data.augment import adversarial, erase, mixing
from jaxcnn.errors import UserError

HEIGHT, WIDTH = 24, 20
KEYS = jax.random.split(jax.random.key(5), 2000)
TASK = tasks.create(config.parse({}), list('abcd'), [1] * 4, 4)


def rectangle_of(mask):
    """Return (top, left, height, width) of a mask, which must be a full rectangle."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left, height, width = rows[0], columns[0], len(rows), len(columns)
    assert mask[top:top + height, left:left + width].all()
    assert mask.sum() == height * width
    return top, left, height, width


# ---- erasing


def test_erasing_fills_a_rectangle_within_scale_and_ratio_with_probability_p(apply_to_image):
    image = np.random.default_rng(0).uniform(0.1, 0.9, (HEIGHT, WIDTH, 3)).astype(np.float32)
    results, = apply_to_image(KEYS, image, erase.random_erasing(0.3, (0.1, 0.3), (0.5, 2.0), 0.95))
    changed = (results != image).all(-1)
    np.testing.assert_array_equal(results[~changed], np.broadcast_to(image, results.shape)[~changed])
    assert (results[changed] == np.float32(0.95)).all()
    erased = changed.any((1, 2))
    assert stats.binomtest(int(erased.sum()), len(KEYS), 0.3).pvalue > 1e-4
    top, left, height, width = np.array([rectangle_of(mask) for mask in changed[erased]]).T
    min_area, max_area = HEIGHT * WIDTH * np.array([0.1, 0.3])
    # sides are rounded to whole pixels
    assert ((height - 0.5) * (width - 0.5) <= max_area).all()
    assert ((height + 0.5) * (width + 0.5) >= min_area).all()
    assert ((height - 0.5) / (width + 0.5) <= 2.0).all()
    assert ((height + 0.5) / (width - 0.5) >= 0.5).all()
    for position, side, length in ((top, HEIGHT, height), (left, WIDTH, width)):
        continuous = (position + np.random.default_rng(1).uniform(size=len(position))) / (side - length + 1)
        assert stats.kstest(continuous, 'uniform').pvalue > 1e-4


def test_erasing_with_random_values_draws_each_value_uniformly(apply_to_image):
    image = np.full((HEIGHT, WIDTH, 3), 2.0, np.float32)
    results, = apply_to_image(KEYS[:200], image, erase.random_erasing(1.0, value='random'))
    values = results[results != 2]
    assert len(np.unique(values)) > 0.99 * len(values)
    assert stats.kstest(values, 'uniform').pvalue > 1e-4


# ---- mixing


def mix_black_and_white(op):
    """Return the images and labels of a black image of class 0 mixed with a white one of class 1, for each key."""
    black, white = jnp.zeros((HEIGHT, WIDTH, 1)), jnp.ones((HEIGHT, WIDTH, 1))
    first, second = ({'label': label} for label in jnp.eye(3)[:2])

    def mix(key):
        image, share = op.apply(key, black, white)
        return image, TASK.mix(first, second, share)['label']
    return map(np.asarray, jax.jit(jax.vmap(mix))(KEYS))


@pytest.mark.parametrize('alpha', [0.2, 1.0, 3.0])
def test_mixup_weights_images_and_labels_by_the_same_beta_share(alpha):
    images, labels = mix_black_and_white(mixing.mixup(alpha))
    assert (images == images[:, :1, :1]).all()
    white = images[:, 0, 0, 0]
    np.testing.assert_allclose(labels, np.stack([1 - white, white, 0 * white], -1), atol=1e-6)
    assert stats.kstest(labels[:, 0], stats.beta(alpha, alpha).cdf).pvalue > 1e-4


def cutmix_of_paper(rng, alpha):
    """Return the share of the image and (top, left, height, width) of the pasted rectangle by algorithm 1 of Yun et al."""
    share = rng.beta(alpha, alpha)
    height, width = int(HEIGHT * np.sqrt(1 - share)), int(WIDTH * np.sqrt(1 - share))
    y, x = rng.integers(HEIGHT), rng.integers(WIDTH)
    top, bottom = np.clip([y - height // 2, y - height // 2 + height], 0, HEIGHT)
    left, right = np.clip([x - width // 2, x - width // 2 + width], 0, WIDTH)
    return 1 - (bottom - top) * (right - left) / (HEIGHT * WIDTH), top, left, bottom - top, right - left


@pytest.mark.parametrize('alpha', [0.5, 1.0])
def test_cutmix_pastes_rectangles_as_in_the_paper_and_mixes_labels_by_pixels(alpha):
    images, labels = mix_black_and_white(mixing.cutmix(alpha))
    assert set(np.unique(images)) == {0, 1}
    np.testing.assert_allclose(labels[:, 1], images.mean((1, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(labels.sum(-1), 1, atol=1e-6)
    rectangles = np.array([rectangle_of(mask) if mask.any() else (0, 0, 0, 0) for mask in images[..., 0] == 1])
    rng = np.random.default_rng(2)
    expected = np.array([cutmix_of_paper(rng, alpha) for _ in range(4 * len(KEYS))])
    expected[expected[:, 0] == 1, 1:] = 0
    for samples, expected_samples in zip([labels[:, 0], *rectangles.T], expected.T, strict=True):
        assert stats.ks_2samp(samples, expected_samples).pvalue > 1e-4


@pytest.mark.parametrize('op', ['mixup', 'cutmix'])
def test_images_are_mixed_with_probability_p(op):
    _, labels = mix_black_and_white(getattr(mixing, op)(5.0, 0.3))
    assert stats.binomtest(int((labels[:, 0] < 1).sum()), len(KEYS), 0.3).pvalue > 1e-4


def test_each_image_is_mixed_with_the_previous_one_and_the_first_with_the_last():
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 6, 6, 3)), jnp.float32)
    labels = jnp.array([2, 0, 1, 3])
    pipeline = augment.parse_pipeline('invert(1)|mixup(1)')
    examples = jax.jit(lambda keys: pipeline.batch(
        keys, {'image': images, 'label': labels}, TASK, lambda x: jnp.roll(x, 1, 0), None))(KEYS[:4])
    mixed, targets = examples['image'], examples['label']
    for i in range(4):
        share = targets[i, labels[i]]
        assert 0 < share < 1
        assert np.isclose(share + targets[i, labels[i - 1]], 1)
        np.testing.assert_allclose(mixed[i], 1 - (share * images[i] + (1 - share) * images[i - 1]), atol=1e-6)
    assert pipeline.num_mixes == 1
    assert augment.parse_pipeline('invert(1)').num_mixes == 0


# ---- attacks


WEIGHTS = np.random.default_rng(3).normal(size=(5 * 4 * 2, 3)).astype(np.float32)
IMAGES = np.random.default_rng(4).uniform(size=(6, 5, 4, 2)).astype(np.float32)
LABELS = np.array([0, 1, 2, 2, 1, 0])


def linear_loss(images, labels):
    logits = images.reshape(len(images), -1) @ WEIGHTS
    return -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels]


def gradient(images, labels):
    return jax.grad(lambda x: linear_loss(x, labels).sum())(images)


def reference_gradient(images, labels):
    """Return the gradient of `linear_loss` by its formula, in NumPy."""
    logits = np.float64(images).reshape(len(images), -1) @ WEIGHTS
    p = np.exp(logits - logits.max(1, keepdims=True))
    return ((p / p.sum(1, keepdims=True) - np.eye(3)[labels]) @ WEIGHTS.T).reshape(images.shape)


def l2_norms(x):
    return np.sqrt((np.float64(x) ** 2).sum((1, 2, 3)))


def steepest_ascent(g, norm):
    return np.sign(g) if norm == 'linf' else g / l2_norms(g)[:, None, None, None]


@pytest.mark.parametrize('norm', ['linf', 'l2'])
@pytest.mark.parametrize('eps', [0.0, 0.1, 0.6])
def test_fgsm_is_one_step_of_steepest_ascent(norm, eps):
    attacked = adversarial.fgsm(eps, norm).apply(KEYS[:6], IMAGES, LABELS, gradient)
    expected = np.clip(IMAGES + eps * steepest_ascent(reference_gradient(IMAGES, LABELS), norm), 0, 1)
    np.testing.assert_allclose(attacked, expected, atol=1e-5)
    if eps:
        assert (linear_loss(attacked, LABELS) > linear_loss(IMAGES, LABELS)).all()


@pytest.mark.parametrize('step', [None, 0.1])
def test_fgsm_from_a_random_start_is_projected(step):
    """Algorithm 3 of Wong et al. (2020)."""
    eps = 0.2
    start, attacked = (np.asarray(adversarial.fgsm(eps, random_start=True, step=size).apply(
        KEYS[:6], IMAGES, LABELS, gradient)) for size in (0.0, step))
    ascent = 1.25 * eps if step is None else step
    change = start + ascent * np.sign(reference_gradient(start, LABELS)) - IMAGES
    np.testing.assert_allclose(attacked, np.clip(IMAGES + np.clip(change, -eps, eps), 0, 1), atol=1e-5)
    assert 0 < np.abs(start - IMAGES).mean() < eps


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_pgd_ascends_and_projects_after_every_step(norm):
    eps, step = 0.3, 0.2

    def attack(step, iterations):
        pgd = adversarial.pgd(eps, step, iterations, norm)
        return np.asarray(jax.jit(lambda keys, images: pgd.apply(keys, images, LABELS, gradient))(KEYS[:6], IMAGES))
    start, first, last = attack(0.0, 1), attack(step, 1), attack(step, 7)
    x = start
    for i in range(7):
        change = x + step * steepest_ascent(reference_gradient(x, LABELS), norm) - IMAGES
        if norm == 'linf':
            change = np.clip(change, -eps, eps)
        else:
            change = change * np.minimum(1, eps / l2_norms(change))[:, None, None, None]
        x = np.clip(IMAGES + change, 0, 1)
        if i == 0:
            np.testing.assert_allclose(first, x, atol=1e-4)
    np.testing.assert_allclose(last, x, atol=1e-3)
    distance = np.abs(last - IMAGES).max() if norm == 'linf' else l2_norms(last - IMAGES).max()
    assert 0.9 * eps < distance < eps + 1e-5
    assert (linear_loss(last, LABELS) > linear_loss(start, LABELS)).all()


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_pgd_starts_at_a_uniform_point_within_eps(norm):
    grey = np.full((len(KEYS), 2, 2, 1), 0.5, np.float32)
    pgd = adversarial.pgd(0.2, 0.0, 1, norm)
    attack = jax.jit(lambda keys, images: pgd.apply(keys, images, None, lambda x, targets: jnp.ones_like(x)))
    offsets = attack(KEYS, grey) - 0.5
    if norm == 'linf':
        assert stats.kstest(np.ravel(offsets), stats.uniform(-0.2, 0.4).cdf).pvalue > 1e-4
    else:
        assert stats.kstest((l2_norms(offsets) / 0.2) ** 4, 'uniform').pvalue > 1e-4
        assert np.abs(np.mean(offsets / l2_norms(offsets)[:, None, None, None], 0)).max() < 0.06


@pytest.mark.parametrize(('text', 'line'), [
    ('mixup(0)', 'mixup.alpha: expected a number of at least 0.001, got 0'),
    ('cutmix(1, 2)', 'cutmix.p: expected a number between 0 and 1, got 2'),
    ('random_erasing(value="noise")', "random_erasing.value: expected a number between 0 and 1, or 'random', got 'noise'"),
    ('random_erasing(scale=(0, 0.2))', r'random_erasing\.scale\[0\]: expected a number between 1e-06 and 1, got 0'),
    ('fgsm(-0.1)', 'fgsm.eps: expected a number of at least 0, got -0.1'),
    ('fgsm("8/255")', "fgsm.eps: expected a number of at least 0, got '8/255'; numbers need no quotes"),
    ('pgd(2, 1, 1)', 'pgd.eps: expected at most 1 in the norm linf, '),
    ('fgsm(0.1, step=0.2)', 'fgsm.step: got 0.2, but without random_start=True the size of the step is eps'),
    ('pgd(0.1, 0.1, 0)', 'pgd.iterations: expected a whole number of at least 1, got 0'),
    ('pgd(0.1, 0.1, 3, "l1")', "unknown norm of pgd 'l1'; nearest: l2"),
])
def test_an_invalid_argument_is_reported_in_one_line(text, line):
    with pytest.raises(UserError, match=line) as error:
        augment.parse_pipeline(text)
    assert '\n' not in str(error.value)
