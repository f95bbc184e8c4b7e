"""Images that occur more than once in a data set, compared by their decoded pixels."""

import contextlib
import dataclasses
import hashlib
import itertools
import logging
from collections.abc import Mapping
from concurrent import futures

import numpy as np

from jaxcnn.data.cache import ArrayFile
from jaxcnn.data.split import Split
from jaxcnn.data.stream import StreamedImages
from jaxcnn.errors import counted
from jaxcnn.files import open_replacement

_BLOCK_SIZE = 256  # images that a thread hashes at a time
log = logging.getLogger('jaxcnn')


def digests(images: ArrayFile | StreamedImages) -> np.ndarray:
    """Return a digest of the pixels of each of N images, (N,) uint64. The digests are stored beside the images.

    Of streamed images, the encoded form is digested instead, because decoding all of them takes too long.
    """
    path = f'{images.path}.digests.npy'
    with contextlib.suppress(OSError, ValueError, EOFError):
        stored = np.load(path, allow_pickle=False)
        if stored.shape == (len(images),) and stored.dtype == np.uint64:
            return stored

    def hash_block(start: int) -> list[int]:
        block = range(start, min(start + _BLOCK_SIZE, len(images)))
        contents = map(images.encoded, block) if isinstance(images, StreamedImages) else images[block.start:block.stop]
        return [int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), 'little') for content in contents]

    with futures.ThreadPoolExecutor() as threads:  # hashing releases the lock of the interpreter
        blocks = threads.map(hash_block, range(0, len(images), _BLOCK_SIZE))
        computed = np.array([*itertools.chain.from_iterable(blocks)], np.uint64)
    with contextlib.suppress(OSError), open_replacement(path, 'wb') as f:  # the cache may be read-only
        np.save(f, computed)
    return computed


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """The images of a data set that occur more than once.

    Attributes:
      shared: for each split but `train`, the positions of its images that are also training images.
      num_ambiguous: number of images that have equal pixels but different targets.
      digests: the digests of each split's images.
    """

    shared: Mapping[str, np.ndarray]
    num_ambiguous: int
    digests: Mapping[str, np.ndarray]

    def train_position(self, split: str, position: int) -> int:
        """Return the position of the first training image that equals an image of another split."""
        return int(np.flatnonzero(self.digests['train'] == self.digests[split][position])[0])


def find(splits: Mapping[str, Split]) -> Duplicates:
    """Return the images that occur more than once.

    Args:
      splits: the splits by name; one of them is `train`.
    """
    digests_of_splits = {name: digests(split.images)[split.index] for name, split in splits.items()}
    shared = {name: np.flatnonzero(np.isin(split_digests, digests_of_splits['train']))
              for name, split_digests in digests_of_splits.items() if name != 'train'}
    _, image = np.unique(np.concatenate([*digests_of_splits.values()]), return_inverse=True)
    _, target = np.unique(np.concatenate([_target_rows(split) for split in splits.values()]), axis=0, return_inverse=True)
    image_target_pairs = np.unique(np.stack([image, target.reshape(-1)]), axis=1)
    num_targets = np.bincount(image_target_pairs[0])  # of each different image
    return Duplicates(shared, int((num_targets > 1)[image].sum()), digests_of_splits)


def warn(location: str, splits: Mapping[str, Split]) -> None:
    """Log a warning with the number of images of other splits that are also training images, and of equal images with
    different labels.

    Args:
      location: the location of the data set, for the message.
      splits: the splits by name; one of them is `train`.
    """
    duplicates = find(splits)
    lines = [f'{len(positions)} of {counted(len(splits[name]), f"{name} image")} are also training images'
             for name, positions in duplicates.shared.items() if len(positions)]
    if duplicates.num_ambiguous:
        lines.append(f'{counted(duplicates.num_ambiguous, "image")} with equal pixels but different labels')
    if lines:
        log.warning('%s: %s', location, '; '.join(lines))


def _target_rows(split: Split) -> np.ndarray:
    """Return all targets of each of N examples as one row, (N, ...)."""
    return np.concatenate([values.reshape(len(split), -1) for values in split.targets.values()], axis=1)
