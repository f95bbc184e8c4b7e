"""The data that a run is evaluated on: its own, or other labelled data of its classes."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxcnn import config as cfg
from jaxcnn.data import Dataset, sources
from jaxcnn.data.checks import check_images
from jaxcnn.data.dataset import read_splits
from jaxcnn.data.split import Split
from jaxcnn.data.targets import BOXES, LABEL, LABELS
from jaxcnn.errors import UserError, as_text, counted, name_field, unknown
from jaxcnn.run import Run

log = logging.getLogger('jaxcnn')


def load_data(run: Run, data_dir: str = '', data_name: str = '') -> Dataset:
    """Return the data that a run is evaluated on.

    Data in `data_dir` that is not what the run was trained on has the splits that are there, without those that training
    splits off. Its classes are matched by their names. Those of the run may be missing, and their order may differ. Data
    with boxes must be that of the training.

    Args:
      run: the run.
      data_dir: another `config.data.dir` than in training.
      data_name: the data set or layout in `data_dir`; empty: that of the run.

    Raises:
      UserError: The data is missing, its images have another shape than those of the run, or it has classes that the run
        does not have. Without `data_dir`: it differs from that of the training.
    """
    if not data_dir:
        if data_name:
            raise UserError(f'{data_name!r} needs the folder of the data', field='--data_name', hint='set --data_dir')
        return run.load_dataset()
    kind = run.experiment.task.kind
    if kind is BOXES:
        if data_name:
            raise UserError(f'the task of {run.workdir!r}, detection, is evaluated only on the data of its training',
                            field='--data_name', hint='leave it out')
        return run.load_dataset(data_dir)
    config = dataclasses.replace(run.config.data, dir=data_dir, name=data_name or run.config.data.name)
    source = sources.find(config, kind)
    if config.name == run.config.data.name and [*source.class_names()] == run.info['class_names']:
        with contextlib.suppress(UserError):  # then it is other data, or the error is raised again below
            return run.load_dataset(data_dir)
    return _load_other_data(run, source, config)


class ImagesWithChannels:
    """Grey images as colour images, or colour images as grey ones, whose values are the luma as in Pillow.

    Args:
      images: uint8 (N, H, W, 1) or (N, H, W, 3), an array, an `ArrayFile` or `StreamedImages`.
      channels: the other number of channels.
    """

    def __init__(self, images: Any, channels: int):
        self._images, self.shape = images, (*images.shape[:-1], channels)
        self.is_streamed: bool = getattr(images, 'is_streamed', False)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        return self._converted(self._images[index])

    def draw(self, *args: Any) -> np.ndarray:
        """See `StreamedImages.draw`."""
        return self._converted(self._images.draw(*args))

    def with_augment(self, augment: str) -> 'ImagesWithChannels':
        """See `StreamedImages.with_augment`."""
        return ImagesWithChannels(self._images.with_augment(augment), self.shape[-1])

    def _converted(self, images: np.ndarray) -> np.ndarray:
        if self.shape[-1] == 3:
            return images.repeat(3, -1)
        return ((images @ np.array([19595, 38470, 7471]) + 0x8000 >> 16).astype(np.uint8))[..., None]


def _load_other_data(run: Run, source: sources.Source, config: cfg.DataConfig) -> Dataset:
    """Return data that the run was not trained on, with the classes of the run."""
    shape, class_names = tuple(run.info['image_shape']), run.info['class_names']
    other_names = list(source.class_names())
    for name in other_names:
        if name not in class_names:
            error = unknown('class', as_text(name), class_names, field=source.location)
            error.add_hint(f'data for an evaluation has classes of the run, {run.workdir!r}')
            raise error
    meta, splits = _read_splits_of_shape(source, config, shape)
    numbers = np.array([class_names.index(name) for name in other_names], np.int32)
    for name, split in splits.items():
        targets = dict(split.targets)
        if source.kind is LABELS:
            targets['labels'] = np.zeros((len(split), len(class_names)), np.uint8)
            targets['labels'][:, numbers] = split.targets['labels']
        else:
            targets['label'] = numbers[split.targets['label']]
        splits[name] = dataclasses.replace(split, targets=targets)
    log.info('%s is not the data that %r was trained on: %s; %d of its %d classes', source.location, run.workdir,
             ', '.join(f'{name} {counted(len(split), "image")}' for name, split in splits.items()),
             len(other_names), len(class_names))
    return Dataset(config.name, class_names, splits, run.info['mean'], run.info['std'], source.ink, meta['broken'],
                   kind=source.kind, paths=dict(source.paths), source=source)


def _read_splits_of_shape(source: sources.Source, config: cfg.DataConfig,
                          shape: tuple[int, ...]) -> tuple[dict[str, Any], dict[str, Split]]:
    """Return what `read_splits` returns, with images resized and converted to a shape (H, W, C)."""
    if not config.image_size and shape[0] == shape[1]:
        config = dataclasses.replace(config, image_size=shape[0])
    meta, splits = read_splits(source, config)
    for name, split in splits.items():
        images, channels = split.images, split.images.shape[-1]
        if channels != shape[-1]:
            if {channels, shape[-1]} != {1, 3}:
                raise UserError(f'its images have {channels} channels, and those of the run {shape[-1]}',
                                field=source.location,
                                hint='only grey images and colour images are converted into each other')
            images = ImagesWithChannels(images, shape[-1])
        if tuple(images.shape[1:]) != shape:
            raise UserError('its images have {} x {} pixels, and those of the run {} x {} (height x width)'.format(
                *images.shape[1:3], *shape[:2]), field=source.location)
        splits[name] = dataclasses.replace(split, images=images)
    return meta, splits


def load_images_of_others(run: Run, data_name: str, data_dir: str = '') -> dict[str, Split]:
    """Return the splits of data that has any classes, with images of the size and the channels of a run.

    Args:
      run: the run.
      data_name: the data set or layout.
      data_dir: its folder; empty: the default one of the data set.

    Raises:
      UserError: The data is missing, or its images cannot be converted.
    """
    shape = tuple(run.info['image_shape'])
    config = cfg.DataConfig(name=data_name, dir=data_dir, resize=run.config.data.resize, cache_dir=run.config.data.cache_dir,
                            image_size=shape[0] if shape[0] == shape[1] else shape[:2])
    return _read_splits_of_shape(sources.find(config, LABEL), config, shape)[1]


def original_images(dataset: Dataset, split: str) -> Callable[[int], np.ndarray]:
    """Return a function that reads the image at a position of a split in its original size, uint8 (H, W, C).

    Several threads may call it at the same time. The images have the channels of the data set.
    """
    assert dataset.source is not None
    examples = dataset.splits[split]
    is_held_out = 'train' in dataset.splits and examples.images is dataset.splits['train'].images
    originals = dataset.source.splits['train' if is_held_out else split]()

    def read(position: int) -> np.ndarray:
        with name_field(dataset.image_name(split, position)):
            image = np.asarray(originals[int(examples.index[position])]['image'])
            images, channels = check_images('image', image[None]), examples.images.shape[-1]
        return (images if images.shape[-1] == channels else ImagesWithChannels(images, channels))[0]
    return read
