"""Prepared TFDS data sets in ArrayRecord files, which are read through `tfds.data_source`, without TensorFlow."""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxcnn.data import picture
from jaxcnn.errors import UserError, name_field

# by the beginning of its name, data sets whose split 'test' has no labels
_WITHOUT_TEST_LABELS = ('imagenet2012', 'voc/2012', 'coco/')


@dataclasses.dataclass(frozen=True)
class TfdsExamples:
    """The examples of a split: `image`, uint8 (H, W, C), and `label`."""

    data_source: Any  # what `tfds.data_source` returns for a split

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.data_source[index]
        return {'image': example['image'], 'label': example['label']}


@dataclasses.dataclass(frozen=True)
class EncodedTfdsExamples:
    """The examples of a split, as in `TfdsExamples`, whose images are decoded as those in image files.

    Attributes:
      data_source: what `tfds.data_source` returns for a split, without decoding `image`.
      mode: `RGB` or, for images with one channel, `L`.
      name: the folder and the split, for errors.
    """

    data_source: Any
    mode: str
    name: str

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.data_source[index]
        with name_field(self.image_name(index)):
            pixels = picture.decode(example['image'], self.mode)
        return {'image': pixels.reshape(*pixels.shape[:2], -1), 'label': example['label']}

    def image_name(self, index: int) -> str:
        """Return the folder, the split and the number of an image."""
        return f'{self.name} image {index}'

    def encoded(self, index: int) -> bytes:
        """See `sources.EncodedExamples`."""
        return self.data_source[index]['image']

    def read_targets(self) -> dict[str, np.ndarray]:
        """See `sources.EncodedExamples`. All files of the split are read."""
        return {'label': np.array([self.data_source[index]['label'] for index in range(len(self))], np.int32)}


@dataclasses.dataclass(frozen=True)
class TfdsBoxExamples:
    """The examples of a split with boxes: `image`, uint8 (H, W, C), and what `targets.ObjectBoxes` takes."""

    data_source: Any  # what `tfds.data_source` returns for a split
    counts_from_one: bool  # whether the first pixel is 1, and the last ones belong to the box, as in Pascal VOC

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.data_source[index]
        height, width = example['image'].shape[:2]
        objects = example['objects']
        y0, x0, y1, x1 = np.asarray(objects['bbox'], np.float64).reshape(-1, 4).T * [[height], [width], [height], [width]]
        difficult = objects.get('is_difficult', objects.get('is_crowd'))
        return {'image': example['image'], 'classes': objects['label'], 'difficult': difficult,
                'boxes': np.stack([x0 - self.counts_from_one, y0 - self.counts_from_one, x1, y1], -1)}


