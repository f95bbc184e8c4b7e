"""The check of augmentation: does it turn images of one class into images of another?"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.analysis import figures
from jaxcnn.checks.base import INFORMATION, WARNING, Findings, Verdict
from jaxcnn.checks.context import Context, train_steps
from jaxcnn.checks.training import MIN_DEVIATIONS, GeneralisationTest
from jaxcnn.data import augment, normalize
from jaxcnn.data.augment import Attack, Mix, Pipeline
from jaxcnn.data.targets import LABEL
from jaxcnn.training.setup import Setup
from jaxcnn.training.state import variables

MIN_CHANGED = 40  # images that an op must change for a judgement
MIN_SCORE = 0.1  # above chance, of a network that judges augmentation
MAX_SWAPPED = 0.12  # fraction of the changed images
NUM_TILES = 8


@dataclasses.dataclass(frozen=True)
class OpEffect:
    """What a network that has not seen an op makes of the images that the op changes.

    Attributes:
      text: the op.
      accuracy, raw_accuracy: the accuracy on these images with and without the op.
      swapped: the fraction by which the accuracy would grow if each class could be renamed. It is 0 if the op only makes
        images harder, and large if it makes images of one class look like those of another, as a digit 2 that is turned
        upside down looks like a 5.
      renamed: pairs of classes (label, prediction) that the network confuses consistently, with the fraction of the images
        of the class, the most frequent first.
    """

    text: str
    accuracy: float
    raw_accuracy: float
    swapped: float
    renamed: Sequence[tuple[int, int, float]]


def swapped_fraction(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> float:
    """Return by how much the accuracy grows if each class gets the name that is predicted most often for its images.

    The names are taken from one half of the images and used for the other half, so that chance does not count.

    Args:
      labels, predicted: (N,) classes.
      num_classes: number of classes.
    """
    right = 0
    for half in (0, 1):
        other, this = slice(1 - half, None, 2), slice(half, None, 2)
        counts = np.zeros((num_classes, num_classes))
        np.add.at(counts, (labels[other], predicted[other]), 1)
        counts[np.arange(num_classes), np.arange(num_classes)] += 0.5  # of equally frequent names, the right one
        right += int((predicted[this] == counts.argmax(1)[labels[this]]).sum())
    return (right - int((labels == predicted).sum())) / len(labels)


def _renamed(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> list[tuple[int, int, float]]:
    """Return the pairs of `OpEffect.renamed`."""
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (labels, predicted), 1)
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    pairs = [(c, int(fractions[c].argmax()), float(fractions[c].max())) for c in range(num_classes) if counts[c].sum()]
    return sorted((pair for pair in pairs if pair[0] != pair[1]), key=lambda pair: -pair[2])


def _single_op_pipelines(setup: Setup) -> tuple[dict[str, Pipeline | None], Pipeline | None]:
    """Return a pipeline for each op of the training augmentation that changes single images, and one without these ops.

    Ops that change the size of images are in all pipelines, because the network may need them.
    """
    pipeline = setup.experiment.preprocessor.augment
    if pipeline is None:
        return {}, None
    texts = [part.strip() for part in pipeline.text.split('|')]
    ops = [(text, op) for text, op in zip(texts, pipeline.ops, strict=True) if not isinstance(op, (Mix, Attack))]
    shape, resizing = setup.dataset.image_shape, []
    for text, op in ops:
        if not isinstance(op, augment.ByEpoch):
            new_shape = jax.eval_shape(op, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32)).shape
            if new_shape != shape:
                resizing.append(text)
            shape = new_shape

    def select(names: list[str]) -> Pipeline | None:
        selected = [(text, op) for text, op in ops if text in names]
        return Pipeline('|'.join(text for text, _ in selected), tuple(op for _, op in selected)) if selected else None
    return {text: select([*resizing, text]) for text, _ in ops if text not in resizing}, select(resizing)


def _augmented(context: Context, setup: Setup, pipeline: Pipeline | None) -> np.ndarray:
    """Return the pixels of the images that are compared after a pipeline, float32 in [0, 1]."""
    preprocessor = dataclasses.replace(setup.experiment.preprocessor, augment=pipeline, normalize=normalize.Normalization())
    examples = context.some_train_examples
    count = len(examples['image'])
    passes = jax.random.split(context.run_key, count), jnp.zeros(count, jnp.int32)
    prepare = jax.jit(functools.partial(preprocessor.train, mixer=setup.experiment.task, passes=passes))
    return np.asarray(prepare(examples, jax.random.key(1))['image'])


def check_augmentation(context: Context) -> Verdict:
    """Train without augmentation, and see for which classes the network takes images that each op has changed.

    An op that only makes images harder costs accuracy, but a wrong prediction may be any class. One that makes images of a
    class look like those of another one leads to predictions that are wrong consistently.
    """
    findings, task = Findings(), context.setup.experiment.task
    pipelines, without_op = _single_op_pipelines(context.setup)
    if not pipelines:
        return findings.verdict('config.data.augment has no op that changes single images')
    if task.kind is not LABEL:
        return findings.verdict('this check needs one class for each image', status=INFORMATION)
    config = context.shortened(context.steps)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, augment=config.data.eval_augment))
    examples, effects = context.some_train_examples, list[OpEffect]()
    tiles, titles, headings = list[np.ndarray](), list[str](), list[str]()
    with context.variant(config) as setup:
        state, _ = train_steps(setup, context.initial_state(setup), 0, context.steps)
        weights = variables(setup.backend.fetch(state))[False]
        test = GeneralisationTest(setup, {name: value for name, value in examples.items() if name != 'image'})
        raw = _augmented(context, setup, without_op)
        raw_logits = test.logits(weights, raw)
        for text, pipeline in pipelines.items():
            changed = _augmented(context, setup, pipeline)
            positions = np.flatnonzero(np.abs(changed - raw).reshape(len(raw), -1).max(1) > 1e-3)
            if len(positions) < MIN_CHANGED:
                continue
            labels = examples['label'][positions]
            before = test.measure(raw_logits, positions)
            after = test.measure(test.logits(weights, changed), positions)
            if not before.deviations >= MIN_DEVIATIONS or before.score < before.chance_score + MIN_SCORE:
                findings.add(INFORMATION, f'the network recognises {100 * before.score:.1f} % after {context.steps} steps '
                             'without augmentation', 'raise --steps: that is too little for this check')
                break
            predicted = after.predictions.argmax(-1)
            effects.append(OpEffect(text, after.score, before.score, swapped_fraction(labels, predicted, task.num_classes),
                                    _renamed(labels, predicted, task.num_classes)))
            headings += [f'without {text}: {100 * before.score:.0f} % are recognised', f'with {text}: '
                         f'{100 * after.score:.0f} %']
            # a row of images without the op, and a row of the same images with it
            tiles += [*raw[positions[:NUM_TILES]], *changed[positions[:NUM_TILES]]]
            titles += [task.class_names[label] for label in labels[:NUM_TILES]]
            titles += [f'predicted {task.class_names[label]}' for label in predicted[:NUM_TILES]]
    names = [figures.shortened(name) for name in task.class_names]
    for effect in effects:
        if effect.swapped > MAX_SWAPPED:
            pairs = ', '.join(f'{names[a]} for {names[b]} ({100 * share:.0f} %)' for a, b, share in effect.renamed[:3])
            findings.add(WARNING, f'{effect.text} makes images look like those of other classes: a network that has not '
                         f'seen it takes {pairs}', f'look at the figure of augmentation, and remove {effect.text} from '
                         'config.data.augment unless such images occur')
    if tiles:
        with figures.warn_on_error(path := context.figure_path('augmentation')):
            figures.image_grid(tiles, titles, path, columns=NUM_TILES, headings=headings)
    summary = ', '.join(f'{100 * effect.raw_accuracy:.0f} % without and {100 * effect.accuracy:.0f} % with {effect.text}'
                        for effect in effects)
    measured = f'a network that was trained without augmentation recognises {summary}' if effects else ''
    return findings.verdict(measured, [
        'Training images before and after each op of the augmentation, with their labels, and with the predictions of a '
        'network that was trained for a short time without augmentation. An op may make images harder, but it should not '
        'make those of one class look like those of another.'], ['augmentation'] if tiles else [])
