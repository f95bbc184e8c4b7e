"""Robust accuracy under attacks, over a list of sizes of the change."""

import dataclasses
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.data.augment import adversarial
from jaxcnn.robustness.attacks import Apply, Attack, Stage
from jaxcnn.robustness.threat import Threat, class_order, format_eps
from jaxcnn.robustness.victim import Images, Victim

log = logging.getLogger('jaxcnn')


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What an attack has achieved with changes of one size.

    Attributes:
      attack: the call of the attack.
      eps: the size of the changes.
      reached: whether the aim was reached, (N,) bool, over the images that are attacked.
      by_stage: number of images that each stage has added, by its name.
      images: the attacked images (N, H, W, C); or none, (0, H, W, C).
      distance: the largest norm of a change.
    """

    attack: str
    eps: float
    reached: np.ndarray
    by_stage: dict[str, int]
    images: np.ndarray
    distance: float


class Attacker:
    """Runs attacks on images of a victim, in batches of one or two sizes, for each of which an attack is compiled once.

    Args:
      victim: the classifier.
      threat: what attacks may do and aim at.
      images: the images.
      targets: (N,) the target classes; without a target, the labels.
      seed: seed of the random numbers, which depend on it and on the positions of the images alone.
      batch_size: maximum number of images in a batch, which bounds the memory.
    """

    def __init__(self, victim: Victim, threat: Threat, images: Images, targets: np.ndarray, seed: int, batch_size: int):
        self.victim, self.threat, self.images, self.targets = victim, threat, images, targets
        self.logits = victim.all_logits(images.pixels, batch_size)
        self._order = np.asarray(class_order(jnp.asarray(self.logits), jnp.asarray(images.labels)))
        self._key, self.batch_size = jax.random.key(seed), min(batch_size, max(len(images), 1))
        self._compiled: dict[Apply, Callable[..., Any]] = {}

    @property
    def reached_before(self) -> np.ndarray:
        """Whether the aim is reached without an attack, (N,) bool."""
        arrays = map(jnp.asarray, (self.logits, self.images.labels, self.targets))
        return np.asarray(self.threat.is_reached(*arrays))

    def run(self, attack: Attack, eps: float, reached: np.ndarray | None = None) -> Outcome:
        """Return what an attack achieves.

        Args:
          attack: the attack.
          eps: the largest norm of the changes.
          reached: images that need no attack, (N,) bool; by default those that reach the aim without one.
        """
        reached = (self.reached_before if reached is None else reached).copy()
        images, distance = self.images.pixels.copy(), 0.0
        by_stage: dict[str, int] = {}
        for name, stages in itertools.groupby(attack.stages, key=lambda stage: stage.name):
            before = reached.sum()
            for stage in stages:
                rows = np.flatnonzero(~reached)
                attacked, success, distances = self.apply(stage, eps, rows)
                images[rows], reached[rows] = attacked, success
                distance = max(distance, float(distances.max(initial=0)))
            by_stage[name] = int(reached.sum() - before)
            log.info('%s, eps %s: %d of %d images are %s%s', attack.text, format_eps(eps), reached.sum(), len(reached),
                     'taken for the target class' if self.threat.targeted else 'misclassified',
                     f' after {name}' if name != attack.stages[-1].name else '')
        return Outcome(attack.text, eps, reached, by_stage, images, distance)

    def apply(self, stage: Stage, eps: float, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the images at `rows` after a stage, whether each has reached the aim, and the norm of its change."""
        if stage.apply not in self._compiled:
            self._compiled[stage.apply] = jax.jit(self._make_attack(stage.apply))
        attack, small = self._compiled[stage.apply], max(self.batch_size // 8, 1)
        targets = self.targets if stage.rank is None else self._order[:, stage.rank]
        key, results, start = jax.random.fold_in(self._key, stage.draw), [], 0
        while start < len(rows):
            size = self.batch_size if len(rows) - start > small else small  # few images left need no large batch
            batch = rows[np.minimum(np.arange(start, start + size), len(rows) - 1)]
            result = attack(self.victim.variables, key, self.images.positions[batch], self.images.pixels[batch],
                            self.images.labels[batch], targets[batch], np.float32(eps))
            results.append([np.asarray(values)[:len(rows) - start] for values in result])
            start += size
        if not results:
            return self.images.pixels[rows], np.zeros(0, bool), np.zeros(0)
        attacked, success, distances = (np.concatenate(values) for values in zip(*results, strict=True))
        return attacked, success, distances

    def _make_attack(self, apply: Apply) -> Callable[..., Any]:
        """Return the function from a batch to attacked images, whether the aim is reached, and the norms of the changes."""
        def attack(variables: Any, key: jax.Array, positions: jax.Array, pixels: jax.Array, labels: jax.Array,
                   targets: jax.Array, eps: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            logits = self.victim.bind(variables)
            keys = jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)
            attacked = apply(logits, keys, pixels, labels, targets, eps)
            norms = adversarial.size(attacked - pixels, self.threat.norm)
            # a change that is too large by more than rounding, or a value outside [0, 1], is no success
            allowed = (norms <= eps * 1.0001 + 1e-6) & (attacked >= 0).all((1, 2, 3)) & (attacked <= 1).all((1, 2, 3))
            return attacked, self.threat.is_reached(logits(attacked), labels, targets) & allowed, norms
        return attack


def worst_outcome(outcomes: Sequence[Sequence[Outcome]]) -> Outcome:
    """Return the outcome that reaches the aim for most images, with the smallest change for which this is so."""
    return max((outcome for of_attack in outcomes for outcome in of_attack),
               key=lambda outcome: (int(outcome.reached.sum()), -outcome.eps))


def evaluate(attacker: Attacker, attacks: Sequence[Attack], eps: Sequence[float]) -> list[list[Outcome]]:
    """Return the outcomes of each attack for each size of the changes, which ascend.

    An ensemble attacks only the images that smaller changes have not broken, as what was reached by a smaller change can be
    reached by it as well. Only the worst outcome keeps its images, since those of all might not fit into the memory.
    """
    results: list[list[Outcome]] = []
    for attack in attacks:
        results.append([])
        before = None
        for size in eps:
            outcome = attacker.run(attack, size, before.reached if before else None)
            if before:
                is_earlier = before.reached[:, None, None, None]
                outcome = dataclasses.replace(outcome, images=np.where(is_earlier, before.images, outcome.images))
            results[-1].append(outcome)
            worst = worst_outcome(results)
            results = [[o if o is worst else dataclasses.replace(o, images=o.images[:0]) for o in outcomes]
                       for outcomes in results]
            before = outcome if attack.is_ensemble else None
    return results
