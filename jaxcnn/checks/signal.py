"""The check of signals: activations, gradients and updates, layer by layer."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.analysis import figures
from jaxcnn.analysis.markdown import escape
from jaxcnn.checks.base import FAILED, INFORMATION, WARNING, Findings, Verdict
from jaxcnn.checks.context import Context
from jaxcnn.checks.layers import apply_with_layers, training_arguments, training_loss
from jaxcnn.models import Network
from jaxcnn.optim import path_name
from jaxcnn.tasks import Task
from jaxcnn.training.state import Weights, variables

MAX_BYTES = 1 << 28  # of the outputs of all layers
MAX_IMAGES = 128
DEAD, ALMOST_DEAD = 0.99, 0.9  # fractions of a layer's units
MAX_UPDATE_RATIO = 0.1
MAX_GROWTH = 1e3  # factor between the deviations of two layers


@dataclasses.dataclass(frozen=True)
class LayerSignal:
    """Statistics of a layer's output over a batch of images.

    Attributes:
      mean, std: of all values.
      gradient: root mean square of the gradient of the loss with respect to the values, times the number of images.
      dead: fraction of the units (the last axis) whose values have no effect on the loss for any image, because the
        activation after them is flat there: their gradients are all 0.
    """

    mean: float
    std: float
    gradient: float
    dead: float


def layer_signals(network: Network, variables: Any, examples: Mapping[str, jax.Array], task: Task) -> dict[str, LayerSignal]:
    """Return the statistics of each layer with parameters, in training mode, in the order of computation.

    Args:
      network: the network.
      variables: its variables.
      examples: `image`, normalised, and the targets; as many of them are used as memory allows.
      task: gives the loss.
    """
    names: list[str] = []  # in the order of computation, which JAX's trees do not keep

    def forward(offsets: Mapping[str, jax.Array] | None, variables: Any,
                examples: Mapping[str, jax.Array]) -> tuple[jax.Array, Any]:
        layer_outputs: dict[str, jax.Array] = {}
        names.clear()

        def record(name: str, x: jax.Array, output: jax.Array) -> jax.Array:
            layer_outputs[name] = output
            names.append(name)
            return output if offsets is None else output + offsets[name]
        targets = {name: value for name, value in examples.items() if name != 'image'}
        outputs = apply_with_layers(network, variables, examples['image'], record, **training_arguments(task, targets))
        return training_loss(network, task, outputs, targets), layer_outputs

    def output_shapes(variables: Any, examples: Mapping[str, jax.Array]) -> dict[str, jax.ShapeDtypeStruct]:
        shapes: dict[str, jax.ShapeDtypeStruct] = jax.eval_shape(functools.partial(forward, None), variables, examples)[1]
        return shapes
    shapes = output_shapes(variables, examples)
    size = sum(math.prod(x.shape[1:]) * x.dtype.itemsize for x in shapes.values())
    count = int(np.clip(MAX_BYTES // max(size, 1), 2, min(MAX_IMAGES, len(examples['image']))))
    examples = {name: value[:count] for name, value in examples.items()}

    @jax.jit
    def statistics(variables: Any, examples: Mapping[str, jax.Array]) -> list[jax.Array]:
        offsets = {name: jnp.zeros(x.shape, x.dtype) for name, x in output_shapes(variables, examples).items()}
        grads, outputs = jax.grad(forward, has_aux=True)(offsets, variables, examples)
        results = []
        for name in names:
            y, g = outputs[name].astype(jnp.float32), grads[name].astype(jnp.float32)
            axes = tuple(range(y.ndim - 1))
            results.append(jnp.stack([y.mean(), y.std(), count * jnp.sqrt(jnp.square(g).mean()), (g == 0).all(axes).mean()]))
        return results
    results = statistics(variables, examples)
    return {name: LayerSignal(*map(float, values)) for name, values in zip(names, results, strict=True)}


def update_ratios(before: Any, after: Any) -> dict[str, float]:
    """Return the norm of the update of each kernel relative to that of the kernel, by its path."""
    ratios = {}
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True):
        norm = float(np.linalg.norm(np.asarray(x, float)))
        if np.ndim(x) > 1 and norm > 0:
            ratios[path_name(path)] = float(np.linalg.norm(np.asarray(y, float) - np.asarray(x, float))) / norm
    return ratios


def unchanged_parameters(before: Any, after: Any) -> list[str]:
    """Return the paths of parameters of which no value differs."""
    return [path_name(path) for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True) if np.array_equal(x, y)]


def check_signal(context: Context) -> Verdict:
    """Follow activations and gradients through the layers, before training and after some steps, and measure updates."""
    findings, run, setup = Findings(), context.short_run, context.setup
    examples = context.train_examples(MAX_IMAGES)

    def signals(weights: Weights) -> dict[str, LayerSignal]:
        return layer_signals(setup.experiment.network, variables(weights)[False], examples, setup.experiment.task)
    moments = {'before training': signals(run.weights[0]), f'after {run.num_steps} steps': signals(run.final)}
    ratios = update_ratios(run.weights[run.middle].params, run.weights[run.middle + 1].params) if run.num_steps > 1 else {}
    # only after some steps: residual blocks often begin with a layer of zeros, which lets no gradient pass at first
    _check_layers(f'after {run.num_steps} steps', moments[f'after {run.num_steps} steps'], findings)
    _check_updates(ratios, findings)
    _check_unchanged(context, unchanged_parameters(run.weights[0].params, run.final.params), findings)
    with figures.warn_on_error(path := context.figure_path('signal')):
        draw_signals(moments, ratios, path)
    start, end = moments.values()
    median = float(np.median([*ratios.values()])) if ratios else math.nan
    dead_before, dead_after = (max(layer.dead for layer in layers.values()) for layers in (start, end))
    stds = [layer.std for layer in start.values()]
    return findings.verdict(
        f'activations before training have deviations from {min(stds):.2g} to {max(stds):.2g}; in the worst layer, '
        f'{100 * dead_before:.0f} % of the units are dead before training and {100 * dead_after:.0f} % after '
        f'{run.num_steps} steps; an update is {median:.1g} of the parameters (median of the layers)',
        _table(moments, ratios), ['signal'])


def _check_layers(moment: str, layers: Mapping[str, LayerSignal], findings: Findings) -> None:
    values = np.array([[layer.std, layer.gradient] for layer in layers.values()])
    if not np.isfinite(values).all():
        name = next(name for name, layer in layers.items() if not math.isfinite(layer.std + layer.gradient))
        findings.add(FAILED, f'{moment}, {name} has values that are not finite', 'see learns and lr_range')
        return
    dead_by_layer: dict[str, float] = {}  # a layer that is called several times is alive if one of its calls is
    for name, layer in layers.items():
        first_call = re.sub(r' \(\d+\)$', '', name)
        dead_by_layer[first_call] = min(layer.dead, dead_by_layer.get(first_call, 1.0))
    worst = max(dead_by_layer, key=lambda name: dead_by_layer[name])
    dead = dead_by_layer[worst]
    if dead >= ALMOST_DEAD:
        count = sum(value >= ALMOST_DEAD for value in dead_by_layer.values())
        others = f', and {count - 1} more layers have many' if count > 1 else ''
        findings.add(FAILED if dead >= DEAD else WARNING, f'{moment}, {100 * dead:.0f} % of the units of {worst} are dead'
                     f'{others}', 'check the biases (config.model.bias_init) and the initialisation, or reduce the learning '
                     'rate if units die in training')
    deviations = values[:, 0]
    if deviations.min() > 0 and deviations.max() / deviations.min() > MAX_GROWTH:
        small, large = (list(layers)[int(i)] for i in (deviations.argmin(), deviations.argmax()))
        findings.add(WARNING, f'{moment}, activations have deviation {deviations.min():.1g} in {small} and '
                     f'{deviations.max():.1g} in {large}', 'another config.model.kernel_init, or normalisation '
                     'layers, may keep the scale of signals')


def _check_updates(ratios: Mapping[str, float], findings: Findings) -> None:
    if not ratios or not np.isfinite([*ratios.values()]).all():
        return
    largest = max(ratios, key=lambda name: ratios[name])
    if np.median([*ratios.values()]) > MAX_UPDATE_RATIO:
        findings.add(WARNING, f'one update changes {largest} by {100 * ratios[largest]:.0f} %',
                     'reduce config.optim.learning_rate; about 0.1 % is usual')


def _check_unchanged(context: Context, names: Sequence[str], findings: Findings) -> None:
    """Report parameters that do not move, as information if the config says so."""
    if not names:
        return
    groups = context.setup.experiment.optimizer.groups
    indices = {path_name(path): index for path, index in jax.tree_util.tree_leaves_with_path(
        groups.indices(context.setup.template.params))}
    intended = [name for name in names if groups.groups and indices[name] >= 0 and (
        not groups.rate(indices[name]) or groups.groups[indices[name]].until is not None)]
    unexplained = [name for name in names if name not in intended]
    if intended:
        findings.add(INFORMATION, f'{len(intended)} parameters are not trained, as config.optim.groups says: '
                     f'{_list(intended)}')
    if unexplained:
        findings.add(WARNING, f'{len(unexplained)} parameters do not move: {_list(unexplained)}',
                     'check that the loss depends on them, and that their units are not dead')


def _list(names: Sequence[str]) -> str:
    return ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')


def _table(moments: Mapping[str, Mapping[str, LayerSignal]], ratios: Mapping[str, float]) -> list[str]:
    lines = ['Outputs of the layers with parameters over a batch of training images, before the activation that follows. '
             "The gradient is the root mean square of that of an image's loss. A unit is dead if it has no effect on "
             'the loss for any image. Updates are those of the step in the middle of the short run.', '',
             '| layer | ' + ' | '.join(f'mean {moment} | deviation | gradient | dead' for moment in moments) + ' | update |',
             '|---' * (4 * len(moments) + 2) + '|']
    for name in next(iter(moments.values())):
        cells = []
        for layers in moments.values():
            layer = layers[name]
            cells += [f'{layer.mean:.3g}', f'{layer.std:.3g}', f'{layer.gradient:.2g}', f'{100 * layer.dead:.0f} %']
        ratio = ratios.get(f'{name}/kernel')
        lines.append(f'| {escape(name)} | {" | ".join(cells)} | {"" if ratio is None else f"{ratio:.1e}"} |')
    return lines


def draw_signals(moments: Mapping[str, Mapping[str, LayerSignal]], ratios: Mapping[str, float], path: str) -> None:
    """Draw the statistics of the layers, one panel each for deviations, gradients, dead units and updates."""
    names = list(next(iter(moments.values())))
    height = min(2.2 + 0.2 * len(names), 12)
    with figures.open_figure(path, 15, height, names, layout='constrained') as figure:
        panels = figure.subplots(1, 4, sharey=True)
        positions = np.arange(len(names))
        for axis, title, attribute in zip(panels[:3], ('deviation of activations', 'gradient, RMS', 'dead units, %'),
                                          ('std', 'gradient', 'dead'), strict=True):
            for (moment, layers), marker in zip(moments.items(), ('o', 'D'), strict=True):
                values = np.array([getattr(layer, attribute) for layer in layers.values()])
                axis.plot(100 * values if attribute == 'dead' else values, positions, marker, markersize=5, label=moment,
                          alpha=0.8)
            axis.set(xlabel=title)
        shown = [(i, ratios[f'{name}/kernel']) for i, name in enumerate(names) if ratios.get(f'{name}/kernel')]
        panels[3].plot([ratio for _, ratio in shown], [i for i, _ in shown], 's', color='C4', markersize=5)
        panels[3].axvspan(3e-4, 1e-2, color='0.9', zorder=0)
        panels[3].set(xlabel='update / kernel (grey: usual)')
        panels[2].set_xlim(-5, 105)
        for axis in panels:
            axis.grid(alpha=0.3)
            if axis is not panels[2]:
                _logarithmic(axis)
        if len(names) <= 60:
            panels[0].set_yticks(positions, [figures.shortened(name, 32) for name in names], fontsize=8)
        panels[0].set_ylim(len(names) - 0.5, -0.5)
        panels[0].legend(fontsize=8)


def _logarithmic(axis: Any) -> None:
    """Make the horizontal axis of a panel logarithmic, from one power of ten to another, with plain numbers."""
    from matplotlib.ticker import NullFormatter
    axis.set_xscale('log')
    values = [value for curve in axis.lines for value in curve.get_xdata() if value > 0 and math.isfinite(value)]
    if values:
        axis.set_xlim(10 ** math.floor(math.log10(min(values))) * 0.9, 10 ** math.ceil(math.log10(max(values))) * 1.1)
    axis.xaxis.set_major_formatter(lambda x, _: f'{x:g}')
    axis.xaxis.set_minor_formatter(NullFormatter())
