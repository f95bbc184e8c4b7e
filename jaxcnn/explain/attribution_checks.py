"""The views that say how far the attributions can be trusted."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxcnn.analysis import attribution_checks, figures
from jaxcnn.analysis.markdown import escape
from jaxcnn.errors import UserError, counted
from jaxcnn.explain.attributions import METHODS, Method, color_scale, filled, remove_frame, show_image, show_map
from jaxcnn.explain.request import Request, Section

RANDOM = 'random order'
_MARKERS = 'os^vD<>PX*p'
LARGEST_CORRELATION = 0.5  # of the maps of trained and of random parameters, for a method that looks at the network

# areas under the deletion and the insertion curve, or the curves themselves, by method
Curves = dict[str, tuple[np.ndarray, np.ndarray]]


def score_attributions(request: Request, steps: int = 50, fill: Any = 'mean', *,
                       methods: Mapping[str, Method] = METHODS) -> Section:
    """Compare methods of attribution by the probability of the class while the most important pixels are deleted or
    inserted."""
    run = request.run
    random = np.random.default_rng(request.seed).random(request.inputs.shape[:3], np.float32)
    usable, notes = _usable_methods(request, methods)
    maps = {**usable, RANDOM: random}
    fill_pixels, predict = filled(request, fill, 'scores: fill'), run.experiment.task.predict
    curves: Curves = {}
    for title, values in maps.items():
        arguments: Any = (run.experiment.network, run.variables, request.inputs, jnp.asarray(request.classes),
                          jnp.asarray(values))
        curves[title] = (
            np.asarray(attribution_checks.deletion_curve(*arguments, steps=steps, fill=fill_pixels, predict=predict)),
            np.asarray(attribution_checks.insertion_curve(*arguments, steps=steps, predict=predict)))
    areas = {title: (attribution_checks.area_under(deletion), attribution_checks.area_under(insertion))
             for title, (deletion, insertion) in curves.items()}
    scores_figure(curves, areas, request.figure_path('scores'))
    rows = [f'| {title} | {_mean_and_error(deletion)} | {_mean_and_error(insertion)} |'
            for title, (deletion, insertion) in sorted(areas.items(), key=lambda item: -item[1][1].mean())]
    return Section('Scores of the attributions', [
        f'The pixels of an image are deleted (filled with: {fill}) or inserted (into the blurred image) in descending order '
        'of their attributions (Petsiuk et al. 2018). If the attributions are right, the probability of the class falls, or '
        'rises, early; a random order of the pixels is what a method must beat. The numbers are means over '
        f'{counted(len(request.examples), "image")} with their standard errors.', '', '![scores](scores.png)', '',
        '| method | area under deletion (smaller is better) | area under insertion (larger is better) |',
        '|---|---|---|', *rows, *notes])


def _usable_methods(request: Request, methods: Mapping[str, Method]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the maps of the methods by title, and lines of Markdown about the methods that the network cannot have.

    Raises:
      UserError: The network cannot have a method that the user has asked for.
    """
    maps, notes = {}, []
    for method in methods.values():
        try:
            maps[method.title] = method.maps(request)
        except UserError as e:
            if methods is not METHODS:
                raise
            notes.append(f'Without {method.title}: {escape(str(e))}.')
    return maps, ['', *notes] if notes else []


def _mean_and_error(values: np.ndarray) -> str:
    """Format the mean and its standard error."""
    return f'{values.mean():.3f} ± {values.std(ddof=1) / np.sqrt(len(values)):.3f}' if len(values) > 1 else (
        f'{values.mean():.3f}')


