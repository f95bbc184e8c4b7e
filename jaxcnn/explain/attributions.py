"""The views that attribute a class score to pixels."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.analysis import attribution, class_activation, figures
from jaxcnn.config import bind
from jaxcnn.explain.request import Request, Section

OVERLAY_WEIGHT = 0.55  # of the heat map over the image
_CLIPPED_PERCENT = 0.5  # largest values that share the end of the colour scale, so that a few pixels do not darken the rest


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of attribution as a view.

    Attributes:
      title: name of the method in figures.
      function: `(network, variables, images, classes, ...) -> (N, H, W)` or `(N, H, W, C)`; its further arguments are
        options.
      reduce: reduces the channels of the result: `max` of the absolute values, or `sum`.
      signed: whether negative values count against the class.
    """

    title: str
    function: Callable[..., jax.Array]
    reduce: str = 'sum'
    signed: bool = False

    def with_options(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> 'Method':
        """Return the method with values for its options.

        Raises:
          UserError: It does not take an option.
        """
        options = bind(functools.partial(self.function, None, None, None, None), args, kwargs, self.title)
        return dataclasses.replace(self, function=functools.partial(self.function, **options))

    def maps(self, request: Request) -> np.ndarray:
        """Return the attributions to the pixels of the request's images, (N, H, W)."""
        run = request.run
        values = self.function(run.experiment.network, run.variables, request.inputs, jnp.asarray(request.classes))
        if values.ndim == 4:
            values = jnp.abs(values).max(-1) if self.reduce == 'max' else values.sum(-1)
        return np.asarray(values)


METHODS: dict[str, Method] = {
    'saliency': Method('saliency', attribution.saliency, reduce='max'),
    'gradcam': Method('Grad-CAM', class_activation.gradcam),
}


def draw_attributions(request: Request, methods: Mapping[str, Method]) -> Section:
    """Draw a row for each image: the image, and for each method its heat map over the grey image."""
    rows = {method.title: (method.maps(request), method.signed) for method in methods.values()}
    attribution_figure(request.pixels, [request.title(i) for i in range(len(request.examples))], rows,
                       request.figure_path('attribution'))
    arrays: Any = {name: rows[method.title][0] for name, method in methods.items()}
    np.savez(os.path.join(request.folder, 'attribution.npz'), **arrays)
    return Section('Attribution', [
        'Each column shows how much each pixel contributes to the score of the class above its row, on a scale of its own: '
        'from the least (dark) to the most (bright), or against (orange) and for the class (purple).', '',
        '![attribution](attribution.png)', '', '`attribution.npz` holds the maps as arrays.'])


def attribution_figure(pixels: np.ndarray, titles: Sequence[str], columns: Mapping[str, tuple[np.ndarray, bool]],
                       path: str) -> None:
    """Draw images with heat maps beside them.

    Args:
      pixels: (N, H, W, C), in [0, 1].
      titles: titles of the images, which may have several lines.
      columns: for each title, the maps (N, H, W) and whether they are signed.
      path: the PNG file.
    """
    side = 1.7
    with figures.open_figure(path, side * (len(columns) + 1), (side + 0.5) * len(pixels), titles, dpi=100,
                             layout='constrained') as figure:
        axes = figure.subplots(len(pixels), len(columns) + 1, squeeze=False)
        for row, (image, title) in enumerate(zip(pixels, titles, strict=True)):
            for axis in axes[row]:
                axis.axis('off')
            axes[row, 0].imshow(image.clip(0, 1), cmap='gray', vmin=0, vmax=1, interpolation='nearest')
            axes[row, 0].set_title('\n'.join(figures.shortened(line) for line in title.split('\n')), fontsize=7)
            for axis, (name, (maps, signed)) in zip(axes[row, 1:], columns.items(), strict=True):
                axis.imshow(image.mean(-1), cmap='gray', vmin=0, vmax=1, interpolation='nearest')
                axis.imshow(maps[row], alpha=OVERLAY_WEIGHT, interpolation='nearest', **_color_scale(maps[row], signed))
                axis.set_title(figures.shortened(name), fontsize=7)


def _color_scale(values: np.ndarray, signed: bool) -> dict[str, Any]:
    """Return matplotlib's colour map and its ends for the map of one image."""
    end = float(np.percentile(np.abs(values), 100 - _CLIPPED_PERCENT)) or float(np.abs(values).max()) or 1.0
    return {'cmap': 'PuOr', 'vmin': -end, 'vmax': end} if signed else {'cmap': 'viridis', 'vmin': 0, 'vmax': end}
