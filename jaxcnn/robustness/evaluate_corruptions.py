"""Errors on corrupted images, and the mean corruption error (Hendrycks & Dietterich 2019)."""

import dataclasses
import functools
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.analysis.batches import map_batches
from jaxcnn.data.augment.corruptions import CORRUPTIONS, SEVERITIES, choose_constants
from jaxcnn.errors import UserError, unknown
from jaxcnn.robustness.victim import Images, Victim

log = logging.getLogger('jaxcnn')

# errors of AlexNet on ImageNet-C, as means over the severities, and on ImageNet: the authors' reference
ALEXNET = dict(zip(CORRUPTIONS, (
    0.886428, 0.894468, 0.922640, 0.819880, 0.826268, 0.785948, 0.798360, 0.866816, 0.826572, 0.819324, 0.564592, 0.853204,
    0.646056, 0.717840, 0.606500), strict=True))
ALEXNET_CLEAN = 0.435


@dataclasses.dataclass(frozen=True)
class Reference:
    """A classifier whose errors others are divided by.

    Attributes:
      name: its name.
      clean: its error without corruption.
      errors: its mean error over the severities, by kind.
      severities, constants: see `CorruptionErrors`; errors are comparable only for the same ones.
    """

    name: str
    clean: float
    errors: Mapping[str, float]
    severities: Sequence[int] = SEVERITIES
    constants: str = 'imagenet'

    def check(self, kinds: Sequence[str], severities: Sequence[int], constants: str) -> None:
        """Raise a UserError if the errors of a run on these corruptions cannot be divided by those of this classifier."""
        field = '--reference'
        for kind in kinds:
            if not self.errors.get(kind):
                raise UserError(f'{self.name} has no error on {kind}', field=field,
                                hint='measure it with the same --corruptions')
        if [*severities] != [*self.severities]:
            raise UserError(f'{self.name} has errors for the severities {" ".join(map(str, self.severities))}, not for '
                            f'{" ".join(map(str, severities))}', field=field, hint='choose the same --severities')
        if constants != self.constants:
            raise UserError(f'{self.name} has errors with the constants of {self.constants!r}, not of {constants!r}',
                            field=field, hint='choose the same --constants')


@dataclasses.dataclass(frozen=True)
class CorruptionErrors:
    """Errors of a classifier on corrupted images.

    Attributes:
      clean: the error without corruption, as a fraction.
      errors: the errors by kind, one for each severity.
      severities: the severities.
      constants: whose constants were taken, `cifar` or `imagenet`.
    """

    clean: float
    errors: Mapping[str, Sequence[float]]
    severities: Sequence[int]
    constants: str

    def mean_error(self, kind: str) -> float:
        """Return the mean error of a kind over the severities."""
        return float(np.mean(self.errors[kind]))

    @property
    def mean(self) -> float:
        """The mean error over kinds and severities; CIFAR-10-C is usually reported by it, or by 1 minus it."""
        return float(np.mean([self.mean_error(kind) for kind in self.errors]))

    def corruption_errors(self, reference: Reference) -> dict[str, float]:
        """Return the error of each kind as a fraction of the reference's; their mean is the mCE."""
        return {kind: self.mean_error(kind) / reference.errors[kind] for kind in self.errors}

    def relative_errors(self, reference: Reference) -> dict[str, float]:
        """Return by how much each kind raises the error, as a fraction of the same for the reference; their mean is the
        relative mCE. It is not a number for a kind that does not raise the reference's error."""
        raised = {kind: reference.errors[kind] - reference.clean for kind in self.errors}
        return {kind: (self.mean_error(kind) - self.clean) / rise if rise > 0 else float('nan')
                for kind, rise in raised.items()}


def parse_kinds(names: Sequence[str], field: str = '--corruptions') -> list[str]:
    """Return kinds of corruption by their names, those of categories such as `noise`, or `all`; errors name the field.

    Raises:
      UserError: A name is unknown.
    """
    categories = {entry.category for entry in CORRUPTIONS.values()}
    for name in names:
        if name != 'all' and name not in CORRUPTIONS and name not in categories:
            raise unknown('corruption', name, ['all', *CORRUPTIONS, *categories], field=field)
    return [kind for kind, entry in CORRUPTIONS.items() if {'all', kind, entry.category} & {*names}]