def scores_figure(curves: Curves, areas: Curves, path: str) -> None:
    """Draw the mean deletion and insertion curves, and below them the areas under them.

    Args:
      curves: the deletion and the insertion curves (N, steps + 1) by method.
      areas: the areas under them (N,) by method.
      path: the PNG file.
    """
    titles = list(curves)
    with figures.open_figure(path, 9.5, 4.5 + 0.25 * len(titles), dpi=100, layout='constrained') as figure:
        axes = figure.subplots(2, 2, height_ratios=[3.4, 0.8 + 0.25 * len(titles)])
        for column, (name, verb) in enumerate([('deletion', 'deleted'), ('insertion', 'inserted')]):
            above, below = axes[0, column], axes[1, column]
            for row, title in enumerate(titles):
                curve, area = curves[title][column].mean(0), areas[title][column]
                style: dict[str, Any] = {'color': 'black'} if title == RANDOM else {'color': f'C{row % 10}'}
                style['marker'] = _MARKERS[row % len(_MARKERS)]
                fractions = np.linspace(0, 1, len(curve))
                above.plot(fractions, curve, markevery=max(1, len(curve) // 8), markersize=4, linewidth=1.2,
                           linestyle='--' if title == RANDOM else '-', **style)
                error = area.std(ddof=1) / np.sqrt(len(area)) if len(area) > 1 else 0
                below.errorbar(area.mean(), row, xerr=error, linestyle='', capsize=3, **style)
            above.set(xlabel=f'fraction of the pixels {verb}', ylabel='probability of the class', title=name, xlim=(0, 1))
            better = 'smaller' if column == 0 else 'larger'
            below.set(xlabel=f'area under the {name} curve ({better} is better)', ylim=(len(titles) - 0.5, -0.5))
            below.set_yticks(range(len(titles)), titles if column == 0 else [''] * len(titles))
            for axis in (above, below):
                axis.grid(alpha=0.3)


def compare_with_random_parameters(request: Request, stages: int = 8, *,
                                   methods: Mapping[str, Method] = METHODS) -> Section:
    """Say whether methods of attribution look at the network at all: whether their maps change when its parameters are
    randomised, layer by layer from the top."""
    run = request.run
    shape = request.inputs.shape[1:]
    randomised = attribution_checks.cascading_randomisation(run.experiment.network, run.variables, shape, stages,
                                                            request.seed)
    usable, notes = _usable_methods(request, methods)
    maps = {method.title: [usable[method.title], *(method.maps(request, variables) for variables in randomised.values())]
            for method in methods.values() if method.title in usable}
    correlations = {title: np.stack([attribution_checks.rank_correlation(stage_maps[0], other) for other in stage_maps[1:]])
                    for title, stage_maps in maps.items()}
    names = list(randomised)
    correlation_figure(correlations, names, request.figure_path('sanity_check'))
    signed = {method.title: method.signed for method in methods.values()}
    randomised_maps_figure(request.pixels[0], {title: np.stack([x[0] for x in stage_maps])
                                               for title, stage_maps in maps.items()}, signed, names,
                           request.figure_path('sanity_check_maps'))
    rows = []
    for title, values in correlations.items():
        last_signed = attribution_checks.rank_correlation(maps[title][0], maps[title][-1], absolute=False).mean()
        rows.append(f'| {title} | {values[0].mean():.2f} | {values[-1].mean():.2f} | {last_signed:.2f} | '
                    f'{_verdict(values[-1].mean(), last_signed)} |')
    return Section('Sanity check by random parameters', [
        'The layers are initialised anew, one after the other from the top (Adebayo et al. 2018). Maps that stay the same '
        'do not show what the network has learned. The numbers are rank correlations of the maps, or of their absolute '
        f'values, with those of the trained network, on average over {counted(len(request.examples), "image")}: 1 for the '
        f'same order of the pixels, 0 for none. A method looks at the network if both are below {LARGEST_CORRELATION} after '
        'all layers have random parameters.', '', '![sanity check](sanity_check.png)', '', '![maps](sanity_check_maps.png)',
        '',
        f'| method | top layer random ({names[0]}), absolute | all random, absolute | all random, signed | verdict |',
        '|---|---|---|---|---|', *rows, *notes])


def _verdict(absolute: float, signed: float) -> str:
    """Return what the rank correlations of the maps of random parameters say about a method."""
    if max(abs(absolute), abs(signed)) < LARGEST_CORRELATION:
        return 'looks at the network'
    if abs(signed) < LARGEST_CORRELATION:
        return 'only the signs depend on what the network has learned, hardly the places'
    return 'depends little on what the network has learned'


def correlation_figure(correlations: Mapping[str, np.ndarray], names: Sequence[str], path: str) -> None:
    """Draw the rank correlations by the lowest randomised layer.

    Args:
      correlations: (stages, N) for each method.
      names: name of the lowest randomised layer of each stage.
      path: the PNG file.
    """
    with figures.open_figure(path, 8.5, 4.5, dpi=100, layout='constrained') as figure:
        axis = figure.subplots()
        for row, (title, values) in enumerate(correlations.items()):
            means = [1, *values.mean(1)]
            axis.plot(range(len(means)), means, marker=_MARKERS[row % len(_MARKERS)], color=f'C{row % 10}', label=title)
        axis.axhline(0, color='0.6', linewidth=0.8)
        axis.set_xticks(range(len(names) + 1), ['trained', *names], rotation=30, ha='right', fontsize=9)
        axis.set(xlabel='lowest layer with random parameters',
                 ylabel='rank correlation with the trained network,\nabsolute values')
        axis.grid(alpha=0.3)
        figure.legend(loc='outside right upper', fontsize=9)


def randomised_maps_figure(pixels: np.ndarray, maps: Mapping[str, np.ndarray], signed: Mapping[str, bool],
                           names: Sequence[str], path: str) -> None:
    """Draw the maps of one image for the trained network and for each stage of the randomisation.

    Args:
      pixels: the image (H, W, C), in [0, 1].
      maps: (1 + stages, H, W) for each method.
      signed: whether each method is signed.
      names: name of the lowest randomised layer of each stage.
      path: the PNG file.
    """
    num_columns = 2 + len(names)
    side = min(1.15, 9.5 / num_columns)
    height = side * pixels.shape[0] / pixels.shape[1]
    with figures.open_figure(path, side * num_columns + 0.2, (height + 0.05) * len(maps) + 0.4, dpi=100,
                             layout='constrained') as figure:
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, hspace=0, wspace=0)
        axes = figure.subplots(len(maps), num_columns, squeeze=False)
        for axis in axes[1:, 0]:
            remove_frame(axis)
        show_image(axes[0, 0], pixels)
        for row, (title, method_maps) in enumerate(maps.items()):
            axes[row, 0].set_ylabel('\n'.join(title.rsplit(' ', 1)), fontsize=9)
            for axis, values in zip(axes[row, 1:], method_maps, strict=True):
                show_map(axis, values, **color_scale(values, signed[title]))
        for axis, name in zip(axes[0], ['image', 'trained', *names], strict=True):
            axis.set_title(figures.shortened(name, 16), fontsize=9)
