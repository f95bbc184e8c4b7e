"""Tables in text files, as spreadsheets, pandas and people write them."""

import codecs
import csv
import io
import itertools
import re

from jaxcnn.errors import UserError

_MARKS = {codecs.BOM_UTF32_LE: 'UTF-32', codecs.BOM_UTF32_BE: 'UTF-32',  # before UTF-16's, which the former begins with
          codecs.BOM_UTF16_LE: 'UTF-16', codecs.BOM_UTF16_BE: 'UTF-16'}


def read_text(path: str) -> str:
    """The content of a text file in UTF-8, or in what its byte-order mark or the zero bytes of its first character say.

    Raises:
      UserError: the file cannot be read, or a line has another encoding.
    """
    try:
        with open(path, 'rb') as f:
            content = f.read()
    except OSError as e:
        raise UserError(f'{path}: cannot be read: {e.strerror or e}') from e
    encoding = next((encoding for mark, encoding in _MARKS.items() if content.startswith(mark)), 'UTF-8')
    if encoding == 'UTF-8' and 0 in content[:2]:
        encoding = 'UTF-16-BE' if content[0] == 0 else 'UTF-16-LE'
    try:
        return content.decode(encoding).removeprefix('\ufeff')
    except UnicodeDecodeError as e:
        before = content[:e.start].decode(encoding, 'ignore')
        line = 1 + max(before.count('\n'), before.count('\r'))
        advice = ('save it as UTF-8, with `iconv -f LATIN1 -t UTF-8` where it is Latin-1' if encoding == 'UTF-8' else
                  'it is damaged there, or cut; save it as UTF-8')
        raise UserError(f'{path}: line {line} is not {encoding} (byte {content[e.start]:#04x}: {e.reason}); {advice}') from e


def read_rows(path: str) -> list[tuple[int, list[str]]]:
    """The rows of a table whose cells a comma, a semicolon or a tab separates, whichever fits; each with its line, from 1.

    Empty lines are left out.

    Raises:
      UserError: see `read_text`; or quotes do not match.
    """
    content = read_text(path)

    def fit(delimiter: str) -> int:
        """How many of the first rows have as many cells as the first; 0 where that is one."""
        reader = csv.reader(io.StringIO(content, newline=''), delimiter=delimiter)
        lengths = [len(row) for row in itertools.islice(reader, 100) if row]
        return lengths.count(lengths[0]) if lengths and lengths[0] > 1 else 0
    try:
        reader = csv.reader(io.StringIO(content, newline=''), delimiter=max(',;\t', key=fit))
        return [(reader.line_num, row) for row in reader if row]
    except csv.Error as e:
        raise UserError(f'{path}: cannot be read: {e}') from e


def label(cell: str) -> str:
    """The class that a cell names: whole numbers are written without a fraction; '' where there is none, or NaN or -1."""
    name = cell.strip()
    if whole := re.fullmatch(r'(-?[0-9]+)\.0*', name):
        name = whole[1] if int(whole[1]) else '0'
    return '' if name == '-1' or name.lower() == 'nan' else name
