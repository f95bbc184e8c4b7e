"""Checks that train briefly: can the network memorise a few images, does training generalise, does augmentation help."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import config as cfg
from jaxcnn.analysis import figures
from jaxcnn.checks.base import FAILED, INFORMATION, WARNING, Findings, Verdict
from jaxcnn.checks.context import Context, train_steps
from jaxcnn.checks.figures import draw_losses, smoothed
from jaxcnn.data import augment, normalize
from jaxcnn.data.augment import Attack, Mix, Pipeline
from jaxcnn.training.setup import Setup
from jaxcnn.training.state import variables

NUM_MEMORISED = 8  # images
MAX_MEMORISING_STEPS = 200
NUM_PERMUTATIONS = 50
MIN_DEVIATIONS = 5.0  # standard deviations by which a loss must be below that with permuted targets
MIN_CHANGED = 20  # images that an op must change for a judgement
MIN_SCORE = 0.1  # above chance, of a network that judges augmentation
NUM_TILES = 8
MIN_RETAINED = 0.4  # part of what a network knows that an augmentation must leave


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
                                  weight_decay=0.0, l2=0.0, accumulate=1, ema_decay=0.0, lookahead=None,
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


def _memorise(context: Context, learning_rate: float) -> tuple[np.ndarray, int | None]:
    """Return the accuracy of each step, and the number of steps after which all images are right twice in a row."""
    with context.variant(_without_regularisation(context, MAX_MEMORISING_STEPS, learning_rate), _handful(context)) as setup:
        name = setup.experiment.task.train_metrics[1]
        state, parts, step = context.initial_state(setup), [], 0
        while step < MAX_MEMORISING_STEPS:
            state, scalars = train_steps(setup, state, step, step + 10)
            parts.append(scalars)
            step += 10
            accuracies = np.concatenate([part[name] for part in parts])
            if (accuracies[-2:] == 1).all():
                break
    right = np.flatnonzero((accuracies[:-1] == 1) & (accuracies[1:] == 1))
    return np.stack([accuracies, np.concatenate([part['loss'] for part in parts])]), int(right[0]) if len(right) else None


def check_overfit(context: Context) -> Verdict:
    """Train on a few images without augmentation and regularisation until all of them are right."""
    findings = Findings()
    rate = context.config.optim.learning_rate
    (accuracies, losses), num_steps = _memorise(context, rate)
    curves = {f'learning rate {rate:g}': losses}
    if num_steps is None:
        (slow_accuracies, slow_losses), slow_steps = _memorise(context, rate / 10)
        curves[f'learning rate {rate / 10:g}'] = slow_losses
        if slow_steps is not None:
            findings.add(WARNING, f'with a tenth of the learning rate they are, after {slow_steps} steps',
                         'reduce config.optim.learning_rate, and see lr_range')
        else:
            findings.add(FAILED, f'{100 * slow_accuracies[-10:].mean():.0f} % with a tenth of the learning rate',
                         'check the loss, the outputs (see first_loss), dead units and parameters that are not trained '
                         '(see signal): a network that cannot memorise a few images has a defect')
    with figures.warn_on_error(path := context.figure_path('overfit')):
        draw_losses(curves, path, ylabel='training loss of the same images')
    count = min(NUM_MEMORISED, len(context.setup.dataset.splits['train']))
    if num_steps is not None:
        measured = f'{count} images are all right after {num_steps} steps, with loss {losses[-1]:.2g}'
    else:
        measured = (f'{count} images are not all right within {MAX_MEMORISING_STEPS} steps at learning rate {rate:g}: '
                    f'{100 * accuracies[-10:].mean():.0f} %')
    return findings.verdict(measured, ['The loss of a few training images on which the network is trained without '
                                       'augmentation, dropout, decay and label smoothing.'], ['overfit'])


@dataclasses.dataclass(frozen=True)
class Generalisation:
    """What a network knows of validation images, measured against permuted targets.

    Attributes:
      loss, chance_loss: mean loss with the targets, and with permuted ones.
      deviations: by how many standard deviations of permutations the loss is below the chance loss.
      score, chance_score: the same of the first metric of training, such as the accuracy.
      predictions: the task's prediction for each image, (N, ...).
    """

    loss: float
    chance_loss: float
    deviations: float
    score: float
    chance_score: float
    predictions: np.ndarray


def measure_generalisation(context: Context, setup: Setup, weights: Any, images: np.ndarray | None = None,
                           positions: np.ndarray | None = None) -> Generalisation:
    """Evaluate weights on validation images, and on the same images with permuted targets.

    Args:
      context: gives the images.
      setup: gives the network and the task.
      weights: variables of the network.
      images: inputs of the network for all validation images; None: the images as in evaluation.
      positions: the images that are evaluated; None: all.
    """
    experiment, task = setup.experiment, setup.experiment.task
    examples = dict(context.validation_examples)
    inputs = examples.pop('image') if images is None else images
    if positions is not None:
        inputs, examples = inputs[positions], {name: value[positions] for name, value in examples.items()}

    @jax.jit
    def apply(x: jax.Array) -> jax.Array:
        def outputs(x: jax.Array) -> jax.Array:
            result: Any = experiment.network.apply(weights, x, train=False)
            return result.astype(jnp.float32)
        return experiment.preprocessor.outputs(outputs, x, tta=False) if images is None else outputs(x)
    num_images, size = len(inputs), min(256, len(inputs))
    padded = np.concatenate([inputs, inputs[:-num_images % size]])
    logits = jnp.concatenate([apply(padded[i:i + size]) for i in range(0, len(padded), size)])[:num_images]

    @jax.jit
    def scores(order: jax.Array) -> tuple[jax.Array, jax.Array]:
        permuted = {name: jnp.asarray(value)[order] for name, value in examples.items() if name != 'image'}
        return task.example_losses(logits, permuted).mean(), task.train_scalars(logits, permuted)[task.train_metrics[1]]
    rng = np.random.default_rng(0)
    loss, score = map(float, scores(jnp.arange(num_images)))
    chance = np.array([scores(jnp.asarray(rng.permutation(num_images))) for _ in range(NUM_PERMUTATIONS)])
    chance_loss, chance_score = chance.mean(0)
    deviations = (chance_loss - loss) / max(float(chance[:, 0].std(ddof=1)), 1e-9)
    return Generalisation(loss, float(chance_loss), float(np.nan_to_num(deviations)), score, float(chance_score),
                          np.asarray(task.predict(logits)))


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
    result = measure_generalisation(context, context.setup, variables(run.final)[False])
    if result.deviations < MIN_DEVIATIONS:
        findings.add(FAILED, 'the network has learnt nothing that holds for images it has not seen',
                     'check that labels belong to their images (see the figure of batch); if overfit or lr_range fail, '
                     f'begin with them; if learning is slow, raise --steps above {run.num_steps}')
    elif last > first:
        findings.add(WARNING, 'the training loss has risen', 'reduce config.optim.learning_rate; see lr_range')
    return findings.verdict(
        f'in {run.num_steps} steps the training loss goes from {first:.3f} to {last:.3f}; the {metric} on '
        f'{context.validation_split} images is then {100 * result.score:.1f} %, by chance {100 * result.chance_score:.1f} % '
        f'(their loss is {result.deviations:.0f} standard deviations below chance)', lines, ['learns'])


# ---- augmentation


@dataclasses.dataclass(frozen=True)
class OpEffect:
    """What an op of an augmentation leaves of what a network recognises.

    Attributes:
      text: the op.
      score, raw_score: the first metric of training on the images that the op changes, with and without it.
      chance_score: the metric by chance.
      num_images: number of the images.
    """

    text: str
    score: float
    raw_score: float
    chance_score: float
    num_images: int

    @property
    def retained(self) -> float:
        """The part of the metric above chance that is left."""
        return (self.score - self.chance_score) / max(self.raw_score - self.chance_score, 1e-9)


def _single_op_pipelines(setup: Setup) -> dict[str, tuple[Pipeline, Pipeline | None]]:
    """Return for each op of the training augmentation that changes single images the pipeline with it and that without it.

    Ops that change the size of images are in both pipelines, if the network needs them.
    """
    pipeline = setup.experiment.preprocessor.augment
    if pipeline is None:
        return {}
    texts = [part.strip() for part in pipeline.text.split('|')]
    ops = [(text, op) for text, op in zip(texts, pipeline.ops, strict=True) if not isinstance(op, (Mix, Attack))]
    shape, resizing = setup.dataset.image_shape, []
    for text, op in ops:
        if not isinstance(op, augment.ByEpoch):
            new_shape = jax.eval_shape(op, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32)).shape
            if new_shape != shape:
                resizing.append(text)
            shape = new_shape

    def keep(names: list[str]) -> Pipeline | None:
        kept = [(text, op) for text, op in ops if text in names]
        return Pipeline('|'.join(text for text, _ in kept), tuple(op for _, op in kept)) if kept else None
    return {text: (keep([*resizing, text]), keep(resizing)) for text, _ in ops if text not in resizing}  # type: ignore[misc]


def _augmented(context: Context, setup: Setup, pipeline: Pipeline | None, normalized: bool = True) -> np.ndarray:
    """Return the validation images after a pipeline, float32: as the network gets them, or in [0, 1]."""
    preprocessor = dataclasses.replace(setup.experiment.preprocessor, augment=pipeline)
    if not normalized:
        preprocessor = dataclasses.replace(preprocessor, normalize=normalize.Normalization())
    count = len(context.validation_examples['image'])
    passes = jax.random.split(context.run_key, count), jnp.zeros(count, jnp.int32)
    prepare = jax.jit(functools.partial(preprocessor.train, mixer=setup.experiment.task, passes=passes))
    return np.asarray(prepare(context.validation_examples, jax.random.key(1))['image'])


def check_augmentation(context: Context) -> Verdict:
    """Train without augmentation, and see what the network recognises in validation images that each op has changed.

    A network that has never seen an upside-down digit does not recognise it; a digit that is shifted by two pixels it does.
    """
    findings = Findings()
    pipelines = _single_op_pipelines(context.setup)
    if not pipelines:
        return findings.verdict('config.data.augment has no op that changes single images')
    config = context.shortened(context.steps)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, augment=config.data.eval_augment))
    with context.variant(config) as setup:
        state, _ = train_steps(setup, context.initial_state(setup), 0, context.steps)
        weights = variables(setup.backend.fetch(state))[False]
        effects, tiles, titles = [], list[np.ndarray](), list[str]()
        for text, (with_op, without_op) in pipelines.items():
            raw, changed = (_augmented(context, setup, pipeline) for pipeline in (without_op, with_op))
            positions = np.flatnonzero(np.abs(changed - raw).reshape(len(raw), -1).max(1) > 1e-3)
            if len(positions) < MIN_CHANGED:
                continue
            before, after = (measure_generalisation(context, setup, weights, images, positions) for images in (raw, changed))
            if before.deviations < MIN_DEVIATIONS or before.score < before.chance_score + MIN_SCORE:
                findings.add(INFORMATION, f'the network recognises {100 * before.score:.1f} % after {context.steps} steps '
                             'without augmentation', 'raise --steps: that is too little for this check')
                break
            effects.append(OpEffect(text, after.score, before.score, before.chance_score, len(positions)))
            _append_tiles(context, setup, (with_op, without_op), positions, after.predictions, tiles, titles)
    harmful = [effect for effect in effects if effect.retained < MIN_RETAINED]
    for effect in harmful:
        findings.add(WARNING, f'{effect.text} makes images unlike those of {context.validation_split}: a network that has '
                     f'not seen it recognises {100 * effect.score:.0f} % of the images that it changes, and '
                     f'{100 * effect.raw_score:.0f} % of the same images without it',
                     'look at the figure of augmentation, and remove the op from config.data.augment unless images such as '
                     'these occur')
    if tiles:
        with figures.warn_on_error(path := context.figure_path('augmentation')):
            figures.image_grid(tiles, titles, path, columns=NUM_TILES, headings=[
                heading for effect in effects for heading in (
                    f'without {effect.text}: {100 * effect.raw_score:.0f} % are recognised', f'with {effect.text}: '
                    f'{100 * effect.score:.0f} %')])
    summary = ', '.join(f'{effect.text} {100 * effect.retained:.0f} %' for effect in effects)
    return findings.verdict(
        f'of what a network without augmentation recognises, augmented images keep: {summary}' if effects else '',
        ['Validation images before and after each op of the augmentation, with their labels and, below, what a network '
         'predicts that was trained for a short time without augmentation. An op is suspicious if it leaves less than '
         f'{100 * MIN_RETAINED:.0f} % of what the network recognises above chance: it makes images that do not occur.'],
        ['augmentation'] if tiles else [])


def _append_tiles(context: Context, setup: Setup, pipelines: tuple[Pipeline | None, Pipeline | None],
                  positions: np.ndarray, predictions: np.ndarray, tiles: list[np.ndarray], titles: list[str]) -> None:
    """Append a row of images without an op and a row of the same images with it, with labels and predictions."""
    task = setup.experiment.task
    examples = context.validation_examples
    for pipeline, is_changed in ((pipelines[1], False), (pipelines[0], True)):
        pixels = _augmented(context, setup, pipeline, normalized=False)
        for i, position in enumerate(positions[:NUM_TILES]):
            tiles.append(pixels[position])
            if is_changed:
                predicted = {name: value[0] for name, value in task.targets_of(predictions[i:i + 1]).items()}
                titles.append(f'predicted {task.title(predicted)}')
            else:
                titles.append(task.title({name: value[position] for name, value in examples.items() if name != 'image'}))
        for _ in range(NUM_TILES - min(NUM_TILES, len(positions))):
            tiles.append(np.ones_like(pixels[0]))
            titles.append('')
