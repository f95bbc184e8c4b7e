"""Views of how a network responds: invariance to transformations, and receptive fields."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.analysis import figures, layer_fields
from jaxcnn.analysis.invariance import invariance as compute_invariance
from jaxcnn.analysis.invariance import transform, transformation_matrices
from jaxcnn.analysis.markdown import escape
from jaxcnn.errors import UserError
from jaxcnn.explain import sheets
from jaxcnn.explain.layers import check_options, map_shapes, network_of, parse_element
from jaxcnn.explain.request import Request, Section

_INVARIANCE_IMAGES = 5


def invariance(request: Request, translation: float = 0.25, scale: float = 1.8, rotation: float = 360.0,
               points: int = 25) -> Section:
    """Show how the features and the class of five images change as they are translated, scaled and rotated.

    Args:
      request: the request.
      translation: largest vertical translation, as a fraction of the height.
      scale: largest factor.
      rotation: largest rotation, in degrees.
      points: number of amounts of each transformation.
    """
    check_options(2, points=points)
    check_options(1.0, scale=scale)
    check_options(0.0, translation=translation, rotation=rotation)
    run, (network, variables, image_shape) = request.run, network_of(request)
    if run.experiment.task.kind.name != 'label':
        raise UserError('invariance needs one class for each image', hint='the task of this run has none')
    map_names = [*map_shapes(request)]
    layers = tuple(dict.fromkeys([map_names[0], map_names[-1]]))
    pixels, labels = jnp.asarray(request.pixels[:_INVARIANCE_IMAGES]), request.examples.labels[:_INVARIANCE_IMAGES]
    classes = np.where(labels >= 0, labels, request.classes[:_INVARIANCE_IMAGES])
    names = [f'{run.info["class_names"][c]} ({figures.shortened(request.examples.names[i], 18)})'
             for i, c in enumerate(classes)]
    transformations = {
        'translation': ('vertical translation, pixels', np.linspace(-translation, translation, points), image_shape[0]),
        'scale': ('scale', np.linspace(1, scale, points), 1), 'rotation': ('rotation, degrees',
                                                                          np.linspace(0, rotation, points), 1)}
    normalize = jax.jit(run.experiment.preprocessor.normalize.__call__)
    arrays: dict[str, np.ndarray] = {}
    columns = [f'distance in {layer}' for layer in layers] + ['probability of the class']
    with figures.open_figure(request.figure_path('invariance'), 3.4 * len(columns), 9.2, names, dpi=100,
                             layout='constrained') as figure:
        axes = figure.subplots(3, len(columns), squeeze=False)
        for row, (kind, (label, amounts, unit)) in zip(axes, transformations.items(), strict=True):
            transformed = transform(pixels, jnp.asarray(transformation_matrices(image_shape, kind, amounts)))
            inputs = normalize(transformed.reshape(-1, *pixels.shape[1:])).reshape(transformed.shape)
            result = compute_invariance(network, variables, normalize(pixels), inputs, jnp.asarray(classes), layers)
            values = [*np.moveaxis(np.asarray(result.distances), -1, 0), np.asarray(result.probabilities)]
            for axis, title, curve in zip(row, columns, values, strict=True):
                sheets.curves(axis, amounts * unit, curve, names)
                axis.set(xlabel=label, ylabel=title, ylim=(0, 1.02 if title == columns[-1] else None))
            arrays |= {f'{kind}_{name}': np.asarray(value) for name, value in (
                ('amounts', amounts * unit), ('distances', result.distances), ('probabilities', result.probabilities))}
        handles, legend = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, legend, loc='outside lower center', ncols=2, fontsize=8)
    np.savez(os.path.join(request.folder, 'invariance.npz'), **arrays)  # type: ignore[arg-type]
    figures.image_grid(request.pixels[:_INVARIANCE_IMAGES], names, request.figure_path('invariance_images'),
                       columns=_INVARIANCE_IMAGES)
    return Section('Invariance', [
        'Euclidean distance between the features of each image and of its transformed copy, in the first and the last '
        f'feature layer ({", ".join(f"`{layer}`" for layer in layers)}), and the probability of its class. New pixels have '
        'the mean colour of the image. A layer is invariant where its curve stays low.', '',
        '![the images](invariance_images.png)', '', '![invariance](invariance.png)'])


def receptive_field(request: Request, layer: str = '') -> Section:
    """Show where in the image an element of a layer looks: its theoretical and its effective receptive field.

    Args:
      request: the request.
      layer: a layer, with a row and a column, as in `conv3` or `conv3:4,5`; by default the middle of the last one.
    """
    name, row, column = parse_element(request, layer)
    network, variables, image_shape = network_of(request)
    fields = layer_fields.map_fields(network, variables, image_shape)
    field, box = fields[name], fields[name].box(row, column)
    strength = np.asarray(layer_fields.effective_field(network, variables, request.inputs, row, column, name))
    effective = layer_fields.effective_size(strength)
    with figures.open_figure(request.figure_path('receptive_field'), 9.5, 4.2, [], dpi=100, layout='constrained') as figure:
        axes = figure.subplots(1, 2)
        axes[0].imshow(request.pixels[0].clip(0, 1), cmap='gray', vmin=0, vmax=1, interpolation='nearest')
        image = axes[1].imshow(np.maximum(strength, 1e-9), cmap='viridis', norm='log', interpolation='nearest')
        image.set_clim(1e-3, 1)
        figure.colorbar(image, ax=axes[1], fraction=0.046, format='%g', label='gradient, relative to the largest')
        for axis, title in zip(axes, ('theoretical', 'effective'), strict=True):
            axis.set(xlabel='column', ylabel='row', title=f'{title} field of {figures.shortened(name)} at {row},{column}')
            _draw_box(axis, box, image_shape)
    rows = [_field_row(map_name, map_field, map_name == name) for map_name, map_field in fields.items()]
    center = f'{(box.top + box.bottom - 1) / 2:g},{(box.left + box.right - 1) / 2:g}'
    size = ' x '.join(map(_format, field.size))
    return Section('Receptive field', [
        f'The element of `{name}` at row {row} and column {column} depends on {size} pixels with the centre {center} (row, '
        f'column; the first pixel is 0), padding included: the rectangle. Its neighbours look {field.stride[0]} x '
        f'{field.stride[1]} pixels further. The effective field is smaller: {(strength >= 1 - 0.9545).sum()} pixels, as '
        f'many as a square with a side of {effective:.1f} has, get at least 4.55 % of the largest gradient (Luo et al. '
        f'2016), as a mean over {len(request.examples)} images. The image is {escape(request.examples.names[0])}.', '',
        '![receptive field](receptive_field.png)', '', '| layer | size | stride |', '|---|---|---|', *rows])


def _format(size: float) -> str:
    return f'{size:.0f}' if np.isfinite(size) else 'all'


def _field_row(name: str, field: layer_fields.MapField, is_selected: bool) -> str:
    """Return the row of a layer in the table of receptive fields."""
    text = f'**{escape(name)}**' if is_selected else escape(name)
    return f'| {text} | {" x ".join(map(_format, field.size))} | {field.stride[0]} x {field.stride[1]} |'


def _draw_box(axis: Any, box: layer_fields.Box, image_shape: tuple[int, ...]) -> None:
    """Draw a rectangle of pixels on an image; axes reach as far as the rectangle."""
    from matplotlib.patches import Rectangle
    height, width = image_shape[:2]
    size = box.right - box.left, box.bottom - box.top
    for color, line in (('black', 4), ('orange', 2)):
        axis.add_patch(Rectangle((box.left - 0.5, box.top - 0.5), *size, fill=False, edgecolor=color, linewidth=line))
    axis.set(xlim=(min(box.left, 0) - 2.5, max(box.right, width) + 1.5),
             ylim=(max(box.bottom, height) + 1.5, min(box.top, 0) - 2.5))
    axis.set_facecolor('0.85')
