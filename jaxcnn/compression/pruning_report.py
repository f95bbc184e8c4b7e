"""The report of the pruning of a run: a table, the sparsity of each layer, and a figure."""

import dataclasses
import math
import os

from jaxcnn.analysis import figures, markdown
from jaxcnn.analysis.markdown import escape, figure, table
from jaxcnn.compression.pruned_run import PrunedNetwork, Result
from jaxcnn.errors import counted

NAME = 'pruning'


def summary_rows(result: Result) -> list[list[str]]:
    """Return the cells of the table of networks: the headings, and a row for each."""
    main = result.metrics[0]
    rows = [['sparsity', *(metric.title for metric in result.metrics), f'change of {main.title}', 'nonzero parameters',
             'dense', 'compressed rows', 'bit map']]
    for network in (result.before, *result.after):
        change = network.values[main.name] - result.before.values[main.name]
        size = network.sizes
        rows.append([
            'before' if network is result.before else f'{100 * network.pruned:.1f} %',
            *(metric.format(network.values[metric.name]) for metric in result.metrics),
            '' if network is result.before else f'{100 * change:+.2f} points' if main.percent else f'{change:+.4f}',
            f'{size.nonzero:,} of {size.parameters:,}',
            *(_format_bytes(count) for count in (size.dense, size.compressed_rows, size.bitmap))])
    return rows


def _format_bytes(count: int) -> str:
    return f'{count / 1e6:.2f} MB' if count >= 100_000 else f'{count / 1e3:.1f} kB'


def layer_rows(networks: list[PrunedNetwork]) -> list[list[str]]:
    """Return the cells of the table of layers: the headings, and a row for each pruned parameter."""
    rows = [['parameter', 'shape', 'weights', *(f'at {100 * network.pruned:.1f} %' for network in networks)]]
    for layers in zip(*(network.layers for network in networks), strict=True):
        size = math.prod(layers[0]['shape'])
        rows.append([layers[0]['name'], ' x '.join(map(str, layers[0]['shape'])), f'{size:,}',
                     *(f'{100 * (1 - layer["nonzero"] / size):.1f} %' for layer in layers)])
    return rows


def write_report(result: Result, folder: str) -> str:
    """Write `pruning.md`, `pruning.html`, `pruning.json` and the figure into a folder, and return the page's path."""
    run, config = result.run, result.config
    os.makedirs(figure_folder := os.path.join(folder, 'figures'), exist_ok=True)
    title = f'{run.config.model.name} of {os.path.basename(os.path.abspath(run.workdir))}, pruned'
    lines = [
        f'# {escape(title)}', '',
        f'Weights of the run in {escape(run.workdir)}, checkpoint {result.step}, were set to zero without further training, '
        f'by {config.method}, {"over all layers" if config.scope == "global" else "in each layer"}. The networks were '
        f'evaluated on the {result.split} split, {counted(result.num_images, "image")}.', '', *table(summary_rows(result)),
        'The sparsity is that of the pruned layers. Compressed rows have 32-bit indices; a bit map has a bit for each '
        'weight. Arrays that are smaller as they are count as such.', '']
    if len(result.after) > 1:
        with figures.warn_on_error(path := os.path.join(figure_folder, 'sparsity.png')):
            draw_sparsity(result, path)
        lines += ['## Sparsity', '', figure(figure_folder, 'sparsity'), '']
    lines += ['## Layers', '', f'Other parameters, and the layers that exclude={config.exclude} names, are not pruned.', '',
              *table(layer_rows(result.after))]
    values = {'run': run.workdir, 'checkpoint': result.step, 'split': result.split, 'method': config.method,
              'scope': config.scope, 'before': dataclasses.asdict(result.before),
              'after': [dataclasses.asdict(network) for network in result.after]}
    return markdown.write_report(folder, NAME, title, lines, values)


def draw_sparsity(result: Result, path: str) -> None:
    """Draw the main metric over the sparsity."""
    metric = result.metrics[0]
    scale = 100 if metric.percent else 1
    networks = sorted(result.after, key=lambda network: network.pruned)
    with figures.open_figure(path, 6.4, 4) as drawing:
        axis = drawing.subplots()
        axis.axhline(scale * result.before.values[metric.name], color='gray', linestyle=':', label='before')
        axis.plot([100 * network.pruned for network in networks],
                  [scale * network.values[metric.name] for network in networks], 'o-', color='tab:blue', label='pruned')
        axis.set_xlabel('sparsity of the pruned layers / %')
        axis.set_ylabel(f'{metric.title}{" / %" if metric.percent else ""}, {result.split} split')
        axis.legend()
        axis.grid(alpha=0.3)
        drawing.tight_layout()
