"""Text and figures as Markdown."""

import os
import re

from jaxcnn.errors import printable


def escape(text: str) -> str:
    """Return Markdown that shows `text` literally on one line, also in a cell of a table."""
    return re.sub(r'[\\`*\[\]<>|~$&]|(?<!\w)_|_(?!\w)', r'\\\g<0>', printable(text))


def figure(folder: str, name: str) -> str:
    """Return Markdown that shows `NAME.png` of the folder, or a sentence if it does not exist."""
    if not os.path.exists(os.path.join(folder, f'{name}.png')):
        return 'This figure could not be drawn.'
    return f'![{name.replace("_", " ")}](figures/{name}.png)'
