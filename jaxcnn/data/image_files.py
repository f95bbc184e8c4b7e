"""Image files: how layouts find them in folders, and the source that reads them.

A layout lists all images at once. They are decoded when they are read, in RGB, as an image viewer shows them
(`picture.read`).
"""

import collections
import dataclasses
import functools
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxcnn.config import DataConfig
from jaxcnn.data import picture
from jaxcnn.data.classes import (
    UNLABELLED,
    ClassNames,
    compose_names,
    compose_unicode,
    list_classes,
    log_unlabelled,
    make_targets,
    unique_names,
)
from jaxcnn.data.sources import Example, Examples, Source
from jaxcnn.data.targets import LABEL, TargetKind
from jaxcnn.errors import UserError, as_text, name_field

UNLABELLED_SPLIT = 'unlabelled'  # training images without a label
UNLABELLED_NAMES = 'unlabelled', 'unlabeled', 'unsupervised'  # of their folders, shards and splits
SPLITS = {'train': ('train', 'training'), 'val': ('val', 'valid', 'validation', 'dev'),
          'test': ('test', 'testing', 'evaluation')}  # by split, the names of its folder, file or array
# endings of files that often accompany images; other skipped files may have been meant as images
_ACCOMPANYING_ENDINGS = {'.txt', '.md', '.html', '.pdf', '.csv', '.tsv', '.json', '.xml', '.yaml', '.yml', '.mat', '.npy',
                         '.py', '.db'}
log = logging.getLogger('jaxcnn')


def decode_example(content: bytes, name: str, targets: Mapping[str, np.ndarray], index: int) -> Example:
    """Return the example of an image in colour.

    Args:
      content: the content of its file.
      name: its name, for errors.
      targets: the targets of all examples of the split, by name.
      index: the index of the example.

    Raises:
      UserError: the content is not a picture.
    """
    with name_field(name):
        image = picture.decode(content, 'RGB')
    return {'image': image, **{target: values[index] for target, values in targets.items()}}


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """The examples of a split in image files.

    Attributes:
      root: the folder that `paths` are relative to.
      paths: (N,) the paths of the images.
      targets: one array (N, ...) for each target, by name.
    """

    root: str
    paths: Sequence[str]
    targets: Mapping[str, np.ndarray]

    mode: ClassVar[str] = 'RGB'

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        return decode_example(self.encoded(index), self.image_name(index), self.targets, index)

    def image_name(self, index: int) -> str:
        """Return the path of an image."""
        return as_text(os.path.join(self.root, self.paths[index]))

    def encoded(self, index: int) -> bytes:
        """See `EncodedExamples`."""
        return picture.read_file(os.path.join(self.root, self.paths[index]))

    def read_targets(self) -> Mapping[str, np.ndarray]:
        """See `EncodedExamples`."""
        return self.targets


class ListedImage(NamedTuple):
    """An image of a layout.

    Attributes:
      path: its path, relative to the folder of the layout.
      classes: the names of its classes; `UNLABELLED` alone means that it has no label.
    """

    path: str
    classes: tuple[str, ...]


Listing = dict[str, list[ListedImage]]  # the images of each split


def existing_path(path: str, name: str) -> str:
    """Return the path that `config.data.dir` gives for the layout `name`.

    Raises:
      UserError: it is empty or does not exist.
    """
    if not path:
        raise UserError(f'the layout {name!r} needs the folder or file that holds the images')
    path = stored_path(os.path.expanduser(path))
    if not os.path.exists(path):
        raise UserError(f'{path!r} does not exist')
    return path


@functools.lru_cache(128)
def _stored_names(folder: str, mtime_ns: int) -> dict[str, str]:
    """Return the names in a folder by their composed form; `mtime_ns` is the time of its last change."""
    return {compose_unicode(name): name for name in sorted(os.listdir(folder), reverse=True)}


