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
from jaxcnn.data.sources import Source, add_source
from jaxcnn.data.targets import LABELS
from jaxcnn.errors import UserError, as_text


def table(config: DataConfig) -> Source:
    """Read a CSV file with the columns path, label and, optionally, split, or a folder of `train.csv`, `val.csv` and
    `test.csv`.

    The cells are separated by a comma, a semicolon or a tab; a file in a folder may be called `train.tsv`, and so on, too.
    Paths are relative to the table's folder. A first row that names the columns may stand there in any order. A label of -1,
    NaN or nothing means unlabelled.
    """
    def names(cell: str, file: str, number: int) -> tuple[str, ...]:
        name = tables.label(cell) or UNLABELLED
        if ';' in name:
            raise UserError(f'{file}: line {number}: the label {name!r} names several classes, which config.task=multilabel '
                            'takes; config.task=classification takes one class for each image')
        return (name,)
    root, listed = _listed_in_tables('csv', config, lambda file, split: _rows(file, split, names))
    return source_of_files('csv', root, listed)


def multilabel_table(config: DataConfig) -> Source:
    """Read a table as `table` does whose images have any number of classes.

    Either the column label holds the names of an image's classes with semicolons between them, as in `cat;dog`, where an
    empty cell means that the image shows none of them; or each class has a column of 0 and 1, which the first row names.
    A label of -1 or NaN means unlabelled.
    """
    def names(cell: str, file: str, number: int) -> tuple[str, ...]:
        if cell.strip() and not tables.label(cell):
            return (UNLABELLED,)
        return tuple(dict.fromkeys(name for part in cell.split(';') if (name := tables.label(part))))

    declared: dict[str, list[str]] = {}  # by file, the classes that have a column of 0 and 1

    def rows(file: str, split: str) -> Iterator[TableRow]:
        head, columns, content = _columns(file)
        if not head and any(len(row) > 2 for _, row in content):
            raise UserError(f'{file}: the first row must name the columns: path, and label or the classes')
        indicators = [head[i] for i in range(len(head)) if i not in columns.values()
                      and content and all(len(row) > i and row[i].strip() in ('0', '1') for _, row in content)]
        if 'label' in columns and indicators:
            raise UserError(f'{file}: has both a column {head[columns["label"]]!r} of names and columns of 0 and 1 '
                            f'({", ".join(indicators[:5])}): remove one of the two kinds of labels')
        if 'label' not in columns and len(head) > len(columns):
            classes = declared[file] = [name for i, name in enumerate(head) if i not in columns.values() and name]
            if len({*classes}) < len(classes):
                raise UserError(f'{file}: two columns have the same name; they are called {", ".join(head)}')
            other_file, other = next(iter(declared.items()))
            if {*classes} != {*other}:
                raise UserError(f'{file}: has columns of the classes {", ".join(classes)}, and {other_file} of '
                                f'{", ".join(other)}; each part must have the same ones')
            return _indicator_rows(file, split)
        return _rows(file, split, names)
    root, listed = _listed_in_tables('csv', config, rows)
    return source_of_files('csv', root, listed, next(iter(declared.values()), None), kind=LABELS)


class TableRow(NamedTuple):
    """A row of a table that lists images."""

    line: int
    split: str
    path: str
    classes: tuple[str, ...]


def _listed_in_tables(name: str, config: DataConfig, rows: Callable[[str, str], Iterator[TableRow]]) -> tuple[str, Listed]:
    """The images that a table, or a folder of tables, lists, and the folder that their paths are relative to.

    Args:
      name: of the layout.
      config: names the table or the folder.
      rows: of a file, given the split of rows that name none.
    """
    where = existing_path(config.dir, name)
    if os.path.isdir(where):
        files = by_split(where, {entry.name[:-4]: entry.path for ending in ('.tsv', '.csv') for entry in list_entries(where)
                               if entry.name.lower().endswith(ending)})
        root = where
        if 'train' not in files:
            raise UserError(f'{where!r} holds no train.csv')
    else:
        files, root = {'train': where}, os.path.dirname(os.path.abspath(where))
    listed: Listed = {'train': []}
    first: dict[str, tuple[tuple[str, ...], str]] = {}  # by path, the classes of an image and where it is listed first
    repeated: collections.Counter[str] = collections.Counter()
    for split, file in files.items():
        for row in rows(file, split):
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


def _columns(file: str) -> tuple[list[str], dict[str, int], list[tuple[int, list[str]]]]:
    """The names of a table's columns, none where no first row names them; where path, label and split are; and its rows."""
    rows = tables.read_rows(file)
    if rows:
        head = [cell.strip() for cell in rows[0][1]]
        lower = [cell.lower() for cell in head]
        named = {what: lower.index(next(name for name in names if name in lower))
                 for what, names in _COLUMNS.items() if not {*names}.isdisjoint(lower)}
        if 'path' in named:
            return head, named, rows[1:]
    return [], {'path': 0, 'label': 1}, rows


def _row(file: str, split: str, number: int, row: Sequence[str], columns: Mapping[str, int],
         classes: tuple[str, ...]) -> TableRow:
    """A row whose classes are known."""
    name = row[columns['split']].strip().lower() if 'split' in columns else split
    known = next((s for s, names in SPLITS.items() if name in names), None)
    if known is None:
        raise UserError(f'{file}: line {number}: unknown split {name!r}; known: {", ".join(SPLITS)}')
    return TableRow(number, known, row[columns['path']].strip(), classes)


def _check_cells(file: str, number: int, row: Sequence[str], count: int, names: int) -> None:
    """Raises a UserError for a row of fewer than `count` cells, or of more than there are names of columns, if any."""
    if len(row) < count:
        raise UserError(f'{file}: line {number} has {len(row)} cells, expected {count} or more, '
                        'separated by a comma, a semicolon or a tab')
    if names and any(cell.strip() for cell in row[names:]):
        raise UserError(f'{file}: line {number} has {len(row)} cells, and the first row names {names} columns; put cells '
                        'that hold a separator in double quotes')


def _rows(file: str, split: str, names: Callable[[str, str, int], tuple[str, ...]]) -> Iterator[TableRow]:
    """The rows of a table that names the classes in one column; `names` gives those of a cell in a file and line."""
    head, columns, rows = _columns(file)
    if head and 'label' not in columns and split != 'test':
        raise UserError(f'{file}: no column is called {", ".join(_COLUMNS["label"])}; there are: '
                        f'{", ".join(map(str.lower, head))}')
    for number, row in rows:
        _check_cells(file, number, row, max(columns.values()) + 1, len(head))
        classes = names(row[columns['label']], file, number) if 'label' in columns else (UNLABELLED,)
        yield _row(file, split, number, row, columns, classes)


def _indicator_rows(file: str, split: str) -> Iterator[TableRow]:
    """The rows of a table that has a column of 0 and 1 for each class."""
    head, columns, rows = _columns(file)
    classes = {i: name for i, name in enumerate(head) if i not in columns.values() and name}
    for number, row in rows:
        _check_cells(file, number, row, max([*columns.values(), *classes]) + 1, len(head))
        shows = []
        for i, name in classes.items():
            value = tables.label(row[i])
            if value not in ('0', '1'):
                raise UserError(f'{file}: line {number}: the column {name!r} holds {row[i]!r}; the columns of classes hold '
                                '0 and 1: write these, or remove the column')
            if value == '1':
                shows.append(name)
        yield _row(file, split, number, row, columns, tuple(shows))


add_source('csv', table)
add_source('csv', multilabel_table, LABELS)
