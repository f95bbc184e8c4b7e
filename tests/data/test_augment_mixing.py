"""Erasing, mixing and attacking, against their papers in NumPy."""

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


def the_rectangle(mask):
    """(top, left, height, width) of what is marked, which must be a whole rectangle."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left, height, width = rows[0], columns[0], len(rows), len(columns)
    assert mask[top:top + height, left:left + width].all()
    assert mask.sum() == height * width
    return top, left, height, width


# ---- erasing


def test_erasing_fills_a_rectangle_of_a_permitted_area_and_shape_as_often_as_asked(under):
    image = np.random.default_rng(0).uniform(0.1, 0.9, (HEIGHT, WIDTH, 3)).astype(np.float32)
    found, = under(KEYS, image, erase.random_erasing(0.3, (0.1, 0.3), (0.5, 2.0), 0.95))
    changed = (found != image).all(-1)
    np.testing.assert_array_equal(found[~changed], np.broadcast_to(image, found.shape)[~changed])
    assert (found[changed] == np.float32(0.95)).all()
    erased = changed.any((1, 2))
    assert stats.binomtest(int(erased.sum()), len(KEYS), 0.3).pvalue > 1e-4
    places = np.array([the_rectangle(mask) for mask in changed[erased]])
    (top, left), (height, width) = places[:, :2].T, places[:, 2:].T
    exact = HEIGHT * WIDTH * np.array([0.1, 0.3])
    assert ((height - 0.5) * (width - 0.5) <= exact[1]).all()
    assert ((height + 0.5) * (width + 0.5) >= exact[0]).all()
    assert ((height - 0.5) / (width + 0.5) <= 2.0).all()
    assert ((height + 0.5) / (width - 0.5) >= 0.5).all()
    for place, side, length in ((top, HEIGHT, height), (left, WIDTH, width)):
        part = (place + np.random.default_rng(1).uniform(size=len(place))) / (side - length + 1)
        assert stats.kstest(part, 'uniform').pvalue > 1e-4


def test_erasing_with_noise_draws_every_value(under):
    found, = under(KEYS[:200], np.full((HEIGHT, WIDTH, 3), 2.0, np.float32), erase.random_erasing(1.0, value='random'))
    drawn = found[found != 2]
    assert len(np.unique(drawn)) > 0.99 * len(drawn)
    assert stats.kstest(drawn, 'uniform').pvalue > 1e-4


# ---- mixing


def mixed(op, alpha_and_p_keys=KEYS):
    """What the op, and the task, make of a black image of class 0 and a white one of class 1."""
    black, white = jnp.zeros((HEIGHT, WIDTH, 1)), jnp.ones((HEIGHT, WIDTH, 1))
    first, second = ({'label': label} for label in jnp.eye(3)[:2])

    def mix(key):
        image, share = op.apply(key, black, white)
        return image, TASK.mix(first, second, share)['label']
    return map(np.asarray, jax.jit(jax.vmap(mix))(alpha_and_p_keys))


@pytest.mark.parametrize('alpha', [0.2, 1.0, 3.0])
def test_mixup_weighs_images_and_labels_alike_by_a_beta_share(alpha):
    images, labels = mixed(mixing.mixup(alpha))
    assert (images == images[:, :1, :1]).all()
    np.testing.assert_allclose(labels, np.stack([1 - images[:, 0, 0, 0], images[:, 0, 0, 0], 0 * images[:, 0, 0, 0]], -1),
                               atol=1e-6)
    assert stats.kstest(labels[:, 0], stats.beta(alpha, alpha).cdf).pvalue > 1e-4


def cutmix_of_the_paper(rng, alpha):
    """`rand_bbox` of Yun et al., algorithm 1: how much of the image is left, and the place of what is not."""
    share = rng.beta(alpha, alpha)
    high, wide = int(HEIGHT * np.sqrt(1 - share)), int(WIDTH * np.sqrt(1 - share))
    y, x = rng.integers(HEIGHT), rng.integers(WIDTH)
    top, bottom = np.clip([y - high // 2, y - high // 2 + high], 0, HEIGHT)
    left, right = np.clip([x - wide // 2, x - wide // 2 + wide], 0, WIDTH)
    return 1 - (bottom - top) * (right - left) / (HEIGHT * WIDTH), top, left, bottom - top, right - left


@pytest.mark.parametrize('alpha', [0.5, 1.0])
def test_cutmix_pastes_the_papers_rectangles_and_weighs_labels_by_pixels(alpha):
    images, labels = mixed(mixing.cutmix(alpha))
    assert set(np.unique(images)) == {0, 1}
    np.testing.assert_allclose(labels[:, 1], images.mean((1, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(labels.sum(-1), 1, atol=1e-6)
    found = np.array([(0, 0, 0, 0) if not m.any() else the_rectangle(m) for m in images[..., 0] == 1])
    rng = np.random.default_rng(2)
    papers = np.array([cutmix_of_the_paper(rng, alpha) for _ in range(4 * len(KEYS))])
    papers[papers[:, 0] == 1, 1:] = 0
    for ours, theirs in zip([labels[:, 0], *found.T], papers.T, strict=True):
        assert stats.ks_2samp(ours, theirs).pvalue > 1e-4


@pytest.mark.parametrize('op', ['mixup', 'cutmix'])
def test_mixing_happens_as_often_as_asked(op):
    _, labels = mixed(getattr(mixing, op)(5.0, 0.3))
    assert stats.binomtest(int((labels[:, 0] < 1).sum()), len(KEYS), 0.3).pvalue > 1e-4


def test_each_image_is_mixed_with_the_one_before_it_and_the_first_with_the_last():
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 6, 6, 3)), jnp.float32)
    labels = jnp.array([2, 0, 1, 3])
    pipe = augment.pipeline('invert(1)|mixup(1)')
    mixed_examples = jax.jit(lambda keys: pipe.batch(
        keys, {'image': images, 'label': labels}, TASK, lambda x: jnp.roll(x, 1, 0), None))(KEYS[:4])
    found, targets = mixed_examples['image'], mixed_examples['label']
    for i in range(4):
        share = targets[i, labels[i]]
        assert 0 < share < 1
        assert np.isclose(share + targets[i, labels[i - 1]], 1)
        np.testing.assert_allclose(found[i], 1 - (share * images[i] + (1 - share) * images[i - 1]), atol=1e-6)
    assert pipe.mixes
    assert not augment.pipeline('invert(1)').mixes


# ---- attacks


WEIGHTS = np.random.default_rng(3).normal(size=(5 * 4 * 2, 3)).astype(np.float32)
PICTURES = np.random.default_rng(4).uniform(size=(6, 5, 4, 2)).astype(np.float32)
LABELS = np.array([0, 1, 2, 2, 1, 0])


def linear_loss(images, labels):
    logits = images.reshape(len(images), -1) @ WEIGHTS
    return -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels]


def by_images(images, labels):
    return jax.grad(lambda x: linear_loss(x, labels).sum())(images)


def gradient(images, labels):
    """By hand, in NumPy: what `by_images` is."""
    logits = np.float64(images).reshape(len(images), -1) @ WEIGHTS
    p = np.exp(logits - logits.max(1, keepdims=True))
    return ((p / p.sum(1, keepdims=True) - np.eye(3)[labels]) @ WEIGHTS.T).reshape(images.shape)


def lengths(x):
    return np.sqrt((np.float64(x) ** 2).sum((1, 2, 3)))


def uphill(g, norm):
    return np.sign(g) if norm == 'linf' else g / lengths(g)[:, None, None, None]


@pytest.mark.parametrize('norm', ['linf', 'l2'])
@pytest.mark.parametrize('eps', [0.0, 0.1, 0.6])
def test_fgsm_is_one_step_uphill(norm, eps):
    found = adversarial.fgsm(eps, norm).apply(KEYS[:6], PICTURES, LABELS, by_images)
    np.testing.assert_allclose(found, np.clip(PICTURES + eps * uphill(gradient(PICTURES, LABELS), norm), 0, 1), atol=1e-5)
    if eps:
        assert (linear_loss(found, LABELS) > linear_loss(PICTURES, LABELS)).all()


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_pgd_climbs_and_is_projected_after_every_step(norm):
    eps, step = 0.3, 0.2
    start, one, many = (np.asarray(adversarial.pgd(eps, size, count, norm).apply(KEYS[:6], PICTURES, LABELS, by_images))
                        for size, count in ((0.0, 1), (step, 1), (step, 7)))
    x = start
    for i in range(7):
        change = x + step * uphill(gradient(x, LABELS), norm) - PICTURES
        change = (np.clip(change, -eps, eps) if norm == 'linf' else
                  change * np.minimum(1, eps / lengths(change))[:, None, None, None])
        x = np.clip(PICTURES + change, 0, 1)
        if i == 0:
            np.testing.assert_allclose(one, x, atol=1e-4)
    np.testing.assert_allclose(many, x, atol=1e-3)
    size = np.abs(many - PICTURES).max() if norm == 'linf' else lengths(many - PICTURES).max()
    assert 0.9 * eps < size < eps + 1e-5
    assert (linear_loss(many, LABELS) > linear_loss(start, LABELS)).all()


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_pgd_starts_anywhere_within_its_limits_alike(norm):
    middle = np.full((len(KEYS), 2, 2, 1), 0.5, np.float32)
    still = adversarial.pgd(0.2, 0.0, 1, norm).apply(KEYS, middle, None, lambda x, labels: jnp.ones_like(x)) - 0.5
    if norm == 'linf':
        assert stats.kstest(np.ravel(still), stats.uniform(-0.2, 0.4).cdf).pvalue > 1e-4
    else:
        assert stats.kstest((lengths(still) / 0.2) ** 4, 'uniform').pvalue > 1e-4
        assert np.abs(np.mean(still / lengths(still)[:, None, None, None], 0)).max() < 0.06


@pytest.mark.parametrize(('text', 'line'), [
    ('mixup(0)', 'mixup: alpha must be a number of at least 0.001, got 0'),
    ('cutmix(1, 2)', 'cutmix: p must be between 0 and 1, got 2'),
    ('random_erasing(value="noise")', "random_erasing: value must be between 0 and 1, or 'random', got 'noise'"),
    ('random_erasing(scale=(0, 0.2))', r'random_erasing: scale\[0\] must be between 1e-06 and 1, got 0'),
    ('fgsm(-0.1)', 'fgsm: eps must be a number of at least 0, got -0.1'),
    ('pgd(0.1, 0.1, 0)', 'pgd: iterations must be a whole number of at least 1, got 0'),
    ('pgd(0.1, 0.1, 3, "l1")', "unknown norm of pgd 'l1'; nearest: l2"),
])
def test_wrong_parameters_are_told_in_one_line(text, line):
    with pytest.raises(UserError, match=line) as error:
        augment.pipeline(text)
    assert '\n' not in str(error.value)
