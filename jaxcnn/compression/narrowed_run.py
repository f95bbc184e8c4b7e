"""Removal of channels of a finished run, without training: the run of the narrower network, and a report."""

import dataclasses
import itertools
import os
import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.core import FrozenDict

from jaxcnn import config as cfg
from jaxcnn.analysis import complexity, figures, markdown
from jaxcnn.analysis.markdown import escape, figure, table
from jaxcnn.compression import batch_norm_statistics, derived_run
from jaxcnn.data import Dataset
from jaxcnn.errors import counted
from jaxcnn.experiment import Experiment
from jaxcnn.files import make_output
from jaxcnn.metrics import Metric
from jaxcnn.run import Run, SplitEvaluator
from jaxcnn.training.channel_pruning import narrow_run
from jaxcnn.training.initial_masks import read_pruning
from jaxcnn.training.state import Weights, variables

NAME = 'channels'  # of the files of the report
_ROUNDS, _SECONDS = 7, 1.0  # of the benchmark


@dataclasses.dataclass(frozen=True)
class Network:
    """The network of a run, before or after the removal of channels.

    Attributes:
      parameters: number of parameters.
      multiply_adds: multiply-adds for one image.
      values: metrics of the evaluated split by name.
      features: features of its convolutions and dense layers, by their names.
      images_per_second: throughput of predictions; None if it was not measured.
    """

    parameters: int
    multiply_adds: int
    values: Mapping[str, float]
    features: Mapping[str, int]
    images_per_second: float | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """The removal of channels of a run.

    Attributes:
      run: the run.
      config: how the channels were chosen.
      step: the checkpoint.
      split: split of the evaluation.
      num_images: number of its images.
      metrics: the metrics that are shown, the main one first.
      batch_size: images in a batch of the benchmark; 0 if nothing was measured.
      bn_images: images from which the statistics of BatchNorm were estimated; 0 if they stayed, or there are none.
      reasons: why layers keep all features, by their names.
      before: the network as it was.
      after: the narrower network.
      folder: the workdir of the narrower network.
    """

    run: Run
    config: cfg.ChannelsConfig
    step: int
    split: str
    num_images: int
    metrics: list[Metric]
    batch_size: int
    bn_images: int
    reasons: Mapping[str, str]
    before: Network
    after: Network
    folder: str


