"""Views of what layers have learned: filters, feature maps, activation maximisation and inversion."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.analysis import feature_maximization as maximization
from jaxcnn.analysis import figures, inversion, kernels
from jaxcnn.analysis.markdown import escape
from jaxcnn.errors import UserError, counted
from jaxcnn.explain import sheets
from jaxcnn.explain.initial_weights import initial_variables
from jaxcnn.explain.layers import check_options, find_map, find_split, map_shapes, map_split, network_of, parse_layer
from jaxcnn.explain.request import Request, Section
from jaxcnn.optim import path_name

NATURAL_IMAGES = 512  # images of the split whose responses activation maximisation is compared with
_MIN_SHEET_WIDTH = 240  # pixels of a sheet of filters


def filters(request: Request) -> Section:
    """Show the kernels of the first convolution before and after training."""
    request.check_no_pictures('filters')
    network, variables, image_shape = network_of(request)
    path = kernels.first_kernel(network, variables, image_shape)
    if not path:
        raise UserError(f'the first layer of {type(network).__name__} with parameters is not a convolution of the image, so '
                        'that it has no filters to show')

    def kernel_of(tree: Any) -> np.ndarray:
        return np.asarray(next(leaf for p, leaf in jax.tree.leaves_with_path(tree) if path_name(p) == path), np.float32)
    after = kernel_of(variables)
    before_variables, note = initial_variables(request)
    stages = {'after training': after}
    if before_variables is not None:
        stages = {'before training': kernel_of(before_variables), **stages}
    height, width, channels, count = after.shape
    columns = int(np.ceil(np.sqrt(count)))
    factor = max(1, 40 // max(height, width), -(-_MIN_SHEET_WIDTH // (columns * width)))
    images = []
    for kernel in stages.values():
        tiles = sheets.centred(np.moveaxis(kernel, -1, 0), joint=True)
        if channels not in (1, 3):
            tiles = tiles.mean(-1, keepdims=True)
        images.append(sheets.montage(tiles, columns, factor, gap=2))
    sheets.panels(images, [*stages], request.figure_path('filters'))
    lines = [f'The {count} filters of {height} x {width} pixels of the first convolution, `{path.removeprefix("params/")}`. '
             'Grey is 0, and each sheet has one scale'
             f'{"" if channels in (1, 3) else f"; shown is the mean over the {channels} input channels"}. {note}']
    if before_variables is not None:
        before = stages['before training']
        change = float(np.linalg.norm(after - before) / (np.linalg.norm(before) or 1))
        lines.append(f'Training has changed the filters by {change:.0%} of their initial norm.')
    return Section('Filters', [*lines, '', '![filters](filters.png)'])


def features(request: Request, channels: int = 64) -> Section:
    """Show all feature maps of the first image, layer by layer.

    Args:
      request: the request.
      channels: largest number of maps of a layer.
    """
    check_options(1, channels=channels)
    shapes, maps = map_shapes(request), request.run.features(request.examples.images[:1])
    lines = [f'The feature maps of {escape(request.examples.names[0])}. Channel 0 is the first one, and '
             'numbers rise along the rows. All maps of a layer have the scale beside them.']
    sheets.panels([request.pixels[0].repeat(factor := max(1, 96 // len(request.pixels[0])), 0).repeat(factor, 1)],
                  [figures.shortened(request.examples.names[0])], request.figure_path('features_image'))
    lines += ['', '![the image](features_image.png)']
    for name, (height, width, count) in shapes.items():
        values = maps[name][0].astype(np.float32)[..., :channels]
        title = f'{name}: {height} x {width}, {counted(count, "channel")}'
        _draw_maps(values, title, request.figure_path(f'features_{name}'))
        off = (maps[name][0] <= 0).all((0, 1)).sum()
        lines += ['', f'### {escape(name)}', '', f'{counted(count, "map")} of {height} x {width}'
                  f'{f", the first {channels} of which are shown" if count > channels else ""}; {off} are nowhere above 0.',
                  '', f'![{name}](features_{name}.png)']
    return Section('Feature maps', lines)


def _draw_maps(values: np.ndarray, title: str, path: str) -> None:
    """Draw maps (H, W, C) as a sheet with a colour scale."""
    width = values.shape[1]
    factor = max(1, -(-48 // width))
    columns = next(n for n in (16, 8, 4, 2, 1) if n == 1 or n * (factor * width + 2) <= 900)
    low, high = min(0.0, float(np.percentile(values, 0.1))), float(np.percentile(values, 99.9)) or 1.0
    sheet = sheets.montage(np.moveaxis(values, -1, 0)[..., None], columns, factor, gap=2, background=np.nan)
    rows_of_pixels, columns_of_pixels = sheet.shape[:2]
    with figures.open_figure(path, max(columns_of_pixels / 100, 3) + 1, rows_of_pixels / 100 + 0.6, [title], dpi=100,
                             layout='constrained') as figure:
        axis = figure.subplots()
        image = axis.imshow(sheet[..., 0], cmap='viridis', vmin=low, vmax=high, interpolation='nearest')
        axis.set_title(figures.shortened(title, 60), fontsize=9)
        axis.axis('off')
        bar = figure.colorbar(image, ax=axis, fraction=0.05, label='activation')
        bar.ax.tick_params(labelsize=7)


def maximize(request: Request, layer: str = '', channels: int = 16, steps: int = 256, learning_rate: float = 0.05,
             objective: str = 'channel', jitter: int = 0, blur: float = 0.0, total_variation: float = 0.0, l2: float = 0.0,
             fourier: bool = False, decorrelate: bool = False, runaway: float = 10.0) -> Section:
    """Find images that channels, or classes (logits:dog), respond to most by gradient ascent from noise.

    Args:
      request: the request.
      layer: a layer, with its channels: `conv4`, `conv4:3`, `conv4:3,7`, `conv4:0-8` or `logits:dog`.
      channels: number of channels, if `layer` does not name them.
      steps, learning_rate, objective, jitter, blur, total_variation, l2, fourier: see `feature_maximization.maximize`.
      decorrelate: ascend colours whose covariance over the data is the identity.
      runaway: an image ends when its response is this many times the largest one of the data.
    """
    request.check_no_pictures('maximize')
    check_options(1, channels=channels, steps=steps)
    check_options(0, jitter=jitter)
    check_options(0.0, learning_rate=learning_rate, blur=blur, total_variation=total_variation, l2=l2, runaway=runaway)
    if objective not in ('channel', 'center'):
        raise UserError(f"expected 'channel' or 'center', got {objective!r}", field='objective')
    selected = parse_layer(request, layer, channels, logits=True)
    network, variables, image_shape = network_of(request)
    if decorrelate and image_shape[2] == 1:
        raise UserError('grey images have no colours to decorrelate', field='decorrelate')
    indices = jnp.asarray(selected.channels)
    split = find_split(request)
    natural = map_split(request, split, lambda x: maximization.responses(
        network, variables, x, indices, selected.name, objective), NATURAL_IMAGES).max(0)
    color_matrix = None
    if decorrelate:
        color_matrix = jnp.asarray(maximization.color_matrix_of(map_split(request, split, lambda x: x, NATURAL_IMAGES)))
    limit = np.where(natural > 0, runaway * natural, np.inf)
    result = maximization.maximize(
        network, variables, indices, image_shape, selected.name, steps=steps, learning_rate=learning_rate,
        objective=objective, jitter=jitter, blur=blur, total_variation=total_variation, l2=l2, fourier=fourier,
        color_matrix=color_matrix, limit=jnp.asarray(limit), seed=request.seed)
    responses, ends = np.asarray(result.responses), np.asarray(result.steps)
    last = responses[np.arange(len(ends)), ends]
    titles = [f'{figures.shortened(selected.title(request, c), 18)}\n{value:.3g}' + (
        f' ({value / largest:.1f} x)' if largest > 0 else '')
        for c, value, largest in zip(selected.channels, last, natural, strict=True)]
    images = maximization.display(np.asarray(result.images))
    if images.shape[-1] not in (1, 3):
        images = images.mean(-1, keepdims=True)
    figures.image_grid(images, titles, request.figure_path('maximize'), columns=min(8, len(images)))
    _draw_responses(responses, natural, selected.name, request.figure_path('maximize_curves'))
    np.savez(os.path.join(request.folder, 'maximize.npz'), images=result.images, responses=responses, steps=ends)
    reasons = _describe_ends(last >= limit, ends == steps, steps, runaway)
    measure = {'channel': 'the mean of its map', 'center': 'the element in the middle of its map'}[objective]
    what = 'the score of the class' if selected.name == maximization.LOGITS else measure
    num_natural = counted(min(NATURAL_IMAGES, len(request.dataset.splits[split])), 'image')
    num_dead = int((natural <= 0).sum())
    dead = [f'{counted(num_dead, "channel")} without a response above 0 to these images of the data: shown without a '
            'ratio and a curve.', ''] if num_dead else []
    return Section('Activation maximisation', [
        f'Images that channels of `{selected.name}` respond to most, by gradient ascent from noise. The response is {what}; '
        f'in brackets, how many times it is the largest one of {num_natural} of the split {split}. Of '
        f'{counted(len(ends), "image")}, {reasons}. The images are not clipped; each is drawn from three '
        'standard deviations below to three above its mean.', '', *dead,
        '![maximize](maximize.png)', '', '![responses](maximize_curves.png)', '', '`maximize.npz` holds the images as the '
        'network takes them.'])


def _describe_ends(has_run_away: np.ndarray, is_last: np.ndarray, steps: int, runaway: float) -> str:
    """Return how many images ended for which reason.

    Args:
      has_run_away: (K,) whether the response of an image reached the limit.
      is_last: (K,) whether the image took all steps.
      steps: number of all steps.
      runaway: the limit, as a multiple of the largest response to the data.
    """
    has_stopped = ~has_run_away & ~is_last
    return (f'{has_run_away.sum()} ran away (a response of {runaway:g} times the largest of the data), '
            f'{has_stopped.sum()} stopped growing, {is_last.sum()} took all {steps} steps')


def _draw_responses(responses: np.ndarray, natural: np.ndarray, layer: str, path: str) -> None:
    """Draw the responses of channels by step, relative to their largest responses to the data.

    Args:
      responses: (K, steps + 1), NaN after the end of an image.
      natural: (K,) the largest responses to the data; channels without a positive one have no curve.
      layer: name of the layer.
      path: the PNG file.
    """
    is_alive = natural > 0
    with figures.open_figure(path, 6, 3.2, layout='constrained') as figure:
        axis = figure.subplots()
        axis.plot((responses[is_alive] / natural[is_alive, None]).T, linewidth=1, color='tab:blue', alpha=0.6)
        axis.axhline(1, color='black', linestyle='--', linewidth=1, label='largest of the data')
        axis.set(xlabel='step', ylabel='response / largest of the data', title=layer)
        axis.grid(alpha=0.3)
        axis.legend()


def invert(request: Request, layer: str = '', steps: int = 400, learning_rate: float = 0.1, total_variation: float = 0.1,
           beta: float = 2.0, norm: float = 1e-4) -> Section:
    """Reconstruct the images from their features, in one layer or in all of them.

    Args:
      request: the request.
      layer: name of the feature map; by default all maps.
      steps, learning_rate, total_variation, beta, norm: see `inversion.invert`.
    """
    network, variables, _ = network_of(request)
    check_options(1, steps=steps)
    check_options(0.0, learning_rate=learning_rate, total_variation=total_variation, beta=beta, norm=norm)
    names = [find_map(request, layer)[0]] if layer else [*map_shapes(request)]
    inputs = np.asarray(request.inputs)
    low, high = inputs.min((1, 2, 3), keepdims=True), inputs.max((1, 2, 3), keepdims=True)

    def to_display(images: np.ndarray) -> np.ndarray:
        return ((images - low) / np.maximum(high - low, 1e-9)).clip(0, 1)  # the scale of the original
    columns, headings = [to_display(inputs)], [[figures.shortened(name, 20) for name in request.examples.names]]
    arrays: dict[str, Any] = {'inputs': inputs}
    for name in names:
        result = inversion.invert(network, variables, request.inputs, name, steps=steps, learning_rate=learning_rate,
                                  total_variation=total_variation, beta=beta, norm=norm, seed=request.seed)
        columns.append(to_display(np.asarray(result.images)))
        headings.append([f'{name}\nerror {error:.2%}' for error in np.asarray(result.errors)])
        arrays[name] = np.asarray(result.images)
    images = [image for row in zip(*columns, strict=True) for image in row]
    titles = [title for row in zip(*headings, strict=True) for title in row]
    figures.image_grid(images, titles, request.figure_path('invert'), columns=len(columns))
    np.savez(os.path.join(request.folder, 'invert.npz'), **arrays)
    return Section('Inversion', [
        'In each row an image, and images from noise whose features in a layer are as near to its features as '
        f'{steps} steps of gradient descent make them. The error is the squared distance of the features, relative to the '
        'squared norm of those of the original. What a reconstruction lacks, the layer does not see.', '',
        '![invert](invert.png)'])
