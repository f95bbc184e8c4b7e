"""The page of a quantised network: accuracy before and after, size, calibrations, and the sensitivity of its layers."""

import json
import os
from collections.abc import Mapping

from jaxcnn.analysis import figures
from jaxcnn.analysis.markdown import escape, figure, table, to_html
from jaxcnn.compression.quantize_run import Result, Sensitivity
from jaxcnn.errors import counted
from jaxcnn.files import open_replacement
from jaxcnn.metrics import Metric
from jaxcnn.ops.quantized_conv import instruction_set

_MEGABYTE = 1e6
_LISTED = 60  # layers in the figure


def summary(result: Result) -> list[list[str]]:
    """Return the rows of a table: the network before and after, with its metrics and its size."""
    metrics = result.run.experiment.displayed_metrics()
    header = ['', 'on', *(metric.title for metric in metrics), 'MB']
    split = f'{result.split} split'
    before = 'as trained' if result.run.config.quantization else 'float32'
    rows = [header, [before, split, *_cells(metrics, result.before), f'{result.float_bytes / _MEGABYTE:.3f}']]
    quantization = result.quantization
    method = f'int{quantization.bits}' if quantization.method == 'int8' else quantization.method
    name = ' '.join(filter(None, [method, quantization.calibration]))
    for execution, metrics_after in result.after.items():
        title = {'': name, 'int8': f'{name}, int8 convolutions'}.get(execution, f'{name}, {execution}')
        rows.append([title, split, *_cells(metrics, metrics_after), f'{result.stored_bytes / _MEGABYTE:.3f}'])
    return rows


def _cells(metrics: list[Metric], values: Mapping[str, float]) -> list[str]:
    return [metric.format(values.get(metric.name)) for metric in metrics]


def write_report(result: Result, folder: str) -> str:
    """Write `quantization.html`, its figure and `results.json` into a folder, and return the path of the page."""
    run, quantization = result.run, result.quantization
    title = f'{run.config.model.name} on {run.info["name"]}, {quantization.method}'
    ratio = result.float_bytes / result.stored_bytes
    lines = [f'# {escape(title)}', '', f'From `{escape(run.workdir)}`, checkpoint {quantization.step}.', '',
             *table(summary(result)),
             f'The size is that of the stored file, which is {ratio:.2f} times smaller than parameters and statistics in '
             'float32.', '']
    if quantization.method == 'int8':
        lines += _int8_sections(result, folder)
    text = '\n'.join(lines)
    values = {'before': dict(result.before), 'split': result.split,
              'after': {execution: dict(metrics) for execution, metrics in result.after.items()},
              'float_bytes': result.float_bytes, 'stored_bytes': result.stored_bytes,
              'calibrations': {name: dict(metrics) for name, metrics in result.calibrations.items()},
              'sensitivity': [vars(layer) for layer in result.sensitivity]}
    page = os.path.join(folder, 'quantization.html')
    for path, content in ((page, to_html(text, title, folder)),
                          (os.path.join(folder, 'results.json'), json.dumps(values, indent=1) + '\n')):
        with open_replacement(path) as file:
            file.write(content)
    return page


def _int8_sections(result: Result, folder: str) -> list[str]:
    """Return the sections on calibration and sensitivity, and draw the figure."""
    metrics = result.run.experiment.displayed_metrics()
    main = result.run.experiment.task.main_metric
    has_int8 = 'int8' in result.after
    images = f'{counted(result.sensitivity_images, "image")} of the {result.sensitivity_split} split'
    os.makedirs(figure_folder := os.path.join(folder, 'figures'), exist_ok=True)
    path = os.path.join(figure_folder, 'sensitivity.png')
    with figures.warn_on_error(path):
        draw_sensitivity(result.sensitivity, path)
    unit = 'points' if main.percent else ''
    factor = 100 if main.percent else 1
    ordered = sorted(result.sensitivity, key=lambda layer: -layer.noise)
    quantization = result.quantization
    return [
        f'Weights have a scale for each feature, activations one scale, calibrated with '
        f'{counted(quantization.images, "training image")}. BatchNorm is folded into the layer before it. '
        + (f'Layers in float32: {escape(", ".join(quantization.float_layers))}.' if quantization.float_layers else ''), '',
        f'Int8 convolutions of oneDNN use {instruction_set()[0]} on this machine.' if has_int8 else
        'This machine does not execute int8 convolutions, so the network is simulated in float32.', '',
        '## Calibrations', '', f'On {images}, simulated in float32.', '',
        *table([['calibration', *(metric.title for metric in metrics)],
                *([name, *_cells(metrics, values)] for name, values in result.calibrations.items())]),
        '## Sensitivity of the layers', '',
        f'The kernel and the input of each layer alone are quantised; the others stay in float32. The changes are those on '
        f'{images}. The noise is the root mean square of the change of the logits over that of the logits. A sensitive '
        'layer can stay in float32 by `--float_layers`.', '', figure(figure_folder, 'sensitivity'), '',
        *table([['layer', 'weights', f'change of {main.title} {unit}'.strip(), 'change of loss', 'noise of logits'],
                *([layer.layer, f'{layer.weights:,}', f'{factor * layer.metric:+.2f}', f'{layer.loss:+.5f}',
                   f'{100 * layer.noise:.2f} %'] for layer in ordered)])]


def draw_sensitivity(layers: tuple[Sensitivity, ...], path: str) -> None:
    """Draw the noise of the logits that the quantisation of each layer alone causes, in the order of the network."""
    drawn = layers if len(layers) <= _LISTED else tuple(sorted(layers, key=lambda layer: -layer.noise)[:_LISTED])
    names = [layer.layer for layer in drawn]
    title = f'the {_LISTED} most sensitive layers' if len(drawn) < len(layers) else 'layers in order'
    with figures.open_figure(path, 7, 1 + 0.22 * len(drawn), names, layout='constrained') as figure:
        axes = figure.add_subplot()
        positions = range(len(drawn))
        axes.barh(positions, [100 * layer.noise for layer in drawn], color='#0072B2')
        axes.set_yticks(positions, names, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel('noise of the logits when this layer alone is int8, %')
        axes.set_title(title, fontsize=10)
        axes.grid(axis='x', alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
