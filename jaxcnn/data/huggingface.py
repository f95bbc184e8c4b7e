"""The layout of data sets that the library `datasets` of Hugging Face has saved to disk."""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from jaxcnn.config import DataConfig
from jaxcnn.data import picture
from jaxcnn.data.classes import (
    UNLABELLED,
    ClassNames,
    list_classes,
    log_unlabelled,
    make_targets,
    name_labels,
    read_class_file,
)
from jaxcnn.data.image_files import (
    SPLITS,
    UNLABELLED_NAMES,
    UNLABELLED_SPLIT,
    decode_example,
    existing_path,
    log,
    make_source,
    no_labels,
    paths_of_splits,
    with_unlabelled,
)
from jaxcnn.data.sources import Example, Source, register
from jaxcnn.data.table_layouts import COLUMN_NAMES
from jaxcnn.data.targets import LABEL, LABELS, TargetKind
from jaxcnn.errors import UserError, as_text, describe_exception, name_field, unknown

_EXPECTED = 'what save_to_disk of a Dataset or a DatasetDict of Hugging Face wrote'
_IMAGE_COLUMNS = ('image', 'img', 'picture', 'photo')
_LABEL_COLUMNS = (*COLUMN_NAMES['label'], 'labels', 'classes')


@dataclasses.dataclass(frozen=True)
class HuggingfaceExamples:
    """The examples of a split.

    Attributes:
      rows: a `datasets.Dataset` in the format `arrow`, whose only column holds the images; it is read through a memory map.
      indices: (N,) the rows of the images.
      name: the folder and the split, for errors.
      targets: one array (N, ...) for each target, by name.
    """

    rows: Any
    indices: np.ndarray
    name: str
    targets: Mapping[str, np.ndarray]
    mode: ClassVar[str] = 'RGB'

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return decode_example(self.encoded(index), self.image_name(index), self.targets, index)

    def image_name(self, index: int) -> str:
        """Return the folder, the split and the row of an image."""
        return f'{self.name} row {self.indices[index]}'

    def encoded(self, index: int) -> bytes:
        """See `sources.EncodedExamples`."""
        try:
            value = self.rows[int(self.indices[index])].column(0)[0].as_py()
        except Exception as e:  # pyarrow raises many kinds of errors for damaged files
            raise UserError(f'cannot be read: {describe_exception(e)}', field=self.image_name(index)) from e
        content = value['bytes'] if isinstance(value, dict) else value
        if content is None and isinstance(value, dict) and value['path']:
            with name_field(self.image_name(index)):
                return picture.read_file(value['path'])
        if not isinstance(content, bytes):
            raise UserError('holds no image', field=self.image_name(index))
        return content

    def read_targets(self) -> Mapping[str, np.ndarray]:
        """See `sources.EncodedExamples`."""
        return self.targets


def huggingface(config: DataConfig, kind: TargetKind = LABEL) -> Source:
    """Return the source of a `Dataset` or a `DatasetDict` that `save_to_disk` has written.

    The images are those of the only column of images, or of `config.columns.image`. Labels are those of a column `label`,
    `class` or similar, or of `config.columns.label`: `ClassLabel`s, whose names are in the order of their numbers; numbers,
    which count the names in `config.class_file`, if that is given; or names. A label of -1 or null means unlabelled. Without
    splits, all images are training data. Rows of the split `train` without a label, and a split `unlabelled` or
    `unsupervised`, are the images for pseudo-labels.

    Raises:
      UserError: the library is not installed, the folder cannot be read, a column is missing, or a label is wrong.
    """
    root = existing_path(config.dir, 'huggingface')
    class_names = read_class_file(config.class_file) if config.class_file else None
    digest = hashlib.sha256(json.dumps([os.path.realpath(root), dataclasses.asdict(config.columns)]).encode())
    rows: dict[str, Any] = {}
    indices: dict[str, np.ndarray] = {}
    image_classes: dict[str, list[ClassNames]] = {}
    declared: Sequence[str] | None = None
    unlabelled: list[HuggingfaceExamples] = []
    for split, dataset in _read_splits(root).items():
        location = f'{as_text(root)}: {split}'
        image_column, label_column = _find_columns(location, dataset, config, split)
        rows[split] = dataset.select_columns([image_column]).with_format('arrow')
        for file in dataset.cache_files:
            status = os.stat(file['filename'])
            name = os.path.relpath(file['filename'], root)
            digest.update(os.fsencode(f'{split}\0{name}\0{status.st_size}\0{status.st_mtime_ns}\n'))
        if split == UNLABELLED_SPLIT:
            unlabelled.append(HuggingfaceExamples(rows[split], np.arange(len(dataset)), location, no_labels(len(dataset))))
            continue
        names = _declared_names(dataset.features[label_column]) if label_column else None
        if split == 'train':
            declared = names
        row_classes = _read_classes(location, dataset, label_column, kind, names or class_names,
                                    '' if names else config.class_file)
        is_labelled = np.array([c != (UNLABELLED,) for c in row_classes], bool)
        log_unlabelled(as_text(root), int((~is_labelled).sum()), split)
        indices[split] = np.flatnonzero(is_labelled)
        image_classes[split] = [c for c in row_classes if c != (UNLABELLED,)]
        if split == 'train' and not is_labelled.all():
            others = np.flatnonzero(~is_labelled)
            unlabelled.append(HuggingfaceExamples(rows[split], others, location, no_labels(len(others))))
    classes = list_classes(as_text(root), image_classes['train'], kind, _EXPECTED, config.class_file, declared)
    targets = make_targets(as_text(root), image_classes, classes, kind, lambda split, index: (
        f'{as_text(root)}: {split} row {indices[split][index]}'), config.class_file)
    splits = {split: HuggingfaceExamples(rows[split], indices[split], f'{as_text(root)}: {split}', targets[split])
              for split in targets}
    source = make_source('huggingface', root, digest.hexdigest(), classes, splits, kind, {})
    return with_unlabelled(source, unlabelled, digest.hexdigest())