def remove_channels(run: Run, folder: str, config: cfg.ChannelsConfig, checkpoint: str, dataset: Dataset, split: str,
                    data_dir: str = '', batch_size: int = 0, bn_images: int = 1024) -> Result:
    """Remove channels of a run, evaluate the network before and after, and write a workdir of the narrower one.

    Args:
      run: the run.
      folder: a new folder, the workdir.
      config: how the channels are chosen.
      checkpoint: checkpoint of the run: best, latest or a step.
      dataset: data for the evaluation.
      split: its split.
      data_dir: another `config.data.dir` than in training.
      batch_size: images in a batch of the benchmark; 0: nothing is measured.
      bn_images: training images from which the statistics of BatchNorm are estimated anew; 0: they stay as they are.

    Raises:
      UserError: The network cannot be narrowed, or the folder is not empty.
    """
    make_output(folder)
    step = run.find_step(checkpoint)
    ema = run.experiment.best.ema
    experiment = dataclasses.replace(run.experiment, preprocessor=dataclasses.replace(run.experiment.preprocessor, tta=None))
    narrowing = narrow_run(os.path.abspath(run.workdir), step, ema, config, data_dir)
    weights = run.load_weights(step)

    model = dataclasses.replace(run.config.model, args={**run.config.model.args, 'layer_widths': narrowing.layer_widths})
    new_config = dataclasses.replace(run.config, model=model)
    network = experiment.network.clone(layer_widths=FrozenDict(narrowing.layer_widths))
    narrow_experiment = dataclasses.replace(experiment, config=new_config, network=network)
    bn_images = bn_images if weights.batch_stats else 0
    train_split = run.load_dataset(data_dir).splits['train'] if bn_images else None

    def narrow(params: Any, batch_stats: Any) -> tuple[Any, Any]:
        result = narrowing.narrow({'params': params, 'batch_stats': batch_stats})
        params, batch_stats = result['params'], result['batch_stats']
        if train_split is not None:
            batch_stats = batch_norm_statistics.estimate(network, params, batch_stats, experiment.preprocessor, train_split,
                                                         bn_images, run.config.seed)
        return params, batch_stats
    narrow_weights = Weights(*narrow(weights.params, weights.batch_stats),
                             None if weights.ema is None else narrow(*weights.ema))

    measured = []
    speeds = _images_per_second([(experiment, weights), (narrow_experiment, narrow_weights)], batch_size)
    num_images = 0
    for part, part_weights, speed in ((experiment, weights, speeds[0]), (narrow_experiment, narrow_weights, speeds[1])):
        num_images, measurements = SplitEvaluator(part, dataset, split)(part_weights)
        cost = complexity.cost(part.network, part.image_shape, optimizers=())
        values = {m.metric.name: value for m, value in measurements.items() if m.ema == ema and not m.tta}
        measured.append(Network(cost.parameters, cost.multiply_adds, values, _features(part_weights.params), speed))
    before, after = measured
    result = Result(run, config, step, split, num_images, experiment.displayed_metrics(), batch_size,
                    bn_images, narrowing.coupling.reasons, before, after, folder)
    summary = derived_run.summary(run, step, split, after.values, params=after.parameters)
    pruning = None
    if run.config.pruning:
        masks = narrowing.narrow({'params': read_pruning(run, step)['masks']})['params']
        remain, total = (sum(f(x) for x in jax.tree.leaves(masks)) for f in (np.count_nonzero, np.size))
        summary['sparsity'] = 1 - remain / total
        pruning = {'masks': masks, 'sparsity': np.float32(summary['sparsity'])}
        new_config = derived_run.with_masks(new_config, run.config.pruning, folder)
    derived_run.write_run(folder, run, new_config, step, jax.tree.map(np.asarray, narrow_weights), summary, pruning)
    return result


def _features(params: Any) -> dict[str, int]:
    """Return the features of the layers with a kernel, in the order of their numbers."""
    kernels = {'/'.join(key.key for key in path[:-1]): leaf.shape[-1] for path, leaf in jax.tree.leaves_with_path(params)
               if path[-1].key == 'kernel'}

    def number(name: str) -> tuple[str, int]:
        head, _, tail = name.rpartition('_')
        return (head, int(tail)) if tail.isdigit() else (name, 0)
    return dict(sorted(kernels.items(), key=lambda item: number(item[0])))


def _images_per_second(networks: list[tuple[Experiment, Weights]], batch_size: int) -> list[float | None]:
    """Return the median throughput of each network's predictions, measured in turns; None without a batch size."""
    if not batch_size:
        return [None] * len(networks)
    calls = []
    for experiment, weights in networks:
        images = np.random.default_rng(0).normal(size=(batch_size, *experiment.image_shape)).astype(np.float32)
        placed = jax.device_put((variables(weights)[experiment.best.ema], images))
        apply = jax.jit(lambda values, x, network=experiment.network: network.apply(values, x))
        jax.block_until_ready(apply(*placed))
        calls.append((apply, placed))
    rates: list[list[float]] = [[] for _ in networks]
    for _, (i, (apply, placed)) in itertools.product(range(_ROUNDS), enumerate(calls)):
        began, batches = time.perf_counter(), 0
        while not batches or time.perf_counter() - began < _SECONDS:
            jax.block_until_ready(apply(*placed))
            batches += 1
        rates[i].append(batches * batch_size / (time.perf_counter() - began))
    return [statistics.median(values) for values in rates]


