"""Text and figures in Markdown."""

import os
import re

from jaxcnn.errors import printable


def escape(text: str) -> str:
    """Return `text` on one line, as Markdown that shows it as it is, in a table's cell, too."""
    return re.sub(r'[\\`*\[\]<>|~$&]|(?<!\w)_|_(?!\w)', r'\\\g<0>', printable(text))


def figure(folder: str, name: str) -> str:
    """Return the line that shows a figure of the folder, or says that there is none."""
    if not os.path.exists(os.path.join(folder, f'{name}.png')):
        return 'This figure could not be drawn.'
    return f'![{name.replace("_", " ")}](figures/{name}.png)'
