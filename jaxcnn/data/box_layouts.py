"""Layouts of images with boxes: Pascal VOC.

`config.data.dir` is the folder, `config.data.name` the layout. Coordinates are those of the edges of pixels: a box over
all of an image is `0, 0, width, height`.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from jaxcnn.config import DataConfig
from jaxcnn.data import picture, tables
from jaxcnn.data.box_files import AnnotatedImage, Box, BoxListing, make_box_source
from jaxcnn.data.image_files import compose_unicode, existing_path, list_entries
from jaxcnn.data.sources import Source, register
from jaxcnn.data.targets import BOXES
from jaxcnn.errors import UserError, as_text

_VOC_EXPECTED = 'Annotations/*.xml, JPEGImages/* and, for splits, ImageSets/Main/train.txt, val.txt and test.txt'
# by split, the possible names of its file in ImageSets/Main, of which the first that exists is read
_VOC_SETS = {'train': ('train', 'trainval'), 'val': ('val',), 'test': ('test',)}
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
    width, height = (root.findtext(f'size/{side}', '').strip() for side in ('width', 'height'))
    if width.isdecimal() and height.isdecimal() and int(width) and int(height):  # some tools write 0
        image.size = int(width), int(height)
    for number, element in enumerate(root.findall('object'), 1):
        name = element.findtext('name', '').strip()
        if not name:
            raise UserError(f'object {number} has no name', field=as_text(path))
        texts = {side: element.findtext(f'bndbox/{side}', '') for side in ('xmin', 'ymin', 'xmax', 'ymax')}
        x0, y0, x1, y1 = box = parse_box(texts, f'object {number} ({as_text(name)})', as_text(path))
        if x1 > x0 and y1 > y0:  # boxes with equal coordinates have been drawn without an area, and are no single pixels
            box = x0 - 1, y0 - 1, x1, y1
        image.add(box, name, element.findtext('difficult', '').strip() == '1')


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


register(voc, targets=BOXES.name)
register(functools.partial(voc, sets=_VOC_TRAINVAL_SETS, name='voc_trainval'), name='voc_trainval', targets=BOXES.name)
