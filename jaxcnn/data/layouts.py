"""Image files as people bring them: folders of classes, labels in file names, tables, and what Tiny-ImageNet comes in.

`config.data.dir` is the folder or file, `config.data.name` the layout. All images are listed at once and decoded when
they are asked for, each as a viewer would show it (`picture.read`), in RGB.
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

import numpy as np

from jaxcnn.config import DataConfig
from jaxcnn.data import picture, tables
from jaxcnn.data.sources import Example, Source, register
from jaxcnn.data.targets import LABEL, TargetKind
from jaxcnn.errors import UserError, as_text

SPLITS = {'train': ('train', 'training'), 'val': ('val', 'valid', 'validation', 'dev'),
          'test': ('test', 'testing', 'evaluation')}
UNLABELLED = '-1'
UNNAMED = ('folder', 'flat', 'csv', 'arrays', 'idx')  # layouts whose name does not say what the images are
# Kinds of file that data sets come with; others that are skipped may have been meant as images.
_NOTES = {'.txt', '.md', '.html', '.pdf', '.csv', '.tsv', '.json', '.xml', '.yaml', '.yml', '.mat', '.npy', '.py', '.db'}
_UNLABELLED_FOLDERS = ('unlabeled', 'unlabelled')
log = logging.getLogger('jaxcnn')


@dataclasses.dataclass(frozen=True)
class Files:
    """Image files and their targets.

    Attributes:
      root: what `paths` are relative to.
      paths: (N,) of them.
      targets: by name, (N, ...) each.
    """

    root: str
    paths: Sequence[str]
    targets: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        image = picture.read(os.path.join(self.root, self.paths[index]), 'RGB')
        return {'image': image, **{name: values[index] for name, values in self.targets.items()}}


# of each split, the paths of its images and the names of their classes; UNLABELLED alone: an image without a label
Listed = dict[str, list[tuple[str, tuple[str, ...]]]]


def existing_path(path: str, name: str) -> str:
    """Return the path that `config.data.dir` names for a layout.

    Raises:
      UserError: It is empty or does not exist.
    """
    if not path:
        raise UserError(f'the layout {name!r} needs the folder or file that holds the images')
    path = _as_stored(os.path.expanduser(path))
    if not os.path.exists(path):
        raise UserError(f'{path!r} does not exist')
    return path


def compose(name: str) -> str:
    """The composed Unicode form: `é` is one character in some files and tables, and `e` with an accent in others."""
    return unicodedata.normalize('NFC', name)


@functools.lru_cache(128)
def _names(folder: str, changed: int) -> dict[str, str]:
    """The names in a folder by their composed form; `changed` is when the folder was."""
    return {compose(name): name for name in sorted(os.listdir(folder), reverse=True)}


def _as_stored(path: str) -> str:
    """A path that exists; where the very one does not, that whose names differ from it in Unicode form alone."""
    if path.isascii() or os.path.lexists(path):
        return path
    folder, name = os.path.split(path)
    if not name or folder == path:
        return path
    folder = _as_stored(folder)
    if os.path.lexists(path := os.path.join(folder, name)):
        return path
    try:
        names = _names(folder or '.', os.stat(folder or '.').st_mtime_ns)
    except (OSError, ValueError):  # the latter for a name with a zero byte
        return path
    return os.path.join(folder, names.get(compose(name), name))


def list_entries(folder: str) -> list[os.DirEntry]:
    """What a folder holds, by name.

    Raises:
      UserError: it cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: os.fsencode(entry.name))
    except OSError as e:
        raise UserError(f'{as_text(folder)}: cannot be read: {e.strerror}') from e


def _kind(entry: os.DirEntry) -> str:
    """The ending of a file that is no image that can be read, with its dot and in lower case; '' for an image.

    A file without an ending, such as `photo`, `photo.001` or `photo.jpg_large`, is judged by its content.
    """
    ending = re.search(r'\.(?=[0-9]*[a-z])[a-z0-9]{1,8}$', entry.name.lower())
    if entry.is_file() and (ending[0] in picture.endings() if ending else picture.is_picture(entry.path)):
        return ''
    return ending[0] if ending else 'without an ending'


