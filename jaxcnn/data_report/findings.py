"""The numbers of a survey, and what to know about the data before training."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxcnn import config as cfg
from jaxcnn.data.sources import Source
from jaxcnn.data_report import duplicates as dup
from jaxcnn.data_report.files import ORIENTATION, PROPERTIES
from jaxcnn.data_report.near_duplicates import MAX_PAIRS
from jaxcnn.data_report.survey import MIN_HASHED_SIDE, SplitSurvey, can_hash, image_name
from jaxcnn.errors import counted

MAX_IMBALANCE = 10.0
MAX_ASPECT_RATIO = 3.0  # of the longer to the shorter side
MAX_TINY_SIDE = 32  # pixels
_GREY, _ASPECT, _TINY = 'grey among colour', f'longer side over {MAX_ASPECT_RATIO:g} times the shorter', 'tiny'
# by property that is not one of a file, its meaning
_IMAGE_PROPERTIES = {
    _GREY: 'its channels are equal; a network may tell classes apart by the missing colour',
    _ASPECT: 'resize=crop loses most of it, squash distorts it, pad leaves little of it',
    _TINY: f'its shorter side is below {MAX_TINY_SIDE} pixels and a quarter of the median; it holds little to learn from',
}
MEANINGS = {**PROPERTIES, **_IMAGE_PROPERTIES}


@dataclasses.dataclass(frozen=True)
class Report:
    """A survey with what follows from it.

    Attributes:
      config: the config of the data.
      source: the data set.
      class_names: names of its classes.
      surveys: the survey of each split.
      duplicates: the images that occur more than once.
    """

    config: cfg.DataConfig
    source: Source
    class_names: Sequence[str]
    surveys: Mapping[str, SplitSurvey]
    duplicates: dup.Duplicates

    def image_name(self, split: str, row: int) -> str:
        """Return the name of the image of a record."""
        return image_name(self.source, split, int(self.surveys[split].records['index'][row]))

    def label(self, split: str, row: int) -> str:
        """Return the classes of the image of a record, with the number of objects if there are several."""
        counts = collections.Counter(self.surveys[split].classes[row])
        names = [self.class_names[c] + f' x{count}' * (count > 1) for c, count in counts.items()]
        return ', '.join(names) or 'no class'

    @property
    def train(self) -> SplitSurvey:
        """The survey of the training split."""
        return self.surveys['train']

    @property
    def is_subset(self) -> bool:
        """Whether only a random subset of the images was examined."""
        return any(split.num_examined < split.size for split in self.surveys.values())

    @property
    def val_fraction(self) -> float:
        """The fraction of the training images that is held out for validation."""
        if self.config.val_fraction is None:
            return 0.0 if 'val' in self.surveys else self.source.val_fraction
        return self.config.val_fraction

    def odd_images(self) -> dict[str, dict[str, np.ndarray]]:
        """Return the rows of the images with each of the `MEANINGS` that occur, by split."""
        records = {name: split.records for name, split in self.surveys.items()}
        joined = np.concatenate([*records.values()])
        if not len(joined):
            return {}
        tiny_side = min(MAX_TINY_SIDE, np.median(np.minimum(joined['height'], joined['width'])) / 4)
        checks: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            name: functools.partial(_has_property, bit) for bit, name in enumerate(PROPERTIES)}
        if not joined['is_grey'].all():
            checks[_GREY] = lambda r: r['is_grey']
        checks[_ASPECT] = lambda r: _longer(r) > MAX_ASPECT_RATIO * _shorter(r)
        checks[_TINY] = lambda r: _shorter(r) < tiny_side
        images = {name: {split: rows for split, r in records.items() if len(rows := np.flatnonzero(check(r)))}
                  for name, check in checks.items()}
        return {name: rows for name, rows in images.items() if rows}

    def failures(self) -> dict[str, list[tuple[str, str]]]:
        """Return the images that could not be read by kind of failure: the name of each, and the reason."""
        kinds: dict[str, list[tuple[str, str]]] = {}
        for name, split in self.surveys.items():
            for failure in split.failures:
                kinds.setdefault(failure.kind, []).append((image_name(self.source, name, failure.index), failure.reason))
        return kinds

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Return the mean and the standard deviation of each channel of the training images, of pixels in [0, 1].

        Each image has the same weight, whatever its size. None if no image could be read.
        """
        records = self.train.records
        if not len(records):
            return None
        channels = int(records['channels'].max())
        mean = records['mean'].mean(0)[:channels]
        std = np.sqrt(np.maximum(records['mean_square'].mean(0)[:channels] - mean ** 2, 0))
        return tuple(mean.tolist()), tuple(np.where(std > 1e-6, std, 1.0).tolist())

    def normalize(self) -> str:
        """Return the value of `config.data.normalize` with the statistics of the training images as constants."""
        statistics = self.statistics()
        if statistics is None:
            return 'standardize'
        texts = [', '.join(f'{value:.4f}' for value in values) for values in statistics]
        return f'standardize({", ".join(f"({text})" if "," in text else text for text in texts)})'


