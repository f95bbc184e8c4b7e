"""Images that tables list: CSV and the like, with one class or several for each image."""

import collections
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from jaxcnn.config import DataConfig
from jaxcnn.data import tables
from jaxcnn.data.layouts import (
    SPLITS,
    UNLABELLED,
    Listed,
    by_split,
    compose,
    existing_path,
    list_entries,
    log,
    source_of_files,
)
from jaxcnn.data.sources import Source, register
from jaxcnn.data.targets import LABELS
from jaxcnn.errors import UserError, as_text


def table(config: DataConfig) -> Source:
    """Read a CSV file with the columns path, label and, optionally, split, or a folder of `train.csv`, `val.csv` and
    `test.csv`.

    The cells are separated by a comma, a semicolon or a tab; a file in a folder may be called `train.tsv`, and so on, too.
    Paths are relative to the table's folder. A first row that names the columns may stand there in any order. A label of -1,
    NaN or nothing means unlabelled.
    """
    def classes_of(cell: str, file: str, line: int) -> tuple[str, ...]:
        name = tables.parse_label(cell) or UNLABELLED
        if ';' in name:
            raise UserError(f'{file}: line {line}: the label {name!r} names several classes, which config.task=multilabel '
                            'takes; config.task=classification takes one class for each image')
        return (name,)
    root, listed = _listed_in_tables('csv', config, lambda table, split: _rows(table, split, classes_of))
    return source_of_files('csv', root, listed)


def multilabel_table(config: DataConfig) -> Source:
    """Read a table as `table` does whose images have any number of classes.

    Either the column label holds the names of an image's classes with semicolons between them, as in `cat;dog`, where an
    empty cell means that the image shows none of them; or each class has a column of 0 and 1, which the first row names.
    A label of -1 or NaN means unlabelled.
    """
    def classes_of(cell: str, file: str, line: int) -> tuple[str, ...]:
        if cell.strip() and not tables.parse_label(cell):
            return (UNLABELLED,)
        return tuple(dict.fromkeys(name for part in cell.split(';') if (name := tables.parse_label(part))))

    class_columns: dict[str, list[str]] = {}  # by file, the classes that have a column of 0 and 1

    def rows(table: _Table, split: str) -> Iterator[TableRow]:
        file, head, columns = table.file, table.head, table.columns
        if not head and any(len(row) > 2 for _, row in table.rows):
            raise UserError(f'{file}: the first row must name the columns: path, and label or the classes')
        others = {i: name for i, name in enumerate(head) if i not in columns.values() and name}
        if 'label' in columns:
            indicators = [name for i, name in others.items() if table.rows and all(
                len(row) > i and row[i].strip() in ('0', '1') for _, row in table.rows)]
            if indicators:
                raise UserError(f'{file}: has both a column {head[columns["label"]]!r} of names and columns of 0 and 1 '
                                f'({", ".join(indicators[:5])}): remove one of the two kinds of labels')
        if 'label' in columns or not others:
            return _rows(table, split, classes_of)
        classes = class_columns[file] = list(others.values())
        if len({*classes}) < len(classes):
            raise UserError(f'{file}: two columns have the same name; they are called {", ".join(head)}')
        first_file, first_classes = next(iter(class_columns.items()))
        if {*classes} != {*first_classes}:
            raise UserError(f'{file}: has columns of the classes {", ".join(classes)}, and {first_file} of '
                            f'{", ".join(first_classes)}; each part must have the same ones')
        return _indicator_rows(table, split, others)
    root, listed = _listed_in_tables('csv', config, rows)
    return source_of_files('csv', root, listed, next(iter(class_columns.values()), None), kind=LABELS)


class _Table(NamedTuple):
    """A table that lists images.

    Attributes:
      file: its path.
      head: the names of its columns; none where no first row names them.
      columns: where `path`, `label` and `split` are.
      rows: the lines and cells of the others.
    """

    file: str
    head: list[str]
    columns: dict[str, int]
    rows: list[tuple[int, list[str]]]


class TableRow(NamedTuple):
    """A row of a table that lists images."""

    line: int
    split: str
    path: str
    classes: tuple[str, ...]