def _images(root: str, folder: str, skipped: collections.Counter[str], above: tuple[tuple[int, int], ...] = ()
            ) -> Iterator[str]:
    """Paths, relative to `root`, of the image files in a folder and in those within it; links are followed.

    Other files are counted in `skipped` by their ending; hidden ones are not.
    """
    try:
        status = os.stat(folder)
    except OSError as e:
        raise UserError(f'{as_text(folder)}: cannot be read: {e.strerror}') from e
    here = status.st_dev, status.st_ino
    if here in above:
        raise UserError(f'{as_text(folder)}: a link to a folder that it is in')
    for entry in list_entries(folder):
        if entry.name.startswith('.'):
            continue
        if entry.is_symlink() and not os.path.exists(entry.path):
            raise UserError(f'{as_text(entry.path)}: a link that leads nowhere')
        if entry.is_dir():
            yield from _images(root, entry.path, skipped, (*above, here))
        elif kind := _kind(entry):
            skipped[kind] += 1
        else:
            yield os.path.relpath(entry.path, root)


def _log_skipped(root: str, skipped: collections.Counter[str]) -> None:
    """One line that counts the skipped files by kind."""
    if skipped:
        counts = ', '.join(f'{kind} ({count})' for kind, count in skipped.most_common())
        plugin = '; the package pillow-heif reads HEIC' if skipped.keys() & {'.heic', '.heif', '.hif'} else ''
        level = logging.INFO if skipped.keys() <= _NOTES else logging.WARNING
        log.log(level, '%s: skipped files: %s%s', as_text(root), counts, plugin)


def by_split(folder: str, paths: Mapping[str, str]) -> dict[str, str]:
    """Return the path of each split.

    Args:
      folder: where they are, for the message.
      paths: by name, in lower case; those that are no name of a split are left out.

    Raises:
      UserError: Two paths have names of one split.
    """
    split_paths: dict[str, str] = {}
    for split, names in SPLITS.items():
        present = [name for name in names if name in paths]
        if len(present) > 1:
            raise UserError(f'{as_text(folder)}: which is the {split} part, {" or ".join(present)}?')
        if present:
            split_paths[split] = paths[present[0]]
    return split_paths


def _split_folders(root: str) -> dict[str, str]:
    """The folders of the splits that are there; without any, all of `root` is `train`.

    Raises:
      UserError: there are some, and none to train on.
    """
    folders = {entry.name.lower(): entry.path for entry in list_entries(root) if entry.is_dir()}
    splits = by_split(root, folders)
    if splits and (other := [name for name, path in folders.items() if path not in splits.values() and name[0] != '.']):
        log.warning('%s: left out, for they are no part: %s', as_text(root), ', '.join(map(as_text, sorted(other))))
    if splits and 'train' not in splits:
        raise UserError(f'{as_text(root)}: has a part {", ".join(splits)}, and none to train on, which is '
                        f'called {" or ".join(SPLITS["train"])}; there are: {", ".join(map(as_text, sorted(folders)))}')
    return splits or {'train': root}