def _has_property(bit: int, records: np.ndarray) -> np.ndarray:
    """Return whether each record has the property of `files.PROPERTIES` at this position."""
    return (records['properties'] >> bit & 1) > 0


def _shorter(records: np.ndarray) -> np.ndarray:
    return np.minimum(records['height'], records['width'])


def _longer(records: np.ndarray) -> np.ndarray:
    return np.maximum(records['height'], records['width'])


def _percent(count: int, total: int) -> str:
    return f'{100 * count / max(total, 1):.2g} %'


# ---- warnings


def warnings(report: Report) -> list[str]:
    """Return what to know before training, the most important first."""
    return [*_leaks(report), *_conflicts(report), *_failures(report), *_wrong_boxes(report), *_class_problems(report),
            *_imbalance(report), *_shapes(report), *_incomplete_search(report)]


def _leaks(report: Report) -> list[str]:
    """Return the duplicates between splits, also between the training images and those that are held out of them."""
    lines = []
    for count in report.duplicates.counts():
        size = len(report.surveys[count.second].records)
        kind = {dup.EXACT: 'are also', dup.NEAR: 'have a near duplicate among the'}[count.kind]
        if count.first != count.second:
            lines.append(f'leak: {count.num_images:,} of {counted(size, f"{count.second} image")} '
                         f'({_percent(count.num_images, size)}) {kind} {count.first} images')
        elif count.first == 'train' and report.val_fraction:
            lines.append(f'leak: {count.num_images:,} of {counted(size, "training image")} have '
                         f'{"an exact copy" if count.kind == dup.EXACT else "a near duplicate"} in the same split, of which '
                         f'a random {100 * report.val_fraction:g} % is held out for validation, so that copies end up on '
                         'both sides')
    return lines


def _conflicts(report: Report) -> list[str]:
    counts = report.duplicates.counts()
    exact, near = (sum(count.num_conflicts for count in counts if count.kind == kind) for kind in (dup.EXACT, dup.NEAR))
    return [f'labels: they differ in {counted(number, "pair")} of {name}'
            for number, name in ((exact, 'images with equal pixels'), (near, 'near duplicates')) if number]


def _failures(report: Report) -> list[str]:
    kinds = report.failures()
    if not kinds:
        return []
    total = sum(map(len, kinds.values()))
    listed = ', '.join(f'{kind} ({len(images)})' for kind, images in kinds.items())
    consequence = ('they are skipped, because config.data.skip_broken is set' if report.config.skip_broken else
                   'training stops at the first of them, unless config.data.skip_broken=True')
    name, reason = next(iter(kinds.values()))[0]
    return [f'unreadable: {counted(total, "image")}: {listed}; {consequence}; for example '
            f'{reason if name in reason else f"{name}: {reason}"}']


def _wrong_boxes(report: Report) -> list[str]:
    objects = [split.objects for split in report.surveys.values() if split.objects is not None]
    if not objects:
        return []
    lines = []
    problems = [problem for split in objects for problem in split.problems]
    if problems:
        consequence = ('they are left out or clipped, because config.data.skip_broken is set' if report.config.skip_broken
                       else 'training stops at the first of them, unless config.data.skip_broken=True')
        lines.append(f'boxes: {len(problems):,} wrong; {consequence}; for example: {problems[0]}')
    most = max((int(np.bincount(split.rows).max()) for split in objects if len(split.rows)), default=0)
    if most > report.config.max_boxes:
        lines.append(f'boxes: an image has {most}, but config.data.max_boxes={report.config.max_boxes}; set it to {most} or '
                     'more')
    rotated = sum(int(((split.records['properties'] & ORIENTATION) > 0).sum()) for split in report.surveys.values())
    if rotated:
        lines.append(f'boxes: {counted(rotated, "image")} with an EXIF orientation other than 1; check that their boxes are '
                     'those of the upright image')
    return lines


def _class_problems(report: Report) -> list[str]:
    """Return classes without training images, and classes that another split lacks."""
    lines, counts = [], report.train.class_counts
    for name, split in report.surveys.items():
        missing = np.flatnonzero((split.class_counts == 0) & ((counts > 0) | (name == 'train')))
        if len(missing) and split.counts_all:
            names = ', '.join(report.class_names[c] for c in missing[:5]) + ', ...' * (len(missing) > 5)
            lines.append(f'classes: {len(missing)} of {len(counts)} have no {name} image: {names}')
    return lines


