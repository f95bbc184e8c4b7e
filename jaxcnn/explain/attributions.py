"""The views that attribute a class score to pixels."""

import dataclasses
import glob
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.analysis import attribution, class_activation, figures, occlusion
from jaxcnn.analysis.markdown import escape
from jaxcnn.errors import UserError, unknown
from jaxcnn.explain.request import Request, Section

OVERLAY_WEIGHT = 0.6  # of the heat map over the image
IMAGES_IN_FIGURE, METHODS_IN_FIGURE = 8, 5
_CLIPPED_PERCENT = 0.5  # largest values that share the end of the colour scale, so that a few pixels do not darken the rest
_MAX_COLUMNS = 6  # of axes, into which several images with few methods are put side by side
_GREY = 0.5  # of the square that covers a part of an image
_FILLS = {'black': 0.0, 'grey': _GREY, 'white': 1.0}


def filled(request: Request, fill: Any, field: str) -> jax.Array:
    """Return images of one colour as the network takes them, or the mean of the training images.

    Args:
      request: the request.
      fill: `black`, `grey`, `white`, a brightness in [0, 1], or `mean`.
      field: name of the option, for the error.

    Returns:
      An array that broadcasts to the request's inputs.

    Raises:
      UserError: The fill is another value.
    """
    if fill == 'mean':
        pixels = np.asarray(request.run.info['mean'], np.float32)
    elif isinstance(fill, str):
        if fill not in _FILLS:
            raise unknown('fill', fill, [*_FILLS, 'mean', 'a number from 0 to 1'], field=field)
        pixels = np.full(1, _FILLS[fill], np.float32)
    elif isinstance(fill, int | float) and 0 <= fill <= 1:
        pixels = np.full(1, fill, np.float32)
    else:
        raise UserError(f'expected black, grey, white, mean or a brightness from 0 to 1, got {fill!r}', field=field)
    return request.run.experiment.preprocessor.normalize(jnp.broadcast_to(pixels, (1, *request.inputs.shape[1:])))


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of attribution as a view.

    Attributes:
      title: name of the method in figures.
      function: `(network, variables, images, classes, ...) -> (N, H, W)` or `(N, H, W, C)`; its further arguments are
        options.
      reduce: reduces the channels of the result: `max` of the absolute values, or `sum`.
      signed: whether negative values count against the class.
      fill: name of the option that is a normalised image of one colour, and its default, see `filled`.
      options: values of options.
    """

    title: str
    function: Callable[..., jax.Array]
    reduce: str = 'sum'
    signed: bool = False
    fill: tuple[str, str] | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def values(self, request: Request, variables: Any = None) -> np.ndarray:
        """Return the attributions to the request's images, (N, H, W) or (N, H, W, C).

        Args:
          request: the request.
          variables: of the network; by default those of the run.
        """
        run, options = request.run, dict(self.options)
        if self.fill:
            name, default = self.fill
            options[name] = filled(request, options.get(name, default), f'{self.title}: {name}')
        if 'seed' in inspect.signature(self.function).parameters:
            options.setdefault('seed', request.seed)
        variables = run.variables if variables is None else variables
        classes = jnp.asarray(request.classes)
        return np.asarray(self.function(run.experiment.network, variables, request.inputs, classes, **options))

    def as_maps(self, values: np.ndarray) -> np.ndarray:
        """Return attributions without their channels, (N, H, W)."""
        if values.ndim == 4:
            return np.asarray(np.abs(values).max(-1) if self.reduce == 'max' else values.sum(-1))
        return values

    def maps(self, request: Request, variables: Any = None) -> np.ndarray:
        """Return the attributions to the pixels of the request's images, (N, H, W); see `values`."""
        return self.as_maps(self.values(request, variables))


METHODS: dict[str, Method] = {
    'saliency': Method('saliency', attribution.saliency, reduce='max'),
    'gradient_x_input': Method('gradient x input', attribution.gradient_x_input, signed=True),
    'smoothgrad': Method('SmoothGrad', attribution.smoothgrad, signed=True),
    'integrated_gradients': Method('integrated gradients', attribution.integrated_gradients, signed=True,
                                   fill=('baseline', 'black')),
    'guided_backprop': Method('guided backprop', attribution.guided_backprop, signed=True),
    'gradcam': Method('Grad-CAM', class_activation.gradcam),
    'gradcam_plus_plus': Method('Grad-CAM++', class_activation.gradcam_plus_plus),
    'scorecam': Method('Score-CAM', class_activation.scorecam),
    'layercam': Method('LayerCAM', class_activation.layercam),
    'occlusion': Method('occlusion', occlusion.occlusion, signed=True, fill=('fill', 'grey')),
}


def draw_attributions(request: Request, methods: Mapping[str, Method]) -> Section:
    """Draw two rows for each image: for each method its heat map over the image, and the heat map by itself."""
    values = {name: method.values(request) for name, method in methods.items()}
    columns = {method.title: (method.as_maps(values[name]), method.signed) for name, method in methods.items()}
    titles = [request.title(i) for i in range(len(request.examples))]
    remove_figures(request, 'attribution')
    names: list[str] = []
    for rows in slices(len(titles), IMAGES_IN_FIGURE):
        for part in slices(len(columns), METHODS_IN_FIGURE):
            names.append(f'attribution_{len(names) + 1}')
            columns_of_part = {title: (maps[rows], signed) for title, (maps, signed) in list(columns.items())[part]}
            attribution_figure(request.pixels[rows], titles[rows], columns_of_part, request.figure_path(names[-1]))
    arrays: Any = {name: columns[method.title][0] for name, method in methods.items()}
    np.savez_compressed(os.path.join(request.folder, 'attribution.npz'), **arrays)
    lines = ['Each column shows how much each pixel contributes to the score of the class that is named beside the image: '
             'above over the image, below by itself. Each map has a scale of its own, whose ends are written below it. Maps '
             'of one sign go from 0 (dark) to the most (bright). Signed ones go from against (orange) to for the class '
             '(purple).', '', *(f'![{name}]({name}.png)\n' for name in names)]
    if 'integrated_gradients' in methods:
        lines += _completeness_table(request, methods['integrated_gradients'], values['integrated_gradients'])
    return Section('Attribution', [*lines, '`attribution.npz` holds the maps as arrays (N, H, W).'])


