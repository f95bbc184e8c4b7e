"""Tables in text files, with any of the usual separators and Unicode encodings."""

import codecs
import csv
import io
import itertools
import re

from jaxcnn.errors import UserError

_ENCODINGS = {codecs.BOM_UTF32_LE: 'UTF-32', codecs.BOM_UTF32_BE: 'UTF-32',  # first, as they begin with UTF-16's marks
              codecs.BOM_UTF16_LE: 'UTF-16', codecs.BOM_UTF16_BE: 'UTF-16'}  # by byte-order mark
_DELIMITERS = '\t,;'  # a tab before the others, as cells often hold commas and semicolons


def read_text(path: str) -> str:
    """Return the content of a text file.

    The encoding is that of the byte-order mark. Without a mark it is UTF-16 if one of the first two bytes is zero, and
    otherwise UTF-8.

    Raises:
      UserError: the file cannot be read, or a line has another encoding.
    """
    try:
        with open(path, 'rb') as f:
            content = f.read()
    except OSError as e:
        raise UserError(f'cannot be read: {e.strerror or e}', field=path) from e
    encoding = next((encoding for mark, encoding in _ENCODINGS.items() if content.startswith(mark)), 'UTF-8')
    if encoding == 'UTF-8' and 0 in content[:2]:
        encoding = 'UTF-16-BE' if content[0] == 0 else 'UTF-16-LE'
    try:
        return content.decode(encoding).removeprefix('\ufeff')
    except UnicodeDecodeError as e:
        before = content[:e.start].decode(encoding, 'ignore')
        line = 1 + max(before.count('\n'), before.count('\r'))
        hint = ('save it as UTF-8; iconv -f LATIN1 -t UTF-8 converts Latin-1' if encoding == 'UTF-8' else
                'it is damaged or truncated; save it as UTF-8')
        raise UserError(f'line {line} is not {encoding} (byte {content[e.start]:#04x}: {e.reason})', field=path,
                        hint=hint) from e


def read_rows(path: str) -> list[tuple[int, list[str]]]:
    """Return the rows of a table, each as its line number, which starts at 1, and its cells. Empty lines are skipped.

    The separator is a tab, a comma or a semicolon: the one that gives most of the first rows as many cells as the first row.

    Raises:
      UserError: the file cannot be read, a line has another encoding, or quotes do not match.
    """
    content = read_text(path)

    def count_equal_rows(delimiter: str) -> int:
        """Return how many of the first rows have as many cells as the first row; 0 if that has one cell."""
        reader = csv.reader(io.StringIO(content, newline=''), delimiter=delimiter)
        lengths = [len(row) for row in itertools.islice(reader, 100) if row]
        return lengths.count(lengths[0]) if lengths and lengths[0] > 1 else 0
    try:
        reader = csv.reader(io.StringIO(content, newline=''), delimiter=max(_DELIMITERS, key=count_equal_rows))
        return [(reader.line_num, row) for row in reader if row]
    except csv.Error as e:
        raise UserError(f'cannot be read: {e}', field=path) from e


def parse_label(cell: str) -> str:
    """Return the class name in a cell, with whole numbers written without a fraction; '' for an empty cell, NaN and -1."""
    name = cell.strip()
    if number := re.fullmatch(r'(-?[0-9]+)\.0*', name):
        name = number[1] if int(number[1]) else '0'
    return '' if name == '-1' or name.lower() == 'nan' else name
