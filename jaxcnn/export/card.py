"""The model card of an export: what the network was trained on, how well it works, what it costs, and its limits."""

import json
import math
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax

from jaxcnn.analysis import complexity
from jaxcnn.analysis.markdown import escape
from jaxcnn.export.check import CheckResult
from jaxcnn.export.program import Program
from jaxcnn.files import file_checksum
from jaxcnn.training.workdir import read_json
from jaxcnn.version import __version__

_PACKAGES = {'stablehlo': ('jax', 'jaxlib'), 'onnx': ('jax', 'onnx', 'onnxruntime'), 'safetensors': ('jax', 'safetensors'),
             'tensorflow': ('jax', 'tensorflow')}
_USE = {
    'onnx': '`model.onnx` runs in ONNX Runtime and in other runtimes of ONNX (opset 18): `python predict.py PICTURE...`.',
    'stablehlo': '`model.stablehlo` is a serialised `jax.export.Exported` for the CPU and CUDA, which JAX loads without '
                 'the code of the network: `python predict.py PICTURE...`. JAX keeps such files readable for at least six '
                 'months of its releases.',
    'tensorflow': '`saved_model` is a SavedModel with the signature `serving_default`: `python predict.py PICTURE...`.',
    'safetensors': '`model.safetensors` holds the parameters and the BatchNorm statistics, but no program. '
                   "`jaxcnn train --config.init=\"dict(safetensors='model.safetensors')\"` starts from them.",
}


def write_card(program: Program, folder: str, runtime: str, step: int, result: CheckResult | None,
               notes: Sequence[str] = ()) -> str:
    """Return the model card as Markdown.

    Args:
      program: what was exported.
      folder: the exported files.
      runtime: the format.
      step: the checkpoint.
      result: the result of the check.
      notes: further sentences on the format.
    """
    run, info = program.run, program.run.info
    height, width, channels = program.image_shape
    cost = complexity.cost(program.network, run.experiment.image_shape, 1, ())
    task = run.experiment.task.name
    files = [os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in sorted(names)]
    average = ', moving averages' if run.experiment.best.ema else ''
    probabilities = ('They add up to 1 for each image.' if task == 'classification' else
                     'Each is between 0 and 1, and the run predicts those classes that have at least '
                     f'{run.config.task.args.get("threshold", 0.5)}.')
    lines = [
        f'# {escape(run.config.model.name)} for {escape(str(info["name"]))}', '',
        f'A network for {task} with {len(program.class_names)} classes, exported by jaxcnn {__version__} from checkpoint '
        f'{step}{average} of a run with the config below.', '',
        '## Use', '', _USE[runtime], *notes, '',
        *([f'- input `images`: uint8 (N, {height}, {width}, {channels}), images as they are decoded, '
           f'{"grey" if channels == 1 else "red, green and blue"}, for any N. The normalisation '
           f'(`{run.config.data.normalize}`) is part of the program.',
           f'- output `probabilities`: float32 (N, {len(program.class_names)}), in the order of `classes.json`. '
           f'{probabilities}',
           '- `predict.py` brings pictures of any size to this one as the run does.', '']
          if runtime != 'safetensors' else []),
        '## Data', '', *_data_lines(info), '',
        '## Metrics', '', *_metric_lines(program, step), '',
        '## Cost', '',
        f'- parameters: {cost.parameters:,}',
        f'- multiply-adds for an image: {cost.multiply_adds:,}',
        f'- size of the files: {sum(map(os.path.getsize, files)):,} bytes, with weights in {program.weight_dtype.name}', '',
        '## Limits', '',
        *(f'- {line}' for line in _limits(program)), '',
        '## Check', '', f'{result.describe()}.' if result else 'The file was read back: all arrays are equal.', '',
        '## Versions and checksums', '',
        f'Written with Python {platform.python_version()}, {_versions(runtime)}, on '
        f'{jax.default_backend()}. Seed {run.config.seed}.', '',
        '| file | bytes | SHA-256 |', '|---|---|---|',
        *(f'| {escape(os.path.relpath(path, folder))} | {os.path.getsize(path):,} | {file_checksum(path)} |'
          for path in files),
        '', '## Config', '', '```json', json.dumps(program.config, indent=1), '```', '']
    return '\n'.join(lines)


def _data_lines(info: Any) -> list[str]:
    sizes = ', '.join(f'{count:,} in {split}' for split, count in info['sizes'].items())
    names = info['class_names']
    shown = ', '.join(escape(name) for name in names[:20]) + (f' and {len(names) - 20} more' if len(names) > 20 else '')
    return [f'{escape(str(info["name"]))}: images {sizes}. Classes: {shown}.']


def _metric_lines(program: Program, step: int) -> list[str]:
    """Return the metrics of the checkpoint; of the test split only if it is the best one of a finished run."""
    run = program.run
    path = os.path.join(run.workdir, 'summary.json')
    names = [f'{split}_{metric.name}' for split in ('val', 'test') for metric in run.experiment.displayed_metrics()]
    values: dict[str, Any] = {}
    for row in run.history:
        if row.get('step') == step:
            values.update({name: row.get(f'{name.replace("_", "_ema_", 1)}' if run.experiment.best.ema else name)
                           for name in names})
    if os.path.exists(path):
        summary = read_json(path)
        if summary.get('best_step') == step:
            values.update(summary)
    measured = [f'- {name}: {values[name]:.4f}' for name in names if isinstance(values.get(name), float)
                and math.isfinite(values[name])]
    return measured or ['This checkpoint was not evaluated.']


def _limits(program: Program) -> list[str]:
    info = program.run.info
    smallest, largest = min(info['class_counts']), max(info['class_counts'])
    limits = ['Every picture gets probabilities of these classes, also one that shows none of them.',
              'The metrics hold for images like those of the data; nothing is known of others.']
    if largest > smallest:
        limits.append(f'Classes have between {smallest:,} and {largest:,} training images.')
    if program.run.config.model.args.get('dtype', 'float32') != 'float32':
        limits.append(f'The run computes in {program.run.config.model.args["dtype"]}, and the exported program in float32.')
    return limits


def _versions(runtime: str) -> str:
    versions = []
    for package in ('jaxcnn', *_PACKAGES[runtime], 'numpy'):
        try:
            versions.append(f'{package} {__version__ if package == "jaxcnn" else metadata.version(package)}')
        except metadata.PackageNotFoundError:
            continue
    return ', '.join(versions)
