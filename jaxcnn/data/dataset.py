"""A data set as training sees it: train, validation and test parts of uint8 images, and what is known of them."""

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
from jaxcnn.data.targets import LABEL, TargetKind
from jaxcnn.errors import UserError, as_text
from jaxcnn.sealed import seal, unseal

log = logging.getLogger('jaxcnn')


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A loaded data set.

    Attributes:
      splits: `train`, and `val` and `test` or one of them.
      mean, std: per channel, of pixels scaled to [0, 1], over the training part.
      ink: see `sources.Source`.
      broken: of each part of the source, how many images were left out.
      digest: for each split, a digest of each of its targets and one of its images, in their order.
      kind: what its examples hold beside their images.
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

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.splits['train'].images.shape[1:]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def class_counts(self, split: str) -> list[int]:
        """Return how many images of a split show each class."""
        return self.kind.class_counts(self.splits[split].targets, self.num_classes).tolist()

    def info(self) -> dict[str, Any]:
        """What a trained network needs to be told of its data, for `data.json`."""
        return {'name': self.name, 'class_names': list(self.class_names), 'image_shape': list(self.image_shape),
                'mean': list(self.mean), 'std': list(self.std), 'ink': dataclasses.asdict(self.ink) if self.ink else None,
                'sizes': {name: len(split) for name, split in self.splits.items()}, 'broken': self.broken,
                'digest': self.digest, 'targets': self.kind.name, 'class_counts': self.class_counts('train')}

    def check_same(self, info: Any, workdir: str) -> None:
        """Checks that a run was trained on this data.

        Args:
          info: what `info` returned then; a run of an older version holds no `digest`.
          workdir: of the run, for the message.

        Raises:
          UserError: it was other data; the message says what differs.
        """
        changed = _changes(info if isinstance(info, dict) else {}, self.info())
        if changed:
            more = f' and {len(changed) - 5} more' if len(changed) > 5 else ''
            raise UserError(f'the data there is not what {workdir!r} was trained on; bring that back, or use a new workdir. '
                            f'Changed: {"; ".join(changed[:5])}{more}', field='config.data.dir')


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between two results of `Dataset.info`; what the first has no digest of is compared without."""
    changed: list[str] = []
    names, sizes, digest = (old.get(field) for field in ('class_names', 'sizes', 'digest'))
    if isinstance(names, list) and len(names) == len(new['class_names']):
        changed += [f'class {i}: {a!r} -> {b!r}' for i, (a, b) in enumerate(zip(names, new['class_names'], strict=True))
                    if a != b]
    elif names != new['class_names']:
        changed.append(f'class_names: {names!r} -> {new["class_names"]!r}')
    for field in ('image_shape', 'sizes'):
        if old.get(field) != new[field]:
            changed.append(f'{field}: {old.get(field)} -> {new[field]}')
    if isinstance(digest, dict) and sizes == new['sizes']:
        changed += [f'the {part}' + ' or their order' * part.endswith('images')
                    for part, value in new['digest'].items() if digest.get(part) != value]
    if not changed:  # they follow from the others
        fields = 'mean', 'std'
        changed += [f'{field}: {old.get(field)} -> {new[field]}' for field in fields if old.get(field) != new[field]]
    return changed


def channel_statistics(split: Split, block: int = 0) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of pixels in [0, 1], summed exactly in integers.

    A channel that never varies gets deviation 1, so that standardising leaves it at zero. `block` images are worked through
    at a time; 0: 32 MiB of them.
    """
    channels = split.images.shape[-1]
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


def _kept_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """`channel_statistics` of decoded images, kept beside them: of ImageNet they take minutes."""
    path = f'{split.images.path}.{hashlib.sha256(split.index.tobytes()).hexdigest()[:16]}.json'
    with contextlib.suppress(OSError, ValueError), open(path, encoding='utf-8') as f:
        kept = unseal(json.load(f))
        return tuple(kept['mean']), tuple(kept['std'])
    mean, std = channel_statistics(split)
    with contextlib.suppress(OSError):  # a cache may be for reading alone
        temporary = f'{path}.{os.getpid()}.tmp'
        with open(temporary, 'w', encoding='utf-8') as f:
            json.dump(seal({'mean': mean, 'std': std}), f)
        os.replace(temporary, path)
    return mean, std


