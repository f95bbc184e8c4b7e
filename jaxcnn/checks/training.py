"""Checks that train briefly: can the network memorise a few images, and does training generalise?"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import config as cfg
from jaxcnn.analysis import figures
from jaxcnn.checks.base import FAILED, WARNING, Findings, Verdict
from jaxcnn.checks.context import Context, train_steps
from jaxcnn.checks.figures import draw_losses, smoothed
from jaxcnn.training.setup import Setup
from jaxcnn.training.state import variables

NUM_MEMORISED = 8  # images
MAX_MEMORISING_STEPS = 200
MEMORISED_LOSS = 0.3  # fraction of the first loss that remains, for tasks whose training measures nothing but losses
NUM_PERMUTATIONS = 50
MIN_DEVIATIONS = 5.0  # standard deviations by which a loss must be below that with permuted targets


def _without_regularisation(context: Context, num_steps: int, learning_rate: float) -> cfg.Config:
    """Return the config without augmentation, dropout, decay, label smoothing, mixing and schedule."""
    config = context.shortened(num_steps)
    model = dict(config.model.args)
    fields = {field.name for field in dataclasses.fields(context.setup.experiment.network)}
    model.update({name: 0.0 for name in ('dropout', 'drop_path', 'stochastic_depth') if name in fields})
    loss = {name: value for name, value in config.loss.args.items() if name != 'label_smoothing'}
    return dataclasses.replace(
        config, batch_size=NUM_MEMORISED,
        model=cfg.Choice(config.model.name, model), loss=cfg.Choice(config.loss.name, loss),
        data=dataclasses.replace(config.data, augment=config.data.eval_augment, balance='none'),
        optim=dataclasses.replace(config.optim, learning_rate=learning_rate, schedule=cfg.Choice('constant'),
                                  weight_decay=0.0, l2=0.0, l1=0.0, accumulate=1, ema_decay=0.0, lookahead=None,
                                  warmup=cfg.Duration('steps', 10) if config.optim.warmup else None))


def _handful(context: Context) -> Any:
    """Return the data set with `NUM_MEMORISED` training images, of as many classes as possible."""
    dataset = context.setup.dataset
    train = dataset.splits['train']
    strata = dataset.kind.strata(train.targets)
    rng = np.random.default_rng(context.config.seed)
    order = rng.permutation(len(train))
    # the first image of each class, then the second of each, ...
    ranks = np.zeros(len(order), int)
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata[order] == stratum)
        ranks[members] = np.arange(len(members))
    positions = order[np.argsort(ranks, kind='stable')[:NUM_MEMORISED]]
    return dataclasses.replace(dataset, splits={**dataset.splits, 'train': train.subset(positions)})


@dataclasses.dataclass(frozen=True)
class Memorisation:
    """The training on a few images.

    A network has memorised them once all of them are right twice in a row. Tasks that do not say this in training go by the
    loss: it must fall to the fraction `MEMORISED_LOSS`, in the means of 10 steps.

    Attributes:
      losses: the loss of each step, (steps,).
      accuracies: the fraction of the images that are right at each step, (steps,); None if the task does not say it.
    """

    losses: np.ndarray
    accuracies: np.ndarray | None

    @property
    def num_steps(self) -> int | None:
        """The number of steps after which the images are memorised, or None if they never are."""
        if self.accuracies is not None:
            right = np.flatnonzero((self.accuracies[:-1] == 1) & (self.accuracies[1:] == 1))
            return int(right[0]) if len(right) else None
        return len(self.losses) if self._remaining <= MEMORISED_LOSS else None

    @property
    def _remaining(self) -> float:
        """The mean loss of the last 10 steps over that of the first 10."""
        return float(self.losses[-10:].mean() / self.losses[:10].mean())

    @property
    def remaining_mistakes(self) -> str:
        """What is missing at the end, for a network that has not memorised the images."""
        if self.accuracies is not None:
            return f'{100 * self.accuracies[-10:].mean():.0f} %'
        return f'{100 * self._remaining:.0f} % of the first loss remain'


def _memorise(context: Context, learning_rate: float) -> Memorisation:
    """Train on a few images without regularisation until they are memorised."""
    with context.variant(_without_regularisation(context, MAX_MEMORISING_STEPS, learning_rate), _handful(context)) as setup:
        scores = setup.experiment.task.train_metrics[1:2]  # none, or one such as the accuracy
        state, parts = context.initial_state(setup), []
        for step in range(0, MAX_MEMORISING_STEPS, 10):
            state, scalars = train_steps(setup, state, step, step + 10)
            parts.append(scalars)
            losses, *accuracies = (np.concatenate([part[name] for part in parts]) for name in ('loss', *scores))
            result = Memorisation(losses, accuracies[0] if accuracies else None)
            if result.num_steps is not None:
                break
    return result


def check_overfit(context: Context) -> Verdict:
    """Train on a few images without augmentation and regularisation until they are memorised."""
    findings = Findings()
    rate = context.config.optim.learning_rate
    result = _memorise(context, rate)
    curves = {f'learning rate {rate:g}': result.losses}
    if result.num_steps is None:
        slower = _memorise(context, rate / 10)
        curves[f'learning rate {rate / 10:g}'] = slower.losses
        if slower.num_steps is not None:
            findings.add(WARNING, f'with a tenth of the learning rate they are, after {slower.num_steps} steps',
                         'reduce config.optim.learning_rate, and see lr_range')
        else:
            findings.add(FAILED, f'{slower.remaining_mistakes} with a tenth of the learning rate',
                         'check the loss, the outputs (see first_loss), dead units and parameters that are not trained '
                         '(see signal): a network that cannot memorise a few images has a defect')
    with figures.warn_on_error(path := context.figure_path('overfit')):
        draw_losses(curves, path, ylabel='training loss of the same images')
    count = min(NUM_MEMORISED, len(context.setup.dataset.splits['train']))
    state = 'memorised' if result.accuracies is None else 'all right'
    if result.num_steps is not None:
        measured = f'{count} images are {state} after {result.num_steps} steps, with loss {result.losses[-1]:.2g}'
    else:
        measured = (f'{count} images are not {state} within {MAX_MEMORISING_STEPS} steps at learning rate {rate:g}: '
                    f'{result.remaining_mistakes}')
    return findings.verdict(measured, ['The loss of a few training images on which the network is trained without '
                                       'augmentation, dropout, decay and label smoothing.'], ['overfit'])


@dataclasses.dataclass(frozen=True)
class Generalisation:
    """What a network knows of validation images, measured against permuted targets.

    Attributes:
      loss, chance_loss: mean loss with the targets, and with permuted ones.
      deviations: by how many standard deviations of permutations the loss is below the chance loss.
      score, chance_score: the same of the first metric of training, such as the accuracy.
      predictions: the task's prediction for each of these images.
    """

    loss: float
    chance_loss: float
    deviations: float
    score: float
    chance_score: float
    predictions: np.ndarray


class GeneralisationTest:
    """Evaluates weights of a network on images, and on the same images with permuted targets; its programs compile once.

    Args:
      setup: gives the network, the preprocessing and the task.
      targets: the targets of all images, (N, ...) each.
    """

    def __init__(self, setup: Setup, targets: Mapping[str, np.ndarray]):
        network, preprocessor, task = setup.experiment.network, setup.experiment.preprocessor, setup.experiment.task
        self._task, self._targets = task, dict(targets)

        def outputs(weights: Any, images: jax.Array) -> jax.Array:
            pixels = preprocessor.pixels(images) if images.dtype == jnp.uint8 else images
            logits: Any = network.apply(weights, preprocessor.normalize(pixels), train=False)
            return logits.astype(jnp.float32)

        def mean_scores(logits: jax.Array, targets: dict[str, jax.Array], rows: jax.Array, target_rows: jax.Array,
                        count: jax.Array) -> tuple[jax.Array, jax.Array]:
            def score(logits: jax.Array, targets: dict[str, jax.Array]) -> jax.Array:
                example = jax.tree.map(lambda x: x[None], (logits, targets))
                return task.train_scalars(*example)[task.train_metrics[1]]
            logits, targets = logits[rows], {name: value[target_rows] for name, value in targets.items()}
            is_counted = jnp.arange(len(rows)) < count
            losses, scores = task.example_losses(logits, targets), jax.vmap(score)(logits, targets)
            return jnp.where(is_counted, losses, 0).sum() / count, jnp.where(is_counted, scores, 0).sum() / count
        self._outputs, self._mean_scores = jax.jit(outputs), jax.jit(mean_scores)

    def logits(self, weights: Any, images: np.ndarray) -> jax.Array:
        """Return the outputs of the network in evaluation, (N, ...).

        Args:
          weights: variables of the network.
          images: uint8, or float32 pixels in [0, 1] of the size that the network takes.
        """
        num_images, size = len(images), min(256, len(images))
        padded = np.concatenate([images, images[:-num_images % size]])
        return jnp.concatenate([self._outputs(weights, padded[i:i + size])
                                for i in range(0, len(padded), size)])[:num_images]

    def measure(self, logits: jax.Array, positions: np.ndarray | None = None) -> Generalisation:
        """Compare the outputs (N, ...) with the targets, and with permuted ones.

        Args:
          logits: the outputs for all images.
          positions: the images that count; None: all of them.
        """
        positions = np.arange(len(logits)) if positions is None else positions

        def pad(positions: np.ndarray) -> np.ndarray:
            return np.resize(positions, len(logits))  # so that any number of positions has the same program

        def scores(target_positions: np.ndarray) -> tuple[float, float]:
            loss, score = self._mean_scores(logits, self._targets, pad(positions), pad(target_positions), len(positions))
            return float(loss), float(score)
        rng = np.random.default_rng(0)
        loss, score = scores(positions)
        chance = np.array([scores(rng.permutation(positions)) for _ in range(NUM_PERMUTATIONS)])
        chance_loss, chance_score = chance.mean(0)
        deviation = float(chance[:, 0].std(ddof=1))
        # outputs that hardly depend on the images leave nothing but rounding
        deviations = float(chance_loss - loss) / deviation if deviation > 1e-5 * abs(chance_loss) else 0.0
        return Generalisation(loss, float(chance_loss), deviations, score, float(chance_score),
                              np.asarray(self._task.predict(logits))[positions])


def check_learns(context: Context) -> Verdict:
    """Train for a short run, and compare the loss on validation images with that on permuted targets."""
    findings = Findings()
    run = context.short_run
    losses, task = run.scalars['loss'], context.setup.experiment.task
    metric = task.train_metrics[1].replace('_', ' ')
    curves = {'each step': losses, 'mean of 7 steps': smoothed(losses)}
    with figures.warn_on_error(path := context.figure_path('learns')):
        draw_losses(curves, path)
    lines = [f'The training loss in the first {run.num_steps} steps of a run that is shortened to them.']
    not_finite = np.flatnonzero(~np.isfinite(losses))
    if len(not_finite):
        findings.add(FAILED, f'the loss is {losses[not_finite[0]]} at step {not_finite[0]} of a short run',
                     'reduce config.optim.learning_rate (see lr_range), or set config.optim.clip_norm')
        return findings.verdict('', lines, ['learns'])
    tenth = max(1, len(losses) // 10)
    first, last = losses[:tenth].mean(), losses[-tenth:].mean()
    examples = dict(context.validation_examples)
    images = examples.pop('image')
    test = GeneralisationTest(context.setup, examples)
    result = test.measure(test.logits(variables(run.final)[False], images))
    if not result.deviations >= MIN_DEVIATIONS:
        findings.add(FAILED, 'the network has learnt nothing that holds for images it has not seen',
                     'check that labels belong to their images (see the figure of batch); if overfit or lr_range fail, '
                     f'begin with them; if learning is slow, raise --steps above {run.num_steps}')
    elif last > first:
        findings.add(WARNING, 'the training loss has risen', 'reduce config.optim.learning_rate; see lr_range')
    return findings.verdict(
        f'in {run.num_steps} steps the training loss goes from {first:.3f} to {last:.3f}; the {metric} on '
        f'{context.validation_split} images is then {100 * result.score:.1f} %, by chance {100 * result.chance_score:.1f} % '
        f'(their loss is {max(result.deviations, 0):.0f} standard deviations below chance)', lines, ['learns'])