def _completeness_table(request: Request, method: Method, values: np.ndarray) -> list[str]:
    """Return a Markdown table of whether the integrated gradients add up."""
    run = request.run
    baseline = filled(request, method.options.get('baseline', 'black'), 'baseline')
    sums, differences = attribution.completeness(run.experiment.network, run.variables, request.inputs,
                                                 jnp.asarray(request.classes), jnp.asarray(values), baseline)
    rows = [f'| {escape(name)} | {total:.4g} | {difference:.4g} | {abs(total - difference):.2g} |'
            for name, total, difference in zip(request.examples.names, np.asarray(sums).tolist(),
                                               np.asarray(differences).tolist(), strict=True)]
    return ['Integrated gradients add up to the difference of the class scores of the image and of the baseline, up to an '
            'error that falls with the number of steps:', '',
            '| image | sum of attributions | score(image) - score(baseline) | error |', '|---|---|---|---|', *rows, '']


def remove_figures(request: Request, name: str) -> None:
    """Remove the numbered figures `NAME_1.png` and so on of an earlier request, which may have had more images."""
    for path in glob.glob(glob.escape(request.figure_path(name)[:-len('.png')]) + '_[0-9]*.png'):
        os.remove(path)


def slices(count: int, size: int) -> list[slice]:
    """Return slices that divide a sequence of a length into parts of at most `size` items."""
    return [slice(first, first + size) for first in range(0, count, size)]


def attribution_figure(pixels: np.ndarray, titles: Sequence[str], columns: Mapping[str, tuple[np.ndarray, bool]],
                       path: str) -> None:
    """Draw images with heat maps beside them.

    Args:
      pixels: (N, H, W, C), in [0, 1].
      titles: titles of the images, which may have several lines.
      columns: for each title, the maps (N, H, W) and whether they are signed.
      path: the PNG file.
    """
    side, width = 1.7, len(columns) + 1  # width in axes of an image with its maps
    height = side * pixels.shape[1] / pixels.shape[2]
    images_in_row = min(len(pixels), max(1, _MAX_COLUMNS // width))
    num_rows = -(-len(pixels) // images_in_row)
    with figures.open_figure(path, side * width * images_in_row, (2 * height + 0.5) * num_rows, titles, dpi=100,
                             layout='constrained') as figure:
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, hspace=0, wspace=0)
        axes = figure.subplots(2 * num_rows, width * images_in_row, squeeze=False)
        for axis in axes.flat:
            remove_frame(axis)
        for i, (image, title) in enumerate(zip(pixels, titles, strict=True)):
            row, first = i // images_in_row, i % images_in_row * width
            above, below = axes[2 * row, first:first + width], axes[2 * row + 1, first:first + width]
            show_image(above[0], image)
            write_title(below[0], title)
            for column, (name, (maps, signed)) in enumerate(columns.items(), 1):
                scale = color_scale(maps[i], signed)
                show_image(above[column], image.mean(-1, keepdims=True))
                show_map(above[column], maps[i], alpha=OVERLAY_WEIGHT, **scale)
                above[column].set_title(figures.shortened(name), fontsize=9, pad=3)
                show_map(below[column], maps[i], **scale)
                below[column].set_xlabel(f'{scale["vmin"]:.2g} to {scale["vmax"]:.2g}', fontsize=9, labelpad=2)


def show_map(axis: Any, values: np.ndarray, **settings: Any) -> Any:
    """Draw a map (H, W) without ticks, and return matplotlib's image of it."""
    remove_frame(axis)
    return axis.imshow(values, interpolation='nearest', **settings)


def remove_frame(axis: Any) -> None:
    """Remove the ticks and the frame of an axis, which keeps its labels."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def show_image(axis: Any, image: np.ndarray) -> None:
    """Draw an image (H, W, C), grey if it has one channel."""
    remove_frame(axis)
    axis.imshow(image.clip(0, 1), cmap='gray', vmin=0, vmax=1, interpolation='nearest')


def write_title(axis: Any, title: str) -> None:
    """Write the lines of a title into an empty axis."""
    remove_frame(axis)
    text = '\n'.join(figures.shortened(line) for line in title.split('\n'))
    axis.text(0.5, 1, text, fontsize=9, ha='center', va='top', transform=axis.transAxes, linespacing=1.4)


def color_scale(values: np.ndarray, signed: bool) -> dict[str, Any]:
    """Return matplotlib's colour map and its ends for the map of one image."""
    end = float(np.percentile(np.abs(values), 100 - _CLIPPED_PERCENT)) or float(np.abs(values).max()) or 1.0
    return {'cmap': 'PuOr', 'vmin': -end, 'vmax': end} if signed else {'cmap': 'viridis', 'vmin': 0, 'vmax': end}
