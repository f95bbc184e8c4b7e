"""The page of a data set: what is there before training."""

import csv
import dataclasses
import json
import os
from collections.abc import Iterable, Sequence

import numpy as np

from jaxcnn import config as cfg
from jaxcnn.analysis.figures import warn_on_error
from jaxcnn.analysis.markdown import escape, figure, to_html
from jaxcnn.data import sources
from jaxcnn.data.targets import BOXES, LABEL, TargetKind
from jaxcnn.data_report import duplicates as dup
from jaxcnn.data_report import figures, findings, samples
from jaxcnn.data_report.findings import Report
from jaxcnn.data_report.survey import survey
from jaxcnn.errors import UserError, counted, from_os_error
from jaxcnn.files import open_replacement

PAGE, NUMBERS, PAIRS = 'data.html', 'data.json', 'duplicates.csv'
_MAX_NAMES = 5  # examples of a kind of files
_MAX_PAIRS = 24  # in a sheet
_MAX_CLASS_ROWS = 20  # of the most and of the least frequent classes
_MAX_BOXES = 1 << 20


def make_report(config: cfg.DataConfig, kind: TargetKind, max_images: int = 0,
                source: sources.Source | None = None) -> Report:
    """Read the images of a data set, and return what is in them.

    Args:
      config: names the data set.
      kind: the kind of targets of its task.
      max_images: number of images of each split that are read, drawn at random; 0: all.
      source: the data set, instead of the one that the config names.

    Raises:
      UserError: the data set is unknown or missing, or none of its images can be read.
    """
    # broken images and boxes are counted instead of ending the command
    lenient = dataclasses.replace(config, skip_broken=True, max_boxes=_MAX_BOXES)
    source = source or sources.find(lenient, kind)
    class_names = source.class_names()
    surveys = survey(source, class_names, max_images, samples.SEED)
    failures = [failure for split in surveys.values() for failure in split.failures]
    if not any(len(split.records) for split in surveys.values()):
        reason = f'; the first: {failures[0].reason}' if failures else ''
        raise UserError(f'none of the {counted(len(failures), "image")} can be read{reason}', field=source.location)
    return Report(config, source, class_names, surveys, dup.find(surveys))


def make_folder(folder: str) -> None:
    """Create the folder of a page.

    Raises:
      UserError: it cannot be created.
    """
    try:
        os.makedirs(os.path.join(folder, 'figures'), exist_ok=True)
    except OSError as e:
        raise from_os_error(e, folder) from e


def write_report(report: Report, folder: str, title: str, with_json: bool = False) -> str:
    """Write the page `data.html`, its figures, `duplicates.csv` and, if wanted, `data.json`; return the path of the page.

    Raises:
      UserError: the folder cannot be written.
    """
    make_folder(folder)
    try:
        _write_pairs(report, os.path.join(folder, PAIRS))
        if with_json:
            with open_replacement(os.path.join(folder, NUMBERS)) as file:
                json.dump(findings.numbers(report), file, indent=1)
        writer = _Writer(report, os.path.join(folder, 'figures'))
        text = '\n'.join([f'# {escape(title)}', '', *writer.lines(), ''])
        path = os.path.join(folder, PAGE)
        with open_replacement(path) as file:
            file.write(to_html(text, title, folder))
    except OSError as e:
        raise from_os_error(e, folder) from e
    return path


def summary(report: Report) -> list[str]:
    """Return the lines for the terminal: the warnings, and a line for each split."""
    lines = [f'warning: {line}' for line in findings.warnings(report)] or ['no warnings']
    for name, split in report.surveys.items():
        records = split.records
        examined = '' if split.num_examined == split.size else f', {split.num_examined:,} examined'
        sizes = _range_of_sizes(records['height'], records['width']) if len(records) else 'none can be read'
        objects = '' if split.objects is None else f', {counted(len(split.objects.rows), "object")}'
        lines.append(f'{name}: {counted(split.size, "image")}{examined}, {sizes}{objects}')
    lines.append(f'normalize: {report.normalize()}')
    return lines


def _range_of_sizes(heights: np.ndarray, widths: np.ndarray) -> str:
    low, high = f'{heights.min()} x {widths.min()}', f'{heights.max()} x {widths.max()}'
    return f'{low} pixels (height x width)' if low == high else f'from {low} to {high} pixels (height x width)'


