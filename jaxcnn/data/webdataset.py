"""The layout of tar shards as WebDataset writes them.

The files of a sample have the same key, their path up to the first dot of the name, and differ in the ending after it:
`dog/0001.jpg` is the image and `dog/0001.cls` the label of the sample `dog/0001`. The headers of the archives are read once;
images are then read at their offsets, in any order. What the headers and the labels say is cached for each archive.
"""

import array
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxcnn.cache_folder import cache_folder
from jaxcnn.config import DataConfig
from jaxcnn.data import picture
from jaxcnn.data.classes import (
    UNLABELLED,
    ClassNames,
    list_classes,
    log_unlabelled,
    make_targets,
    name_labels,
    read_class_file,
)
from jaxcnn.data.image_files import (
    SPLITS,
    UNLABELLED_NAMES,
    UNLABELLED_SPLIT,
    decode_example,
    existing_path,
    find_split_folders,
    list_entries,
    log,
    make_source,
    no_labels,
    with_unlabelled,
)
from jaxcnn.data.sources import Example, Source, register
from jaxcnn.data.targets import LABEL, LABELS, TargetKind
from jaxcnn.errors import UserError, as_text, counted
from jaxcnn.sealed import seal, unseal

_EXPECTED = 'shards such as train-000000.tar, with an image and its label (.cls, .json or .txt) in each sample'
_CACHE_FORMAT = 1
_MAY_LACK_LABELS = 'test', UNLABELLED_SPLIT  # splits
_BLOCK_SIZE = 512  # bytes, of which a tar archive consists
_COMPRESSED = re.compile(r'\.(tar\.(gz|bz2|xz|zst)|tgz)$')
_SKIP_HINT = 'config.data.skip_broken=True skips such samples'


@dataclasses.dataclass(frozen=True)
class ShardExamples:
    """The examples of a split in shards.

    Attributes:
      root: the folder that the paths of the shards are relative to.
      shards: the paths of the shards.
      shard_indices: (N,) the shard of each image.
      offsets: (N,) the position of each image in its shard, in bytes.
      sizes: (N,) the size of each image in bytes.
      names: (N,) the name of each image in its shard.
      targets: one array (N, ...) for each target, by name.
    """

    root: str
    shards: Sequence[str]
    shard_indices: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    names: Sequence[str]
    targets: Mapping[str, np.ndarray]
    mode: ClassVar[str] = 'RGB'

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        return decode_example(self.encoded(index), self.image_name(index), self.targets, index)

    def image_name(self, index: int) -> str:
        """Return the path of an image: that of its shard, followed by its name in the shard."""
        return as_text(os.path.join(self.root, self.shards[self.shard_indices[index]], self.names[index]))

    def encoded(self, index: int) -> bytes:
        """See `sources.EncodedExamples`."""
        size = int(self.sizes[index])
        try:
            with open(os.path.join(self.root, self.shards[self.shard_indices[index]]), 'rb', buffering=0) as shard:
                content = os.pread(shard.fileno(), size, int(self.offsets[index]))
        except OSError as e:
            raise UserError(e.strerror or str(e), field=self.image_name(index)) from e
        if len(content) < size:
            raise UserError('the shard has become shorter since its index was read', field=self.image_name(index))
        return content

    def read_targets(self) -> Mapping[str, np.ndarray]:
        """See `sources.EncodedExamples`."""
        return self.targets


@dataclasses.dataclass(frozen=True)
class _ImageNames(Sequence[str]):
    """The paths of images, each that of its shard followed by the name in the shard; they are joined when they are read."""

    shards: Sequence[str]
    shard_indices: Any
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        return os.path.join(self.shards[self.shard_indices[index]], self.names[index])


class _File(NamedTuple):
    """A file in a shard: its name, its position and its size in bytes."""

    name: str
    offset: int
    size: int


class _Sample(NamedTuple):
    """A sample of a shard: its image, and the names or numbers of its classes; `UNLABELLED` if it has no label."""

    image: _File
    labels: tuple[str | int, ...]