# ---- the report


def summary_rows(result: Result) -> list[list[str]]:
    """Return the cells of the table: the headings, the networks before and after, and how they compare."""
    before, after = result.before, result.after
    rows = [['', 'before', 'after', 'after / before', 'after - before']]
    for name, old, new in (('parameters', before.parameters, after.parameters),
                           ('multiply-adds', before.multiply_adds, after.multiply_adds)):
        rows.append([name, f'{old:,}', f'{new:,}', f'{100 * new / old:.1f} %', ''])
    if before.images_per_second and after.images_per_second:
        rows.append(['images/s', f'{before.images_per_second:.0f}', f'{after.images_per_second:.0f}',
                     f'{after.images_per_second / before.images_per_second:.2f} times', ''])
    for metric in result.metrics:
        old_value, new_value = (network.values[metric.name] for network in (before, after))
        difference = new_value - old_value
        rows.append([metric.title, metric.format(old_value), metric.format(new_value), '',
                     f'{100 * difference:+.2f} points' if metric.percent else f'{difference:+.4f}'])
    return rows


def write_report(result: Result) -> str:
    """Write `channels.md`, `channels.html`, `channels.json` and the figure into the workdir, and return the page's path."""
    run, config, folder = result.run, result.config, result.folder
    os.makedirs(figure_folder := os.path.join(folder, 'figures'), exist_ok=True)
    with figures.warn_on_error(path := os.path.join(figure_folder, NAME + '.png')):
        draw_features(result, path)
    title = f'{run.config.model.name} of {os.path.basename(os.path.abspath(run.workdir))} with fewer channels'
    statistics = ''
    if result.bn_images:
        statistics = f' The statistics of BatchNorm were estimated from {counted(result.bn_images, "training image")} then.'
    speed = f' Throughput is that of predictions of {result.batch_size} images.' if result.batch_size else ''
    layers = [['layer', 'features before', 'features after', 'after / before'],
              *([name, str(count), str(result.after.features[name]), f'{100 * result.after.features[name] / count:.0f} %']
                for name, count in result.before.features.items())]
    lines = [
        f'# {escape(title)}', '',
        f'Channels of the run in {escape(run.workdir)}, checkpoint {result.step}, were removed without further training, by '
        f'the method {config.method}, until at most {config.target:g} of the {config.quantity.replace("_", "-")} '
        f'remained.{statistics} The networks were evaluated on the {result.split} split, '
        f'{counted(result.num_images, "image")}.{speed}', '',
        *table(summary_rows(result)), '## Features of each layer', '', figure(figure_folder, NAME), '', *table(layers)]
    reasons: dict[str, list[str]] = {}
    for layer, reason in result.reasons.items():
        reasons.setdefault(reason, []).append(layer)
    lines += [f'All features of {", ".join(names)} stay: {reason}.' for reason, names in reasons.items()]
    values = {'run': run.workdir, 'checkpoint': result.step, 'split': result.split, **dataclasses.asdict(config),
              'bn_images': result.bn_images,
              'before': dataclasses.asdict(result.before), 'after': dataclasses.asdict(result.after)}
    return markdown.write_report(folder, NAME, title, lines, values)


def draw_features(result: Result, path: str) -> None:
    """Draw the number of features of each layer before and after, as bars."""
    names = list(result.before.features)
    positions = np.arange(len(names))
    with figures.open_figure(path, max(6.4, 0.24 * len(names) + 1.5), 4) as drawing:
        axis = drawing.subplots()
        axis.bar(positions, list(result.before.features.values()), color='lightgray', label='before')
        axis.bar(positions, [result.after.features[name] for name in names], color='tab:blue', label='after')
        axis.set_xticks(positions, names, rotation=90, fontsize=8)
        axis.set_xlim(-0.7, len(names) - 0.3)
        axis.set_ylabel('features')
        axis.legend()
        drawing.tight_layout()
