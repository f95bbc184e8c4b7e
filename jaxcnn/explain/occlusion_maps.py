"""The view of what a network computes while a grey square slides over the image."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxcnn.analysis import figures, occlusion, tracing
from jaxcnn.explain.attributions import (
    IMAGES_IN_FIGURE,
    filled,
    remove_figures,
    remove_frame,
    show_image,
    slices,
    write_title,
)
from jaxcnn.explain.request import Request, Section

# Okabe & Ito 2008, "Color universal design"; other classes are white
_CLASS_COLORS = ('#0072b2', '#e69f00', '#009e73', '#cc79a7', '#56b4e9', '#d55e00', '#f0e442', '#000000')
_OTHER_COLOR = '#ffffff'
_PROBABILITY_RANGE = 0.2  # of the colour scale at least, so that it does not magnify tiny changes


def draw_occlusion_maps(request: Request, layer: str = '', size: int = 0, stride: int = 0, fill: Any = 'grey') -> Section:
    """Draw the probability of the class, the activation of the strongest feature of a layer, and the most probable class by
    the position of a grey square, as in figure 7 of Zeiler & Fergus 2013."""
    run = request.run
    shape = request.inputs.shape[1:]
    layer = tracing.find_map(run.experiment.network, run.variables, shape, layer)
    grid = occlusion.Grid.for_images(shape, size, stride)
    responses = {name: np.asarray(values) for name, values in occlusion.occlusion_responses(
        run.experiment.network, run.variables, request.inputs, jnp.asarray(request.classes), layer, grid.size, grid.stride,
        filled(request, fill, 'occlusion_maps: fill'), run.experiment.task.predict).items()}
    titles = [request.title(i) for i in range(len(request.examples))]
    class_names = [str(name) for name in run.info['class_names']]
    remove_figures(request, 'occlusion_maps')
    names = []
    for number, rows in enumerate(slices(len(titles), IMAGES_IN_FIGURE), 1):
        names.append(f'occlusion_maps_{number}')
        responses_of_part = {name: values[rows] for name, values in responses.items()}
        occlusion_figure(request.pixels[rows], titles[rows], responses_of_part, grid, layer, class_names,
                         request.figure_path(names[-1]))
    return Section('Occlusion', [
        f'A square of {grid.size} x {grid.size} pixels (drawn in the corner of each image) slides over the image in steps '
        f'of {grid.stride}. A pixel of a map shows what the network computes while the centre of the square is there: the '
        f'probability of the class, the sum over the feature map {layer!r} of the channel that is strongest without the '
        'square, and the most probable class.', '', *(f'![{name}]({name}.png)\n' for name in names)])


def occlusion_figure(pixels: np.ndarray, titles: Sequence[str], responses: dict[str, np.ndarray], grid: occlusion.Grid,
                     layer: str, class_names: Sequence[str], path: str) -> None:
    """Draw for each image its three maps.

    Args:
      pixels: (N, H, W, C), in [0, 1].
      titles: titles of the images, which may have several lines.
      responses: see `occlusion.occlusion_responses`.
      grid: positions of the square.
      layer: name of the feature map.
      class_names: names of the classes.
      path: the PNG file.
    """
    side, text_height = 1.7, 0.4
    height = side * grid.height / grid.width
    lefts = [0.05, 1.7, 3.5, 5.75, 8.0]  # of the title, the image and the three maps
    total_width, total_height = 10.9, (height + text_height) * len(pixels)
    rows, columns = grid.shape
    left = top = (grid.size - grid.stride) / 2 - 0.5  # of the first position, in pixels of the image
    extent = left, left + columns * grid.stride, top + rows * grid.stride, top
    with figures.open_figure(path, total_width, total_height, [*titles, *class_names], dpi=100) as figure:
        from matplotlib.patches import Rectangle
        from matplotlib.ticker import MaxNLocator
        for i, (image, title) in enumerate(zip(pixels, titles, strict=True)):
            bottom = total_height - (i + 1) * (height + text_height) + 0.1
            axes = [figure.add_axes((x / total_width, bottom / total_height, width / total_width, height / total_height))
                    for x, width in zip(lefts, [1.6, side, side, side, side], strict=True)]
            write_title(axes[0], title)
            show_image(axes[1], image)
            axes[1].add_patch(Rectangle((-0.5, -0.5), grid.size, grid.size, facecolor='0.5', edgecolor='white'))
            maps = {'probability': responses['probability'][i],
                    f'channel {responses["channel"][i]} of {layer}': responses['activation'][i]}
            for axis, (name, values), least_range in zip(axes[2:4], maps.items(), [_PROBABILITY_RANGE, 0], strict=True):
                low = min(values.min(), max(0, values.max() - least_range))
                high = max(values.max(), low + least_range)
                drawn = axis.imshow(values, cmap='viridis', vmin=low, vmax=high, extent=extent, interpolation='nearest')
                bar = axis.inset_axes((1.03, 0, 0.05, 1))
                figure.colorbar(drawn, cax=bar, ticks=MaxNLocator(5)).ax.tick_params(labelsize=8, length=2, pad=2)
                axis.set_title(figures.shortened(name), fontsize=9, pad=3)
            _draw_classes(axes[4], responses['best_class'][i], class_names, extent)
            for axis in axes[2:]:
                remove_frame(axis)
                axis.set(xlim=(-0.5, grid.width - 0.5), ylim=(grid.height - 0.5, -0.5), facecolor='0.9')


def _draw_classes(axis: Any, classes: np.ndarray, class_names: Sequence[str], extent: tuple[float, ...]) -> None:
    """Draw a map of classes (rows, columns) with a legend of the most frequent ones."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch
    numbers, counts = np.unique(classes, return_counts=True)
    frequent = numbers[np.argsort(-counts, kind='stable')][:len(_CLASS_COLORS)]
    positions = np.full(classes.shape, len(_CLASS_COLORS))
    for position, number in enumerate(frequent):
        positions[classes == number] = position
    axis.imshow(positions, cmap=ListedColormap([*_CLASS_COLORS, _OTHER_COLOR]), vmin=-0.5, vmax=len(_CLASS_COLORS) + 0.5,
                extent=extent, interpolation='nearest')
    axis.set_title('most probable class', fontsize=9, pad=3)
    handles = [Patch(facecolor=color, edgecolor='0.5', label=figures.shortened(class_names[number], 14))
               for number, color in zip(frequent, _CLASS_COLORS, strict=False)]
    if len(numbers) > len(frequent):
        handles.append(Patch(facecolor=_OTHER_COLOR, edgecolor='0.5', label='others'))
    axis.legend(handles=handles, loc='center left', bbox_to_anchor=(1.02, 0.5), fontsize=8, frameon=False, handlelength=1,
                borderaxespad=0)
