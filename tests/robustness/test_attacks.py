"""Attacks against foolbox's on the same network, and against plain statements of their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.data.augment import adversarial
from jaxcnn.errors import UserError
from jaxcnn.robustness import apgd, attacks, square
from jaxcnn.robustness import evaluate_attacks as evaluation
from jaxcnn.robustness.fab import make_fab
from jaxcnn.robustness.threat import Threat, targeted_logits_ratio
from jaxcnn.robustness.victim import Images, Victim, draw_images
from jaxcnn.run import load_run

EPS = {'linf': [0.03, 0.08, 0.2], 'l2': [0.2, 0.5, 1.0]}


@pytest.fixture
def victim(digits_run):
    run = load_run(digits_run)
    return Victim(run.experiment, run.variables)


@pytest.fixture
def images(digits_run, victim):
    return draw_images(victim, load_run(digits_run).load_dataset(), 'test', 200, seed=0, batch_size=100)


def attacker(victim, images, norm='linf', targets=None, batch_size=200):
    threat = Threat(norm, targets is not None)
    return evaluation.Attacker(victim, threat, images, images.labels if targets is None else targets, 0, batch_size)


def run(attacker, text, eps):
    attack, = attacks.parse(text, attacker.threat, attacker.victim.num_classes)
    return attacker.run(attack, eps)


@pytest.mark.torch
@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_success_rates_are_those_of_foolbox(victim, images, norm):
    foolbox = pytest.importorskip('foolbox')
    logits = jax.jit(victim.logits)
    model = foolbox.models.JAXModel(lambda x: logits(victim.variables, x), bounds=(0, 1))
    others = {'fgsm': getattr(foolbox.attacks, f'L{norm[1:]}FastGradientAttack')(),
              'pgd(iterations=15, relative_step=0.1, random_start=False)':
                  getattr(foolbox.attacks, f'L{norm[1:]}ProjectedGradientDescentAttack')(
                      rel_stepsize=0.1, steps=15, random_start=False)}
    pixels, labels = jnp.asarray(images.pixels), jnp.asarray(images.labels)
    under_attack = attacker(victim, images, norm)
    rates = []
    for text, other in others.items():
        _, _, expected = other(model, pixels, labels, epsilons=EPS[norm])
        for eps, successes in zip(EPS[norm], expected, strict=True):
            rates.append((run(under_attack, text, eps).reached.mean(), np.asarray(successes).mean()))
    ours, expected = np.transpose(rates)
    np.testing.assert_allclose(ours, expected, atol=0.01)
    assert expected.max() > 0.3 > 0.2 > expected.min()


def apgd_in_numpy(gradient_and_loss, start, image, eps, norm, iterations):
    """Algorithm 1 of Croce & Hein (2020) for one image, as it is written there."""
    def project(x):
        change = x - image
        if norm == 'linf':
            change = np.clip(change, -eps, eps)
        else:
            change = change * min(1, eps / np.sqrt((change ** 2).sum()))
        return np.clip(image + change, 0, 1)

    def ascent(gradient):
        return np.sign(gradient) if norm == 'linf' else gradient / np.sqrt((gradient ** 2).sum())
    shares = [0, 0.22]
    while shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06) <= 1 + 1e-9:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    checkpoints = [round(share * iterations) for share in shares]
    x = previous = start
    gradient, loss = gradient_and_loss(x)
    best, best_loss, best_gradient = x, loss, gradient
    step, increases, halved, best_at_checkpoint = 2 * eps, 0, True, loss
    for k in range(iterations):
        z = project(x + step * ascent(gradient))
        alpha = 0.75 if k else 1
        new = project(x + alpha * (z - x) + (1 - alpha) * (x - previous))
        previous, x = x, new
        gradient, new_loss = gradient_and_loss(x)
        increases, loss = increases + (new_loss > loss), new_loss
        if loss > best_loss:
            best, best_loss, best_gradient = x, loss, gradient
        if k + 1 in checkpoints:
            length = k + 1 - checkpoints[checkpoints.index(k + 1) - 1]
            was_halved, halved = halved, increases <= 0.75 * length
            halved |= not was_halved and best_at_checkpoint == best_loss
            best_at_checkpoint, increases = best_loss, 0
            if halved:
                step, x, gradient, loss = step / 2, best, best_gradient, best_loss
    return best


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_apgd_follows_its_algorithm(norm):
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(5, 3, 4, 1)).astype(np.float32)
    direction, frequency = rng.normal(size=(2, 3, 4, 1)).astype(np.float32)
    eps, iterations = {'linf': 0.2, 'l2': 0.6}[norm], 100

    def heights(x):  # a loss with many maxima, so that steps are halved; rounded, so that rounding errors are no increases
        exact = (direction * x).sum((1, 2, 3)) + jnp.sin(4 * frequency * x).sum((1, 2, 3))
        return exact + jax.lax.stop_gradient(jnp.round(exact, 3) - exact)

    def gradient_and_loss(x):
        inner = np.float64(4 * frequency * x)
        exact = (direction * np.float64(x)).sum() + np.sin(inner).sum()
        return direction + 4 * frequency * np.cos(inner), np.round(exact, 3).astype(np.float32)
    threat, labels = Threat(norm), np.zeros(5, np.int32)
    attack = apgd.make_apgd(threat, lambda logits, *_: logits[:, 1], iterations)
    keys = jax.random.split(jax.random.key(1), 5)

    def logits(x):
        return jnp.stack([jnp.full(5, 1e9), heights(x)], 1)  # the label always has the largest logit
    results = jax.jit(lambda keys, x: attack(logits, keys, x, labels, labels, jnp.float32(eps)))(keys, images)
    for key, image, result in zip(keys, images, results, strict=True):
        start = np.clip(image + apgd.random_start(key, jnp.asarray(image), eps, norm), 0, 1)
        expected = apgd_in_numpy(gradient_and_loss, start, image, eps, norm, iterations)
        assert abs(gradient_and_loss(np.asarray(result))[1] - gradient_and_loss(expected)[1]) < 0.01
        np.testing.assert_allclose(result, expected, atol=0.01)


@pytest.mark.torch
@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_fab_finds_the_changes_of_torchattacks(norm):
    torch, torchattacks = pytest.importorskip('torch'), pytest.importorskip('torchattacks')
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(50, 5, 8, 1)).astype(np.float32)
    first, second = (rng.normal(size=size).astype(np.float32) for size in ((40, 64), (64, 5)))

    def logits(x):
        return jnp.tanh((x.reshape(len(x), -1) - 0.5) @ first / 3) @ second

    class Network(torch.nn.Module):
        def forward(self, x):
            return torch.tanh((x.flatten(1) - 0.5) @ torch.tensor(first) / 3) @ torch.tensor(second)
    labels = np.asarray(logits(images).argmax(-1), np.int32)
    targets = (labels + 1) % 5
    other = torchattacks.FAB(Network(), norm={'linf': 'Linf', 'l2': 'L2'}[norm], steps=30)
    other.target_class = torch.tensor(targets, dtype=torch.int64)
    expected = other.attack_single_run_targeted(torch.tensor(images.reshape(50, 1, 5, 8)), torch.tensor(labels))
    expected = expected.numpy().reshape(images.shape)
    sizes = adversarial.size(jnp.asarray(expected - images), norm)
    eps = sizes * 1.0001  # the search for an image ends with the first change within eps
    attacked = jax.jit(lambda x: make_fab(Threat(norm), 30)(logits, x, x, labels, targets, eps))(images)
    np.testing.assert_allclose(adversarial.size(attacked - images, norm), sizes, rtol=2e-4)
    np.testing.assert_allclose(attacked, expected, atol=0.02)
    assert sizes.min() > 1e-3


def test_losses_are_the_published_formulas():
    logits = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    labels, targets = np.array([0, 1, 2, 3, 4, 0]), np.array([1, 2, 3, 4, 0, 3])
    ratio, targeted = Threat().logits_ratio(logits, labels, targets), targeted_logits_ratio(logits, labels, targets)
    for z, y, t, value, targeted_value in zip(logits, labels, targets, ratio, targeted, strict=True):
        first, _, third, fourth, _ = sorted(z)[::-1]
        assert value == pytest.approx(-(z[y] - max(np.delete(z, y))) / (first - third), rel=1e-5)
        assert targeted_value == pytest.approx(-(z[y] - z[t]) / (first - (third + fourth) / 2), rel=1e-5)


@pytest.mark.parametrize('norm', ['linf', pytest.param('l2', marks=pytest.mark.slow)])
def test_the_ensemble_is_the_strongest_and_square_needs_no_gradient(victim, images, norm):
    eps = EPS[norm][1]
    under_attack = attacker(victim, images, norm)
    outcomes = {text: run(under_attack, text, eps) for text in (
        'fgsm', 'pgd(iterations=20)', 'square(queries=300)', 'auto(iterations=20, queries=100)')}
    rates = {text.partition('(')[0]: outcome.reached.mean() for text, outcome in outcomes.items()}
    assert rates['auto'] >= rates['pgd'] >= rates['fgsm'] >= rates['square'] - 0.05
    assert rates['square'] > under_attack.reached_before.mean() + 0.05
    for outcome in outcomes.values():
        assert outcome.distance == pytest.approx(eps, rel=0.02)
        assert (outcome.images >= 0).all()
        assert (outcome.images <= 1).all()
        predicted = victim.all_logits(outcome.images, 200).argmax(1)
        np.testing.assert_array_equal(predicted != images.labels, outcome.reached)


def test_a_network_that_scales_its_logits_hides_gradients_from_the_cross_entropy_alone(victim, images, monkeypatch):
    """Its probabilities are 0 and 1, whose gradients vanish, but the difference of logits ratio stays the same."""
    under_attack = attacker(victim, images)
    expected = run(under_attack, 'apgd_dlr(iterations=10)', 0.08).reached.mean()
    logits = victim.logits
    monkeypatch.setattr(victim, 'logits', lambda variables, x: 1e4 * logits(variables, x))
    hidden = attacker(victim, images)
    assert run(hidden, 'apgd_dlr(iterations=10)', 0.08).reached.mean() == pytest.approx(expected, abs=0.01)
    assert run(hidden, 'pgd(10)', 0.08).reached.mean() < expected - 0.1


@pytest.mark.slow
def test_targeted_attacks_reach_their_class(victim, images):
    targets = ((images.labels + 1) % 10).astype(np.int32)
    under_attack = attacker(victim, images, targets=targets)
    for text in ('pgd(20)', 'apgd_ce(20)', 'apgd_dlr(20)', 'fab(20)', 'square(200)'):
        outcome = run(under_attack, text, 0.2)
        predicted = victim.all_logits(outcome.images, 200).argmax(1)
        np.testing.assert_array_equal(predicted == targets, outcome.reached)
        assert outcome.reached.mean() > 0.25, text
        assert outcome.reached.mean() > under_attack.reached_before.mean() + 0.2, text


def test_results_depend_on_the_seed_and_the_image_alone(victim, images):
    text = 'pgd(iterations=3, restarts=2)'
    expected = run(attacker(victim, images), text, 0.08)
    rows = np.arange(150, 190)
    some_images = Images(images.pixels[rows], images.labels[rows], images.positions[rows], [])
    outcome = run(attacker(victim, some_images, batch_size=16), text, 0.08)
    np.testing.assert_array_equal(outcome.reached, expected.reached[rows])
    np.testing.assert_allclose(outcome.images, expected.images[rows], atol=1e-5)


def test_squares_shrink_as_scheduled():
    sides = square.square_sides(10000, 0.8, 32, 32)
    for query, side in ((0, 29), (10, 29), (11, 20), (51, 14), (201, 10), (501, 7), (9999, 1)):
        assert sides[query] == side
    assert set(square.square_sides(1000, 0.8, 8, 8, 3, odd=True)) == {7, 5, 3}
    pattern = square.two_pyramids(6)
    assert (pattern[:3] > 0).all()
    np.testing.assert_allclose(pattern[:3].sum(), -pattern[3:].sum())
    assert (pattern ** 2).sum() == pytest.approx(1)


@pytest.mark.parametrize(('text', 'line'), [
    ('pgdd', "--attacks: unknown attack 'pgdd'; nearest: "),
    ('pgd(iterations=0)', '--attacks: pgd.iterations: expected a whole number of at least 1, got 0'),
    ('pgd(steps=3)', "--attacks: unknown argument of the attack pgd 'steps'"),
    ('fgsm, fgsm()', '--attacks: fgsm() is named twice'),
    ('fgsm pgd', "--attacks: 'fgsm pgd' is not a name, or name(value, key=value, ...)"),
    ('apgd_targeted', '--attacks: apgd_targeted: needs 4 classes, and the run has 3'),
])
def test_an_invalid_attack_is_reported(text, line):
    with pytest.raises(UserError) as error:
        attacks.parse(text, Threat(), 3)
    assert line in str(error.value)


def test_images_outside_the_range_are_refused():
    with pytest.raises(UserError, match=r'values from -1 to 2, but attacks need values in \[0, 1\]'):
        Images(np.array([-1, 2.0]).reshape(2, 1, 1, 1), np.zeros(2, int), np.arange(2), ['a', 'b'])
