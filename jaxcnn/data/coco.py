"""The layout of images with boxes in COCO's JSON files."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxcnn.config import DataConfig
from jaxcnn.data import tables
from jaxcnn.data.box_files import SKIP_BOX_HINT, AnnotatedImage, BoxListing, make_box_source
from jaxcnn.data.image_files import SPLITS, existing_path, is_hidden, list_entries, log
from jaxcnn.data.sources import Source, register
from jaxcnn.data.targets import BOXES
from jaxcnn.errors import UserError, as_text, counted

_EXPECTED = 'JSON files whose names contain train, val and test, and folders of images'
_OTHER_FILES = ('captions_', 'person_keypoints_', 'image_info_', 'panoptic_', 'stuff_')  # files of COCO without boxes


def coco(config: DataConfig) -> Source:
    """Return the source of a folder with a JSON file for each split, as in COCO, or of one such file.

    The files are in the folder itself, in `annotations` or in another folder, such as `train`. The name of a file or its
    folder contains that of the split, as in `instances_train2017.json`. A `file_name` is relative to the folder of the JSON
    file, to the data set's folder, to `images`, or to a folder in one of these that has the name of the split, such as
    `train2017`. The classes are the categories in the order of their ids. Objects with `iscrowd` are difficult.

    Raises:
      UserError: a file cannot be read, the categories of two files differ, an annotation names an unknown image or
        category, or an image is missing.
    """
    path = existing_path(config.dir, 'coco')
    if os.path.isdir(path):
        root, files = path, _find_files(path)
    else:
        root, files = os.path.dirname(os.path.abspath(path)), {'train': path}
    listing: BoxListing = {}
    first_categories: dict[int, str] = {}
    for split, file in files.items():
        content = _read_json(file)
        categories = _categories(content, file)
        first_categories = first_categories or categories
        if categories != first_categories:
            raise UserError('has other categories than the training split', field=as_text(file),
                            hint='the same ids must have the same names: ' + _first_difference(first_categories, categories))
        listing[split] = _read_images(content, root, split, file, categories, config)
    names = [first_categories[category_id] for category_id in sorted(first_categories)]
    return make_box_source('coco', root, listing, config, _EXPECTED, names)


def _first_difference(first: Mapping[int, str], second: Mapping[int, str]) -> str:
    """Return the first id that two sets of categories have different names for."""
    category_id = min(i for i in {*first, *second} if first.get(i) != second.get(i))
    return f'{category_id} is {first.get(category_id)!r} there, and {second.get(category_id)!r} here'


def _split_of(name: str) -> str | None:
    """Return the split whose name is a word in the name of a file or folder, for example `train` in `train2017`."""
    words = re.split(r'[^a-z]+', name.lower())
    return next((split for split, split_names in SPLITS.items() if any(word in split_names for word in words)), None)


def _find_files(root: str) -> dict[str, str]:
    """Return the JSON file of each split in a folder.

    Raises:
      UserError: there is none to train on, or there are two of one split.
    """
    folders = [root, *(entry.path for entry in list_entries(root) if entry.is_dir() and not is_hidden(entry))]
    paths = [entry.path for folder in folders for entry in list_entries(folder)
             if entry.name.endswith('.json') and not is_hidden(entry) and not entry.name.startswith(_OTHER_FILES)]
    files: dict[str, str] = {}
    for path in paths:
        split = _split_of(os.path.basename(path)) or _split_of(os.path.basename(os.path.dirname(path)))
        if split in files:
            raise UserError(f'holds two files of the {split} split: {as_text(os.path.relpath(files[split], root))} and '
                            f'{as_text(os.path.relpath(path, root))}', field=as_text(root), hint='remove one of them')
        if split:
            files[split] = path
    if not files and len(paths) == 1:
        return {'train': paths[0]}
    if 'train' not in files:
        names = ', '.join(as_text(os.path.relpath(path, root)) for path in paths[:5])
        raise UserError('holds no JSON file of the train split', field=as_text(root),
                        hint=f'expected {_EXPECTED}; its JSON files are: {names or "none"}')
    return {split: files[split] for split in SPLITS if split in files}


def _read_json(file: str) -> dict[str, list[dict[str, Any]]]:
    """Return the content of a JSON file of COCO.

    Raises:
      UserError: the file is not JSON, or lacks one of the lists of objects that describe boxes.
    """
    try:
        content = json.loads(tables.read_text(file))
    except (ValueError, RecursionError) as e:
        raise UserError(f'cannot be read as JSON: {e}', field=as_text(file)) from e
    for name in ('images', 'annotations', 'categories'):
        values = content.get(name) if isinstance(content, dict) else None
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise UserError(f'has no list {name!r}, which files of COCO have', field=as_text(file))
    return content


def _categories(content: Mapping[str, list[dict[str, Any]]], file: str) -> dict[int, str]:
    """Return the names of the categories by their ids."""
    categories: dict[int, str] = {}
    for category in content['categories']:
        category_id, name = category.get('id'), category.get('name')
        if not isinstance(category_id, int) or not isinstance(name, str) or category_id in categories:
            raise UserError(f'the category {json.dumps(category)[:80]} has no id or name of its own', field=as_text(file))
        categories[category_id] = name
    return categories


def _read_images(content: Mapping[str, list[dict[str, Any]]], root: str, split: str, file: str,
                 categories: Mapping[int, str], config: DataConfig) -> list[AnnotatedImage]:
    """Return the images in a file with their boxes.

    Raises:
      UserError: an image has no id or name, or, without `config.skip_broken`, an annotation is wrong.
    """
    file_names = [entry['file_name'] for entry in content['images'] if isinstance(entry.get('file_name'), str)]
    folder = os.path.relpath(_image_folder(root, split, file, file_names), root)
    images: dict[Any, AnnotatedImage] = {}
    for entry in content['images']:
        image_id, name = entry.get('id'), entry.get('file_name')
        if not isinstance(image_id, int | str) or not isinstance(name, str) or image_id in images:
            raise UserError(f'the image {json.dumps(entry)[:80]} has no id or file_name of its own', field=as_text(file))
        images[image_id] = image = AnnotatedImage(os.path.normpath(os.path.join(folder, name)), file)
        width, height = entry.get('width'), entry.get('height')
        if isinstance(width, int) and isinstance(height, int) and width and height:
            image.size = width, height
    problems = []
    for annotation in content['annotations']:
        image_id = annotation.get('image_id')
        if not isinstance(image_id, int | str) or image_id not in images:
            problems.append(UserError(f'annotation {annotation.get("id")} is of the image {image_id!r}, which is not in the '
                                      'list of images', field=as_text(file)))
            continue
        try:
            _add_object(annotation, images[image_id], categories, file)
        except UserError as e:
            images[image_id].leave_out(e, config)
    if problems and not config.skip_broken:
        problems[0].add_hint(SKIP_BOX_HINT)
        raise problems[0]
    if problems:
        log.warning('%s: skipped %s of the %s split, for example: %s', as_text(root), counted(len(problems), 'annotation'),
                    split, problems[0])
    return list(images.values())


def _add_object(annotation: Mapping[str, Any], image: AnnotatedImage, categories: Mapping[int, str], file: str) -> None:
    """Add the object of an annotation to its image.

    Raises:
      UserError: its category is unknown, or its box is not four numbers.
    """
    name, box, category_id = f'annotation {annotation.get("id")}', annotation.get('bbox'), annotation.get('category_id')
    if not isinstance(category_id, int) or category_id not in categories:
        ids = ', '.join(map(str, sorted(categories)[:20])) + ', ...' * (len(categories) > 20)
        raise UserError(f'{name} has the category_id {category_id!r}, which is none of the categories',
                        field=as_text(file), hint=f'their ids are: {ids or "none"}')
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, int | float) for value in box):
        raise UserError(f'{name} has the bbox {json.dumps(box)[:60]}, expected [x, y, width, height]', field=as_text(file))
    x, y, width, height = box
    image.add((x, y, x + width, y + height), categories[category_id], bool(annotation.get('iscrowd')))


def _image_folder(root: str, split: str, file: str, file_names: Sequence[str]) -> str:
    """Return the first folder that holds one of the first images, or else the most likely folder; see `coco`."""
    parents = [path for path in dict.fromkeys([os.path.dirname(os.path.abspath(file)), root, os.path.join(root, 'images')])
               if os.path.isdir(path)]
    split_folders = [entry.path for parent in parents for entry in list_entries(parent)
                     if entry.is_dir() and _split_of(entry.name) == split]
    folders = [*split_folders, *reversed(parents)]
    return next((folder for folder in folders
                 if any(os.path.isfile(os.path.join(folder, name)) for name in file_names[:100])), folders[0])


register(coco, targets=BOXES.name, fields=())
