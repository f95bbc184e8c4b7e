"""Evaluation protocols of robustness, which `jaxcnn evaluate` and studies take like those that average views.

    attacked('pgd(iterations=20)', '8/255')
    corrupted('noise', severities=3)

The accuracy by such a protocol is the robust accuracy, or one minus the mean error on corrupted images. `jaxcnn robustness`
measures several of them at once, with a report.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxcnn.analysis.batches import map_batches
from jaxcnn.config.arguments import check_choice, check_whole_number
from jaxcnn.data import Dataset
from jaxcnn.data.augment.corruptions import SEVERITIES, check_channels
from jaxcnn.errors import UserError, name_field
from jaxcnn.evaluation import protocols
from jaxcnn.evaluation.predictions import Predictions
from jaxcnn.experiment import Experiment
from jaxcnn.robustness import attacks
from jaxcnn.robustness.evaluate_attacks import Attacker
from jaxcnn.robustness.evaluate_corruptions import corrupt, parse_kinds
from jaxcnn.robustness.threat import Threat, format_eps, parse_eps
from jaxcnn.robustness.victim import Images, Victim, draw_images


@dataclasses.dataclass(frozen=True)
class ChangedImages(protocols.Protocol):
    """A protocol that changes the images before they are classified.

    Attributes:
      images: number of images, drawn by the seed; 0 for all.
      seed: seed of all random numbers.
    """

    images: int
    seed: int

    @abc.abstractmethod
    def versions(self, victim: Victim, images: Images, batch_size: int) -> Iterator[tuple[str, np.ndarray]]:
        """Yield what each changed version is, and all images in it, float32 (N, H, W, C), in [0, 1]."""

    def log_probabilities(self, experiment: Experiment, variables: Any, dataset: Dataset, split: str,
                          known: protocols.Known | None = None) -> np.ndarray:
        """See `Protocol`."""
        return self.predict(experiment, variables, dataset, split, known).log_probabilities

    def predict(self, experiment: Experiment, variables: Any, dataset: Dataset, split: str,
                known: protocols.Known | None = None) -> Predictions:
        """See `Protocol`; the predictions are those for all versions of the images."""
        victim, batch_size = Victim(experiment, variables), experiment.config.eval.batch_size
        count = self.images or len(dataset.splits.get(split, ()))
        images = draw_images(victim, dataset, split, count, self.seed, batch_size)
        classify = functools.partial(jax.jit(victim.logits), victim.variables)  # compiled once for all versions
        logits = {text: map_batches(classify, len(version), version.__getitem__, batch_size)
                  for text, version in self.versions(victim, images, batch_size)}
        return Predictions([*images.names] * len(logits), np.tile(images.labels, len(logits)),
                           np.asarray(jax.nn.log_softmax(np.concatenate([*logits.values()]))), dataset.class_names,
                           [*logits])


@dataclasses.dataclass(frozen=True)
class Attacked(ChangedImages):
    """The images after an attack; see `attacked`."""

    attack: str
    eps: float
    norm: str

    def describe(self, experiment: Experiment) -> str:
        """See `Protocol`."""
        return f'{self.attack}, {self.norm} eps {format_eps(self.eps)}'

    def versions(self, victim: Victim, images: Images, batch_size: int) -> Iterator[tuple[str, np.ndarray]]:
        """See `ChangedImages`."""
        threat = Threat(self.norm)
        attack, = attacks.parse(self.attack, threat, victim.num_classes, 'attacked.attack')
        yield '', Attacker(victim, threat, images, images.labels, self.seed, batch_size).run(attack, self.eps).images


@dataclasses.dataclass(frozen=True)
class Corrupted(ChangedImages):
    """The images with each of some corruptions; see `corrupted`."""

    kinds: tuple[str, ...]
    severities: tuple[int, ...]
    constants: str
    text: str

    def describe(self, experiment: Experiment) -> str:
        """See `Protocol`."""
        count, text = len(self.kinds) * len(self.severities), f'severity {", ".join(map(str, self.severities))}'
        return f'corrupted by {self.text}, {text}{f" ({count} versions of each image)" if count > 1 else ""}'

    def versions(self, victim: Victim, images: Images, batch_size: int) -> Iterator[tuple[str, np.ndarray]]:
        """See `ChangedImages`."""
        check_channels(victim.image_shape, '--protocol')
        for kind in self.kinds:
            for severity in self.severities:
                yield f'{kind}, severity {severity}', corrupt(images.pixels, images.positions, kind, severity,
                                                              self.constants, self.seed, batch_size)


def attacked(attack: str, eps: Any, norm: str = 'linf', images: int = 0, seed: int = 0) -> Attacked:
    """Return the protocol that attacks the images.

    Args:
      attack: the attack, such as `pgd(iterations=20)`; see `robustness.attacks`.
      eps: the largest norm of the change of an image in [0, 1], a number or a fraction such as `8/255`.
      norm: `linf` or `l2`.
      images: number of images, drawn by the seed; 0 for all.
      seed: seed of all random numbers.
    """
    check_whole_number('attacked', 0, images=images, seed=seed)
    check_choice('attacked', attacks.NORMS, norm=norm)
    # names and arguments are checked here, and whether the run has enough classes when it is known
    parsed = attacks.parse(str(attack), Threat(norm), num_classes=10, field='attacked.attack')
    if len(parsed) != 1:
        raise UserError(f'expected one attack, got {attack!r}', field='attacked.attack', hint='auto is an ensemble of five')
    with name_field('attacked.eps'):
        size = parse_eps(str(eps), norm)
    return Attacked(images, seed, parsed[0].text, size, norm)


def corrupted(kinds: Any = 'all', severities: Any = SEVERITIES, constants: str = 'auto', images: int = 0,
              seed: int = 0) -> Corrupted:
    """Return the protocol that corrupts the images.

    Args:
      kinds: a kind of corruption, `noise`, `blur`, `weather`, `digital` or `all`, or several of them.
      severities: 1 to 5, or several.
      constants: `cifar`, `imagenet` or `auto`; see `augment.corruptions.corruption`.
      images: number of images, drawn by the seed; 0 for all.
      seed: seed of all random numbers.
    """
    check_whole_number('corrupted', 0, images=images, seed=seed)
    names, levels = _several(kinds, 'kinds'), _several(severities, 'severities')
    for level in levels:
        if level not in SEVERITIES or isinstance(level, bool):
            raise UserError(f'expected 1 to 5, got {level!r}', field='corrupted.severities')
    check_choice('corrupted', ('auto', 'cifar', 'imagenet'), constants=constants)
    chosen_kinds = parse_kinds([str(name) for name in names], 'corrupted.kinds')
    return Corrupted(images, seed, tuple(chosen_kinds), tuple(dict.fromkeys(levels)), constants, ', '.join(map(str, names)))


def _several(values: Any, name: str) -> Sequence[Any]:
    if values in ((), []):
        raise UserError('expected at least one', field=f'corrupted.{name}')
    return values if isinstance(values, (tuple, list)) else (values,)


PROTOCOLS: dict[str, Callable[..., protocols.Protocol]] = {f.__name__: f for f in (attacked, corrupted)}


def parse(text: str) -> protocols.Protocol:
    """Return the protocol that a text describes: `attacked(...)`, `corrupted(...)`, or one of `evaluation.protocols`.

    Raises:
      UserError: See `evaluation.protocols.parse`.
    """
    return protocols.parse(text, PROTOCOLS)
