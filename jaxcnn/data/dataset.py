"""Data sets: the training, validation and test splits of uint8 images with their targets, and their statistics."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcnn.config import DataConfig
from jaxcnn.data import cache, duplicates, sources
from jaxcnn.data.split import Split
from jaxcnn.data.targets import BOXES, LABEL, TargetKind
from jaxcnn.errors import UserError, as_text
from jaxcnn.files import open_replacement
from jaxcnn.sealed import seal, unseal

STREAMED_SAMPLE = 20_000  # number of streamed images from which the statistics are computed
log = logging.getLogger('jaxcnn')


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A loaded data set.

    Attributes:
      name: name of the data set.
      class_names: names of the classes, in the order of their numbers.
      splits: `train`, and `val`, `test` or both.
      mean, std: mean and standard deviation of each channel of the training images, of pixels scaled to [0, 1].
      ink: see `sources.Source`.
      broken: for each split of the source, the number of images that could not be read and were skipped.
      digest: for each split, a digest of each of its targets and of its images, in order.
      kind: kind of targets.
      paths: by split, the paths of the images in `Split.images`; empty if the images are not in files of their own.
      wrong_boxes: for each split of the source, the number of boxes that were left out or clipped; see
        `config.data.skip_broken`.
      source: the source of the images, from which they can be read in their original sizes; None if it is not known.
      unlabelled: the training images without a label, if they were asked for; their labels are 0.
    """

    name: str
    class_names: Sequence[str]
    splits: dict[str, Split]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    ink: sources.Ink | None
    broken: dict[str, int] = dataclasses.field(default_factory=dict)
    digest: dict[str, str] = dataclasses.field(default_factory=dict)
    kind: TargetKind = LABEL
    paths: dict[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    wrong_boxes: dict[str, int] = dataclasses.field(default_factory=dict)
    source: sources.Source | None = None
    unlabelled: Split | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images."""
        return self.splits['train'].images.shape[1:]

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    def image_name(self, split: str, position: int) -> str:
        """Return the path of an image, relative to the folder of the data set, or `test image 3` if it has no file."""
        if split in self.paths:
            return as_text(self.paths[split][self.splits[split].index[position]])
        return f'{split} image {position}'

    def class_counts(self, split: str) -> list[int]:
        """Return how many images of a split show each class."""
        return self.kind.class_counts(self.splits[split].targets, self.num_classes).tolist()

    def info(self) -> dict[str, Any]:
        """Return the properties of the data that evaluation and prediction need; they are written to `data.json`."""
        boxes = {'wrong_boxes': self.wrong_boxes} if self.kind is BOXES else {}
        return {'name': self.name, 'class_names': list(self.class_names), 'image_shape': list(self.image_shape),
                'mean': list(self.mean), 'std': list(self.std), 'ink': dataclasses.asdict(self.ink) if self.ink else None,
                'sizes': {name: len(split) for name, split in self.splits.items()}, 'broken': self.broken,
                'digest': self.digest, 'targets': self.kind.name, 'class_counts': self.class_counts('train'),
                **boxes}

    def check_same(self, info: Any, workdir: str) -> None:
        """Check that a run was trained on this data.

        Args:
          info: the result of `info` in training. In runs of older versions it has no `digest`.
          workdir: workdir of the run, for the error message.

        Raises:
          UserError: the run was trained on other data; the message says what differs.
        """
        changes = _changes(info if isinstance(info, dict) else {}, self.info())
        if changes:
            omitted = f' and {len(changes) - 5} more' if len(changes) > 5 else ''
            raise UserError(f'the data is not what {workdir!r} was trained on', field='config.data.dir',
                            hint='restore that data, or use a new workdir. '
                            f'Changed: {"; ".join(changes[:5])}{omitted}')


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return the differences between two results of `Dataset.info`; digests that the old one lacks are not compared."""
    changes: list[str] = []
    names, sizes, digest = (old.get(field) for field in ('class_names', 'sizes', 'digest'))
    if isinstance(names, list) and len(names) == len(new['class_names']):
        changes += [f'class {i}: {a!r} -> {b!r}' for i, (a, b) in enumerate(zip(names, new['class_names'], strict=True))
                    if a != b]
    elif names != new['class_names']:
        changes.append(f'class_names: {names!r} -> {new["class_names"]!r}')
    for field in ('image_shape', 'sizes'):
        if old.get(field) != new[field]:
            changes.append(f'{field}: {old.get(field)} -> {new[field]}')
    if isinstance(digest, dict) and sizes == new['sizes']:
        is_other_form = {'train files', 'train images'} <= {*digest, *new['digest']}  # streamed or decoded
        changes += [f'the {part} or their order' if part.endswith(('images', 'files')) else f'the {part}'
                    for part, value in new['digest'].items()
                    if digest.get(part) != value and not (is_other_form and part.endswith(('images', 'files')))]
    if not changes:  # the statistics follow from the images
        changes += [f'{field}: {old.get(field)} -> {new[field]}'
                    for field in ('mean', 'std') if old.get(field) != new[field]]
    return changes


def channel_statistics(split: Split, block: int = 0) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of each channel, of pixels scaled to [0, 1], by exact sums of integers.

    Of more than `STREAMED_SAMPLE` streamed images, as many are used, which are drawn at random.
    The standard deviation of a constant channel is 1, so that standardising maps it to zero.

    Args:
      split: the images.
      block: number of images that are processed at a time; 0 for as many as take 32 MiB.
    """
    channels = split.images.shape[-1]
    if split.is_streamed and len(split) > STREAMED_SAMPLE:
        rng = np.random.Generator(np.random.PCG64(0))
        split = split.subset(np.sort(rng.permutation(len(split))[:STREAMED_SAMPLE]))
    block = block or max(1, (1 << 25) // split.image_bytes)
    total, squares, count = np.zeros(channels, np.int64), np.zeros(channels, np.int64), 0
    for start in range(0, len(split), block):
        pixels = split.take(np.arange(start, min(start + block, len(split)))).reshape(-1, channels)
        for c in range(channels):
            histogram = np.bincount(pixels[:, c], minlength=256)
            total[c] += histogram @ np.arange(256)
            squares[c] += histogram @ np.arange(256) ** 2
        count += len(pixels)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean ** 2, 0))
    return tuple((mean / 255).tolist()), tuple(np.where(std > 0, std / 255, 1.0).tolist())


def _cached_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return `channel_statistics` of a split, which are stored beside its images: those of ImageNet take minutes."""
    path = f'{split.images.path}.{hashlib.sha256(split.index.tobytes()).hexdigest()[:16]}.json'
    with contextlib.suppress(OSError, ValueError), open(path, encoding='utf-8') as f:
        statistics = unseal(json.load(f))
        return tuple(statistics['mean']), tuple(statistics['std'])
    mean, std = channel_statistics(split)
    with contextlib.suppress(OSError), open_replacement(path) as f:  # the cache may be read-only
        json.dump(seal({'mean': mean, 'std': std}), f)
    return mean, std


def _digest(splits: dict[str, Split], checksums: dict[str, int], source: sources.Source) -> dict[str, str]:
    """Return `Dataset.digest`, computed from the checksums of the cache's files; for streamed images, from the source."""
    source_digest = hashlib.sha256(json.dumps(source.key, sort_keys=True).encode()).hexdigest()
    digest = {}
    for name, split in splits.items():
        for target, values in split.targets.items():
            digest[f'{name} {target}'] = hashlib.sha256(values.tobytes()).hexdigest()[:16]
        content = source_digest if split.is_streamed else checksums[os.path.basename(split.images.path)]
        images = f'{content} '.encode() + split.index.tobytes()
        digest[f'{name} {"files" if split.is_streamed else "images"}'] = hashlib.sha256(images).hexdigest()[:16]
    return digest


def _warn_of_missing_classes(location: str, splits: dict[str, Split], class_names: Sequence[str], kind: TargetKind) -> None:
    """Warn of classes that have no training image, and of the other classes that another split lacks."""
    expected = np.arange(len(class_names))
    for name, split in splits.items():
        counts = kind.class_counts(split.targets, len(class_names))
        missing = expected[counts[expected] == 0]
        consequence = f', so that the {name} figures say nothing about them'
        split_title = name
        if name == 'train':
            expected, split_title, consequence = np.setdiff1d(expected, missing), 'training', ''
        if len(missing):
            log.warning('%s: %d of %d classes have no %s image%s: %s%s', location, len(missing), len(class_names),
                        split_title, consequence, ', '.join(as_text(class_names[c]) for c in missing[:5]),
                        ', ...' * (len(missing) > 5))


def _check_shapes(location: str, splits: dict[str, Split]) -> None:
    """Raise a UserError if the images of two splits differ in size or channels."""
    train_shape = splits['train'].images.shape[1:]
    for name, split in splits.items():
        shape = split.images.shape[1:]
        if shape != train_shape:
            hint = ('config.data.image_size brings all images to one size' if shape[2] == train_shape[2] else
                    'make the channels equal: images.reshape(*images.shape[:3], 1).repeat(3, -1) makes grey images colour')
            raise UserError(f'{name} images are {_format_shape(shape)} and train images {_format_shape(train_shape)} '
                            '(height x width x channels)', field=location, hint=hint)


def _format_shape(shape: Sequence[int]) -> str:
    return ' x '.join(map(str, shape))


def _split_off_validation(splits: dict[str, Split], fraction: float, kind: TargetKind, seed: int) -> None:
    """Move a stratified fraction of the training images to a validation split."""
    train = splits['train']
    train_positions, val_positions = sources.stratified_split(kind.strata(train.targets), fraction, seed)
    if not len(train_positions) or not len(val_positions):
        raise UserError(f'{fraction} of {len(train)} images leaves an empty split', field='config.data.val_fraction')
    splits['train'], splits['val'] = train.subset(train_positions), train.subset(val_positions)


def _draw_per_class(split: Split, per_class: int, kind: TargetKind, seed: int) -> Split:
    """Return a split with at most `per_class` images of each stratum, drawn at random."""
    rng = np.random.Generator(np.random.PCG64([seed, 0xF3E]))
    strata = kind.strata(split.targets)
    drawn = [rng.permutation(np.flatnonzero(strata == s))[:per_class] for s in np.unique(strata)]
    return split.subset(np.sort(np.concatenate(drawn)))


def read_splits(source: sources.Source, config: DataConfig) -> tuple[dict[str, Any], dict[str, Split]]:
    """Return the metadata of the cache (see `cache.open_cache`), and the splits of a source without unusable images."""
    meta, parts = cache.open_cache(source, config)
    splits = {}
    for name, part in parts.items():
        usable = np.flatnonzero(part.usable)
        splits[name] = Split(part.images, usable, {target: values[usable] for target, values in part.targets.items()})
    return meta, splits


def load(config: DataConfig, kind: TargetKind = LABEL, source: sources.Source | None = None,
         unlabelled: bool = False) -> Dataset:
    """Return the data set of a config. Its decoded images are read from the cache, or decoded into it.

    Args:
      config: names the data set, and says how its images are resized and split.
      kind: kind of targets that the task needs.
      source: source of the images, instead of the one that the config names.
      unlabelled: whether to load the unlabelled training images, too.

    Raises:
      UserError: the data set is unknown, missing or broken, a field does not fit the kind of targets, the splits differ in
        shape, or there are too few images for a validation split.
    """
    kind.check(config)
    if source is None:
        source = sources.find(config, kind)
    elif source.kind != kind:
        raise UserError(f'the data has {source.kind.description}, but config.task needs {kind.description}', field='data',
                        hint="several classes for each image need task='multilabel' and loss='bce'; labels.argmax(-1) turns "
                        'one-hot labels into integers')
    if unlabelled:
        if source.with_unlabelled is None:
            raise UserError('holds no training images without a label', field=source.location, hint='config.semi_supervised '
                            'needs them; the layouts folder and flat find them in training/unlabeled, webdataset in shards '
                            'called unlabelled-*.tar, huggingface in the split unlabelled, and both where a label is -1')
        source = source.with_unlabelled()
    meta, splits = read_splits(source, config)
    fraction = config.val_fraction
    if fraction is None:
        fraction = 0.0 if 'val' in splits else source.val_fraction
    elif 'val' in splits:
        log.warning('%s: its own validation split, %d images, is not used, because config.data.val_fraction is %s; '
                    'None would use it', source.location, len(splits.pop('val')), fraction)
    _check_shapes(source.location, splits)
    unlabelled_split = splits.pop('unlabelled', None)
    if fraction:
        _split_off_validation(splits, fraction, kind, config.split_seed)
    if not splits.keys() & {'val', 'test'}:
        raise UserError('there is no test split, and config.data.val_fraction=0 leaves no validation split to evaluate '
                        'a network on', field=source.location)
    splits = {name: splits[name] for name in ('train', 'val', 'test') if name in splits}
    _warn_of_missing_classes(source.location, splits, meta['class_names'], kind)
    if config.per_class:
        splits['train'] = _draw_per_class(splits['train'], config.per_class, kind, config.split_seed)
    paths = {name: source.paths['train' if fraction and name == 'val' else name] for name in splits} if source.paths else {}
    if not splits['train'].is_streamed:
        duplicates.warn(source.location, splits)
    mean, std = _cached_statistics(splits['train'])
    digest = _digest({**splits, **({'unlabelled': unlabelled_split} if unlabelled_split else {})}, meta['checksums'], source)
    return Dataset(config.name, meta['class_names'], splits, mean, std, source.ink, meta['broken'],
                   digest, kind, paths, meta.get('wrong_boxes', {}), source, unlabelled_split)
