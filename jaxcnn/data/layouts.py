"""Images as people bring them: folders of classes, labels in file names, tables, arrays, and what MNIST and Tiny-ImageNet
come in. `config.data.dir` is the folder or file, `config.data.name` the layout.

All are listed at once and decoded when asked for, each as a viewer would show it (`picture.read`), in RGB.
"""

import collections
import dataclasses
import decimal
import functools
import gzip
import hashlib
import logging
import os
import re
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from jaxcnn.config import DataConfig
from jaxcnn.data import picture, tables
from jaxcnn.data.checks import check_class_names, check_images, check_labels, number_classes
from jaxcnn.data.sources import InMemory, Source, add_source
from jaxcnn.errors import UserError, shown, within

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
    """Image files and their labels.

    Attributes:
      root: what `paths` are relative to.
      paths: (N,) of them.
      labels: (N,) int32.
    """

    root: str
    paths: Sequence[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return picture.read(os.path.join(self.root, self.paths[index]), 'RGB'), int(self.labels[index])


Listed = dict[str, list[tuple[str, str]]]  # of each split, paths and the names of their classes


def _existing(path: str, name: str) -> str:
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
        raise UserError(f'{shown(folder)}: cannot be read: {e.strerror}') from e


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
        raise UserError(f'{shown(folder)}: cannot be read: {e.strerror}') from e
    here = status.st_dev, status.st_ino
    if here in above:
        raise UserError(f'{shown(folder)}: a link to a folder that it is in')
    for entry in _entries(folder):
        if entry.name.startswith('.'):
            continue
        if entry.is_symlink() and not os.path.exists(entry.path):
            raise UserError(f'{shown(entry.path)}: a link that leads nowhere')
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
        log.log(level, '%s: skipped files: %s%s', shown(root), counts, plugin)


def _parts(where: str, held: Mapping[str, str]) -> dict[str, str]:
    """Of what is held by name, that of each split.

    Raises:
      UserError: a split has two.
    """
    found: dict[str, str] = {}
    for split, names in SPLITS.items():
        called = [name for name in names if name in held]
        if len(called) > 1:
            raise UserError(f'{shown(where)}: which is the {split} part, {" or ".join(called)}?')
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
        log.warning('%s: left out, for they are no part: %s', shown(root), ', '.join(map(shown, sorted(other))))
    if found and 'train' not in found:
        raise UserError(f'{shown(root)}: has a part {", ".join(found)}, and none to train on, which is '
                        f'called {" or ".join(SPLITS["train"])}; there are: {", ".join(map(shown, sorted(folders)))}')
    return found or {'train': root}


def _source(name: str, root: str, listed: Listed, order: Sequence[str] | None = None,
            names: Mapping[str, str] | None = None) -> Source:
    """The source of listed files.

    Args:
      name: of the layout.
      root: what paths are relative to.
      listed: of each split, paths and classes; of none, the class is `UNLABELLED`.
      order: the classes by label; without, those of the training part, sorted.
      names: what to call classes.

    Raises:
      UserError: nothing to train on, or a class that is not among them.
    """
    known = {split: [(path, _nfc(c)) for path, c in rows if c != UNLABELLED] for split, rows in listed.items()}
    for split, rows in listed.items():
        if len(rows) > len(known[split]):
            log.info('%s: %d images of the %s part carry no label and are left out', shown(root),
                     len(rows) - len(known[split]), split)
    classes = list(order or sorted({c for _, c in known['train']}, key=_natural))
    if not known['train']:
        raise UserError(f'{shown(root)}: holds no labelled images to train on; {_EXPECTED[name]}')
    if len(classes) < 2:
        raise UserError(f'{shown(root)}: holds the class {classes[0]!r} alone; a classifier needs two or more')
    label = {c: i for i, c in enumerate(classes)}
    if (tested := known.get('test')) and not any(c in label for _, c in tested):
        log.warning('%s: the test part is left out, for none of its classes (%s, ...) is one of the training part',
                    shown(root), shown(tested[0][1]))
        del known['test']
    digest = hashlib.sha256(os.fsencode(os.path.realpath(root)))
    for split, rows in known.items():
        for number, (path, c) in enumerate(rows):
            whole = os.path.join(root, path)
            if (stored := _as_stored(whole)) != whole:
                path = os.path.relpath(stored, root)
                rows[number] = path, c
            if c not in label:
                raise UserError(f'{shown(os.path.join(root, path))}: its class {c!r} is not one of the {len(classes)} '
                                'classes of the training part')
            try:
                status = os.stat(os.path.join(root, path))
            except (OSError, ValueError) as e:  # the latter for a name with a zero byte
                raise UserError(f'{shown(os.path.join(root, path))}: {getattr(e, "strerror", e)}') from e
            digest.update(os.fsencode(f'{split}\0{path}\0{c}\0{status.st_size}\0{status.st_mtime_ns}\n'))
    splits = {split: Files(root, [path for path, _ in rows], np.array([label[c] for _, c in rows], np.int32))
              for split, rows in known.items() if rows}
    called = _unique([(names or {}).get(c, c) for c in classes], classes)
    return Source(shown(root), key={'source': name, 'files': digest.hexdigest(), 'classes': classes, 'names': called},
                  splits={split: functools.partial(splits.__getitem__, split) for split in splits},
                  class_names=lambda: called)


def _unique(names: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Names to show; of those that more than one class has, each with the class."""
    printed = [shown(name) for name in names]
    return [name if printed.count(name) == 1 else f'{name} ({shown(c)})' for name, c in zip(printed, classes, strict=True)]


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
    root = _existing(config.dir, 'folder')
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
                images = [(image, name) for image in _images(root, entry.path, skipped)]
                listed[split] += images
                if not images:
                    log.warning('%s: holds no images, and is no class', shown(entry.path))
    _log_skipped(root, skipped)
    return _source('folder', root, listed)


def flat(config: DataConfig) -> Source:
    """`<root>/<split>/<label>_<id>.jpg`, or without splits; a label of -1, or none, means unlabelled."""
    root = _existing(config.dir, 'flat')
    skipped: collections.Counter[str] = collections.Counter()

    def label(path: str) -> str:
        name, _, rest = os.path.splitext(os.path.basename(path))[0].rpartition('_')
        return name if rest else UNLABELLED
    listed = {split: [(path, label(path) or UNLABELLED) for path in _images(root, where, skipped)]
              for split, where in _split_folders(root).items()}
    _log_skipped(root, skipped)
    return _source('flat', root, listed)


def table(config: DataConfig) -> Source:
    """A CSV file with the columns path, label and, if it likes, split; or a folder with `train.csv`, `val.csv`, `test.csv`.

    The cells are separated by a comma, a semicolon or a tab; a file in a folder may be called `train.tsv`, and so on, too.
    Paths are relative to the table's folder. A first row that names the columns may stand there in any order. A label of -1,
    NaN or nothing means unlabelled.
    """
    where = _existing(config.dir, 'csv')
    if os.path.isdir(where):
        files = _parts(where, {entry.name[:-4]: entry.path for ending in ('.tsv', '.csv') for entry in _entries(where)
                               if entry.name.lower().endswith(ending)})
        root = where
        if 'train' not in files:
            raise UserError(f'{where!r} holds no train.csv')
    else:
        files, root = {'train': where}, os.path.dirname(os.path.abspath(where))
    listed: Listed = {}
    first: dict[str, tuple[str, str]] = {}  # by path, the class of an image and where it is listed first
    repeated: collections.Counter[str] = collections.Counter()
    for split, file in files.items():
        for line, row_split, path, name in _rows(file, split):
            listed.setdefault(row_split, []).append((path, name))
            if name == UNLABELLED:
                continue
            name, place = _nfc(name), f'{file}: line {line}'
            earlier, where = first.setdefault(_nfc(os.path.normpath(path)), (name, place))
            if earlier != name:
                raise UserError(f'{shown(path)} has two labels: {shown(earlier)!r} in {where}, {shown(name)!r} in {place}')
            if where != place:
                repeated[f'{where} and {place}'] += 1
    if repeated:
        log.warning('%s: images that a second row lists: %d, as in %s', shown(root), repeated.total(), next(iter(repeated)))
    return _source('csv', root, {'train': [], **listed})


_COLUMNS = {'path': ('path', 'file', 'filename', 'file_name', 'image', 'image_path', 'id'),
            'label': ('label', 'class', 'category', 'target'), 'split': ('split', 'part', 'subset')}


def _rows(file: str, split: str) -> Iterator[tuple[int, str, str, str]]:
    """Line, split, path and class of each row of a table."""
    rows = tables.read_rows(file)
    columns = {'path': 0, 'label': 1}
    if rows:
        head = [cell.strip().lower() for cell in rows[0][1]]
        found = {what: [name for name in names if name in head] for what, names in _COLUMNS.items()}
        named = {what: head.index(names[0]) for what, names in found.items() if names}
        if 'path' in named:
            columns, rows = named, rows[1:]
            if 'label' not in columns and split != 'test':
                raise UserError(f'{file}: no column is called {", ".join(_COLUMNS["label"])}; there are: {", ".join(head)}')
    for number, row in rows:
        if len(row) <= max(columns.values()):
            raise UserError(f'{file}: line {number} has {len(row)} cells, expected {max(columns.values()) + 1} or more, '
                            'separated by a comma, a semicolon or a tab')
        where = row[columns['split']].strip().lower() if 'split' in columns else split
        part = next((s for s, names in SPLITS.items() if where in names), None)
        if part is None:
            raise UserError(f'{file}: line {number}: unknown split {where!r}; known: {", ".join(SPLITS)}')
        name = tables.label(row[columns['label']]) if 'label' in columns else ''
        yield number, part, row[columns['path']].strip(), name or UNLABELLED


def tiny_imagenet(config: DataConfig) -> Source:
    """The official `tiny-imagenet-200`: classes of `wnids.txt`, called as in `words.txt`; `val` is the test part."""
    root = _existing(config.dir, 'tiny_imagenet')
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
    listed: Listed = {'train': [(path, wnid) for wnid in wnids
                                for path in _images(root, os.path.join(root, 'train', wnid), skipped)],
                      'test': [(os.path.join('val', 'images', line[0]), line[1])
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


def arrays(config: DataConfig) -> Source:
    """An `.npz` file of `train_images`, `train_labels` (or `x_train`, `y_train`), and of `test` or `val`:
    images uint8 (N, H, W) or (N, H, W, C), labels whole numbers (N,); `class_names` if it likes."""
    path = _existing(config.dir, 'arrays')
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {key: file[key] for key in file.files}
    except Exception as e:  # zipfile, zlib and NumPy raise many kinds of error for damaged files
        reason = 'it is no .npz file' if not zipfile.is_zipfile(path) else " ".join(str(e).split())[:200]
        raise UserError(f'{path}: cannot be read as .npz without pickles: {reason}') from e
    splits: dict[str, InMemory] = {}
    used = {'class_names'}
    for split, called in SPLITS.items():
        for name in called:
            for images, labels in ((f'{name}_images', f'{name}_labels'), (f'x_{name}', f'y_{name}')):
                if images in held and labels in held:
                    if split in splits:
                        raise UserError(f'{path}: holds two {split} parts: {images} is the second')
                    with within(path):
                        splits[split] = _checked(images, held[images], labels, held[labels])
                    used |= {images, labels}
    if 'train' not in splits:
        raise UserError(f'{path}: holds no train_images and train_labels; there are: {", ".join(held) or "no arrays"}')
    if unused := sorted(held.keys() - used):
        log.warning('%s: ignored arrays, which are not images and labels of one part: %s', path, ', '.join(unused))
    with within(path):
        names = check_class_names(held['class_names']) if 'class_names' in held else _numbers(splits)
    return _in_memory('arrays', path, splits, names)


def _checked(images_name: str, images: np.ndarray, labels_name: str, labels: np.ndarray) -> InMemory:
    checked = check_images(images_name, images)
    return InMemory(checked, check_labels(labels_name, labels, len(checked)))


def _numbers(splits: Mapping[str, InMemory]) -> list[str]:
    """Class names of labels that have none: the numbers from 0 to the largest label.

    Raises:
      UserError: the labels cannot be numbers of classes.
    """
    largest = max(int(part.labels.max(initial=0)) for part in splits.values())
    if largest >= max(1000, len(splits['train'])):  # numbers of another kind; so many names might not fit in memory
        raise UserError(f'the largest label is {largest}, of {len(splits["train"])} training images, and labels must number '
                        f'the classes from 0; {number_classes("labels")}')
    return [str(label) for label in range(largest + 1)]


def _in_memory(name: str, where: str, splits: Mapping[str, InMemory], names: Sequence[str]) -> Source:
    if len(names) < 2:
        raise UserError(f'{where}: holds one class alone; a classifier needs two or more')
    digest = hashlib.sha256()
    for split, part in splits.items():
        for array in (part.images, part.labels):
            digest.update(f'{split} {array.dtype} {array.shape}'.encode())
            digest.update(np.ascontiguousarray(array).data)
    return Source(where, key={'source': name, 'content': digest.hexdigest(), 'names': [*names]},
                  splits={split: functools.partial(splits.__getitem__, split) for split in splits},
                  class_names=lambda: names)


def idx(config: DataConfig) -> Source:
    """MNIST's own files, `train-images-idx3-ubyte.gz` and so on, compressed or not."""
    root = _existing(config.dir, 'idx')
    paths = {}
    for split, name in (('train', 'train'), ('test', 't10k')):
        for what, suffix in (('images', 'images-idx3-ubyte'), ('labels', 'labels-idx1-ubyte')):
            found = [os.path.join(root, f'{name}{dot}{suffix}{end}') for dot in '-.' for end in ('', '.gz')]
            path = next((p for p in found if os.path.isfile(p)), None)
            if path is None:
                raise UserError(f'{root!r} holds no {name}-{suffix}.gz')
            paths[split, what] = path
    with within(root):
        splits = {split: _checked(f'{split} images', _idx(paths[split, 'images']),
                                  f'{split} labels', _idx(paths[split, 'labels'])) for split in ('train', 'test')}
    return _in_memory('idx', root, splits, _numbers(splits))


def _idx(path: str) -> np.ndarray:
    """An IDX file of bytes, as LeCun's page describes it."""
    try:
        with (gzip.open if path.endswith('.gz') else open)(path, 'rb') as f:
            content = f.read()
        zeros, kind, dimensions = struct.unpack_from('>HBB', content)
        shape = struct.unpack_from(f'>{dimensions}I', content, 4)
    except (OSError, EOFError, struct.error, zlib.error) as e:
        raise UserError(f'{path}: cannot be read: {getattr(e, "strerror", None) or e}') from e
    data = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
    if zeros or kind != 8 or data.size != np.prod(shape, dtype=np.int64):
        raise UserError(f'{path}: is not a whole IDX file of bytes')
    return data.reshape(shape)


for _layout in (folder, flat, tiny_imagenet, idx, arrays):
    add_source(_layout.__name__, _layout)
add_source('csv', table)
