"""JSON that knows its own checksum, so that a changed character is found when it is read."""

import hashlib
import json
from typing import Any


def _checksum(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def seal(content: dict[str, Any]) -> dict[str, Any]:
    """`content` with its checksum, to be written."""
    return {'content': content, 'checksum': _checksum(content)}


def unseal(sealed: Any) -> dict[str, Any]:
    """The content of what `seal` returned and a file gave back.

    Raises:
      ValueError: it is not what was sealed.
    """
    if not isinstance(sealed, dict) or sealed.get('checksum') != _checksum(sealed.get('content')):
        raise ValueError('its checksum does not match its content')
    return sealed['content']