class _SplitIndex:
    """Images of a split, collected shard by shard; the attributes are those of `ShardExamples`."""

    def __init__(self) -> None:
        self.shards: list[str] = []
        self.shard_indices, self.offsets, self.sizes = array.array('i'), array.array('q'), array.array('q')
        self.names: list[str] = []
        self.classes: list[ClassNames] = []

    def add(self, image: _File, classes: ClassNames) -> None:
        """Add an image of the last shard."""
        self.shard_indices.append(len(self.shards) - 1)
        self.offsets.append(image.offset)
        self.sizes.append(image.size)
        self.names.append(image.name)
        self.classes.append(classes)

    def paths(self) -> Sequence[str]:
        """Return the path of each image."""
        return _ImageNames(self.shards, self.shard_indices, self.names)

    def examples(self, root: str, targets: Mapping[str, np.ndarray]) -> ShardExamples:
        """Return the images with their targets."""
        return ShardExamples(root, self.shards, np.array(self.shard_indices, np.int32), np.array(self.offsets, np.int64),
                             np.array(self.sizes, np.int64), self.names, targets)


def webdataset(config: DataConfig, kind: TargetKind = LABEL) -> Source:
    """Return the source of the tar archives in a folder, or of one archive.

    The name of an archive holds that of its split, as in `train-000000.tar`, or the archives of each split are in a folder
    of its own. Archives without a split are training data. Labels are numbers (`.cls`), the field `label` of a JSON object
    (`.json`), or names (`.txt`); of several, the first of these is taken. Numbers count the names in `config.class_file`, if
    that is given, from 0. Training images whose label is -1 or empty, and those in archives called `unlabelled-*.tar`, are
    the images for pseudo-labels.

    Raises:
      UserError: there is no archive, or one is compressed or damaged; a sample has no image or no label, or its key occurs
        twice. With `config.skip_broken`, damaged archives and samples are skipped and logged.
    """
    path = existing_path(config.dir, 'webdataset')
    root = path if os.path.isdir(path) else os.path.dirname(os.path.abspath(path))
    class_names = read_class_file(config.class_file) if config.class_file else None
    digest = hashlib.sha256(json.dumps([os.path.realpath(root), dataclasses.asdict(config.columns)]).encode())
    indices, unlabelled = {}, []
    for split, shards in _find_shards(path).items():
        index, others = _index_split(root, split, shards, config, kind, class_names, digest)
        log_unlabelled(as_text(root), len(others.names), split)
        if split == UNLABELLED_SPLIT:
            unlabelled.append(others)
        else:
            indices[split] = index
        if split == 'train':
            unlabelled.append(others)
    image_classes = {split: index.classes for split, index in indices.items()}
    paths = {split: index.paths() for split, index in indices.items()}
    classes = list_classes(as_text(root), image_classes['train'], kind, _EXPECTED, config.class_file)
    targets = make_targets(as_text(root), image_classes, classes, kind, lambda split, index: as_text(
        os.path.join(root, paths[split][index])), config.class_file)
    splits = {split: index.examples(root, targets[split]) for split, index in indices.items() if split in targets}
    source = make_source('webdataset', root, digest.hexdigest(), classes, splits, kind, paths)
    parts = [index.examples(root, no_labels(len(index.names))) for index in unlabelled]
    return with_unlabelled(source, parts, digest.hexdigest())


def _find_shards(path: str) -> dict[str, list[str]]:
    """Return the paths of the shards of each split; `path` is an archive or a folder.

    Raises:
      UserError: there is none to train on, the archives are compressed, or a name holds several splits.
    """
    if not os.path.isdir(path):
        return {'train': [path]}
    folders = find_split_folders(path)
    if folders != {'train': path}:
        return {split: _archives(folder) for split, folder in folders.items()}
    shards: dict[str, list[str]] = {}
    for archive in _archives(path):
        words = {*re.split(r'[^a-z]+', os.path.basename(archive).lower())}
        splits = [split for split, names in SPLITS.items() if words & {*names}]
        if words & {*UNLABELLED_NAMES}:
            splits = [UNLABELLED_SPLIT]
        if len(splits) > 1:
            raise UserError(f'its name holds several splits: {", ".join(splits)}', field=as_text(archive), hint='rename it')
        shards.setdefault(splits[0] if splits else '', []).append(archive)
    if '' in shards:
        if len(shards) > 1:
            raise UserError("its name holds no split, but others' do", field=as_text(shards[''][0]),
                            hint=f'expected {", ".join(f"{split}-*.tar" for split in SPLITS)}')
        return {'train': shards['']}
    if 'train' not in shards:
        raise UserError(f'has shards of {", ".join(shards)}, but none to train on', field=as_text(path),
                        hint='expected train-*.tar')
    return shards


