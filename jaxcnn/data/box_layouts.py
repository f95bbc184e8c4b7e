"""Layouts of images with boxes: Pascal VOC, text files of YOLO, and tables. `coco` has that of COCO.

`config.data.dir` is the folder, `config.data.name` the layout. Coordinates are those of the edges of pixels: a box over
all of an image is `0, 0, width, height`.
"""

import collections
import functools
import os
import re
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from jaxcnn.config import DataConfig
from jaxcnn.data import picture, tables
from jaxcnn.data.box_files import AnnotatedImage, Box, BoxListing, make_box_source
from jaxcnn.data.classes import compose_unicode
from jaxcnn.data.image_files import (
    existing_path,
    find_images,
    find_split_folders,
    list_entries,
    log,
    log_skipped,
)
from jaxcnn.data.sources import Source, register
from jaxcnn.data.table_layouts import COLUMN_NAMES, configured_columns, find_tables, parse_split
from jaxcnn.data.targets import BOXES
from jaxcnn.errors import UserError, as_text, counted

_VOC_EXPECTED = 'Annotations/*.xml, JPEGImages/* and, for splits, ImageSets/Main/train.txt, val.txt and test.txt'
# by split, the possible names of its file in ImageSets/Main, of which the first that exists is read
_VOC_SETS = {'train': ('train', 'trainval'), 'val': ('val',), 'test': ('test',)}
_YOLO_EXPECTED = 'images/<split>/*, labels/<split>/*.txt, and the names of the classes in data.yaml or classes.txt'
_TABLE_EXPECTED = 'a table with the columns image, x0, y0, x1, y1 and class'
_CLASS_COLUMNS = (*COLUMN_NAMES['label'], 'class_name', 'name')
_BOX_COLUMNS = (('x0', 'y0', 'x1', 'y1'), ('x1', 'y1', 'x2', 'y2'), ('xmin', 'ymin', 'xmax', 'ymax'),
                ('x_min', 'y_min', 'x_max', 'y_max'), ('left', 'top', 'right', 'bottom'))
_VOC_TRAINVAL_SETS = {'train': ('trainval',), 'test': ('test',)}


# ---- Pascal VOC


def voc(config: DataConfig, sets: Mapping[str, Sequence[str]] = _VOC_SETS, name: str = 'voc') -> Source:
    """Return the source of a folder as in Pascal VOC: `Annotations/*.xml`, `JPEGImages/*` and `ImageSets/Main/*.txt`.

    The files `train.txt` (or `trainval.txt`), `val.txt` and `test.txt` list the names of the images of each split, without
    an extension. Without such files, all annotated images are training images. An object with `<difficult>1` is difficult.
    VOC counts pixels from 1, and `xmax` and `ymax` belong to the box: `xmin` 1 and `xmax` 5 are the edges 0 and 5.

    Args:
      config: names the folder.
      sets: by split, the names of its file, of which the first that exists is read.
      name: the name of the layout.

    Raises:
      UserError: a file is missing or broken, or an annotation is wrong.
    """
    root = existing_path(config.dir, name)
    folders = {entry.name.lower(): entry.path for entry in list_entries(root) if entry.is_dir()}
    annotations = folders.get('annotations')
    image_folder = folders.get('jpegimages') or folders.get('images')
    if not annotations or not image_folder:
        raise UserError('holds no folders Annotations and JPEGImages', field=as_text(root),
                        hint=f'expected {_VOC_EXPECTED}; its folders are: {", ".join(map(as_text, folders)) or "none"}')
    image_paths = {compose_unicode(os.path.splitext(entry.name)[0]): entry.path for entry in list_entries(image_folder)
                   if os.path.splitext(entry.name)[1].lower() in picture.endings()}
    listing: BoxListing = {}
    for split, lines in _voc_splits(root, annotations, sets).items():
        listing[split] = []
        for image_id, line in lines.items():
            annotation = os.path.join(annotations, f'{image_id}.xml')
            path = image_paths.get(compose_unicode(image_id), os.path.join(image_folder, image_id))
            image = AnnotatedImage(os.path.relpath(path, root), annotation)
            listing[split].append(image)
            try:
                if compose_unicode(image_id) not in image_paths:
                    raise UserError(f'names {image_id!r}, but {as_text(image_folder)} holds no such image', field=line)
                if not os.path.isfile(annotation):
                    raise UserError(f'names {image_id!r}, but {as_text(annotation)} does not exist', field=line)
                _read_voc_annotation(annotation, image)
            except UserError as e:
                image.skip(e, config)
    return make_box_source(name, root, listing, config, _VOC_EXPECTED)


