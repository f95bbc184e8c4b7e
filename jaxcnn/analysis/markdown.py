"""Text and figures as Markdown, and Markdown as an HTML page."""

import base64
import html
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

from jaxcnn.errors import printable
from jaxcnn.files import open_replacement


def escape(text: str) -> str:
    """Return Markdown that shows `text` literally on one line, also in a cell of a table."""
    return re.sub(r'[\\`*\[\]<>|~$&]|(?<!\w)_|_(?!\w)', r'\\\g<0>', printable(text))


def figure(folder: str, name: str, description: str = '') -> str:
    """Return Markdown that shows `NAME.png` of the folder, or a sentence if it does not exist.

    Args:
      folder: the folder.
      name: name of the figure.
      description: what it shows, for those who do not see it; by default its name.
    """
    if not os.path.exists(os.path.join(folder, f'{name}.png')):
        return 'This figure could not be drawn.'
    return f'![{escape(description) or name.replace("_", " ")}](figures/{name}.png)'


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table and an empty one. Cells are shown literally; the first row has the headings."""
    headings, *body = [[escape(cell) for cell in row] for row in rows]
    return [f'| {" | ".join(headings)} |', f'|{"---|" * len(headings)}', *(f'| {" | ".join(row)} |' for row in body), '']


_PAGE = '''<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ max-width: 60em; margin: 2em auto; padding: 0 1em; font: 16px/1.5 system-ui, sans-serif; color: #222; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: 0.2em 0.8em; border-bottom: 1px solid #ddd; text-align: left; }}
img {{ max-width: 100%; }}
pre {{ padding: 0.8em; background: #f5f5f5; overflow-x: auto; }}
</style>
</head>
<body>
{body}</body>
</html>
'''


def to_html(text: str, title: str, folder: str) -> str:
    """Return Markdown as an HTML page that needs no other file.

    Args:
      text: the Markdown, with tables.
      title: title of the page.
      folder: folder that the paths of PNG images are relative to. The page contains the images that exist.
    """
    parser = MarkdownIt('commonmark', {'html': False}).enable('table')
    tokens = parser.parse(text)
    for token in _all_tokens(tokens):
        path = os.path.join(folder, str(token.attrGet('src'))) if token.type == 'image' else ''
        if os.path.isfile(path):
            with open(path, 'rb') as f:
                token.attrSet('src', f'data:image/png;base64,{base64.b64encode(f.read()).decode()}')
    return _PAGE.format(title=html.escape(title), body=parser.renderer.render(tokens, parser.options, {}))


def write_report(folder: str, name: str, title: str, lines: Sequence[str], values: Mapping[str, Any]) -> str:
    """Write a report as `NAME.md`, `NAME.html` and `NAME.json`, and return the path of the HTML page.

    Args:
      folder: the folder, with the figures.
      name: name of the files.
      title: title of the page.
      lines: the Markdown.
      values: content of the JSON file.
    """
    text = '\n'.join(lines)
    contents = {'md': text + '\n', 'html': to_html(text, title, folder), 'json': json.dumps(values, indent=1) + '\n'}
    for suffix, content in contents.items():
        with open_replacement(os.path.join(folder, f'{name}.{suffix}'), errors='surrogateescape') as file:
            file.write(content)
    return os.path.join(folder, f'{name}.html')


def _all_tokens(tokens: Iterable[Token]) -> Iterable[Token]:
    for token in tokens:
        yield token
        yield from _all_tokens(token.children or ())
