"""Checks for masked gradients, under which a network looks more robust than it is.

The signs are those of Athalye et al. (2018) and Carlini et al. (2019): attacks that know more, or may do more, must succeed
more often.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.data.augment import adversarial
from jaxcnn.robustness import attacks
from jaxcnn.robustness.evaluate_attacks import Attacker

MARGIN = 0.02  # differences of rates below this are chance
GAIN = 0.05  # by which five times as many iterations, or four more restarts, may raise the rate
ITERATIONS = 20
UNBOUNDED = {'linf': 1.0, 'l2': 1e3}  # changes that reach any image: in L2, the diagonal of a million values
INCREASING = 0.9  # share of the steps that must raise the mean loss


@dataclasses.dataclass(frozen=True)
class Check:
    """A check for masked gradients.

    Attributes:
      name: what must hold.
      passed: whether it does.
      numbers: the numbers that were compared.
    """

    name: str
    passed: bool
    numbers: str

    @property
    def verdict(self) -> str:
        """Whether the check has passed, as a word."""
        return 'passed' if self.passed else 'suspicious'


@dataclasses.dataclass(frozen=True)
class MaskingReport:
    """The checks for masked gradients.

    Attributes:
      checks: the checks.
      eps: the size of the changes.
      losses: the mean loss at each iteration of an attack, from the start.
    """

    checks: Sequence[Check]
    eps: float
    losses: Sequence[float]


def loss_along_attack(attacker: Attacker, eps: float, iterations: int) -> list[float]:
    """Return the mean cross-entropy that PGD raises, before the first step and after each step.

    Steps of a quarter of those of the attack itself follow the gradient without leaping over maxima.
    """
    threat, images = attacker.threat, attacker.images
    rows = np.arange(min(len(images), attacker.batch_size))

    def trace(variables: object, pixels: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
        logits = attacker.victim.bind(variables)
        gradient = attacks.cross_entropy_gradient(threat, logits, labels, targets)

        def loss(x: jax.Array) -> jax.Array:
            return threat.cross_entropy(logits(x), labels, targets).mean()

        def ascend(x: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            x = adversarial.ascend(pixels, x, gradient(x), 0.625 * eps / iterations, eps, threat.norm)
            return x, loss(x)
        return jnp.concatenate([loss(pixels)[None], jax.lax.scan(ascend, pixels, None, iterations)[1]])
    values = jax.jit(trace)(attacker.victim.variables, images.pixels[rows], images.labels[rows], attacker.targets[rows])
    return np.asarray(values).tolist()


def check(attacker: Attacker, eps: float, queries: int = 1000) -> MaskingReport:
    """Check a classifier for masked gradients.

    Args:
      attacker: the attacker, with images of the classifier.
      eps: the largest norm of a change.
      queries: number of queries of the attack without gradients.
    """
    threat, num_classes = attacker.threat, attacker.victim.num_classes

    def rate(text: str, size: float = eps) -> float:
        """Return the fraction of the images that did not reach the aim before and do so under an attack."""
        attack, = attacks.parse(text, threat, num_classes)
        before = attacker.reached_before
        return float((attacker.run(attack, size).reached & ~before).sum() / max((~before).sum(), 1))
    one_step, iterative = rate('fgsm'), rate(f'pgd(iterations={ITERATIONS})')
    unbounded = rate(f'pgd(iterations={ITERATIONS * 5})', UNBOUNDED[threat.norm])
    black_box = rate(f'square(queries={queries})')
    longer, restarted = rate(f'pgd(iterations={ITERATIONS * 5})'), rate(f'pgd(iterations={ITERATIONS}, restarts=5)')
    losses = loss_along_attack(attacker, eps, ITERATIONS)
    rising = float((np.diff(losses) >= -1e-6).mean())

    def percent(value: float) -> str:
        return f'{100 * value:.1f} %'
    checks = [
        Check('Several steps succeed at least as often as one', iterative >= one_step - MARGIN,
              f'PGD with {ITERATIONS} steps {percent(iterative)}, FGSM {percent(one_step)}'),
        Check('Changes without a bound always succeed', unbounded >= 1 - MARGIN,
              f'PGD with {ITERATIONS * 5} steps, eps {UNBOUNDED[threat.norm]:g}: {percent(unbounded)}'),
        Check('Gradients help more than a random search', max(iterative, longer) >= black_box - MARGIN,
              f'PGD {percent(max(iterative, longer))}, Square with {queries:,} queries {percent(black_box)}'),
        Check('The loss rises along the attack', rising >= INCREASING and losses[-1] > losses[0],
              f'{percent(rising)} of {ITERATIONS} small steps raise it; from {losses[0]:.3g} to {losses[-1]:.3g}'),
        Check('More steps hardly help', longer <= iterative + GAIN,
              f'{ITERATIONS} steps {percent(iterative)}, {ITERATIONS * 5} steps {percent(longer)}'),
        Check('More restarts hardly help', restarted <= iterative + GAIN,
              f'1 start {percent(iterative)}, 5 starts {percent(restarted)}'),
    ]
    return MaskingReport(checks, eps, losses)
