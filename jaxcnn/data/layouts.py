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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxcnn.config import DataConfig
from jaxcnn.data import picture, tables
from jaxcnn.data.sources import Example, Source, add_source
from jaxcnn.data.targets import LABEL, LABELS, TargetKind
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


def _nfc(name: str) -> str:
    """The composed Unicode form: `é` is one character in some files and tables, and `e` with an accent in others."""
    return unicodedata.normalize('NFC', name)


@functools.lru_cache(128)
def _names(folder: str, changed: int) -> dict[str, str]:
    """The names in a folder by their composed form; `changed` is when the folder was."""
    return {_nfc(name): name for name in sorted(os.listdir(folder), reverse=True)}


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
    return os.path.join(folder, names.get(_nfc(name), name))


def _entries(folder: str) -> list[os.DirEntry]:
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
    for entry in _entries(folder):
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


def _parts(where: str, held: Mapping[str, str]) -> dict[str, str]:
    """Of what is held by name, that of each split.

    Raises:
      UserError: a split has two.
    """
    found: dict[str, str] = {}
    for split, names in SPLITS.items():
        called = [name for name in names if name in held]
        if len(called) > 1:
            raise UserError(f'{as_text(where)}: which is the {split} part, {" or ".join(called)}?')
        if called:
            found[split] = held[called[0]]
    return found


def _split_folders(root: str) -> dict[str, str]:
    """The folders of the splits that are there; without any, all of `root` is `train`.

    Raises:
      UserError: there are some, and none to train on.
    """
    folders = {entry.name.lower(): entry.path for entry in _entries(root) if entry.is_dir()}
    found = _parts(root, folders)
    if found and (other := [name for name, path in folders.items() if path not in found.values() and name[0] != '.']):
        log.warning('%s: left out, for they are no part: %s', as_text(root), ', '.join(map(as_text, sorted(other))))
    if found and 'train' not in found:
        raise UserError(f'{as_text(root)}: has a part {", ".join(found)}, and none to train on, which is '
                        f'called {" or ".join(SPLITS["train"])}; there are: {", ".join(map(as_text, sorted(folders)))}')
    return found or {'train': root}