def source_of_files(name: str, root: str, listed: Listed, order: Sequence[str] | None = None,
            names: Mapping[str, str] | None = None, kind: TargetKind = LABEL) -> Source:
    """The source of listed files.

    Args:
      name: of the layout.
      root: what paths are relative to.
      listed: of each split, paths and classes; of none, the class is `UNLABELLED`.
      kind: of the targets; with `LABEL` each image has one class.
      order: the classes by label; without, those of the training part, sorted.
      names: what to call classes.

    Raises:
      UserError: nothing to train on, or a class that is not among them.
    """
    known = {split: [(path, tuple(map(compose, names_of_image))) for path, names_of_image in rows
                     if names_of_image != (UNLABELLED,)] for split, rows in listed.items()}
    for split, rows in listed.items():
        if len(rows) > len(known[split]):
            log.info('%s: %d images of the %s part carry no label and are left out', as_text(root),
                     len(rows) - len(known[split]), split)
    classes = list(order or sorted({c for _, names_of_image in known['train'] for c in names_of_image}, key=_natural))
    if not known['train']:
        raise UserError(f'{as_text(root)}: holds no labelled images to train on; {EXPECTED[name]}')
    if len(classes) < 2 and kind is LABEL:
        raise UserError(f'{as_text(root)}: holds the class {classes[0]!r} alone; a classifier needs two or more')
    if not classes:
        raise UserError(f'{as_text(root)}: no training image has a class')
    label = {c: i for i, c in enumerate(classes)}
    test_classes = [c for _, names_of_image in known.get('test', []) for c in names_of_image]
    if test_classes and not any(c in label for c in test_classes):
        log.warning('%s: the test part is left out, for none of its classes (%s, ...) is one of the training part',
                    as_text(root), as_text(test_classes[0]))
        del known['test']
    digest = hashlib.sha256(os.fsencode(os.path.realpath(root)))
    for split, rows in known.items():
        for number, (path, names_of_image) in enumerate(rows):
            whole = os.path.join(root, path)
            if (stored := _as_stored(whole)) != whole:
                path = os.path.relpath(stored, root)
                rows[number] = path, names_of_image
            for c in names_of_image:
                if c not in label:
                    raise UserError(f'{as_text(os.path.join(root, path))}: its class {c!r} is not one of the {len(classes)} '
                                    'classes of the training part')
            try:
                status = os.stat(os.path.join(root, path))
            except (OSError, ValueError) as e:  # the latter for a name with a zero byte
                raise UserError(f'{as_text(os.path.join(root, path))}: {getattr(e, "strerror", e)}') from e
            c = '\0'.join(names_of_image)
            digest.update(os.fsencode(f'{split}\0{path}\0{c}\0{status.st_size}\0{status.st_mtime_ns}\n'))

    def targets(rows: Sequence[tuple[str, tuple[str, ...]]]) -> dict[str, np.ndarray]:
        if kind is LABEL:
            return {'label': np.array([label[names_of_image[0]] for _, names_of_image in rows], np.int32)}
        labels = np.zeros((len(rows), len(classes)), np.uint8)
        for row, (_, names_of_image) in enumerate(rows):
            labels[row, [label[c] for c in names_of_image]] = 1
        return {'labels': labels}
    splits = {split: Files(root, [path for path, _ in rows], targets(rows)) for split, rows in known.items() if rows}
    called = _unique([(names or {}).get(c, c) for c in classes], classes)
    return Source(as_text(root), key={'source': name, 'files': digest.hexdigest(), 'classes': classes, 'names': called},
                  splits={split: functools.partial(splits.__getitem__, split) for split in splits},
                  class_names=lambda: called, kind=kind)