def read_reference(path: str) -> Reference:
    """Return the reference `alexnet`, or that of the `robustness.json` of another run.

    Args:
      path: `alexnet`, the file, or the folder of a report or of a run that holds it.

    Raises:
      UserError: There is no such file, or it holds no errors on corrupted images.
    """
    if path == 'alexnet':
        return Reference('AlexNet', ALEXNET_CLEAN, ALEXNET)
    candidates = [path, os.path.join(path, 'robustness.json'), os.path.join(path, 'robustness', 'robustness.json')]
    file = next((candidate for candidate in candidates if os.path.isfile(candidate)), None)
    hint = 'jaxcnn robustness --corruptions=all writes it for another run; or use --reference=alexnet'
    if file is None:
        raise UserError(f'{path!r} holds no robustness.json', field='--reference', hint=hint)
    try:
        with open(file, encoding='utf-8') as f:
            corruptions = json.load(f)['corruptions']
        errors = {kind: float(np.mean(values)) for kind, values in corruptions['errors'].items()}
        return Reference(path, float(corruptions['clean_error']), errors, [*map(int, corruptions['severities'])],
                         str(corruptions['constants']))
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f'{file!r} holds no errors on corrupted images', field='--reference', hint=hint) from e


def corrupt(pixels: np.ndarray, positions: np.ndarray, kind: str, severity: int, constants: str, seed: int,
            batch_size: int) -> np.ndarray:
    """Return corrupted images, whose values are rounded down to bytes as in the files of the benchmark.

    Args:
      pixels: float32 (N, H, W, C), in [0, 1].
      positions: (N,); the random numbers of an image depend on its position, the seed, the kind and the severity.
      kind, severity, constants: see `augment.corruptions.corruption`.
      seed: seed of the random numbers.
      batch_size: maximum number of images in a batch.
    """
    entry = CORRUPTIONS[kind]
    arguments = entry.arguments(severity, choose_constants(pixels.shape[1:]) if constants == 'auto' else constants)
    apply = _compile(kind, None if entry.is_traceable else arguments)
    values = tuple(map(np.float32, arguments)) if entry.is_traceable else ()
    key = jax.random.fold_in(jax.random.key(seed), 5 * [*CORRUPTIONS].index(kind) + severity)
    result: np.ndarray = map_batches(lambda batch: apply(key, *batch, *values), len(pixels),
                                     lambda rows: (pixels[rows], positions[rows]), batch_size)
    return result


@functools.cache
def _compile(kind: str, arguments: tuple[Any, ...] | None) -> Callable[..., jax.Array]:
    """Return the compiled function `(key, pixels, positions) -> images` of a kind with its constants.

    Without constants, they are further arguments of the function, so that severities share it.
    """
    def apply(key: jax.Array, pixels: jax.Array, positions: jax.Array, *values: jax.Array) -> jax.Array:
        keys = jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)
        constants = values if arguments is None else arguments
        result = jax.vmap(lambda k, image: CORRUPTIONS[kind].apply(k, image, *constants))(keys, pixels)
        # the small number undoes rounding errors of whole bytes
        return jnp.floor(jnp.clip(result, 0, 1) * 255 + 1e-3) / 255
    return jax.jit(apply)


def evaluate(victim: Victim, images: Images, kinds: Sequence[str], severities: Sequence[int], constants: str, seed: int,
             batch_size: int) -> tuple[CorruptionErrors, dict[str, list[np.ndarray]]]:
    """Return the errors of a classifier on corrupted images, and the first image with each corruption."""
    predict = jax.jit(victim.logits)

    def error(pixels: np.ndarray) -> float:
        predicted = []
        for start in range(0, len(pixels), batch_size):
            rows = np.minimum(np.arange(start, start + min(batch_size, len(pixels))), len(pixels) - 1)
            predicted.append(np.asarray(predict(victim.variables, pixels[rows])).argmax(-1)[:len(pixels) - start])
        return float((np.concatenate(predicted) != images.labels).mean())
    constants = choose_constants(images.pixels.shape[1:]) if constants == 'auto' else constants
    errors: dict[str, list[float]] = {kind: [] for kind in kinds}
    examples: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds}
    for kind in kinds:
        for severity in severities:
            corrupted = corrupt(images.pixels, images.positions, kind, severity, constants, seed, batch_size)
            errors[kind].append(error(corrupted))
            examples[kind].append(corrupted[0])
        log.info('%s: errors %s', kind, ', '.join(f'{100 * value:.1f} %' for value in errors[kind]))
    return CorruptionErrors(error(images.pixels), errors, severities, constants), examples
