"""Classes of a data set: their names, their order, and the labels of images."""

import collections
import decimal
import difflib
import functools
import json
import logging
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxcnn.data import tables
from jaxcnn.data.targets import LABEL, TargetKind
from jaxcnn.errors import UserError, as_text, counted, name_field

UNLABELLED = '-1'
ClassNames = tuple[str, ...]  # names of an image's classes; `UNLABELLED` alone means that it has no label
log = logging.getLogger('jaxcnn')


def compose_unicode(name: str) -> str:
    """Return the composed form of a name, as `é` may be stored as one character or as `e` with a combining accent."""
    return unicodedata.normalize('NFC', name)


@functools.lru_cache(1 << 16)
def compose_names(names: ClassNames) -> ClassNames:
    """Return names in composed form. Images of the same classes share the result, which saves memory."""
    return tuple(map(compose_unicode, names))


def unique_names(names: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Return printable names of classes; a name that several classes have is followed by the class."""
    printed = [as_text(name) for name in names]
    counts = collections.Counter(printed)
    return [name if counts[name] == 1 else f'{name} ({as_text(c)})' for name, c in zip(printed, classes, strict=True)]


def natural_order(name: str) -> tuple:
    """Return a sort key that sorts numbers by their value, and before other names."""
    if re.fullmatch(r'-?[0-9]+(\.[0-9]+)?', name):
        return 0, decimal.Decimal(name), os.fsencode(name)
    return 1, 0, os.fsencode(name)


def read_class_file(path: str) -> list[str]:
    """Return the classes in the file that `config.data.class_file` names, in the order of their labels.

    The file has one name in each line, or it is JSON: a list of names, an object that gives the number of each name, or one
    that gives the name of each number.

    Raises:
      UserError: the file cannot be read, holds a name twice, or leaves out a number.
    """
    with name_field('config.data.class_file'):
        text = tables.read_text(os.path.expanduser(path))
        with name_field(as_text(path)):
            if text.lstrip()[:1] in ('[', '{'):
                numbered = _parse_json(text)
            else:
                lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
                numbered = [(f'line {number}', compose_unicode(name)) for number, name in lines if name]
            if not numbered:
                raise UserError('holds no names of classes')
            first: dict[str, str] = {}
            for place, name in numbered:
                if name in first:
                    raise UserError(f'holds the class {name!r} twice: {first[name]} and {place}', hint='remove one of them')
                first[name] = place
            return [*first]


def _parse_json(text: str) -> list[tuple[str, str]]:
    """Return the classes in JSON in the order of their numbers, each with its place in the file for errors."""
    try:
        content: Any = json.loads(text, object_pairs_hook=tuple)
    except ValueError as e:
        raise UserError(f'is not valid JSON: {e}', hint='write a JSON list of names, or one name in each line') from e
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return [(f'entry {i}', compose_unicode(name)) for i, name in enumerate(content)]
    pairs: Sequence[tuple[Any, Any]] = content if isinstance(content, tuple) else ()
    if pairs and all(isinstance(name, str) and key.isdecimal() for key, name in pairs):
        pairs = [(name, int(key)) for key, name in pairs]
    if not pairs or not all(type(number) is int for _, number in pairs):
        raise UserError('is JSON, but neither a list of names nor an object that gives the number of each name')
    numbers = sorted(number for _, number in pairs)
    wrong = next((i for i, number in enumerate(numbers) if number != i), None)
    if wrong is not None:
        is_repeated = numbers[wrong] == wrong - 1
        raise UserError(f'gives the number {numbers[wrong]} twice' if is_repeated else f'gives no class the number {wrong}',
                        hint=f'number the {len(pairs)} classes from 0 to {len(pairs) - 1}')
    return [(f'number {number}', compose_unicode(name)) for name, number in sorted(pairs, key=lambda pair: pair[1])]


def list_classes(location: str, train: Sequence[ClassNames], kind: TargetKind, expected: str, class_file: str = '',
                 default: Sequence[str] | None = None) -> list[str]:
    """Return the classes of a data set in the order of their labels.

    Args:
      location: the folder of the data set, for errors.
      train: the classes of each labelled image of the training split.
      kind: the kind of targets.
      expected: describes the layout, for errors.
      class_file: `config.data.class_file`, which gives the classes; '': there is none.
      default: the classes that the data set declares, in their order without that file; by default those of the training
        images, sorted.

    Raises:
      UserError: there is nothing to train on, or only one class; the file lacks a declared class; see also
        `read_class_file`.
    """
    if not train:
        raise UserError('holds no labelled images to train on', field=location, hint=f'expected {expected}')
    if class_file:
        classes = read_class_file(class_file)
        for name in default or ():
            if name not in classes:
                raise _missing_class(class_file, name, location, classes)
    else:
        classes = list(default or sorted({name for names in {*train} for name in names}, key=natural_order))
    if not classes:
        raise UserError('no training image has a class', field=location)
    if len(classes) < 2 and kind is LABEL:
        raise UserError(f'holds only the class {classes[0]!r}; a classifier needs two or more',
                        field='config.data.class_file' if class_file else location)
    return classes


def name_labels(labels: Sequence[str | int], kind: TargetKind, class_names: Sequence[str] | None,
                class_file: str = '') -> ClassNames:
    """Return the names of the classes of an image.

    Args:
      labels: names or numbers; -1 means that the image has no label.
      kind: the kind of targets.
      class_names: the names that numbers count, from 0; without them, a number is a name itself.
      class_file: `config.data.class_file`, if the names are from there, for errors.

    Raises:
      UserError: a number is too large, or there are several classes where the kind of targets allows one.
    """
    if kind is LABEL and len(labels) != 1:
        raise UserError(f'has {len(labels)} classes', hint="config.task='multilabel' takes several classes for each image")
    names = []
    for label in labels:
        if isinstance(label, str) or class_names is None or label == int(UNLABELLED):
            names.append(str(label))
        elif 0 <= label < len(class_names):
            names.append(class_names[label])
        else:
            raise UserError(f'its label {label} is not the number of one of the {len(class_names)} classes'
                            f'{f" in {as_text(class_file)}" if class_file else ""}', hint='they are numbered from 0')
    return compose_names(tuple(names))


def make_targets(location: str, images: Mapping[str, Sequence[ClassNames]], classes: Sequence[str], kind: TargetKind,
                 image_name: Callable[[str, int], str], class_file: str = '') -> dict[str, dict[str, np.ndarray]]:
    """Return the targets of each split, by name.

    A test split without any class of `classes` is left out, and this is logged.

    Args:
      location: the folder of the data set, for the log.
      images: the classes of each labelled image, by split.
      classes: the classes in the order of their labels.
      kind: the kind of targets.
      image_name: returns the name of an image, by split and index, for errors.
      class_file: `config.data.class_file`, if it gave the classes.

    Raises:
      UserError: the class of an image is not one of `classes`.
    """
    labels = {c: label for label, c in enumerate(classes)}
    targets = {}
    for split, split_images in images.items():
        names_in_split = {name: None for names in dict.fromkeys(split_images) for name in names}
        if split == 'test' and names_in_split and not names_in_split.keys() & labels.keys():
            log.warning('%s: skipped the test split, as none of its classes (%s, ...) is a class of %s', location,
                        as_text(next(iter(names_in_split))), class_file or 'the training split')
            continue
        for name in names_in_split:
            if name not in labels:
                index = next(i for i, names in enumerate(split_images) if name in names)
                field = image_name(split, index)
                if not class_file:
                    raise UserError(f'its class {name!r} is not one of the {len(labels)} classes of the training split',
                                    field=field)
                raise _missing_class(class_file, name, field, classes)
        if split_images:
            targets[split] = _targets(split_images, labels, kind)
    return targets


def _missing_class(class_file: str, name: str, location: str, classes: Sequence[str]) -> UserError:
    """Return the error for a class of the data that the file of classes lacks."""
    nearest = difflib.get_close_matches(name, classes, n=3)
    return UserError(f'{as_text(class_file)} lacks the class {name!r} of {location}', field='config.data.class_file',
                     hint=f'nearest: {", ".join(nearest)}' if nearest else 'add it to the file')


def _targets(images: Sequence[ClassNames], labels: Mapping[str, int], kind: TargetKind) -> dict[str, np.ndarray]:
    """Return the targets of images, by name."""
    if kind is LABEL:
        return {'label': np.fromiter((labels[names[0]] for names in images), np.int32, len(images))}
    label_sets = np.zeros((len(images), len(labels)), np.uint8)
    for row, names in enumerate(images):
        label_sets[row, [labels[name] for name in names]] = 1
    return {'labels': label_sets}


def log_unlabelled(location: str, num_skipped: int, split: str) -> None:
    """Log the number of images of a split that are skipped because they have no label."""
    if num_skipped:
        log.info('%s: skipped %s without a label in the %s split', location, counted(num_skipped, 'image'), split)