def _voc_splits(root: str, annotations: str, sets: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
    """Return, for each split, the names of its images without an extension, and where each is listed, for errors."""
    folder = os.path.join(root, 'ImageSets', 'Main')
    paths = {split: [path for name in names if os.path.isfile(path := os.path.join(folder, f'{name}.txt'))]
             for split, names in sets.items()}
    if not any(paths.values()):
        if 'train' not in sets['train']:
            raise UserError(f'holds no {sets["train"][0]}.txt', field=as_text(folder))
        return {'train': {os.path.splitext(entry.name)[0]: as_text(entry.path) for entry in list_entries(annotations)
                          if entry.name.lower().endswith('.xml')}}
    if not paths['train']:
        raise UserError(f'holds no {" or ".join(f"{name}.txt" for name in sets["train"])}', field=as_text(folder))
    splits: dict[str, dict[str, str]] = {}
    for split, candidates in paths.items():
        if candidates:
            lines = tables.read_text(candidates[0]).splitlines()
            splits[split] = {line.strip(): f'{as_text(candidates[0])}: line {number}'
                             for number, line in enumerate(lines, 1) if line.strip()}
    if os.path.basename(paths['train'][0]) == 'trainval.txt':
        splits.pop('val', None)  # trainval.txt holds the images of val.txt, too
    return splits


def _read_voc_annotation(path: str, image: AnnotatedImage) -> None:
    """Add the objects and the size in an annotation file to an image.

    Raises:
      UserError: the file is not XML, or an object has no name or no coordinates.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as e:  # the last two for unknown encodings
        raise UserError(f'cannot be read as XML: {e}', field=as_text(path)) from e
    image.size = parse_size(root.findtext('size/width', ''), root.findtext('size/height', ''))
    for number, element in enumerate(root.findall('object'), 1):
        name = element.findtext('name', '').strip()
        if not name:
            raise UserError(f'object {number} has no name', field=as_text(path))
        texts = {side: element.findtext(f'bndbox/{side}', '') for side in ('xmin', 'ymin', 'xmax', 'ymax')}
        x0, y0, x1, y1 = box = parse_box(texts, f'object {number} ({as_text(name)})', as_text(path))
        if x1 > x0 and y1 > y0:  # boxes with equal coordinates have been drawn without an area, and are no single pixels
            box = x0 - 1, y0 - 1, x1, y1
        image.add(box, name, element.findtext('difficult', '').strip() == '1')


def parse_size(width: str, height: str) -> tuple[int, int] | None:
    """Return the size of an image; None if it is not given, for which some tools write 0."""
    if width.strip().isdecimal() and height.strip().isdecimal() and int(width) and int(height):
        return int(width), int(height)
    return None


def parse_box(texts: Mapping[str, str], name: str, field: str) -> Box:
    """Return the four numbers in texts.

    Args:
      texts: the texts by their names.
      name: names the object in errors.
      field: the file or the line, for errors.

    Raises:
      UserError: a text is not a number.
    """
    numbers = []
    for key, text in texts.items():
        try:
            numbers.append(float(text))
        except ValueError:
            raise UserError(f'{name} has no number for {key}: {text.strip()[:40]!r}', field=field) from None
    x0, y0, x1, y1 = numbers
    return x0, y0, x1, y1


# ---- YOLO


def yolo(config: DataConfig) -> Source:
    """Return the source of a folder with a text file for each image, as YOLO reads them.

    The images are `images/<split>/*` or `<split>/images/*`, or `images/*` without splits, and their text files have the
    same names in a folder `labels` instead of `images`. Each line holds the number of a class, the centre of the box, its
    width and its height, in fractions of the image. An image without a text file has no boxes. The names of the classes are
    in `data.yaml` (or another `.yaml` file) or, one on each line, in `classes.txt` or `labels/classes.txt`.

    Raises:
      UserError: the names of the classes or all text files are missing, or a line is wrong.
    """
    root = existing_path(config.dir, 'yolo')
    image_folder = os.path.join(root, 'images')
    skipped: collections.Counter[str] = collections.Counter()
    class_names = _yolo_class_names(root)
    listing: BoxListing = {}
    for split, split_folder in find_split_folders(image_folder if os.path.isdir(image_folder) else root).items():
        folder = os.path.join(split_folder, 'images')
        images = [AnnotatedImage(path, os.path.join(root, _yolo_label_path(path))) for path in
                  find_images(root, folder if os.path.isdir(folder) else split_folder, skipped)]
        listing[split] = images
        labelled = [image for image in images if os.path.isfile(image.annotation)]
        if images and not labelled:
            raise UserError(f'does not exist, nor does the file of any other image of the {split} split',
                            field=as_text(images[0].annotation), hint=f'expected {_YOLO_EXPECTED}')
        if len(labelled) < len(images):
            log.info('%s: %s of the %s split without a file of labels, and so without boxes', as_text(root),
                     counted(len(images) - len(labelled), 'image'), split)
        for image in labelled:
            try:
                _read_yolo_labels(image, class_names)
            except UserError as e:
                image.skip(e, config)
    log_skipped(root, skipped)
    return make_box_source('yolo', root, listing, config, _YOLO_EXPECTED, class_names, in_fractions=True)


def _yolo_label_path(path: str) -> str:
    """Return the path of the text file of an image: in `labels` instead of `images`, or else beside the image."""
    folder, name = os.path.split(path)
    parts = folder.split(os.sep)
    if 'images' in parts:
        parts[len(parts) - 1 - parts[::-1].index('images')] = 'labels'
    return os.path.join(*parts, f'{os.path.splitext(name)[0]}.txt')


def _yolo_class_names(root: str) -> list[str]:
    """Return the names of the classes in the order of their numbers.

    Raises:
      UserError: no file holds them, or it cannot be read.
    """
    for entry in sorted(list_entries(root), key=lambda entry: entry.name != 'data.yaml'):
        if entry.name.lower().endswith(('.yaml', '.yml')) and (names := _read_yaml_names(entry.path)):
            return names
    for path in (os.path.join(root, 'classes.txt'), os.path.join(root, 'labels', 'classes.txt')):
        if os.path.isfile(path):
            return [line.strip() for line in tables.read_text(path).splitlines() if line.strip()]
    raise UserError('holds no data.yaml or classes.txt with the names of the classes', field=as_text(root),
                    hint=f'expected {_YOLO_EXPECTED}')


def _read_yaml_names(path: str) -> list[str]:
    """Return the field `names` of a YAML file: a list, or names by their numbers from 0. Without the field, return []."""
    import yaml
    try:
        content = yaml.safe_load(tables.read_text(path))
    except yaml.YAMLError as e:
        raise UserError(f'cannot be read as YAML: {" ".join(str(e).split())[:200]}', field=as_text(path)) from e
    names = content.get('names') if isinstance(content, dict) else None
    if isinstance(names, dict):
        if sorted(map(str, names)) != sorted(map(str, range(len(names)))):
            raise UserError(f'the classes have the numbers {", ".join(map(str, names))}, expected 0 to {len(names) - 1}',
                            field=as_text(path))
        names = [names[number] for number in sorted(names, key=int)]
    return [str(name) for name in names] if isinstance(names, list) else []


def _read_yolo_labels(image: AnnotatedImage, class_names: Sequence[str]) -> None:
    """Add the objects in the text file of an image.

    Raises:
      UserError: the file cannot be read, or a line is not as described in `yolo`.
    """
    for number, line in enumerate(tables.read_text(image.annotation).splitlines(), 1):
        cells, name = line.split(), f'line {number}'
        if not cells:
            continue
        if len(cells) != 5 or not re.fullmatch(r'[0-9]+', cells[0]):
            raise UserError(f'{name} is {line.strip()[:60]!r}', field=as_text(image.annotation),
                            hint='expected the number of a class, x and y of the centre, width and height')
        texts = dict(zip(('x', 'y', 'width', 'height'), cells[1:], strict=True))
        x, y, width, height = parse_box(texts, name, as_text(image.annotation))
        label = int(cells[0])
        image.add((x - width / 2, y - height / 2, x + width / 2, y + height / 2),
                  class_names[label] if label < len(class_names) else str(label))


# ---- tables


def box_table(config: DataConfig) -> Source:
    """Return the source of a table with a box in each row, or of a folder with `train.csv`, `val.csv` and `test.csv`.

    Its columns are image, x0, y0, x1, y1 and class. If the first row names them, they may be in any order, the box may be
    called xmin, ymin, xmax, ymax, for example, and there may be columns split, difficult (0 or 1), and width and height of
    the image. A row without a box and a class lists an image without objects. Boxes are in pixels, and paths are relative to
    the folder of the table.

    Raises:
      UserError: a table cannot be read or is not as described, or an image is missing.
    """
    root, files = find_tables(existing_path(config.dir, 'csv'))
    listing: BoxListing = {'train': []}
    for default_split, file in files.items():
        columns, rows = _read_box_table(file, config)
        images: dict[tuple[str, str], AnnotatedImage] = {}
        for line, cells in rows:
            field = f'{as_text(file)}: line {line}'
            num_cells = max(columns.values()) + 1
            if len(cells) < num_cells:
                raise UserError(f'has {counted(len(cells), "cell")}, expected {num_cells} or more', field=field)
            row = {name: cells[index].strip() for name, index in columns.items()}
            split = parse_split(row['split'], field) if 'split' in row else default_split
            path = os.path.normpath(row['path'])
            if (split, path) not in images:
                images[split, path] = AnnotatedImage(path, field)
                listing.setdefault(split, []).append(images[split, path])
            try:
                _add_box_row(images[split, path], row, field)
            except UserError as e:
                images[split, path].skip(e, config)
    return make_box_source('csv', root, listing, config, _TABLE_EXPECTED)


def _read_box_table(file: str, config: DataConfig) -> tuple[dict[str, int], list[tuple[int, list[str]]]]:
    """Return the index of each column by its meaning, and the rows, each with its line number, of a table of boxes."""
    rows = tables.read_rows(file)
    head = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    alternatives = {'path': COLUMN_NAMES['path'], 'class': _CLASS_COLUMNS, 'split': COLUMN_NAMES['split'],
                    'difficult': ('difficult',), 'width': ('width', 'image_width'), 'height': ('height', 'image_height')}
    columns = {meaning: head.index(next(name for name in names if name in head))
               for meaning, names in alternatives.items() if any(name in head for name in names)}
    if rows:
        configured = configured_columns(file, [cell.strip() for cell in rows[0][1]], config.columns, 'train')
        columns |= {{'image': 'path', 'label': 'class'}.get(field, field): index for field, index in configured.items()}
    if 'path' not in columns:
        return {name: index for index, name in enumerate(('path', 'x0', 'y0', 'x1', 'y1', 'class'))}, rows
    box_names = next((names for names in _BOX_COLUMNS if all(name in head for name in names)), None)
    if box_names is None or 'class' not in columns:
        missing = 'a class' if box_names else 'x0, y0, x1 and y1'
        raise UserError(f'has no columns for {missing}', field=as_text(file), hint=f'its columns are: {", ".join(head)}')
    columns |= {name: head.index(box_name) for name, box_name in zip(('x0', 'y0', 'x1', 'y1'), box_names, strict=True)}
    return columns, rows[1:]


def _add_box_row(image: AnnotatedImage, row: Mapping[str, str], field: str) -> None:
    """Add the object in a row of a table to an image; `field` names the line in errors."""
    image.size = parse_size(row.get('width', ''), row.get('height', ''))
    texts = {side: row[side] for side in ('x0', 'y0', 'x1', 'y1')}
    class_name = tables.parse_label(row['class'])
    if not class_name and not any(texts.values()):
        return
    if not class_name:
        raise UserError('has a box, but no class', field=field)
    image.add(parse_box(texts, f'the box of class {class_name!r}', field), class_name, row.get('difficult') == '1')


register(voc, targets=BOXES.name, fields=('class_file',))
register(functools.partial(voc, sets=_VOC_TRAINVAL_SETS, name='voc_trainval'), name='voc_trainval', targets=BOXES.name,
         fields=('class_file',))
register(yolo, targets=BOXES.name, fields=())
register(box_table, name='csv', targets=BOXES.name)