def stored_path(path: str) -> str:
    """Return the path itself if it exists, or else the existing one whose names differ only in their Unicode form."""
    if path.isascii() or os.path.lexists(path):
        return path
    folder, name = os.path.split(path)
    if not name or folder == path:
        return path
    folder = stored_path(folder)
    path = os.path.join(folder, name)
    if os.path.lexists(path):
        return path
    try:
        stored_names = _stored_names(folder or '.', os.stat(folder or '.').st_mtime_ns)
    except (OSError, ValueError):  # a ValueError for a name with a zero byte
        return path
    return os.path.join(folder, stored_names.get(compose_unicode(name), name))


def list_entries(folder: str) -> list[os.DirEntry]:
    """Return the files and folders in a folder, sorted by name.

    Raises:
      UserError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: os.fsencode(entry.name))
    except OSError as e:
        raise UserError(f'cannot be read: {e.strerror}', field=as_text(folder)) from e


def is_hidden(entry: os.DirEntry) -> bool:
    """Return whether the name of a file or folder begins with a dot."""
    return entry.name.startswith('.')


def kind_of_other_file(entry: os.DirEntry) -> str | None:
    """Return the ending, in lower case, of a file that is not a readable image; None for an image.

    A file without an ending, such as `photo`, `photo.001` or `photo.jpg_large`, is judged by its content.
    """
    ending = re.search(r'\.(?=[0-9]*[a-z])[a-z0-9]{1,8}$', entry.name.lower())
    if entry.is_file() and (ending[0] in picture.endings() if ending else picture.is_picture(entry.path)):
        return None
    return ending[0] if ending else 'without an ending'


def find_images(root: str, folder: str, skipped: collections.Counter[str],
                 parents: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """Yield the paths, relative to `root`, of the images in a folder and in the folders below it. Links are followed.

    Args:
      root: the folder of the layout.
      folder: the folder that is searched.
      skipped: a counter to which other files are added by their ending; hidden files are not.
      parents: the device and inode numbers of the folders above.

    Raises:
      UserError: a folder cannot be read, or a link is broken or leads to a folder above it.
    """
    try:
        status = os.stat(folder)
    except OSError as e:
        raise UserError(f'cannot be read: {e.strerror}', field=as_text(folder)) from e
    identity = status.st_dev, status.st_ino
    if identity in parents:
        raise UserError('is a link to a folder above it', field=as_text(folder))
    relative = os.path.relpath(folder, root)
    entries = collections.deque(list_entries(folder))
    while entries:
        entry = entries.popleft()  # entries take more memory than paths, so those of a large folder are released one by one
        if is_hidden(entry):
            continue
        if entry.is_dir():
            yield from find_images(root, entry.path, skipped, (*parents, identity))
        elif not entry.is_file() and entry.is_symlink() and not os.path.exists(entry.path):
            raise UserError('is a broken link', field=as_text(entry.path))
        elif kind := kind_of_other_file(entry):
            skipped[kind] += 1
        else:
            yield entry.name if relative == os.curdir else os.path.join(relative, entry.name)


def log_skipped(root: str, skipped: collections.Counter[str]) -> None:
    """Log the number of skipped files of each kind on one line."""
    if skipped:
        counts = ', '.join(f'{kind} ({count})' for kind, count in skipped.most_common())
        plugin = '; the package pillow-heif reads HEIC' if skipped.keys() & {'.heic', '.heif', '.hif'} else ''
        level = logging.INFO if skipped.keys() <= _ACCOMPANYING_ENDINGS else logging.WARNING
        log.log(level, '%s: skipped files: %s%s', as_text(root), counts, plugin)


def paths_of_splits(folder: str, paths: Mapping[str, str]) -> dict[str, str]:
    """Return the path of each split.

    Args:
      folder: the folder that holds the paths, for errors.
      paths: paths by name, in lower case. Names that are not those of a split are ignored.

    Raises:
      UserError: two paths have names of the same split.
    """
    split_paths: dict[str, str] = {}
    for split, split_names in SPLITS.items():
        present = [name for name in split_names if name in paths]
        if len(present) > 1:
            raise UserError(f'holds several {split} splits: {", ".join(present)}', field=as_text(folder),
                            hint='rename all but one of them')
        if present:
            split_paths[split] = paths[present[0]]
    return split_paths


def find_split_folders(root: str) -> dict[str, str]:
    """Return the folder of each split. If there is none, all of `root` is the split `train`.

    Raises:
      UserError: there are splits, but none to train on.
    """
    folders = {entry.name.lower(): entry.path for entry in list_entries(root) if entry.is_dir()}
    splits = paths_of_splits(root, folders)
    if not splits:
        return {'train': root}
    others = sorted(name for name, path in folders.items() if path not in splits.values() and name[0] != '.')
    if others:
        log.warning('%s: skipped folders, which are not splits: %s', as_text(root), ', '.join(map(as_text, others)))
    if 'train' not in splits:
        raise UserError(f'has a split {", ".join(splits)}, but none to train on', field=as_text(root),
                        hint=f'expected a folder called {" or ".join(SPLITS["train"])}; its folders are: '
                             f'{", ".join(map(as_text, sorted(folders)))}')
    return splits


def make_file_source(name: str, root: str, listing: Listing, expected: str, config: DataConfig | None = None,
                     classes: Sequence[str] | None = None, class_names: Mapping[str, str] | None = None,
                     kind: TargetKind = LABEL) -> Source:
    """Return the source of listed image files.

    Args:
      name: the name of the layout.
      root: the folder that the paths are relative to.
      listing: the images of each split. With the kind `LABEL`, each has one class.
      expected: describes the layout, for errors.
      config: names the file of the classes; None for a layout that has its own.
      classes: without that file, the classes in the order of their labels; by default those of the training images, sorted.
      class_names: names of classes to be shown instead of those in the listing.
      kind: the kind of targets.

    Raises:
      UserError: there is nothing to train on, a class is unknown, or a file is missing.
    """
    location, class_file = as_text(root), config.class_file if config else ''
    unlabelled = [image for image in listing['train'] if image.classes == (UNLABELLED,)]
    listing = {split: _labelled_images(location, split, images) for split, images in listing.items()}
    image_classes = {split: [compose_names(image.classes) for image in images] for split, images in listing.items()}
    classes = list_classes(location, image_classes['train'], kind, expected, class_file, classes)
    targets = make_targets(location, image_classes, classes, kind, lambda split, index: as_text(
        os.path.join(root, listing[split][index].path)), class_file)
    digest = hashlib.sha256(os.fsencode(os.path.realpath(root)))
    splits = {split: ImageFiles(root, _find_files(root, split, listing[split], image_classes[split], digest), targets[split])
              for split in targets}
    source = make_source(name, root, digest.hexdigest(), classes, splits, kind,
                         {split: files.paths for split, files in splits.items()}, class_names)
    if not unlabelled or kind is not LABEL:
        return source
    return dataclasses.replace(source, with_unlabelled=functools.partial(_add_unlabelled, source, root, unlabelled))


def _add_unlabelled(source: Source, root: str, images: Sequence[ListedImage]) -> Source:
    """Return a source with images as a further split, `unlabelled`; see `add_unlabelled`."""
    digest = hashlib.sha256()
    paths = _find_files(root, 'unlabelled', images, [()] * len(images), digest)
    return add_unlabelled(source, ImageFiles(root, paths, no_labels(len(images))), digest.hexdigest(), paths)


@dataclasses.dataclass(frozen=True)
class ConcatenatedExamples:
    """The examples of several sets of encoded images, one after the other, in which labels are missing."""

    parts: Sequence[Any]
    mode: ClassVar[str] = 'RGB'

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def _find(self, index: int) -> tuple[Any, int]:
        """Return the set of an image, and its index there."""
        for part in self.parts:
            if index < len(part):
                return part, index
            index -= len(part)
        raise IndexError(index)

    def __getitem__(self, index: int) -> Example:
        part, index = self._find(index)
        return part[index]

    def image_name(self, index: int) -> str:
        """See `ImageFiles.image_name`."""
        part, index = self._find(index)
        return part.image_name(index)

    def encoded(self, index: int) -> bytes:
        """See `sources.EncodedExamples`."""
        part, index = self._find(index)
        return part.encoded(index)

    def read_targets(self) -> Mapping[str, np.ndarray]:
        """See `sources.EncodedExamples`."""
        return no_labels(len(self))


def with_unlabelled(source: Source, parts: Sequence[Any], digest: str) -> Source:
    """Return a source that can add unlabelled images to its splits, if there are any and images have one label each.

    Args:
      source: a source of labelled images.
      parts: sets of encoded images.
      digest: changes whenever their files do.
    """
    parts = [part for part in parts if len(part)]
    if not parts or source.kind is not LABEL:
        return source
    add = functools.partial(add_unlabelled, source, ConcatenatedExamples(parts), digest)
    return dataclasses.replace(source, with_unlabelled=add)


def no_labels(count: int) -> dict[str, np.ndarray]:
    """Return the targets of `count` images without a label."""
    return {'label': np.zeros(count, np.int32)}


def add_unlabelled(source: Source, examples: Examples, digest: str, paths: Sequence[str] | None = None) -> Source:
    """Return a source with images as a further split, `unlabelled`, whose labels are 0.

    Args:
      source: a source of labelled images.
      examples: the unlabelled images.
      digest: changes whenever their files do.
      paths: their paths, if they have some.
    """
    return dataclasses.replace(source, key={**source.key, 'unlabelled': digest},
                               splits={**source.splits, 'unlabelled': lambda: examples},
                               paths={**source.paths, **({} if paths is None else {'unlabelled': paths})},
                               with_unlabelled=None)


def make_source(name: str, root: str, digest: str, classes: Sequence[str], splits: Mapping[str, Examples], kind: TargetKind,
                paths: Mapping[str, Sequence[str]], class_names: Mapping[str, str] | None = None) -> Source:
    """Return the source of examples in files.

    Args:
      name: the name of the layout.
      root: the folder of the data set.
      digest: changes whenever the files do.
      classes: the classes in the order of their labels.
      splits: the examples by split.
      kind: the kind of targets.
      paths: the paths of the images by split, which may hold further splits.
      class_names: names of classes to be shown instead of those in `classes`.
    """
    names = unique_names([(class_names or {}).get(c, c) for c in classes], classes)
    return Source(as_text(root), key={'source': name, 'files': digest, 'classes': [*classes], 'names': names},
                  splits={split: functools.partial(splits.__getitem__, split) for split in splits},
                  class_names=lambda: names, kind=kind, paths={split: paths[split] for split in splits if split in paths})


def _labelled_images(location: str, split: str, images: list[ListedImage]) -> list[ListedImage]:
    """Return the images that have a label. The number of the others is logged."""
    labelled = [image for image in images if image.classes != (UNLABELLED,)]
    log_unlabelled(location, len(images) - len(labelled), split)
    return labelled


def _find_files(root: str, split: str, images: Sequence[ListedImage], classes: Sequence[ClassNames],
                digest: 'hashlib._Hash') -> list[str]:
    """Find the listed images of a split on disk.

    Args:
      root: the folder that the paths are relative to.
      split: the name of the split.
      images: the images.
      classes: the classes of each image in composed form.
      digest: a digest to which paths, classes, sizes and times of the files are added.

    Returns:
      The paths as they are stored.

    Raises:
      UserError: a file is missing.
    """
    stored = []
    for (path, _), names in zip(images, classes, strict=True):
        listed_path = os.path.join(root, path)
        path_on_disk = stored_path(listed_path)
        if path_on_disk != listed_path:
            path = os.path.relpath(path_on_disk, root)
        try:
            status = os.stat(path_on_disk)
        except (OSError, ValueError) as e:  # a ValueError for a name with a zero byte
            raise UserError(str(getattr(e, 'strerror', e)), field=as_text(path_on_disk)) from e
        fields = split, path, '\0'.join(names), str(status.st_size), str(status.st_mtime_ns)
        digest.update(os.fsencode('\0'.join(fields) + '\n'))
        stored.append(path)
    return stored