def _archives(folder: str) -> list[str]:
    """Return the paths of the tar archives in a folder, sorted by name.

    Raises:
      UserError: there is none.
    """
    names = [entry.name for entry in list_entries(folder) if not entry.name.startswith('.')]
    archives = [os.path.join(folder, name) for name in names if name.lower().endswith('.tar')]
    if not archives:
        compressed = next(filter(_COMPRESSED.search, names), None)
        raise UserError('holds no .tar files', field=as_text(folder), hint=f'expected {_EXPECTED}' if compressed is None else
                        f'decompress {as_text(compressed)}, as images are read at their positions in an archive')
    return archives


def _index_split(root: str, split: str, shards: Sequence[str], config: DataConfig, kind: TargetKind,
                 class_names: Sequence[str] | None, digest: 'hashlib._Hash') -> tuple[_SplitIndex, _SplitIndex]:
    """Return the index of the labelled images of a split and that of the others, and add the names, sizes and times of its
    shards to a digest."""
    index, unlabelled, problems = _SplitIndex(), _SplitIndex(), _Problems(config.skip_broken)
    for path in shards:
        status = os.stat(path)
        for images in (index, unlabelled):
            images.shards.append(os.path.relpath(path, root))
        digest.update(os.fsencode(f'{split}\0{index.shards[-1]}\0{status.st_size}\0{status.st_mtime_ns}\n'))
        for sample in _cached_samples(path, status, config, split, problems):
            try:
                classes = name_labels(sample.labels, kind, class_names, config.class_file)
            except UserError as e:
                e.field = as_text(os.path.join(path, sample.image.name))
                raise
            is_unlabelled = classes == (UNLABELLED,) or split == UNLABELLED_SPLIT
            (unlabelled if is_unlabelled else index).add(sample.image, classes)
    if problems.count:
        log.warning('%s: skipped %s of the %s split', as_text(root), counted(problems.count, 'broken sample'), split)
    return index, unlabelled


@dataclasses.dataclass
class _Problems:
    """Problems with samples, which stop the run, or are skipped, logged and counted.

    Attributes:
      is_skipped: whether they are skipped.
      count: their number.
    """

    is_skipped: bool
    count: int = 0

    def add(self, error: UserError) -> None:
        """Log and count a problem, or raise the error."""
        if not self.is_skipped:
            error.add_hint(_SKIP_HINT)
            raise error
        log.warning('skipped: %s', error)
        self.count += 1


def _cached_samples(path: str, status: os.stat_result, config: DataConfig, split: str, problems: _Problems) -> list[_Sample]:
    """Return the samples of a shard from the cache folder; a shard that is read without a problem is written to it.

    Args:
      path: the path of the shard.
      status: its size and time.
      config: names the cache folder, and says which files of a sample are read.
      split: the split of the shard.
      problems: see `_read_shard`.
    """
    key = json.dumps([_CACHE_FORMAT, os.path.realpath(path), status.st_size, status.st_mtime_ns, split in _MAY_LACK_LABELS,
                      dataclasses.asdict(config.columns)])
    folder = os.path.join(cache_folder(config.cache_dir), 'webdataset')
    cached = os.path.join(folder, f'{hashlib.sha256(key.encode()).hexdigest()[:32]}.json')
    try:
        with open(cached, encoding='utf-8') as file:
            return [_Sample(_File(*image), tuple(labels)) for image, labels in unseal(json.load(file))['samples']]
    except (OSError, ValueError):  # not yet written, or damaged
        pass
    num_problems = problems.count
    samples = list(_read_shard(path, config, split, problems))
    if problems.count == num_problems:
        with contextlib.suppress(OSError):  # the cache of decoded images reports a folder that cannot be written
            os.makedirs(folder, exist_ok=True)
            with open(f'{cached}.{os.getpid()}', 'w', encoding='utf-8') as file:
                json.dump(seal({'samples': samples}), file)
            os.replace(f'{cached}.{os.getpid()}', cached)
    return samples


