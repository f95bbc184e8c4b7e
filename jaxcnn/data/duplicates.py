"""Images that a data set holds more than once, by their decoded pixels."""

import contextlib
import hashlib
import itertools
import logging
import os
from collections.abc import Mapping
from concurrent import futures

import numpy as np

from jaxcnn.data.cache import ArrayFile
from jaxcnn.data.split import Split

log = logging.getLogger('jaxcnn')


def digests(images: ArrayFile) -> np.ndarray:
    """A digest of the pixels of each of N decoded images: (N,) uint64. It is stored beside them."""
    path = f'{images.path}.digests.npy'
    with contextlib.suppress(OSError, ValueError, EOFError):
        stored = np.load(path, allow_pickle=False)
        if stored.shape == (len(images),) and stored.dtype == np.uint64:
            return stored

    def block(start: int) -> list[int]:
        return [int.from_bytes(hashlib.blake2b(image, digest_size=8).digest(), 'little')
                for image in images[start:start + 256]]

    with futures.ThreadPoolExecutor() as threads:  # hashing releases the interpreter's lock
        computed = np.array([*itertools.chain.from_iterable(threads.map(block, range(0, len(images), 256)))], np.uint64)
    with contextlib.suppress(OSError):  # the cache may be read-only
        temporary = f'{path}.{os.getpid()}.tmp'
        with open(temporary, 'wb') as f:
            np.save(f, computed)
        os.replace(temporary, path)
    return computed


def warn(where: str, splits: Mapping[str, Split]) -> None:
    """Counts, in one line, the images of other splits that are training images as well, and equal images of unequal labels.

    Args:
      where: the data set, for the message.
      splits: `train` and others.
    """
    pixels = {name: digests(split.images)[split.index] for name, split in splits.items()}
    _, image = np.unique(np.concatenate([*pixels.values()]), return_inverse=True)
    targets = [np.stack([values.reshape(len(split), -1) for values in split.targets.values()], 1).reshape(len(split), -1)
               for split in splits.values()]
    _, target = np.unique(np.concatenate(targets), axis=0, return_inverse=True)
    labelled = np.unique(np.stack([image, target.reshape(-1)]), axis=1)
    ambiguous = int((np.bincount(labelled[0]) > 1)[image].sum())
    shared = {name: int(np.isin(part, pixels['train']).sum()) for name, part in pixels.items() if name != 'train'}
    lines = [f'{count} of {len(splits[name])} {name} images are training images, too'
             for name, count in shared.items() if count]
    if ambiguous:
        lines.append(f'{ambiguous} images are equal to one with another label')
    if lines:
        log.warning('%s: %s', where, '; '.join(lines))
