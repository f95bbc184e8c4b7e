"""The layout of images that are listed in tables (CSV and the like), with one or several classes for each image."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from jaxcnn.config import ColumnsConfig, DataConfig
from jaxcnn.data import tables
from jaxcnn.data.classes import UNLABELLED, ClassNames, compose_names, compose_unicode
from jaxcnn.data.image_files import (
    SPLITS,
    ListedImage,
    Listing,
    existing_path,
    list_entries,
    log,
    make_file_source,
    paths_of_splits,
)
from jaxcnn.data.sources import Source, register
from jaxcnn.data.targets import LABELS
from jaxcnn.errors import UserError, as_text, counted, unknown

_EXPECTED = 'a table with a path and a label in each row'
# by the meaning of a column, its possible names in lower case
COLUMN_NAMES = {'path': ('path', 'file', 'filename', 'file_name', 'image', 'image_path', 'id'),
                 'label': ('label', 'class', 'category', 'target'), 'split': ('split', 'part', 'subset')}


class _Table(NamedTuple):
    """A table that lists images.

    Attributes:
      file: its path.
      head: the names of its columns; empty if the first row does not name them.
      columns: the indices of the columns `path`, `label` and `split`, as far as there are any.
      rows: the line number and the cells of each row below the head.
    """

    file: str
    head: list[str]
    columns: dict[str, int]
    rows: list[tuple[int, list[str]]]

    def other_columns(self) -> dict[int, str]:
        """Return the names of the other columns by their index."""
        return {i: name for i, name in enumerate(self.head) if i not in self.columns.values() and name}

    def indicator_columns(self) -> list[str]:
        """Return the names of the other columns that hold only 0 and 1, as columns of classes do."""
        return [name for i, name in self.other_columns().items() if self.rows and all(
            len(cells) > i and cells[i].strip() in ('0', '1') for _, cells in self.rows)]

    def name_line(self, line: int) -> str:
        """Return the name of a line for errors."""
        return f'{self.file}: line {line}'


class _Row(NamedTuple):
    """A row of a table that lists images."""

    line: int
    split: str
    path: str
    classes: tuple[str, ...]


def single_label_table(config: DataConfig) -> Source:
    """Return the source of a table of images that have one class each.

    It is a CSV file with the columns path, label and, optionally, split, or a folder with `train.csv`, `val.csv` and
    `test.csv`. Cells are separated by a comma, a semicolon or a tab, and a file in a folder may also be called `train.tsv`,
    for example. Paths are relative to the folder of the table. The first row may name the columns, which then may be in any
    order and, with `config.data.columns`, have any names. A label that is empty, -1 or NaN means that the image is
    unlabelled.

    Raises:
      UserError: the table cannot be read or is not as described, or an image is missing.
    """
    def parse_classes(cell: str, line: str) -> tuple[str, ...]:
        name = tables.parse_label(cell) or UNLABELLED
        if ';' in name:
            raise UserError(f'the label {name!r} names several classes', field=line,
                            hint="config.task='multilabel' takes several classes for each image")
        return (name,)

    def read_rows(table: _Table, split: str) -> Iterator[_Row]:
        indicator_columns = table.indicator_columns() if 'label' not in table.columns and split != 'test' else []
        if indicator_columns:
            raise UserError(f'has no column of labels, but columns of 0 and 1 ({", ".join(indicator_columns[:5])})',
                            field=table.file, hint="config.task='multilabel' takes a column of 0 and 1 for each class")
        return _label_rows(table, split, parse_classes)
    root, listing = _read_listing('csv', config, read_rows)
    return make_file_source('csv', root, listing, _EXPECTED, config)


def multilabel_table(config: DataConfig) -> Source:
    """Return the source of a table, as in `single_label_table`, of images that have any number of classes each.

    Either the column label holds the names of an image's classes separated by semicolons, as in `cat;dog`, or each class has
    a column of 0 and 1, which the first row names. An empty label means that the image has none of the classes. A label of
    -1 or NaN means that it is unlabelled.

    Raises:
      UserError: the table cannot be read or is not as described, or an image is missing.
    """
    def parse_classes(cell: str, line: str) -> tuple[str, ...]:
        if cell.strip() and not tables.parse_label(cell):
            return (UNLABELLED,)
        names = map(tables.parse_label, cell.split(';'))
        return tuple(dict.fromkeys(name for name in names if name))

    classes_by_file: dict[str, list[str]] = {}  # of the tables that have a column of 0 and 1 for each class

    def read_rows(table: _Table, split: str) -> Iterator[_Row]:
        if not table.head and any(len(cells) > 2 for _, cells in table.rows):
            raise UserError('the first row must name the columns: path, and label or the classes', field=table.file)
        if 'label' in table.columns or config.columns.label:
            indicator_columns = [] if config.columns.label else table.indicator_columns()
            if indicator_columns:
                raise UserError(f'has both a column {table.head[table.columns["label"]]!r} of names and columns of 0 and 1 '
                                f'({", ".join(indicator_columns[:5])})', field=table.file,
                                hint='remove one of the two kinds of labels')
            return _label_rows(table, split, parse_classes)
        class_columns = table.other_columns()
        if not class_columns:
            return _label_rows(table, split, parse_classes)
        classes_by_file[table.file] = _check_class_columns(table, class_columns, classes_by_file)
        return _indicator_rows(table, split, class_columns)
    root, listing = _read_listing('csv', config, read_rows)
    classes = next(iter(classes_by_file.values()), None)
    return make_file_source('csv', root, listing, _EXPECTED, config, classes, kind=LABELS)


def _check_class_columns(table: _Table, class_columns: Mapping[int, str],
                         classes_by_file: Mapping[str, list[str]]) -> list[str]:
    """Return the classes that have a column in a table.

    Raises:
      UserError: two columns have the same name, or the tables of other splits have other classes.
    """
    classes = list(class_columns.values())
    if len({*classes}) < len(classes):
        raise UserError('two columns have the same name', field=table.file,
                        hint=f'they are called {", ".join(table.head)}')
    for file, other_classes in classes_by_file.items():
        if {*classes} != {*other_classes}:
            raise UserError(f'has columns of the classes {", ".join(classes)}, but {file} of {", ".join(other_classes)}',
                            field=table.file, hint='the tables of all splits must have the same classes')
    return classes


def _read_listing(name: str, config: DataConfig, read_rows: Callable[[_Table, str], Iterator[_Row]]) -> tuple[str, Listing]:
    """List the images of a table, or of a folder of tables.

    Args:
      name: the name of the layout.
      config: names the table or the folder.
      read_rows: returns the rows of a table; its second argument is the split of rows that do not name one.

    Returns:
      The folder that the paths are relative to, and the images of each split.

    Raises:
      UserError: a table cannot be read, a row is wrong, or two rows give an image different labels.
    """
    root, files = find_tables(existing_path(config.dir, name))
    listing: Listing = {'train': []}
    # by path, the classes, and the table and the line where it is first listed
    first_rows: dict[str, tuple[ClassNames, _Table, int]] = {}
    repeated: list[str] = []
    for split, file in files.items():
        table = _read_table(file, split, config)
        for row in read_rows(table, split):
            listing.setdefault(row.split, []).append(ListedImage(row.path, row.classes))
            if row.classes == (UNLABELLED,):
                continue
            this_row = compose_names(row.classes), table, row.line
            first_row = first_rows.setdefault(compose_unicode(os.path.normpath(row.path)), this_row)
            if first_row is this_row:
                continue
            lines = [other_table.name_line(line) for _, other_table, line in (first_row, this_row)]
            if {*first_row[0]} != {*this_row[0]}:
                first_label, label = (as_text(';'.join(classes)) for classes, _, _ in (first_row, this_row))
                raise UserError(f'{as_text(row.path)} has two labels: {first_label!r} in {lines[0]}, '
                                f'{label!r} in {lines[1]}')
            repeated.append(' and '.join(lines))
    if repeated:
        log.warning('%s: %s, for example %s', as_text(root), counted(len(repeated), 'repeated row'), repeated[0])
    return root, listing


def find_tables(path: str) -> tuple[str, dict[str, str]]:
    """Return the folder that paths in a table are relative to, and the table of each split.

    Args:
      path: a table, which is that of the training split, or a folder of tables such as `train.csv`.

    Raises:
      UserError: the folder holds no table to train on.
    """
    if not os.path.isdir(path):
        return os.path.dirname(os.path.abspath(path)), {'train': path}
    files = paths_of_splits(path, {entry.name[:-4]: entry.path for ending in ('.tsv', '.csv') for entry in list_entries(path)
                                   if entry.name.lower().endswith(ending)})
    if 'train' not in files:
        raise UserError('holds no train.csv', field=path)
    return path, files


def parse_split(cell: str, field: str) -> str:
    """Return the split whose name is in a cell; `field` names the line in the error for an unknown name."""
    name = cell.strip().lower()
    split = next((split for split, split_names in SPLITS.items() if name in split_names), None)
    if split is None:
        raise UserError(f'unknown split {name!r}', field=field, hint=f'known: {", ".join(SPLITS)}')
    return split


def configured_columns(file: str, head: Sequence[str], columns: ColumnsConfig, split: str) -> dict[str, int]:
    """Return the indices of the columns that `config.data.columns` names, by field.

    Args:
      file: the path of the table, for errors.
      head: the cells of its first row.
      columns: the names.
      split: the split of the table; that of `test` may lack the column of labels.

    Raises:
      UserError: there is no column of a name.
    """
    indices = {}
    for field, name in dataclasses.asdict(columns).items():
        if name in head:
            indices[field] = head.index(name)
        elif name and (field, split) != ('label', 'test'):
            error = unknown('column', name, filter(None, head), f'config.data.columns.{field}')
            error.message = f'{as_text(file)} has no column {name!r}'
            raise error
    return indices


def _read_table(file: str, split: str, config: DataConfig) -> _Table:
    """Return a table, whose first row may name its columns; `split` is the split of rows that do not name one."""
    rows = tables.read_rows(file)
    if rows:
        head = [cell.strip() for cell in rows[0][1]]
        lower_head = [cell.lower() for cell in head]
        columns = {}
        for meaning, column_names in COLUMN_NAMES.items():
            present = [name for name in column_names if name in lower_head]
            if present:
                columns[meaning] = lower_head.index(present[0])
        configured = configured_columns(file, head, config.columns, split)
        columns |= {'path' if field == 'image' else field: index for field, index in configured.items()}
        if config.columns.label and 'label' not in configured:
            columns.pop('label', None)
        if 'path' in columns:
            return _Table(file, head, columns, rows[1:])
        if configured:
            raise UserError(f'no column is called {", ".join(COLUMN_NAMES["path"])}', field=as_text(file),
                            hint=f'config.data.columns.image names it; the columns are called {", ".join(head)}')
    return _Table(file, [], {'path': 0, 'label': 1}, rows)


def _make_row(table: _Table, default_split: str, line: int, cells: Sequence[str], classes: tuple[str, ...]) -> _Row:
    """Return a row of a table; `default_split` is its split if the table has no column for it."""
    columns = table.columns
    split = parse_split(cells[columns['split']] if 'split' in columns else default_split, table.name_line(line))
    return _Row(line, split, cells[columns['path']].strip(), classes)


def _check_cells(table: _Table, line: int, cells: Sequence[str], minimum: int) -> None:
    """Raise a UserError if a row has fewer than `minimum` cells, or more than the first row has names of columns."""
    if len(cells) < minimum:
        raise UserError(f'has {counted(len(cells), "cell")}, expected {minimum} or more', field=table.name_line(line),
                        hint='separate cells by a comma, a semicolon or a tab')
    if table.head and any(cell.strip() for cell in cells[len(table.head):]):
        raise UserError(f'has {counted(len(cells), "cell")}, but the first row names {counted(len(table.head), "column")}',
                        field=table.name_line(line), hint='put cells that hold a separator in double quotes')


def _label_rows(table: _Table, default_split: str,
                parse_classes: Callable[[str, str], tuple[str, ...]]) -> Iterator[_Row]:
    """Yield the rows of a table that names the classes in the column label.

    Args:
      table: the table. Only that of the split `test` may lack the column; its images are then unlabelled.
      default_split: the split of rows that do not name one.
      parse_classes: returns the classes in a cell; its second argument names the line in errors.
    """
    columns = table.columns
    if 'label' not in columns and default_split != 'test':
        raise UserError(f'no column is called {", ".join(COLUMN_NAMES["label"])}', field=table.file,
                        hint=f'config.data.columns.label names it; the columns are called {", ".join(table.head)}')
    for line, cells in table.rows:
        _check_cells(table, line, cells, max(columns.values()) + 1)
        classes: tuple[str, ...] = (UNLABELLED,)
        if 'label' in columns:
            classes = parse_classes(cells[columns['label']], table.name_line(line))
        yield _make_row(table, default_split, line, cells, classes)


def _indicator_rows(table: _Table, default_split: str, class_columns: Mapping[int, str]) -> Iterator[_Row]:
    """Yield the rows of a table that has a column of 0 and 1 for each class."""
    for line, cells in table.rows:
        _check_cells(table, line, cells, max([*table.columns.values(), *class_columns]) + 1)
        classes = []
        for i, name in class_columns.items():
            value = tables.parse_label(cells[i])
            if value not in ('0', '1'):
                raise UserError(f'the column {name!r} holds {cells[i]!r}', field=table.name_line(line),
                                hint='columns of classes hold 0 and 1: correct the cell, or remove the column')
            if value == '1':
                classes.append(name)
        yield _make_row(table, default_split, line, cells, tuple(classes))


register(single_label_table, name='csv')
register(multilabel_table, name='csv', targets='labels')