def _write_pairs(report: Report, path: str) -> None:
    """Write all pairs of duplicates as a table."""
    with open_replacement(path, newline='') as file:
        table = csv.writer(file)
        table.writerow(['kind', 'distance', 'labels', 'split 1', 'image 1', 'label 1', 'split 2', 'image 2', 'label 2'])
        for kind, pairs in report.duplicates.pairs.items():
            for i in report.duplicates.order(kind):
                images = [report.duplicates.image(positions[i]) for positions in (pairs.first, pairs.second)]
                agreement = 'differ' if report.duplicates.conflicts[kind][i] else 'agree'
                cells = [cell for image in images for cell in (image.split, report.image_name(*image), report.label(*image))]
                table.writerow([kind, int(pairs.distance[i]), agreement, *cells])


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return a table in Markdown; the cells are escaped."""
    def line(cells: Iterable[str]) -> str:
        return f'| {" | ".join(cells)} |'
    return [line(head), line(['---'] * len(head)), *(line(escape(str(cell)) for cell in row) for row in rows), '']


class _Writer:
    """Writes the sections of the page, and their figures into a folder."""

    def __init__(self, report: Report, folder: str):
        self.report, self.folder = report, folder

    def lines(self) -> list[str]:
        """Return the page in Markdown, without its title."""
        sections = [('Before training', self.overview), ('Sizes', self.sizes), ('Files', self.files),
                    ('Odd and unreadable images', self.odd_images), ('Classes', self.classes)]
        if self.report.source.kind is BOXES:
            sections.append(('Boxes', self.objects))
        sections += [('Duplicates', self.duplicates), ('Mean and standard deviation', self.statistics),
                     ('Random images', self.random_images)]
        return [line for title, write in sections for line in (f'## {title}', '', *write(), '')]

    def _figure_path(self, name: str) -> str:
        return os.path.join(self.folder, f'{name}.png')

    def overview(self) -> list[str]:
        """Return the warnings and a table of the splits."""
        report = self.report
        lines = [f'- **{escape(kind)}:** {escape(text.strip())}' for kind, _, text in (
            line.partition(':') for line in findings.warnings(report))]
        rows = [[name, f'{split.size:,}', f'{split.num_examined:,}', f'{len(split.failures):,}',
                 f'{np.count_nonzero(split.class_counts):,}', _format_bytes(int(split.records['num_bytes'].sum()))]
                for name, split in report.surveys.items()]
        if 'val' not in report.surveys and report.val_fraction:
            lines += ['', f'{100 * report.val_fraction:g} % of the training images are held out at random for validation.']
        return [*(lines or ['There are no warnings.']), '', f'Source: {escape(report.source.location)}.', '',
                *_table(['split', 'images', 'examined', 'unreadable', 'classes', 'size of the examined files'], rows)]

    def sizes(self) -> list[str]:
        """Return the smallest, the median and the largest image of each split, and the figure of their distributions."""
        report, rows = self.report, []
        shapes = set()
        for name, split in report.surveys.items():
            r = split.records
            if not len(r):
                continue
            area = r['height'].astype(np.int64) * r['width']
            order = np.argsort(area, kind='stable')
            shapes |= {*zip(r['height'].tolist(), r['width'].tolist(), strict=True)}
            rows += [[name, which, f'{r["height"][i]} x {r["width"][i]}', report.image_name(name, i)]
                     for which, i in (('smallest', order[0]), ('median', order[len(order) // 2]), ('largest', order[-1]))]
        if len(shapes) == 1:
            (height, width), = shapes
            return [f'All images have {height} x {width} pixels (height x width).']
        with warn_on_error(path := self._figure_path('sizes')):
            figures.draw_sizes(report.surveys, path)
        return [f'{len(shapes):,} different sizes, as viewers show the images (after the EXIF orientation).', '',
                *_table(['split', 'by area', 'height x width', 'image'], rows), figure(self.folder, 'sizes')]

    def files(self) -> list[str]:
        """Return a table of the formats and the sizes of files."""
        rows = []
        for name, split in self.report.surveys.items():
            r = split.records
            for image_format in np.unique(r['format'][r['format'] != '']):
                sizes = r['num_bytes'][r['format'] == image_format]
                rows.append([name, image_format, f'{len(sizes):,}',
                             *map(_format_bytes, np.quantile(sizes, (0, 0.5, 1)).astype(int).tolist())])
        if not rows:
            return ['The images are not in files of their own.']
        return _table(['split', 'format', 'files', 'smallest', 'median', 'largest'], rows)

    def odd_images(self) -> list[str]:
        """Return tables of the images that could not be read, and of those with unusual properties, with examples."""
        report, lines = self.report, []
        if failures := report.failures():
            lines += _table(['unreadable', 'images', 'examples'], (
                [kind, f'{len(images):,}', _listed([reason if name in reason else f'{name}: {reason}'
                                                    for name, reason in images])]
                for kind, images in failures.items()))
        if odd := report.odd_images():
            lines += _table(['property', 'images', 'what it means', 'examples'], (
                [kind, ', '.join(f'{len(rows):,} {split}' for split, rows in by_split.items()), findings.MEANINGS[kind],
                 _listed([report.image_name(split, row) for split, rows in by_split.items() for row in rows])]
                for kind, by_split in odd.items()))
        return lines or ['There are none.']

    def classes(self) -> list[str]:
        """Return the number of images of each class; of many classes, the most and the least frequent ones."""
        report, lines = self.report, []
        counts = {name: split.class_counts for name, split in report.surveys.items()}
        with warn_on_error(path := self._figure_path('classes')):
            figures.draw_class_counts(counts, report.class_names, path, 'images')
        if not all(split.counts_all for split in report.surveys.values()):
            lines += ['The numbers are those of the examined images.', '']
        if report.source.kind is not LABEL:
            lines += ['An image counts once for each of its classes.', '']
        num_classes, order = len(report.class_names), np.argsort(-counts['train'], kind='stable')
        if num_classes > 2 * _MAX_CLASS_ROWS and all((values == values[0]).all() for values in counts.values()):
            equal = ', '.join(f'{values[0]:,} {name}' for name, values in counts.items())
            return [figure(self.folder, 'classes'), '', *lines, f'Each of the {num_classes:,} classes has {equal} images.']
        if num_classes > 2 * _MAX_CLASS_ROWS:
            order = np.concatenate([order[:_MAX_CLASS_ROWS], order[-_MAX_CLASS_ROWS:]])
            lines += [f'The {_MAX_CLASS_ROWS} most and the {_MAX_CLASS_ROWS} least frequent of {num_classes:,} classes:', '']
        total = max(1, int(counts['train'].sum()))
        rows = [[report.class_names[c], *(f'{values[c]:,}' for values in counts.values()),
                 f'{100 * counts["train"][c] / total:.2f} %'] for c in order]
        return [figure(self.folder, 'classes'), '', *lines, *_table(['class', *counts, 'share of train'], rows)]

    def objects(self) -> list[str]:
        """Return the number and the sizes of boxes."""
        report, class_names = self.report, self.report.class_names
        objects = {name: split.objects for name, split in report.surveys.items() if split.objects is not None}
        with warn_on_error(path := self._figure_path('boxes')):
            figures.draw_objects(report.surveys, class_names, path)
        counts = {name: np.bincount(o.classes, minlength=len(class_names)) for name, o in objects.items()}
        with warn_on_error(path := self._figure_path('boxes_by_class')):
            figures.draw_class_counts(counts, class_names, path, 'boxes')
        splits = [[name, f'{len(o.rows):,}', f'{len(o.rows) / max(len(report.surveys[name].records), 1):.1f}',
                   f'{np.bincount(o.rows, minlength=1).max():,}',
                   f'{len(report.surveys[name].records) - len(np.unique(o.rows)):,}', f'{int(o.difficult.sum()):,}',
                   f'{len(o.problems):,}'] for name, o in objects.items()]
        boxes, classes, difficult = (np.concatenate([getattr(o, name) for o in objects.values()])
                                     for name in ('boxes', 'classes', 'difficult'))
        sides, rows = boxes[:, 2:] - boxes[:, :2], []
        order = [c for c in np.argsort(-np.bincount(classes, minlength=len(class_names)), kind='stable')
                 if (classes == c).any()]
        for c in order[:2 * _MAX_CLASS_ROWS]:
            width, height = np.median(sides[classes == c], 0)
            rows.append([class_names[c], *(f'{values[c]:,}' for values in counts.values()),
                         f'{int(difficult[classes == c].sum()):,}', f'{height:.0f} x {width:.0f}'])
        return [*_table(['split', 'boxes', 'boxes per image', 'most in an image', 'images without boxes', 'difficult',
                         'wrong'], splits), figure(self.folder, 'boxes'), '', figure(self.folder, 'boxes_by_class'), '',
                *_table(['class', *(f'{name} boxes' for name in counts), 'difficult', 'median height x width'], rows)]

    def duplicates(self) -> list[str]:
        """Return the number of duplicates within and between splits, and sheets of the most important pairs."""
        report, duplicates = self.report, self.report.duplicates
        counts = duplicates.counts()
        note = findings.search_note(report)
        lines = [note, ''] if note else []
        if not counts:
            return [*lines, 'There are none among the examined images.']
        lines += _table(['kind', 'splits', 'pairs', 'images of the second split', 'pairs with different labels'], (
            [count.kind, f'within {count.first}' if count.first == count.second else f'{count.first} and {count.second}',
             f'{count.num_pairs:,}', f'{count.num_images:,}', f'{count.num_conflicts:,}'] for count in counts))
        lines += ['Exact duplicates have equal pixels. Near duplicates have similar perceptual hashes and thumbnails; look '
                  f'at them before you delete any. `{PAIRS}` lists all pairs.', '']
        for kind, pairs in duplicates.pairs.items():
            order = duplicates.order(kind)[:_MAX_PAIRS]
            if not len(order):
                continue
            with warn_on_error(path := self._figure_path(f'{kind}_duplicates')):
                self._draw_pairs(kind, order, path)
            heading = {dup.EXACT: 'Exact duplicates', dup.NEAR: 'Near duplicates'}[kind]
            number = 'All pairs' if len(order) == len(pairs.first) else f'{len(order)} of {len(pairs.first):,} pairs'
            lines += [f'### {heading}', '', f'{number}, those with different labels first, in an orange frame.', '',
                      figure(self.folder, f'{kind}_duplicates'), '']
        return lines

    def _draw_pairs(self, kind: str, order: np.ndarray, path: str) -> None:
        report, duplicates = self.report, self.report.duplicates
        pairs, conflicts = duplicates.pairs[kind], duplicates.conflicts[kind]
        images, titles = [], []
        for i in order:
            both = [duplicates.image(positions[i]) for positions in (pairs.first, pairs.second)]
            images += [(image.split, int(report.surveys[image.split].records['index'][image.row])) for image in both]
            names = [os.path.basename(report.image_name(*image)).removeprefix(f'{image.split} ') for image in both]
            lines = [line for image, name in zip(both, names, strict=True)
                     for line in (f'{image.split}: {name}', f'    {report.label(*image)}')]
            titles.append('\n'.join([*lines, 'labels differ'] if conflicts[i] else lines))
        thumbnails = figures.read_images(report.source, images,
                                         lambda _, image: figures.thumbnail(image, figures.PAIR_SIDE))
        figures.draw_pairs(thumbnails, titles, [bool(conflicts[i]) for i in order], path)

    def statistics(self) -> list[str]:
        """Return the statistics of the training images, as a setting to copy."""
        statistics = self.report.statistics()
        if statistics is None:
            return ['No training image could be read.']
        mean, std = statistics
        names = ('red', 'green', 'blue') if len(mean) == 3 else ('grey',)
        return [*_table(['channel', 'mean', 'standard deviation'], (
            [name, f'{m:.4f}', f'{s:.4f}'] for name, m, s in zip(names, mean, std, strict=True))),
            'Of the training images, of pixels in [0, 1], where each image counts equally, whatever its size. '
            "`data.normalize='standardize'` computes them again from the images as they are resized; as constants:", '',
            '```', f"normalize='{self.report.normalize()}'", '```']

    def random_images(self) -> list[str]:
        """Return sheets of random training images of each class and, in detection, of images with their boxes."""
        report, lines, names = self.report, [], ['random_images']
        if report.source.kind is BOXES:
            with warn_on_error(path := self._figure_path('examples')):
                samples.draw_examples_with_boxes(report, path)
            lines += [figure(self.folder, 'examples'), '', 'Random objects of each class, cut out:', '']
        with warn_on_error(path := self._figure_path(names[0])):
            names = [os.path.basename(sheet).removesuffix('.png') for sheet in samples.draw_classes(report, path)]
        return [*lines, *(line for name in names for line in (figure(self.folder, name), ''))]


def _listed(texts: Sequence[str]) -> str:
    """Return the first texts of a list on one line."""
    return ', '.join(texts[:_MAX_NAMES]) + ', ...' * (len(texts) > _MAX_NAMES)


def _format_bytes(count: int) -> str:
    for unit, size in (('GB', 1e9), ('MB', 1e6), ('kB', 1e3)):
        if count >= size:
            return f'{count / size:.1f} {unit}'
    return f'{count} B' if count else '-'
