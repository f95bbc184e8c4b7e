"""Image files: how layouts find them in folders, and the source that reads them.

A layout lists all images at once. They are decoded when they are read, in RGB, as an image viewer shows them
(`picture.read`).
"""

import collections
import dataclasses
import decimal
import functools
import hashlib
import logging
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from jaxcnn.data import picture
from jaxcnn.data.sources import Example, Source
from jaxcnn.data.targets import LABEL, TargetKind
from jaxcnn.errors import UserError, as_text, counted

SPLITS = {'train': ('train', 'training'), 'val': ('val', 'valid', 'validation', 'dev'),
          'test': ('test', 'testing', 'evaluation')}  # by split, the names of its folder, file or array
UNLABELLED = '-1'
# endings of files that often accompany images; other skipped files may have been meant as images
_ACCOMPANYING_ENDINGS = {'.txt', '.md', '.html', '.pdf', '.csv', '.tsv', '.json', '.xml', '.yaml', '.yml', '.mat', '.npy',
                         '.py', '.db'}
log = logging.getLogger('jaxcnn')


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
        image = picture.read(os.path.join(self.root, self.paths[index]), self.mode)
        return {'image': image, **{name: values[index] for name, values in self.targets.items()}}

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


def compose_unicode(name: str) -> str:
    """Return the composed form of a name, as `é` may be stored as one character or as `e` with a combining accent."""
    return unicodedata.normalize('NFC', name)


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
    for entry in list_entries(folder):
        if is_hidden(entry):
            continue
        if entry.is_symlink() and not os.path.exists(entry.path):
            raise UserError('is a broken link', field=as_text(entry.path))
        if entry.is_dir():
            yield from find_images(root, entry.path, skipped, (*parents, identity))
        elif kind := kind_of_other_file(entry):
            skipped[kind] += 1
        else:
            yield os.path.relpath(entry.path, root)


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


def make_file_source(name: str, root: str, listing: Listing, expected: str, classes: Sequence[str] | None = None,
                     class_names: Mapping[str, str] | None = None, kind: TargetKind = LABEL) -> Source:
    """Return the source of listed image files.

    Args:
      name: the name of the layout.
      root: the folder that the paths are relative to.
      listing: the images of each split. With the kind `LABEL`, each has one class.
      expected: describes the layout, for errors.
      classes: the classes in the order of their labels; by default those of the training images, sorted.
      class_names: names of classes to be shown instead of those in the listing.
      kind: the kind of targets.

    Raises:
      UserError: there is nothing to train on, a class is not one of the training split, or a file is missing.
    """
    images = _labelled_images(root, listing)
    if not images['train']:
        raise UserError('holds no labelled images to train on', field=as_text(root), hint=f'expected {expected}')
    classes = list(classes or sorted({c for image in images['train'] for c in image.classes}, key=natural_order))
    if not classes:
        raise UserError('no training image has a class', field=as_text(root))
    if len(classes) < 2 and kind is LABEL:
        raise UserError(f'holds only the class {classes[0]!r}; a classifier needs two or more', field=as_text(root))
    labels = {c: label for label, c in enumerate(classes)}
    test_classes = [c for image in images.get('test', []) for c in image.classes]
    if test_classes and not any(c in labels for c in test_classes):
        log.warning('%s: skipped the test split, as none of its classes (%s, ...) is a class of the training split',
                    as_text(root), as_text(test_classes[0]))
        del images['test']
    images, digest = _find_files(root, images, labels)
    splits = {split: ImageFiles(root, [image.path for image in split_images], _make_targets(split_images, labels, kind))
              for split, split_images in images.items() if split_images}
    names = unique_names([(class_names or {}).get(c, c) for c in classes], classes)
    return Source(as_text(root), key={'source': name, 'files': digest, 'classes': classes, 'names': names},
                  splits={split: functools.partial(splits.__getitem__, split) for split in splits},
                  class_names=lambda: names, kind=kind,
                  paths={split: files.paths for split, files in splits.items()})


def _labelled_images(root: str, listing: Listing) -> Listing:
    """Return the images that have a label, with class names in composed form. The number of the others is logged."""
    labelled = {split: [ListedImage(image.path, tuple(map(compose_unicode, image.classes))) for image in images
                        if image.classes != (UNLABELLED,)] for split, images in listing.items()}
    for split, images in listing.items():
        num_skipped = len(images) - len(labelled[split])
        if num_skipped:
            log.info('%s: skipped %s without a label in the %s split', as_text(root), counted(num_skipped, 'image'), split)
    return labelled


def _find_files(root: str, listing: Listing, labels: Mapping[str, int]) -> tuple[Listing, str]:
    """Find the listed images on disk.

    Args:
      root: the folder that the paths are relative to.
      listing: the images of each split.
      labels: the known classes.

    Returns:
      The images with their paths as they are stored, and a digest of paths, classes, sizes and times of the files.

    Raises:
      UserError: a class is unknown, or a file is missing.
    """
    digest = hashlib.sha256(os.fsencode(os.path.realpath(root)))
    stored: Listing = {}
    for split, images in listing.items():
        stored[split] = []
        for path, classes in images:
            listed_path = os.path.join(root, path)
            path_on_disk = stored_path(listed_path)
            if path_on_disk != listed_path:
                path = os.path.relpath(path_on_disk, root)
            for c in classes:
                if c not in labels:
                    raise UserError(f'its class {c!r} is not one of the {len(labels)} classes of the training split',
                                    field=as_text(path_on_disk))
            try:
                status = os.stat(path_on_disk)
            except (OSError, ValueError) as e:  # a ValueError for a name with a zero byte
                raise UserError(str(getattr(e, 'strerror', e)), field=as_text(path_on_disk)) from e
            fields = split, path, '\0'.join(classes), str(status.st_size), str(status.st_mtime_ns)
            digest.update(os.fsencode('\0'.join(fields) + '\n'))
            stored[split].append(ListedImage(path, classes))
    return stored, digest.hexdigest()


def _make_targets(images: Sequence[ListedImage], labels: Mapping[str, int], kind: TargetKind) -> dict[str, np.ndarray]:
    """Return the targets of images, by name."""
    if kind is LABEL:
        return {'label': np.array([labels[image.classes[0]] for image in images], np.int32)}
    label_sets = np.zeros((len(images), len(labels)), np.uint8)
    for row, image in enumerate(images):
        label_sets[row, [labels[c] for c in image.classes]] = 1
    return {'labels': label_sets}


def unique_names(names: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Return printable names of classes; a name that several classes have is followed by the class."""
    printed = [as_text(name) for name in names]
    return [name if printed.count(name) == 1 else f'{name} ({as_text(c)})' for name, c in zip(printed, classes, strict=True)]


def natural_order(name: str) -> tuple:
    """Return a sort key that sorts numbers by their value, and before other names."""
    if re.fullmatch(r'-?[0-9]+(\.[0-9]+)?', name):
        return 0, decimal.Decimal(name), os.fsencode(name)
    return 1, 0, os.fsencode(name)