def _source(name: str, root: str, listed: Listed, order: Sequence[str] | None = None,
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
    known = {split: [(path, tuple(map(_nfc, names_of_image))) for path, names_of_image in rows
                     if names_of_image != (UNLABELLED,)] for split, rows in listed.items()}
    for split, rows in listed.items():
        if len(rows) > len(known[split]):
            log.info('%s: %d images of the %s part carry no label and are left out', as_text(root),
                     len(rows) - len(known[split]), split)
    classes = list(order or sorted({c for _, names_of_image in known['train'] for c in names_of_image}, key=_natural))
    if not known['train']:
        raise UserError(f'{as_text(root)}: holds no labelled images to train on; {_EXPECTED[name]}')
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


_EXPECTED = {
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
        skipped.update(_kind(entry) or 'images beside the class folders' for entry in _entries(path)
                       if not entry.is_dir() and not entry.name.startswith('.'))
    for split, path in parts.items():
        listed[split] = []
        for entry in _entries(path):
            if entry.is_dir() and not entry.name.startswith('.'):
                name = UNLABELLED if entry.name.lower() in _UNLABELLED_FOLDERS else entry.name
                images = [(image, (name,)) for image in _images(root, entry.path, skipped)]
                listed[split] += images
                if not images:
                    log.warning('%s: holds no images, and is no class', as_text(entry.path))
    _log_skipped(root, skipped)
    return _source('folder', root, listed)


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
    return _source('flat', root, listed)


def table(config: DataConfig) -> Source:
    """Read a CSV file with the columns path, label and, optionally, split, or a folder of `train.csv`, `val.csv` and
    `test.csv`.

    The cells are separated by a comma, a semicolon or a tab; a file in a folder may be called `train.tsv`, and so on, too.
    Paths are relative to the table's folder. A first row that names the columns may stand there in any order. A label of -1,
    NaN or nothing means unlabelled.
    """
    def names(cell: str, file: str, number: int) -> tuple[str, ...]:
        name = tables.label(cell) or UNLABELLED
        if ';' in name:
            raise UserError(f'{file}: line {number}: the label {name!r} names several classes, which config.task=multilabel '
                            'takes; config.task=classification takes one class for each image')
        return (name,)
    root, listed = _listed_in_tables('csv', config, lambda file, split: _rows(file, split, names))
    return _source('csv', root, listed)


def multilabel_table(config: DataConfig) -> Source:
    """Read a table as `table` does whose images have any number of classes.

    Either the column label holds the names of an image's classes with semicolons between them, as in `cat;dog`, where an
    empty cell means that the image shows none of them; or each class has a column of 0 and 1, which the first row names.
    A label of -1 or NaN means unlabelled.
    """
    def names(cell: str, file: str, number: int) -> tuple[str, ...]:
        if cell.strip() and not tables.label(cell):
            return (UNLABELLED,)
        return tuple(dict.fromkeys(name for part in cell.split(';') if (name := tables.label(part))))

    def rows(file: str, split: str) -> Iterator[TableRow]:
        head, columns, content = _columns(file)
        indicators = [head[i] for i in range(len(head)) if i not in columns.values()
                      and content and all(len(row) > i and row[i].strip() in ('0', '1') for _, row in content)]
        if 'label' in columns and indicators:
            raise UserError(f'{file}: has both a column {head[columns["label"]]!r} of names and columns of 0 and 1 '
                            f'({", ".join(indicators[:5])}): remove one of the two kinds of labels')
        if 'label' not in columns and len(head) > len(columns):
            return _indicator_rows(file, split)
        return _rows(file, split, names)
    root, listed = _listed_in_tables('csv', config, rows)
    return _source('csv', root, listed, kind=LABELS)


class TableRow(NamedTuple):
    """A row of a table that lists images."""

    line: int
    split: str
    path: str
    classes: tuple[str, ...]


def _listed_in_tables(name: str, config: DataConfig, rows: Callable[[str, str], Iterator[TableRow]]) -> tuple[str, Listed]:
    """The images that a table, or a folder of tables, lists, and the folder that their paths are relative to.

    Args:
      name: of the layout.
      config: names the table or the folder.
      rows: of a file, given the split of rows that name none.
    """
    where = existing_path(config.dir, name)
    if os.path.isdir(where):
        files = _parts(where, {entry.name[:-4]: entry.path for ending in ('.tsv', '.csv') for entry in _entries(where)
                               if entry.name.lower().endswith(ending)})
        root = where
        if 'train' not in files:
            raise UserError(f'{where!r} holds no train.csv')
    else:
        files, root = {'train': where}, os.path.dirname(os.path.abspath(where))
    listed: Listed = {'train': []}
    first: dict[str, tuple[tuple[str, ...], str]] = {}  # by path, the classes of an image and where it is listed first
    repeated: collections.Counter[str] = collections.Counter()
    for split, file in files.items():
        for row in rows(file, split):
            listed.setdefault(row.split, []).append((row.path, row.classes))
            if row.classes == (UNLABELLED,):
                continue
            classes, line = tuple(map(_nfc, row.classes)), f'{file}: line {row.line}'
            earlier, first_line = first.setdefault(_nfc(os.path.normpath(row.path)), (classes, line))
            if {*earlier} != {*classes}:
                earlier_label, label = (as_text(';'.join(names)) for names in (earlier, classes))
                raise UserError(f'{as_text(row.path)} has two labels: {earlier_label!r} in {first_line}, {label!r} in '
                                f'{line}')
            if first_line != line:
                repeated[f'{first_line} and {line}'] += 1
    if repeated:
        log.warning('%s: images that a second row lists: %d, as in %s', as_text(root), repeated.total(),
                    next(iter(repeated)))
    return root, listed


_COLUMNS = {'path': ('path', 'file', 'filename', 'file_name', 'image', 'image_path', 'id'),
            'label': ('label', 'class', 'category', 'target'), 'split': ('split', 'part', 'subset')}


def _columns(file: str) -> tuple[list[str], dict[str, int], list[tuple[int, list[str]]]]:
    """The names of a table's columns, none where no first row names them; where path, label and split are; and its rows."""
    rows = tables.read_rows(file)
    if rows:
        head = [cell.strip() for cell in rows[0][1]]
        lower = [cell.lower() for cell in head]
        named = {what: lower.index(next(name for name in names if name in lower))
                 for what, names in _COLUMNS.items() if not {*names}.isdisjoint(lower)}
        if 'path' in named:
            return head, named, rows[1:]
    return [], {'path': 0, 'label': 1}, rows


def _row(file: str, split: str, number: int, row: Sequence[str], columns: Mapping[str, int],
         classes: tuple[str, ...]) -> TableRow:
    """A row whose classes are known."""
    name = row[columns['split']].strip().lower() if 'split' in columns else split
    known = next((s for s, names in SPLITS.items() if name in names), None)
    if known is None:
        raise UserError(f'{file}: line {number}: unknown split {name!r}; known: {", ".join(SPLITS)}')
    return TableRow(number, known, row[columns['path']].strip(), classes)


def _check_cells(file: str, number: int, row: Sequence[str], count: int) -> None:
    if len(row) < count:
        raise UserError(f'{file}: line {number} has {len(row)} cells, expected {count} or more, '
                        'separated by a comma, a semicolon or a tab')


def _rows(file: str, split: str, names: Callable[[str, str, int], tuple[str, ...]]) -> Iterator[TableRow]:
    """The rows of a table that names the classes in one column; `names` gives those of a cell in a file and line."""
    head, columns, rows = _columns(file)
    if head and 'label' not in columns and split != 'test':
        raise UserError(f'{file}: no column is called {", ".join(_COLUMNS["label"])}; there are: '
                        f'{", ".join(map(str.lower, head))}')
    for number, row in rows:
        _check_cells(file, number, row, max(columns.values()) + 1)
        classes = names(row[columns['label']], file, number) if 'label' in columns else (UNLABELLED,)
        yield _row(file, split, number, row, columns, classes)


def _indicator_rows(file: str, split: str) -> Iterator[TableRow]:
    """The rows of a table that has a column of 0 and 1 for each class."""
    head, columns, rows = _columns(file)
    classes = {i: name for i, name in enumerate(head) if i not in columns.values() and name}
    for number, row in rows:
        _check_cells(file, number, row, max([*columns.values(), *classes]) + 1)
        shows = []
        for i, name in classes.items():
            value = tables.label(row[i])
            if value not in ('0', '1'):
                raise UserError(f'{file}: line {number}: the column {name!r} holds {row[i]!r}; the columns of classes hold '
                                '0 and 1')
            if value == '1':
                shows.append(name)
        yield _row(file, split, number, row, columns, tuple(shows))


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
    return dataclasses.replace(_source('tiny_imagenet', root, listed, wnids, words), val_fraction=0.2)


def _tabbed(root: str, name: str, cells: int) -> list[list[str]]:
    """The rows of a file of cells with tabs between them."""
    path = os.path.join(root, name)
    rows = [line.split('\t') for line in tables.read_text(path).replace('\r\n', '\n').split('\n') if line.strip()]
    for number, row in enumerate(rows, 1):
        if len(row) < cells:
            raise UserError(f'{path}: row {number} has {len(row)} cells with tabs between them, expected {cells}')
    return rows


for _layout in (folder, flat, tiny_imagenet):
    add_source(_layout.__name__, _layout)
add_source('csv', table)
add_source('csv', multilabel_table, LABELS)