def _digest(splits: dict[str, Split], checksums: dict[str, int]) -> dict[str, str]:
    """`Dataset.digest`, by the checksums of the cache's files."""
    digest = {}
    for name, split in splits.items():
        for target, values in split.targets.items():
            digest[f'{name} {target}'] = hashlib.sha256(values.tobytes()).hexdigest()[:16]
        images = f'{checksums[os.path.basename(split.images.path)]} '.encode() + split.index.tobytes()
        digest[f'{name} images'] = hashlib.sha256(images).hexdigest()[:16]
    return digest


def _warn_of_absent(where: str, splits: dict[str, Split], class_names: Sequence[str], kind: TargetKind) -> None:
    """Names the classes that have no training image, and those of the others that another split lacks."""
    expected = np.arange(len(class_names))
    for name, split in splits.items():
        counts = kind.class_counts(split.targets, len(class_names))
        absent = expected[counts[expected] == 0]
        expected = np.setdiff1d(expected, absent) if name == 'train' else expected
        if len(absent):
            log.warning('%s: %d of %d classes have no %s image%s: %s%s', where, len(absent), len(class_names),
                        'training' if name == 'train' else name,
                        '' if name == 'train' else f', so that the {name} figures say nothing about them',
                        ', '.join(as_text(class_names[c]) for c in absent[:5]), ', ...' * (len(absent) > 5))


def _check_shapes(where: str, splits: dict[str, Split]) -> None:
    """Raises a UserError where images of two parts differ in size or channels."""
    train = splits['train'].images.shape[1:]
    for name, split in splits.items():
        shape = split.images.shape[1:]
        if shape != train:
            advice = ('config.data.image_size brings all images to one size' if shape[2] == train[2] else
                      'make the channels equal: images.reshape(*images.shape[:3], 1).repeat(3, -1) makes grey images colour')
            raise UserError(f'{where}: {name} images are {_by(shape)} and train images {_by(train)} '
                            f'(height x width x channels); {advice}')


def _by(shape: Sequence[int]) -> str:
    return ' x '.join(map(str, shape))


def load(config: DataConfig, kind: TargetKind = LABEL) -> Dataset:
    """Return the data set of `config`, decoded into or read from the cache.

    Args:
      config: names the data set, and says how its images are resized and its splits made.
      kind: what its examples must hold beside their images.

    Raises:
      UserError: unknown or missing data, broken images, parts of unlike shape, or too few images for a validation part.
    """
    source = sources.find(config, kind)
    meta, parts = cache.open_cache(source, config)
    splits = {}
    for name, cached in parts.items():
        usable = np.flatnonzero(cached.usable)
        splits[name] = Split(cached.images, usable, {target: values[usable] for target, values in cached.targets.items()})
    fraction = config.val_fraction
    if fraction is None:
        fraction = 0.0 if 'val' in splits else source.val_fraction
    elif (own := splits.pop('val', None)) is not None:
        log.warning('%s: its own validation part, %d images, is left out, for config.data.val_fraction is %s; None takes it',
                    source.where, len(own), fraction)
    _check_shapes(source.where, splits)
    train = splits['train']
    if fraction:
        kept, val = sources.stratified_cut(kind.strata(train.targets), fraction, config.split_seed)
        if not len(kept) or not len(val):
            raise UserError(f'{fraction} of {len(train)} images leaves an empty part', field='config.data.val_fraction')
        splits['val'], splits['train'] = train.part(val), train.part(kept)
    if not splits.keys() & {'val', 'test'}:
        raise UserError(f'{source.where}: has no test part, and config.data.val_fraction=0 leaves no validation part: there '
                        'is nothing to judge a network by')
    splits = {name: splits[name] for name in ('train', 'val', 'test') if name in splits}
    _warn_of_absent(source.where, splits, meta['class_names'], kind)
    if config.per_class:
        train = splits['train']
        rng = np.random.Generator(np.random.PCG64([config.split_seed, 0xF3E]))
        strata = kind.strata(train.targets)
        members = [rng.permutation(np.flatnonzero(strata == s))[:config.per_class] for s in np.unique(strata)]
        splits['train'] = train.part(np.sort(np.concatenate(members)))
    duplicates.warn(source.where, splits)
    mean, std = _kept_statistics(splits['train'])
    return Dataset(config.name, meta['class_names'], splits, mean, std, source.ink, meta['broken'],
                   _digest(splits, meta['checksums']), kind)