def _listed_in_tables(name: str, config: DataConfig, rows: Callable[[_Table, str], Iterator[TableRow]]) -> tuple[
        str, Listed]:
    """The images that a table, or a folder of tables, lists, and the folder that their paths are relative to.

    Args:
      name: of the layout.
      config: names the table or the folder.
      rows: gives those of a table and the split of rows that name none.
    """
    path = existing_path(config.dir, name)
    if os.path.isdir(path):
        files = by_split(path, {entry.name[:-4]: entry.path for ending in ('.tsv', '.csv') for entry in list_entries(path)
                                if entry.name.lower().endswith(ending)})
        root = path
        if 'train' not in files:
            raise UserError(f'{path!r} holds no train.csv')
    else:
        files, root = {'train': path}, os.path.dirname(os.path.abspath(path))
    listed: Listed = {'train': []}
    first: dict[str, tuple[tuple[str, ...], str]] = {}  # by path, the classes of an image and where it is listed first
    repeated: collections.Counter[str] = collections.Counter()
    for split, file in files.items():
        for row in rows(_read_table(file), split):
            listed.setdefault(row.split, []).append((row.path, row.classes))
            if row.classes == (UNLABELLED,):
                continue
            classes, line = tuple(map(compose, row.classes)), f'{file}: line {row.line}'
            earlier, first_line = first.setdefault(compose(os.path.normpath(row.path)), (classes, line))
            if {*earlier} != {*classes}:
                earlier_label, label = (as_text(';'.join(names)) for names in (earlier, classes))
                raise UserError(f'{as_text(row.path)} has two labels: {earlier_label!r} in {first_line}, {label!r} in '
                                f'{line}')
            if first_line != line:
                repeated[f'{first_line} and {line}'] += 1
    if repeated:
        log.warning('%s: images that a second row lists: %d, as in %s', as_text(root), repeated.total(),
                    next(iter(repeated)))
    return root, listed


_COLUMNS = {'path': ('path', 'file', 'filename', 'file_name', 'image', 'image_path', 'id'),
            'label': ('label', 'class', 'category', 'target'), 'split': ('split', 'part', 'subset')}


def _read_table(file: str) -> _Table:
    """Read a table, whose first row may name its columns."""
    rows = tables.read_rows(file)
    if rows:
        head = [cell.strip() for cell in rows[0][1]]
        lower = [cell.lower() for cell in head]
        named = {what: lower.index(next(name for name in names if name in lower))
                 for what, names in _COLUMNS.items() if not {*names}.isdisjoint(lower)}
        if 'path' in named:
            return _Table(file, head, named, rows[1:])
    return _Table(file, [], {'path': 0, 'label': 1}, rows)


def _table_row(table: _Table, split: str, line: int, cells: Sequence[str], classes: tuple[str, ...]) -> TableRow:
    """Return a row whose classes are known; `split` is that of rows that name none."""
    columns = table.columns
    name = cells[columns['split']].strip().lower() if 'split' in columns else split
    row_split = next((s for s, names in SPLITS.items() if name in names), None)
    if row_split is None:
        raise UserError(f'{table.file}: line {line}: unknown split {name!r}; known: {", ".join(SPLITS)}')
    return TableRow(line, row_split, cells[columns['path']].strip(), classes)


def _check_cells(table: _Table, line: int, cells: Sequence[str], count: int) -> None:
    """Raise a UserError for a row of fewer than `count` cells, or of more than there are names of columns, if any."""
    if len(cells) < count:
        raise UserError(f'{table.file}: line {line} has {len(cells)} cells, expected {count} or more, '
                        'separated by a comma, a semicolon or a tab')
    if table.head and any(cell.strip() for cell in cells[len(table.head):]):
        raise UserError(f'{table.file}: line {line} has {len(cells)} cells, and the first row names {len(table.head)} '
                        'columns; put cells that hold a separator in double quotes')


def _rows(table: _Table, split: str, classes_of: Callable[[str, str, int], tuple[str, ...]]) -> Iterator[TableRow]:
    """Yield the rows of a table that names the classes in one column; `classes_of` takes a cell, its file and its line."""
    columns = table.columns
    if table.head and 'label' not in columns and split != 'test':
        raise UserError(f'{table.file}: no column is called {", ".join(_COLUMNS["label"])}; there are: '
                        f'{", ".join(map(str.lower, table.head))}')
    for line, cells in table.rows:
        _check_cells(table, line, cells, max(columns.values()) + 1)
        classes = classes_of(cells[columns['label']], table.file, line) if 'label' in columns else (UNLABELLED,)
        yield _table_row(table, split, line, cells, classes)


def _indicator_rows(table: _Table, split: str, class_columns: Mapping[int, str]) -> Iterator[TableRow]:
    """Yield the rows of a table that has a column of 0 and 1 for each class."""
    for line, cells in table.rows:
        _check_cells(table, line, cells, max([*table.columns.values(), *class_columns]) + 1)
        classes = []
        for i, name in class_columns.items():
            value = tables.parse_label(cells[i])
            if value not in ('0', '1'):
                raise UserError(f'{table.file}: line {line}: the column {name!r} holds {cells[i]!r}; the columns of classes '
                                'hold 0 and 1: write these, or remove the column')
            if value == '1':
                classes.append(name)
        yield _table_row(table, split, line, cells, tuple(classes))


register('csv', table)
register('csv', multilabel_table, LABELS)