def _read_shard(path: str, config: DataConfig, split: str, problems: _Problems) -> Iterator[_Sample]:
    """Yield the samples of a shard. Only those of the test split and of unlabelled shards may lack labels."""
    samples: dict[str, dict[str, _File]] = {}
    for file in _read_files(path, problems):
        folder, name = os.path.split(file.name)
        base, _, ending = name.partition('.')
        if not base:
            continue  # a hidden file
        key = os.path.join(folder, base)
        if ending.lower() in samples.setdefault(key, {}):
            problems.add(UserError(f'the sample {key!r} has two files .{ending}; the keys of samples must differ',
                                   field=as_text(path)))
        else:
            samples[key][ending.lower()] = file
    if not samples:
        return
    with open(path, 'rb') as shard:
        for key, files in samples.items():
            try:
                sample = _make_sample(shard.fileno(), files, config, split)
            except UserError as e:
                e.field, e.message = as_text(path), f'the sample {key!r} {e.message}'
                problems.add(e)
            else:
                yield sample


def _read_files(path: str, problems: _Problems) -> Iterator[_File]:
    """Yield the files in a tar archive; an archive that is damaged or truncated is a problem."""
    last_name, reason = '', ''
    try:
        size = os.path.getsize(path)
        with tarfile.open(path, 'r:') as archive, open(path, 'rb') as content:
            while member := archive.next():
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all members in memory
                last_name = member.name
                if member.isreg() and member.offset_data + member.size <= size:
                    yield _File(member.name, member.offset_data, member.size)
            content.seek(archive.offset)
            if content.read(_BLOCK_SIZE) == bytes(_BLOCK_SIZE):  # tarfile takes a damaged header for the end, too
                return
    except (OSError, tarfile.TarError) as e:
        reason = f': {getattr(e, "strerror", None) or e}'
    problem = f'is truncated or damaged after {last_name!r}' if last_name else 'is not an uncompressed tar archive'
    problems.add(UserError(f'{problem}{reason}', field=as_text(path)))


def _make_sample(shard: int, files: Mapping[str, _File], config: DataConfig, split: str) -> _Sample:
    """Return the sample with these files, by ending; `shard` is the file descriptor of its shard.

    Raises:
      UserError: there is no image, or there are several; or the label is missing or wrong.
    """
    endings = {config.columns.image.lower()} if config.columns.image else {ending[1:] for ending in picture.endings()}
    images = [ending for ending in files if ending in endings]
    if len(images) != 1:
        raise UserError(f'has {"several images" if images else "no image"}; its files end in '
                        f'{", ".join(f".{ending}" for ending in files)}')

    def read_text(ending: str) -> str:
        try:
            return os.pread(shard, files[ending].size, files[ending].offset).decode().strip()
        except UnicodeDecodeError as e:
            raise UserError(f'has a file .{ending} that is not UTF-8') from e
    labels = _read_labels(files, read_text, config.columns.label or 'label')
    if labels is None and split not in _MAY_LACK_LABELS:
        raise UserError('has no label; expected a number in a file .cls, the field '
                        f'{config.columns.label or "label"!r} in a .json, or a name in a .txt')
    return _Sample(files[images[0]], (UNLABELLED,) if labels is None else labels)


def _read_labels(files: Mapping[str, _File], read_text: Callable[[str], str], field: str) -> tuple[str | int, ...] | None:
    """Return the names or numbers of a sample's classes, or None if it has no label.

    Args:
      files: the files of the sample, by ending.
      read_text: returns the content of a file, by its ending.
      field: the field of a JSON object that holds the label.

    Raises:
      UserError: a label is neither a name nor a number.
    """
    if 'cls' in files:
        text = read_text('cls')
        return (int(text) if re.fullmatch(r'-?[0-9]+', text) else text or UNLABELLED,)
    if 'json' in files:
        try:
            content: Any = json.loads(read_text('json'))
        except ValueError as e:
            raise UserError(f'has a file .json that is not valid JSON: {e}') from e
        if isinstance(content, dict) and field in content:
            labels = content[field] if isinstance(content[field], list) else [content[field]]
            for label in labels:
                if isinstance(label, bool) or not isinstance(label, (str, int, type(None))):
                    raise UserError(f'has the label {label!r}; expected a name or a number')
            return tuple(UNLABELLED if label is None else label for label in labels)
    return (read_text('txt') or UNLABELLED,) if 'txt' in files else None


register(webdataset)
register(functools.partial(webdataset, kind=LABELS), name='webdataset', targets=LABELS.name)
