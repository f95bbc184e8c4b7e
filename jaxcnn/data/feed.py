"""Which images a step trains on, and how they reach it: `device` and `host` placement behind one interface.

The order of images is a function of `(seed, epoch)` and both placements follow it, so they train alike.
"""

import errno
import functools
import re
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxcnn.data import workers
from jaxcnn.data.split import Split
from jaxcnn.timeline import Timeline

DEVICE_LIMIT = 2 << 30  # bytes of decoded images up to which `auto` keeps a data set on the accelerator

Batch = dict[str, np.ndarray]
_NO_WORKERS = 'config.data.workers=0 reads in threads, without worker processes'


class Order:
    """The stream of training images: epoch after epoch, each its own permutation of the training part.

    Args:
      seed: of the run.
      timeline: the run.
      classes: (N,) class of each training image. An epoch then has as many images of each class, as many in all as
        there are; a class with too few images repeats them, each time in a new order. None: every image once.
    """

    def __init__(self, seed: int, timeline: Timeline, classes: np.ndarray | None = None):
        self._seed, self._timeline = seed, timeline
        self._members = None if classes is None else [np.flatnonzero(classes == c) for c in np.unique(classes)]

    @functools.lru_cache(maxsize=4)  # noqa: B019 (an Order lives as long as its run)
    def _permutation(self, epoch: int) -> np.ndarray:
        rng, count = np.random.Generator(np.random.PCG64([self._seed, epoch])), self._timeline.num_train
        if self._members is None:
            return rng.permutation(count).astype(np.int32)
        share, rest = divmod(count, len(self._members))
        more = rng.permutation(len(self._members)) < rest
        drawn = [np.concatenate([rng.permutation(own) for _ in range(-(-(share + 1) // len(own)))])[:share + int(extra)]
                 for own, extra in zip(self._members, more, strict=True)]
        return rng.permutation(np.concatenate(drawn)).astype(np.int32)

    def positions(self, step: int) -> np.ndarray:
        """Positions in the training part of the images of `step`: (B,) int32."""
        return self.stretch(self._timeline.examples(step), self._timeline.examples(step + 1))

    def epochs(self, step: int) -> np.ndarray:
        """The epochs that these belong to: (B,) int32."""
        first, end = self._timeline.examples(step), self._timeline.examples(step + 1)
        return (np.arange(first, end) // self._timeline.num_train).astype(np.int32)

    def stretch(self, first: int, end: int) -> np.ndarray:
        """Positions of the images from the `first` of the run up to, not including, `end`: (n,) int32."""
        count = self._timeline.num_train
        return np.concatenate([self._permutation(epoch)[max(first - epoch * count, 0):end - epoch * count]
                               for epoch in range(first // count, (end - 1) // count + 1)])


class _Steps:
    """Grain's random-access source: item `i` is the batch of step `i`."""

    def __init__(self, split: Split, order: Order, total: int, rows: Callable[[int], slice]):
        self._split, self._order, self._total, self._rows = split, order, total, rows

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, step: int) -> Batch:
        positions, epochs = self._order.positions(int(step)), self._order.epochs(int(step))
        rows = self._rows(len(positions))
        positions = positions[rows]
        return {'image': self._split.take(positions), **self._split.take_targets(positions), 'position': positions,
                'epoch': epochs[rows]}


class TrainFeed:
    """Training batches for any stretch of steps.

    Args:
      split: the training part.
      seed: of the order.
      timeline: the run.
      on_device: `device` placement: batches are empty, and the step gathers from `resident` what `order` says from
        `first` on, so that the host has nothing to do; else `host` placement: batches are images that Grain reads ahead.
      rows: of a global batch of a given size, the rows that this process feeds.
      workers: Grain worker processes; 0: threads.
      most_steps: the longest stretch.
      classes: of the training images, for an epoch that has as many images of each; see `Order`.
    """

    def __init__(self, split: Split, seed: int, timeline: Timeline, *, on_device: bool,
                 rows: Callable[[int], slice] = lambda size: slice(0, size), workers: int = 0, most_steps: int = 1,
                 classes: np.ndarray | None = None):
        self._order = Order(seed, timeline, classes)
        self._timeline, self._most = timeline, most_steps * max(p.batch_size for p in timeline.phases)
        self._rows, self._on_device, self._workers = rows, on_device, workers
        self._steps = _Steps(split, self._order, timeline.total, rows)
        self._stream: Any = None  # Grain's iterator
        self._next = -1

    def _grain(self, step: int) -> Any:
        import grain
        items = grain.MapDataset.source(self._steps)[step:]
        stream = items.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
        if self._workers:
            from absl import flags
            flags.FLAGS.mark_as_parsed()  # Grain reads flags there, and our commands have none of absl's
            stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._workers), workers.initializer())
        return iter(stream)

    def positions(self, step: int) -> np.ndarray:
        """Positions in the training part of the images of `step`: (B,) int32."""
        return self._order.positions(step)

    def epoch(self, step: int) -> int:
        """The epoch that the first image of `step` is in."""
        return self._timeline.examples(step) // self._timeline.num_train

    def order(self, epoch: int) -> np.ndarray:
        """Positions of the images from the beginning of an epoch on, for any stretch that begins in it: (n,) int32."""
        return self._order.stretch(epoch * self._timeline.num_train,
                                   (epoch + 1 + -(-self._most // self._timeline.num_train)) * self._timeline.num_train)

    def first(self, step: int, count: int) -> np.ndarray:
        """Where in `order` of the epoch of `step` the batches of `count` steps begin: (count,) int32."""
        begin = self.epoch(step) * self._timeline.num_train
        return np.array([self._timeline.examples(s) - begin for s in range(step, step + count)], np.int32)

    def batch(self, step: int, count: int) -> Batch:
        """The batches of `count` steps from `step` on, stacked: this process's rows, each leaf (count, b, ...).

        Raises:
          UserError: a worker process was killed, or ran out of shared memory.
        """
        if self._on_device:
            return {}
        if self._stream is None or self._next != step:
            with workers.starting_workers():
                self._stream = self._grain(step)
                batches = [self._next_batch(self._stream)]
        else:
            batches = [self._next_batch(self._stream)]
        batches += [self._next_batch(self._stream) for _ in range(count - 1)]
        self._next = step + count
        return {name: np.stack([b[name] for b in batches]) for name in batches[0]}

    def close(self) -> None:
        """Ends the worker processes, and frees the shared memory of batches that were read ahead."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _next_batch(self, stream: Iterator[Batch]) -> Batch:
        try:
            return next(stream)
        except RuntimeError as e:
            exit_code = re.search(r'exit code (-?\d+)', str(e))  # Grain gives it in its message alone
            if not self._workers or not exit_code:
                raise
            raise workers.ended_worker(int(exit_code[1]), _NO_WORKERS) from e
        except OSError as e:
            if not self._workers or e.errno != errno.ENOSPC:
                raise
            raise workers.ended_worker(-signal.SIGBUS, _NO_WORKERS) from e


def resident(split: Split) -> Batch:
    """A split whole, as `device` placement keeps it on the accelerator."""
    return {'image': split.take(np.arange(len(split))), **split.targets}


def eval_batches(split: Split, batch_size: int, *, on_device: bool,
                 rows: Callable[[int], slice] = lambda size: slice(0, size)) -> Iterator[Batch]:
    """Every image of `split` once, in order, in batches of one size: the last is padded, and `mask` is 0 there.

    Yields:
      This process's rows: `mask` (b,) float32, with `position`, or `image` and the targets.
    """
    for start in range(0, len(split), batch_size):
        positions = np.arange(start, start + batch_size)
        mask = (positions < len(split)).astype(np.float32)
        padded = np.where(mask > 0, positions, 0).astype(np.int32)[rows(batch_size)]
        batch: Batch = {'mask': mask[rows(batch_size)]}
        if on_device:
            batch['position'] = padded
        else:
            batch.update(image=split.take(padded), **split.take_targets(padded))
        yield batch
