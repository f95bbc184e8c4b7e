"""Views by the deconvolutional network: the patches that a channel responds to most, and what it sees in them."""

import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.analysis import deconvnet as analysis
from jaxcnn.analysis import figures
from jaxcnn.analysis.layer_fields import Box, map_fields
from jaxcnn.errors import UserError
from jaxcnn.explain import sheets
from jaxcnn.explain.layers import Layer, check_options, find_split, map_split, network_of, parse_layer, take
from jaxcnn.explain.request import Request, Section
from jaxcnn.models import Network
from jaxcnn.timeline import displayed_epoch
from jaxcnn.training.state import variables as variables_of

_PATCH_SIDE = 48  # least pixels of a patch in a figure
_BACKGROUND = 0.85  # grey beyond the edge of an image


def deconvnet(request: Request, layer: str = '', channels: int = 16, count: int = 9, split: str = '',
              max_images: int = 0) -> Section:
    """Show the patches that channels respond to most beside their projections by a deconvolutional network.

    Args:
      request: the request.
      layer: a layer, with its channels, as in `conv4` or `conv4:3,7`.
      channels: number of channels, if `layer` does not name them.
      count: patches of a channel, of different images.
      split: split of the images; by default `val`, or `test` for a run without it.
      max_images: number of images of the split, the first ones; 0: all.
    """
    check_options(1, channels=channels, count=count)
    check_options(0, max_images=max_images)
    request.check_no_pictures('deconvnet')
    selected, split = _plain_layer(request, layer, channels), find_split(request, split)
    network, variables, image_shape = network_of(request)
    indices = np.asarray(selected.channels)
    activations, positions = map_split(
        request, split, functools.partial(_channel_maxima, network, variables, selected.name), max_images)
    activations, positions = activations[:, indices], positions[:, indices]
    strongest = analysis.strongest_images(activations, count)  # (channels, count)
    rows, columns = strongest.ravel(), np.arange(len(indices)).repeat(strongest.shape[1])
    inputs, pixels = take(request, split, rows)
    elements = positions[rows, columns]
    projections = np.asarray(analysis.project(
        network, variables, inputs, jnp.asarray(indices[columns]), jnp.asarray(elements), selected.name))
    boxes = _boxes(request, selected, elements)
    patches = [_crop(image, box) for image, box in zip(pixels, boxes, strict=True)]
    projected = [_crop(image, box) for image, box in zip(sheets.centred(projections), boxes, strict=True)]
    tiles, titles, table = [], [], []
    names, labels = request.run.info['class_names'], request.dataset.splits[split].take_targets(rows).get('label')
    values = activations[rows, columns]
    side = int(np.ceil(np.sqrt(count)))
    factor = max(1, -(-_PATCH_SIDE // max(patches[0].shape[:2])))
    for n, channel in enumerate(selected.channels):
        part = slice(n * strongest.shape[1], (n + 1) * strongest.shape[1])
        pair = [sheets.montage(_as_colours(images[part]), side, factor, gap=2) for images in (projected, patches)]
        tiles.append(sheets.montage(pair, 2, gap=8))
        titles.append(f'{selected.title(request, channel)}: {values[part][0]:.3g} to {values[part][-1]:.3g}'
                      + (' (off)' if values[part][0] <= 0 else ''))
        label_names = '' if labels is None else ', '.join(str(names[label]) for label in labels[part])
        table.append(f'| {channel} | {values[part][0]:.3g} | {", ".join(map(str, rows[part]))} | {label_names} |')
    figures.image_grid(tiles, titles, request.figure_path('deconvnet'), columns=max(1, 960 // tiles[0].shape[1]))
    np.savez(os.path.join(request.folder, 'deconvnet.npz'), channels=indices, images=strongest,
             activations=values.reshape(strongest.shape), elements=elements.reshape(*strongest.shape, 2),
             projections=projections.reshape(*strongest.shape, *image_shape))
    height, width = patches[0].shape[:2]
    return Section('Deconvolutional network', [
        f'On the right of each pair, the {strongest.shape[1]} patches of the split {split} ({len(activations):,} images) '
        f'that a channel of `{selected.name}` responds to most, one of each image, the strongest first. On the left, the '
        'projection of each activation to the pixels: what in the patch caused it. Patches are cropped to the receptive '
        f'field of {height} x {width} pixels; each projection has its own scale, and grey is 0.', '',
        '![deconvnet](deconvnet.png)', '', '| channel | strongest | images | labels |', '|---|---|---|---|', *table])


def evolution(request: Request, layer: str = '', channels: int = 8, split: str = '', max_images: int = 2000) -> Section:
    """Show how the projections of the strongest activations of channels change over the checkpoints of the run.

    Args:
      request: the request.
      layer: a layer, with its channels, as in `conv4` or `conv4:3,7`.
      channels: number of channels, if `layer` does not name them.
      split: split of the images; by default `val`, or `test` for a run without it.
      max_images: number of images of the split, the first ones; 0: all.
    """
    check_options(1, channels=channels)
    check_options(0, max_images=max_images)
    request.check_no_pictures('evolution')
    run = request.run
    selected, split = _plain_layer(request, layer, channels), find_split(request, split)
    steps = run.steps()
    if len(steps) < 2:
        raise UserError(f'evolution needs several checkpoints, and the run has {len(steps)}', hint='config.checkpoint.at '
                        'keeps those of chosen epochs, as in (dict(epochs=1), dict(epochs=5), dict(epochs=10))')
    indices = np.asarray(selected.channels)
    tiles: list[list[np.ndarray]] = []
    titles: list[list[str]] = []
    arrays: dict[str, Any] = {'steps': steps, 'channels': indices}
    network = run.experiment.network
    for step in steps:
        variables = variables_of(run.load_weights(step))[run.experiment.best.ema]
        activations, positions = map_split(
            request, split, functools.partial(_channel_maxima, network, variables, selected.name), max_images)
        strongest = activations[:, indices].argmax(0)
        elements = positions[strongest, indices]
        inputs, _ = take(request, split, strongest)
        projections = np.asarray(analysis.project(
            network, variables, inputs, jnp.asarray(indices), jnp.asarray(elements), selected.name))
        boxes = _boxes(request, selected, elements)
        tiles.append([_crop(image, box) for image, box in zip(sheets.centred(projections), boxes, strict=True)])
        epoch = displayed_epoch(run.experiment.timeline.epoch(step), run.config.duration)
        titles.append([f'epoch {epoch:.3g}\n{activations[image, channel]:.3g}'
                       for image, channel in zip(strongest, indices, strict=True)])
        arrays[f'images_{step}'], arrays[f'projections_{step}'] = strongest, projections
    by_channel = [image for row in zip(*tiles, strict=True) for image in row]
    headings = [selected.title(request, channel) for channel in selected.channels]
    figures.image_grid(_as_colours(by_channel), [title for row in zip(*titles, strict=True) for title in row],
                       request.figure_path('evolution'), columns=len(steps), headings=headings)
    np.savez(os.path.join(request.folder, 'evolution.npz'), **arrays)
    return Section('Evolution of features', [
        f'For each channel of `{selected.name}` (rows) and each checkpoint of the run (columns), the projection of its '
        f'strongest activation in {min(max_images or len(activations), len(activations)):,} images of the split {split}, '
        'cropped to the receptive field. Above it the epoch and the activation. A sudden change means that another patch '
        'has become the strongest.', '', '![evolution](evolution.png)'])


def _channel_maxima(network: Network, variables: Any, layer: str, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    return analysis.channel_maxima(network, variables, images, layer)


def _plain_layer(request: Request, layer: str, channels: int) -> Layer:
    """Return the layer and its channels, after a check that it has a deconvolutional network."""
    selected = parse_layer(request, layer, channels)
    analysis.check_plain(*network_of(request), selected.name)
    return selected


def _boxes(request: Request, layer: Layer, elements: np.ndarray) -> list[Box]:
    """Return the receptive field of each element (row, column) of a layer."""
    field = map_fields(*network_of(request))[layer.name]
    height, width, _ = request.run.experiment.image_shape
    boxes = [field.box(int(row), int(column)) for row, column in elements]
    return [Box(0, height, 0, width) if b.bottom - b.top >= height and b.right - b.left >= width else b for b in boxes]


def _crop(image: np.ndarray, box: Box) -> np.ndarray:
    """Return a rectangle of an image (H, W, C); what is beyond its edge is grey."""
    inside = box.inside(image.shape)
    patch = np.full((box.bottom - box.top, box.right - box.left, image.shape[2]), _BACKGROUND, np.float32)
    patch[inside.top - box.top:inside.bottom - box.top, inside.left - box.left:inside.right - box.left] = image[
        inside.top:inside.bottom, inside.left:inside.right]
    return patch


def _as_colours(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return images (H, W, C) with one or three channels, the mean of others."""
    return [image if image.shape[-1] in (1, 3) else image.mean(-1, keepdims=True) for image in images]