def _unique(names: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Names to show; of those that more than one class has, each with the class."""
    printed = [as_text(name) for name in names]
    return [name if printed.count(name) == 1 else f'{name} ({as_text(c)})' for name, c in zip(printed, classes, strict=True)]


def _natural(name: str) -> tuple:
    """Sorts numbers by their value, and before names."""
    if re.fullmatch(r'-?[0-9]+(\.[0-9]+)?', name):
        return 0, decimal.Decimal(name), os.fsencode(name)
    return 1, 0, os.fsencode(name)


EXPECTED = {
    'folder': 'expected <split>/<class>/<image>, or <class>/<image> (labels in file names: config.data.name=flat)',
    'flat': 'expected <split>/<label>_<id>.jpg, or <label>_<id>.jpg (folders of classes: config.data.name=folder)',
    'csv': 'expected a table with a path and a label in each row',
    'tiny_imagenet': 'expected train/<wnid>/images/*.JPEG',
}


def folder(config: DataConfig) -> Source:
    """`<root>/<split>/<class>/*`, or `<root>/<class>/*`, folders within a class included; `unlabeled` is no class.

    Images beside the class folders are counted and skipped.
    """
    root = existing_path(config.dir, 'folder')
    listed: Listed = {}
    skipped: collections.Counter[str] = collections.Counter()
    parts = _split_folders(root)
    for path in dict.fromkeys([root, *parts.values()]):
        skipped.update(_kind(entry) or 'images beside the class folders' for entry in list_entries(path)
                       if not entry.is_dir() and not entry.name.startswith('.'))
    for split, path in parts.items():
        listed[split] = []
        for entry in list_entries(path):
            if entry.is_dir() and not entry.name.startswith('.'):
                name = UNLABELLED if entry.name.lower() in _UNLABELLED_FOLDERS else entry.name
                images = [(image, (name,)) for image in _images(root, entry.path, skipped)]
                listed[split] += images
                if not images:
                    log.warning('%s: holds no images, and is no class', as_text(entry.path))
    _log_skipped(root, skipped)
    return source_of_files('folder', root, listed)


def flat(config: DataConfig) -> Source:
    """`<root>/<split>/<label>_<id>.jpg`, or without splits; a label of -1, or none, means unlabelled."""
    root = existing_path(config.dir, 'flat')
    skipped: collections.Counter[str] = collections.Counter()

    def label(path: str) -> str:
        name, _, rest = os.path.splitext(os.path.basename(path))[0].rpartition('_')
        return name if rest else UNLABELLED
    listed: Listed = {split: [(path, (label(path) or UNLABELLED,)) for path in _images(root, where, skipped)]
              for split, where in _split_folders(root).items()}
    _log_skipped(root, skipped)
    return source_of_files('flat', root, listed)


def tiny_imagenet(config: DataConfig) -> Source:
    """The official `tiny-imagenet-200`: classes of `wnids.txt`, called as in `words.txt`; `val` is the test part."""
    root = existing_path(config.dir, 'tiny_imagenet')
    if not os.path.isfile(os.path.join(root, 'wnids.txt')):
        given, root = root, os.path.join(root, 'tiny-imagenet-200')
        if not os.path.isdir(root):
            raise UserError(f'{given!r} is no tiny-imagenet-200, and holds none')
    wnids = [line[0] for line in _tabbed(root, 'wnids.txt', 1)]
    words = {line[0]: line[1].split(',')[0] for line in _tabbed(root, 'words.txt', 2)}
    if len(set(wnids)) < len(wnids):
        twice = sorted({w for w in wnids if wnids.count(w) > 1})
        raise UserError(f'{os.path.join(root, "wnids.txt")}: {", ".join(twice[:3])}: named twice')
    skipped: collections.Counter[str] = collections.Counter()
    listed: Listed = {'train': [(path, (wnid,)) for wnid in wnids
                                for path in _images(root, os.path.join(root, 'train', wnid), skipped)],
                      'test': [(os.path.join('val', 'images', line[0]), (line[1],))
                               for line in _tabbed(root, os.path.join('val', 'val_annotations.txt'), 2)]}
    _log_skipped(root, skipped)
    return dataclasses.replace(source_of_files('tiny_imagenet', root, listed, wnids, words), val_fraction=0.2)


def _tabbed(root: str, name: str, cells: int) -> list[list[str]]:
    """The rows of a file of cells with tabs between them."""
    path = os.path.join(root, name)
    rows = [line.split('\t') for line in tables.read_text(path).replace('\r\n', '\n').split('\n') if line.strip()]
    for number, row in enumerate(rows, 1):
        if len(row) < cells:
            raise UserError(f'{path}: row {number} has {len(row)} cells with tabs between them, expected {cells}')
    return rows


for _layout in (folder, flat, tiny_imagenet):
    register(_layout.__name__, _layout)
