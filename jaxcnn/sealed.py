"""JSON content with a checksum, which reveals any change to the file."""

import hashlib
import json
from typing import Any


def _checksum(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def seal(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content with its checksum, to be written as JSON."""
    return {'content': content, 'checksum': _checksum(content)}


def unseal(sealed: Any) -> dict[str, Any]:
    """Return the content of what `seal` returned, after it was read from a file.

    Raises:
      ValueError: the content does not match its checksum.
    """
    if not isinstance(sealed, dict) or sealed.get('checksum') != _checksum(sealed.get('content')):
        raise ValueError('its checksum does not match its content')
    return sealed['content']