@dataclasses.dataclass(frozen=True)
class PreparedDataset:
    """One version of a prepared data set.

    Attributes:
      name: name of the data set.
      path: the folder of the version, which holds `dataset_info.json`.
    """

    name: str
    path: str

    @property
    def version(self) -> str:
        """The version, such as `3.0.1`."""
        return os.path.basename(self.path)

    def files(self) -> list[list[Any]]:
        """Return the name, the size in bytes and the modification time in nanoseconds of each file."""
        names = sorted(os.listdir(self.path))
        stats = [os.stat(os.path.join(self.path, name)) for name in names]
        return [[name, s.st_size, s.st_mtime_ns] for name, s in zip(names, stats, strict=True)]

    def splits(self) -> dict[str, str]:
        """Return the names that TFDS gives to the splits `train` and, where there are any, `val` and `test`.

        Raises:
          UserError: there is no split to train on, or the folder cannot be read.
        """
        names = self._split_names()
        if 'train' not in names:
            raise UserError(f'has no split train; its splits are: {", ".join(names) or "none"}', field=self.path)
        # networks are tested on 'validation' if there is no split 'test' or, as in ImageNet, it has no labels
        candidates = ('validation',) if self.name.startswith(_WITHOUT_TEST_LABELS) else ('test', 'validation')
        test = next((name for name in candidates if name in names), None)
        val = 'validation' if test == 'test' and 'validation' in names else None
        return {split: name for split, name in {'train': 'train', 'val': val, 'test': test}.items() if name}

    def read(self, name: str) -> TfdsExamples | EncodedTfdsExamples:
        """Return the examples of a split, by the name that TFDS gives to it."""
        import tensorflow_datasets as tfds
        with self._raise_user_errors():
            feature = self._builder.info.features['image']
            if not isinstance(feature, tfds.features.Image) or feature.np_dtype != np.uint8:
                return TfdsExamples(self._builder.as_data_source(split=name))
            data_source = self._builder.as_data_source(split=name, decoders={'image': tfds.decode.SkipDecoding()})
            return EncodedTfdsExamples(data_source, 'L' if feature.shape[-1] == 1 else 'RGB', f'{self.path}: {name}')

    def read_boxes(self, name: str) -> TfdsBoxExamples:
        """Return the examples of a split with boxes, by the name that TFDS gives to it."""
        with self._raise_user_errors():
            return TfdsBoxExamples(self._builder.as_data_source(split=name), self.name.startswith('voc'))

    def box_class_names(self) -> Sequence[str]:
        """Return the names of the classes of objects in the order of their labels."""
        with self._raise_user_errors():
            return self._builder.info.features['objects']['label'].names

    def class_names(self) -> Sequence[str]:
        """Return the names of the classes in the order of their labels."""
        with self._raise_user_errors():
            features = dict(self._builder.info.features.items())
        if not hasattr(features.get('label'), 'names'):
            raise UserError(f'has no class label to train on; its features are: {", ".join(sorted(features))}',
                            field=self.path)
        return features['label'].names

    def _split_names(self) -> list[str]:
        try:
            with open(os.path.join(self.path, 'dataset_info.json'), encoding='utf-8') as f:
                return [split['name'] for split in json.load(f)['splits']]
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise UserError(f'cannot be read as a TFDS data set: dataset_info.json: {e}', field=self.path) from e

    @functools.cached_property
    def _builder(self) -> Any:
        import tensorflow_datasets as tfds
        return tfds.builder_from_directory(self.path)

    @contextlib.contextmanager
    def _raise_user_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as e:  # TFDS raises many kinds of errors for damaged files
            reason = f'{type(e).__name__}: {" ".join(str(e).split())[:200]}'
            raise UserError(f'cannot be read as a TFDS data set: {reason}', field=self.path) from e


def find_prepared(name: str, root: str) -> PreparedDataset:
    """Return the newest version of a prepared data set.

    Args:
      name: name of the data set.
      root: the folder of all prepared data sets.

    Raises:
      UserError: it is not prepared, or not in ArrayRecord files, or a library that reads it is not installed.
    """
    prepare = f'tfds build {name} --file_format=array_record --data_dir={root}'
    version = _newest_version(os.path.join(root, name))
    if version is None:
        raise UserError(f'data set {name!r} is not prepared in {root!r}',
                        hint=f"prepare it once: pip install 'jaxcnn[prepare]' && {prepare}")
    for library in ('tensorflow_datasets', 'array_record'):
        if importlib.util.find_spec(library) is None:
            raise UserError(f'data set {name!r} is read by {library}, which is not installed',
                            hint="pip install 'jaxcnn[tfds]'")
    path = os.path.join(root, name, version)
    if not any('array_record' in file for file in os.listdir(path)):
        raise UserError('holds no ArrayRecord files', field=path, hint=f'prepare it again: {prepare}')
    return PreparedDataset(name, path)


def _newest_version(folder: str) -> str | None:
    """Return the newest version of a prepared data set, the name of a folder in `folder`; None if there is none."""
    entries = os.listdir(folder) if os.path.isdir(folder) else []
    versions = [entry for entry in entries if os.path.isfile(os.path.join(folder, entry, 'dataset_info.json'))]
    return max(versions, key=lambda version: [int(n) if n.isdigit() else 0 for n in version.split('.')], default=None)
