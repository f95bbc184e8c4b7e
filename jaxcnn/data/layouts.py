"""Layouts of image files: folders of classes, labels in file names, and Tiny-ImageNet.

`config.data.dir` is the folder, `config.data.name` the layout.
"""

import collections
import dataclasses
import os
import re

from jaxcnn.config import DataConfig
from jaxcnn.data import tables
from jaxcnn.data.classes import UNLABELLED
from jaxcnn.data.image_files import (
    ListedImage,
    Listing,
    existing_path,
    find_images,
    find_split_folders,
    is_hidden,
    kind_of_other_file,
    list_entries,
    log,
    log_skipped,
    make_file_source,
)
from jaxcnn.data.sources import Source, register
from jaxcnn.errors import UserError, as_text, counted

# layouts whose name does not say what the images show
GENERIC_LAYOUTS = ('folder', 'flat', 'csv', 'arrays', 'idx', 'webdataset', 'huggingface')
_UNLABELLED_FOLDERS = ('unlabeled', 'unlabelled')


def folder(config: DataConfig) -> Source:
    """Return the source of a folder with the images `<split>/<class>/*`, or `<class>/*` without splits.

    Folders within a class belong to the class. Images in a folder `unlabeled` have no label, and images beside the folders
    of classes are skipped and counted.
    """
    root = existing_path(config.dir, 'folder')
    skipped: collections.Counter[str] = collections.Counter()
    split_folders = find_split_folders(root)
    for path in dict.fromkeys([root, *split_folders.values()]):
        skipped.update(kind_of_other_file(entry) or 'images beside the class folders' for entry in list_entries(path)
                       if not entry.is_dir() and not is_hidden(entry))
    listing: Listing = {}
    for split, path in split_folders.items():
        listing[split] = []
        for entry in list_entries(path):
            if not entry.is_dir() or is_hidden(entry):
                continue
            classes = (UNLABELLED if entry.name.lower() in _UNLABELLED_FOLDERS else entry.name,)
            images = [ListedImage(image, classes) for image in find_images(root, entry.path, skipped)]
            listing[split] += images
            if not images:
                log.warning('%s: holds no images, so it is not a class', as_text(entry.path))
    log_skipped(root, skipped)
    return make_file_source('folder', root, listing, '<split>/<class>/<image>, or <class>/<image> (labels in file names: '
                            "config.data.name='flat')", config)


def flat(config: DataConfig) -> Source:
    """Return the source of a folder with the images `<split>/<label>_<id>.jpg`, or `<label>_<id>.jpg` without splits.

    In a name without an underscore, a dot may separate the label and a number, as in `cat.0.jpg`. An image whose label is
    missing or -1 is unlabelled.
    """
    def label_of(path: str) -> str:
        name = os.path.splitext(os.path.basename(path))[0]
        if '_' not in name and re.fullmatch(r'.+\.[0-9]+', name):
            return name.rpartition('.')[0]
        label, _, image_id = name.rpartition('_')
        return label if label and image_id else UNLABELLED
    root = existing_path(config.dir, 'flat')
    skipped: collections.Counter[str] = collections.Counter()
    listing: Listing = {split: [ListedImage(path, (label_of(path),)) for path in find_images(root, split_folder, skipped)]
                        for split, split_folder in find_split_folders(root).items()}
    log_skipped(root, skipped)
    return make_file_source('flat', root, listing, '<split>/<label>_<id>.jpg, or <label>_<id>.jpg (folders of classes: '
                            "config.data.name='folder')", config)


def tiny_imagenet(config: DataConfig) -> Source:
    """Return the source of the official `tiny-imagenet-200`, or of the folder that holds it.

    Its classes are those of `wnids.txt` with the names in `words.txt`; its split `val` is the test split.
    """
    root = existing_path(config.dir, 'tiny_imagenet')
    if not os.path.isfile(os.path.join(root, 'wnids.txt')):
        parent, root = root, os.path.join(root, 'tiny-imagenet-200')
        if not os.path.isdir(root):
            raise UserError(f'{parent!r} is not tiny-imagenet-200, and does not hold it')
    wnids = [row[0] for row in _read_tab_separated(root, 'wnids.txt', 1)]
    names = {row[0]: row[1].split(',')[0] for row in _read_tab_separated(root, 'words.txt', 2)}
    repeated = sorted(wnid for wnid, count in collections.Counter(wnids).items() if count > 1)
    if repeated:
        raise UserError(f'lists {", ".join(repeated[:3])} more than once', field=os.path.join(root, 'wnids.txt'))
    skipped: collections.Counter[str] = collections.Counter()
    train = [ListedImage(path, (wnid,)) for wnid in wnids
             for path in find_images(root, os.path.join(root, 'train', wnid), skipped)]
    test = [ListedImage(os.path.join('val', 'images', row[0]), (row[1],))
            for row in _read_tab_separated(root, os.path.join('val', 'val_annotations.txt'), 2)]
    log_skipped(root, skipped)
    source = make_file_source('tiny_imagenet', root, {'train': train, 'test': test},
                              'train/<wnid>/images/*.JPEG', classes=wnids, class_names=names)
    return dataclasses.replace(source, val_fraction=0.2)


def _read_tab_separated(root: str, name: str, num_cells: int) -> list[list[str]]:
    """Return the rows of a file, each with at least `num_cells` cells separated by tabs. Empty lines are skipped."""
    path = os.path.join(root, name)
    rows = [line.split('\t') for line in tables.read_text(path).replace('\r\n', '\n').split('\n') if line.strip()]
    for number, row in enumerate(rows, 1):
        if len(row) < num_cells:
            raise UserError(f'row {number} has {counted(len(row), "cell")} separated by tabs, expected {num_cells}',
                            field=path)
    return rows


register(folder, fields=('class_file',))
register(flat, fields=('class_file',))
register(tiny_imagenet, fields=())