def _read_splits(root: str) -> dict[str, Any]:
    """Return the `datasets.Dataset` of each split.

    Raises:
      UserError: the library is not installed, the folder cannot be read, or there is no split to train on.
    """
    try:
        import datasets
    except ImportError as e:
        raise UserError("the layout 'huggingface' needs the library datasets", field='config.data.name',
                        hint="pip install 'jaxcnn[huggingface]'") from e
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_from_disk(root, keep_in_memory=False)
    except Exception as e:  # pyarrow and json raise many kinds of errors for damaged files
        raise UserError(f'cannot be read: {describe_exception(e)}', field=as_text(root), hint=f'expected {_EXPECTED}') from e
    if isinstance(loaded, datasets.Dataset):
        return {'train': loaded}
    splits = paths_of_splits(root, {name.lower(): name for name in loaded})
    if 'train' not in splits:
        raise UserError('has no split to train on', field=as_text(root), hint=f'expected a split called '
                        f'{" or ".join(SPLITS["train"])}; its splits are: {", ".join(loaded) or "none"}')
    splits.update((UNLABELLED_SPLIT, name) for name in loaded if name.lower() in UNLABELLED_NAMES)
    if others := sorted(set(loaded) - set(splits.values())):
        log.warning('%s: skipped splits with other names: %s', as_text(root), ', '.join(map(as_text, others)))
    return {split: loaded[name] for split, name in splits.items()}


def _find_columns(location: str, dataset: Any, config: DataConfig, split: str) -> tuple[str, str | None]:
    """Return the names of the columns of images and of labels; the test split may lack the second.

    Raises:
      UserError: there is no such column, or there are several.
    """
    import datasets
    features = dataset.features

    def find(field: str, candidates: Sequence[str], usual_names: Sequence[str]) -> str | None:
        name = getattr(config.columns, field)
        if name in features:
            return name
        if field == 'label' and split in ('test', UNLABELLED_SPLIT) and (name or not candidates):
            return None
        if name:
            error = unknown('column', name, features, f'config.data.columns.{field}')
            error.message = f'{location} has no column {name!r}'
            raise error
        usual = [name for name in usual_names if name in candidates]
        if len(candidates) == 1 or usual:
            return usual[0] if usual else candidates[0]
        problem = f'several columns could hold the {field}s' if candidates else f'no column holds {field}s'
        raise UserError(problem, field=location, hint=f'config.data.columns.{field} names the column; the columns are: '
                        f'{", ".join(candidates or features)}')
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    binary = [name for name, feature in features.items() if getattr(feature, 'dtype', '') in ('binary', 'large_binary')]
    image_column = find('image', images or binary, _IMAGE_COLUMNS)
    assert image_column is not None  # only labels may be missing
    labels = [name for name in _LABEL_COLUMNS if name in features]
    return image_column, find('label', labels or [name for name in features if _declared_names(features[name])], labels)


def _declared_names(feature: Any) -> list[str] | None:
    """Return the names of a `ClassLabel`, or of a list of them; None for another feature."""
    inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, 'feature', feature)
    return getattr(inner, 'names', None)


def _read_classes(location: str, dataset: Any, column: str | None, kind: TargetKind, class_names: Sequence[str] | None,
                  class_file: str) -> list[ClassNames]:
    """Return the classes of each row.

    Args:
      location: the folder and the split, for errors.
      dataset: the `datasets.Dataset` of the split.
      column: the column of labels; None if there is none.
      kind: the kind of targets.
      class_names: the names that numbers count; None if there are none.
      class_file: `config.data.class_file`, if the names are from there.

    Raises:
      UserError: a label is neither a name nor a number, or a number is too large.
    """
    if column is None:
        return [(UNLABELLED,)] * len(dataset)
    values = dataset.select_columns([column]).with_format('arrow')[:].column(column).to_pylist()
    classes = []
    for row, value in enumerate(values):
        labels = value if isinstance(value, list) else [UNLABELLED if value is None else value]
        with name_field(f'{location} row {row}'):
            wrong = next((label for label in labels if isinstance(label, bool) or not isinstance(label, (str, int))), None)
            if wrong is not None:
                raise UserError(f'has the label {wrong!r} in the column {column!r}; expected a name or a number')
            classes.append(name_labels(labels, kind, class_names, class_file))
    return classes


register(huggingface)
register(functools.partial(huggingface, kind=LABELS), name='huggingface', targets=LABELS.name)
