"""What `jaxcnn evaluate --protocol=... --save` records in the workdir of a run, and studies compare."""

import os
from collections.abc import Mapping

from jaxcnn.training.workdir import read_json, write_json

FILE_NAME = 'protocols.json'


def save(workdir: str, protocol: str, step: int, views: str, values: Mapping[str, float]) -> None:
    """Record the measurements by a protocol in the workdir of a run.

    Those of other splits are retained if they are of the same checkpoint, and those of other protocols in any case.

    Args:
      workdir: the workdir.
      protocol: the protocol as it was asked for, such as `dense`.
      step: the checkpoint.
      views: the protocol with its scales in pixels.
      values: the measurements by their names, such as `test_accuracy`.
    """
    path = os.path.join(workdir, FILE_NAME)
    entries = read_json(path) if os.path.exists(path) else {}
    earlier = entries.get(protocol, {})
    measured = {**earlier['values'], **values} if earlier.get('step') == step else dict(values)
    write_json(path, {**entries, protocol: {'step': step, 'views': views, 'values': measured}})


def read(workdir: str, step: int, split: str = '') -> dict[str, dict[str, float]]:
    """Return the recorded measurements of a checkpoint by the protocol and by their names.

    Args:
      workdir: the workdir.
      step: the checkpoint.
      split: the split whose measurements are returned; empty: all.
    """
    path = os.path.join(workdir, FILE_NAME)
    entries = read_json(path) if os.path.exists(path) else {}
    by_protocol = {protocol: {name: value for name, value in entry['values'].items() if name.startswith(split)}
                   for protocol, entry in entries.items() if entry['step'] == step}
    return {protocol: values for protocol, values in by_protocol.items() if values}