def _imbalance(report: Report) -> list[str]:
    """Return the largest ratio of the numbers of training images, or of boxes, of two classes, if it is large."""
    train, unit, advice = report.train, 'training images', "; compare with config.data.balance='sampling' or 'loss'"
    counts = train.class_counts
    if train.objects is not None:
        counts, unit, advice = np.bincount(train.objects.classes, minlength=len(counts)), 'training boxes', ''
    present = np.flatnonzero(counts)
    if not len(present) or not (train.counts_all or counts[present].min() >= MAX_IMBALANCE):
        return []  # the ratio of small counts in a random subset says little
    smallest, largest = int(present[counts[present].argmin()]), int(counts.argmax())
    ratio = counts[largest] / counts[smallest]
    if ratio <= MAX_IMBALANCE:
        return []
    return [f'imbalance: {report.class_names[largest]} has {counts[largest]:,} {unit} and {report.class_names[smallest]} '
            f'{counts[smallest]:,}, a ratio of {ratio:.3g}{advice if report.config.balance == "none" else ""}']


def _shapes(report: Report) -> list[str]:
    records = np.concatenate([split.records for split in report.surveys.values()])
    sizes = np.unique(np.stack([records['height'], records['width']], 1), axis=0)
    if len(sizes) > 1 and not report.config.image_size:
        return [f'sizes: images have {len(sizes):,} different sizes; training needs config.data.image_size']
    return []


def _incomplete_search(report: Report) -> list[str]:
    lines = []
    if not can_hash():
        lines.append("duplicates: near duplicates are not searched for: pip install 'jaxcnn[duplicates]'")
    if report.is_subset:
        lines.append('subset: only a random part of the images was examined, so that broken images and duplicates may be '
                     'more')
    return lines


def search_note(report: Report) -> str:
    """Return a sentence on what the search for near duplicates has left out; '' if it is nothing."""
    records = np.concatenate([split.records for split in report.surveys.values()])
    num_small = int((_shorter(records) < MIN_HASHED_SIDE).sum())
    if len(report.duplicates.pairs[dup.NEAR].first) >= MAX_PAIRS:
        return f'The search for near duplicates ended after {MAX_PAIRS:,} pairs.'
    if not num_small or not can_hash():
        return ''
    return (f'{num_small:,} of {counted(len(records), "image")} have a shorter side of less than {MIN_HASHED_SIDE} pixels, '
            'too small for a perceptual hash: only exact copies of them are searched for.')


# ---- numbers


def _quantiles(values: np.ndarray) -> dict[str, float]:
    return dict(zip(('min', 'median', 'max'), np.quantile(values, (0, 0.5, 1)).tolist(), strict=True)) if len(values) else {}


def _split_numbers(split: SplitSurvey) -> dict[str, Any]:
    records = split.records
    numbers = {
        'images': split.size, 'examined': split.num_examined, 'unreadable': len(split.failures),
        'height': _quantiles(records['height']), 'width': _quantiles(records['width']),
        'aspect_ratio': _quantiles(records['width'] / records['height']),
        'bytes': int(records['num_bytes'].sum()),
        'formats': dict(collections.Counter(records['format'][records['format'] != ''].tolist()).most_common()),
        'class_counts': split.class_counts.tolist(), 'class_counts_of_all_images': split.counts_all}
    if split.objects is not None:
        num_classes, objects = len(split.class_counts), split.objects
        sides = objects.boxes[:, 2:] - objects.boxes[:, :2]
        numbers['boxes'] = {
            'boxes': len(objects.rows), 'difficult': int(objects.difficult.sum()), 'wrong': len(objects.problems),
            'by_class': np.bincount(objects.classes, minlength=num_classes).tolist(),
            'in_an_image': _quantiles(np.bincount(objects.rows, minlength=len(records))),
            'width': _quantiles(sides[:, 0]), 'height': _quantiles(sides[:, 1])}
    return numbers


def numbers(report: Report) -> dict[str, Any]:
    """Return the numbers of the report as values for JSON."""
    mean, std = report.statistics() or ((), ())
    return {
        'name': report.config.name, 'location': report.source.location, 'class_names': list(report.class_names),
        'warnings': warnings(report),
        'splits': {name: _split_numbers(split) for name, split in report.surveys.items()},
        'odd_images': {name: {split: len(rows) for split, rows in by_split.items()}
                       for name, by_split in report.odd_images().items()},
        'unreadable': {kind: [name for name, _ in images] for kind, images in report.failures().items()},
        'duplicates': [count._asdict() for count in report.duplicates.counts()],
        'mean': list(mean), 'std': list(std), 'normalize': report.normalize()}
