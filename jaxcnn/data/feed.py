"""The order of the training images, and the batches of training and evaluation.

The order of the images is a function of `(seed, epoch)`. Device and host placement follow the same order, so that they give
the same batches.
"""

import errno
import functools
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any

import numpy as np

from jaxcnn.data import workers
from jaxcnn.data.split import Split
from jaxcnn.timeline import Timeline

DEVICE_LIMIT = 2 << 30  # bytes of decoded images up to which `auto` keeps a data set on the accelerator

Batch = dict[str, np.ndarray]
ProcessRows = Callable[[int], slice]  # maps the size of a global batch to the rows that this process provides
_WORKERS_HINT = 'config.data.workers=0 reads in threads, without worker processes'


def all_rows(size: int) -> slice:
    """Return all rows of a global batch, for a run of one process."""
    return slice(0, size)


class Order:
    """The stream of training images: epoch after epoch, each a permutation of the training split.

    Args:
      seed: seed of the run.
      timeline: steps of the run.
      classes: (N,) class of each training image, for balanced epochs, or None. A balanced epoch has as many images as there
        are, and the same number of each class: of a frequent class a random part, and those of a rare class several times.
        Images of a negative class are not drawn.
      available: positions of the images that epochs without balance are drawn from; None: those of the timeline's images.
      earlier: the order of the epochs before `first_epoch`.
      first_epoch: the first epoch that is drawn from these images.
    """

    def __init__(self, seed: int, timeline: Timeline, classes: np.ndarray | None = None,
                 available: np.ndarray | None = None, earlier: 'Order | None' = None, first_epoch: int = 0):
        self._seed, self._timeline, self._available = seed, timeline, available
        self._earlier, self._first_epoch = earlier, first_epoch
        self._positions_of_classes = None
        if classes is not None:
            self._positions_of_classes = [np.flatnonzero(classes == c)
                                          for c in np.unique(classes[classes >= 0])]

    @functools.lru_cache(maxsize=4)  # noqa: B019 (an Order lives as long as its run)
    def _permutation(self, epoch: int) -> np.ndarray:
        if self._earlier is not None and epoch < self._first_epoch:
            return self._earlier._permutation(epoch)
        rng, count = np.random.Generator(np.random.PCG64([self._seed, epoch])), self._timeline.num_train
        if self._positions_of_classes is None:
            return rng.permutation(count if self._available is None else self._available)[:count].astype(np.int32)
        num_classes = len(self._positions_of_classes)
        per_class, remainder = divmod(count, num_classes)
        has_one_more = rng.permutation(num_classes) < remainder
        drawn = []
        for positions, one_more in zip(self._positions_of_classes, has_one_more, strict=True):
            repeats = -(-(per_class + 1) // len(positions))
            permutations = np.concatenate([rng.permutation(positions) for _ in range(repeats)])
            drawn.append(permutations[:per_class + int(one_more)])
        return rng.permutation(np.concatenate(drawn)).astype(np.int32)

    def positions(self, step: int) -> np.ndarray:
        """Return the positions in the training split of the images of `step`: (B,) int32."""
        return self.positions_between(self._timeline.examples(step), self._timeline.examples(step + 1))

    def epochs(self, step: int) -> np.ndarray:
        """Return the epoch of each image of `step`: (B,) int32."""
        begin, end = self._timeline.examples(step), self._timeline.examples(step + 1)
        return (np.arange(begin, end) // self._timeline.num_train).astype(np.int32)

    def numbers(self, step: int) -> np.ndarray:
        """Return how many images of the run come before each image of `step`: (B,) int64."""
        return np.arange(self._timeline.examples(step), self._timeline.examples(step + 1))

    def positions_between(self, begin: int, end: int) -> np.ndarray:
        """Return the positions of the images `begin` to `end - 1` of the run: (end - begin,) int32."""
        count = self._timeline.num_train
        return np.concatenate([self._permutation(epoch)[max(begin - epoch * count, 0):end - epoch * count]
                               for epoch in range(begin // count, (end - 1) // count + 1)])


class _BatchSource:
    """The batches of a run as Grain's random-access source: item `i` is the batch of step `i`."""

    def __init__(self, split: Split, seed: int, order: Order, total_steps: int, process_rows: ProcessRows):
        self._split, self._seed, self._order = split, seed, order
        self._total_steps, self._process_rows = total_steps, process_rows

    def __len__(self) -> int:
        return self._total_steps

    def __getitem__(self, step: int) -> Batch:
        step = int(step)
        rows = self._process_rows(len(self._order.positions(step)))
        positions = self._order.positions(step)[rows]
        images = self._split.take_for_training(positions, self._seed, self._order.numbers(step)[rows])
        return {'image': images, **self._split.take_targets(positions), 'position': positions,
                'epoch': self._order.epochs(step)[rows]}


class TrainFeed:
    """The training batches of any range of steps.

    With device placement, batches are empty: the compiled step gathers its images from `all_examples`, at the positions
    that `epoch_order` holds from `batch_offsets` on, so that the host has nothing to do. With host placement, batches hold
    the images, which Grain reads ahead.

    Args:
      split: the training split.
      seed: seed of the crops of streamed images.
      timeline: steps of the run.
      on_device: whether the placement is device placement.
      process_rows: gives the rows of a global batch that this process provides.
      workers: number of Grain's worker processes; 0 for threads.
      max_steps: largest number of steps in a range.
      order: the order of the images; None: every epoch has each image once.
    """

    def __init__(self, split: Split, seed: int, timeline: Timeline, *, on_device: bool, process_rows: ProcessRows = all_rows,
                 workers: int = 0, max_steps: int = 1, order: Order | None = None):
        self._order = order or Order(seed, timeline)
        self._timeline, self._on_device, self._workers = timeline, on_device, workers
        self._max_images = max_steps * max(p.batch_size for p in timeline.phases)
        self._source = _BatchSource(split, seed, self._order, timeline.total, process_rows)
        self._stream: Any = None  # Grain's iterator
        self._next_step = -1

    def _start_stream(self, step: int) -> Any:
        import grain
        items = grain.MapDataset.source(self._source)[step:]
        stream = items.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
        if self._workers:
            from absl import flags
            flags.FLAGS.mark_as_parsed()  # Grain reads absl's flags, which our commands do not parse
            stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._workers), workers.initializer())
        return iter(stream)

    def positions(self, step: int) -> np.ndarray:
        """Return the positions in the training split of the images of `step`: (B,) int32."""
        return self._order.positions(step)

    def epochs(self, step: int) -> np.ndarray:
        """Return the epoch of each image of `step`: (B,) int32."""
        return self._order.epochs(step)

    def numbers(self, step: int) -> np.ndarray:
        """Return how many images of the run come before each image of `step`: (B,) int64."""
        return self._order.numbers(step)

    def epoch(self, step: int) -> int:
        """Return the epoch of the first image of `step`."""
        return self._timeline.examples(step) // self._timeline.num_train

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Return the positions of the images from the beginning of an epoch on: (n,) int32.

        They suffice for any range of up to `max_steps` steps that begins in the epoch, and n is the same for all epochs.
        """
        num_train = self._timeline.num_train
        num_epochs = 1 + -(-self._max_images // num_train)
        return self._order.positions_between(epoch * num_train, (epoch + num_epochs) * num_train)

    def batch_offsets(self, step: int, count: int) -> np.ndarray:
        """Return where the batches of `count` steps begin in the `epoch_order` of the epoch of `step`: (count,) int32."""
        begin = self.epoch(step) * self._timeline.num_train
        return np.array([self._timeline.examples(s) - begin for s in range(step, step + count)], np.int32)

    def batch(self, step: int, count: int) -> Batch:
        """Return the stacked batches of `count` steps from `step` on: this process's rows, each array (count, b, ...).

        Raises:
          UserError: a worker process was killed or ran out of shared memory.
        """
        if self._on_device:
            return {}
        if self._stream is None or self._next_step != step:
            with workers.block_stop_signals():
                self._stream = self._start_stream(step)
                batches = [self._next_batch(self._stream)]
        else:
            batches = [self._next_batch(self._stream)]
        batches += [self._next_batch(self._stream) for _ in range(count - 1)]
        self._next_step = step + count
        return {name: np.stack([b[name] for b in batches]) for name in batches[0]}

    def close(self) -> None:
        """End the worker processes, and free the shared memory of batches that were read ahead."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _next_batch(self, stream: Iterator[Batch]) -> Batch:
        try:
            return next(stream)
        except RuntimeError as e:
            exit_code = re.search(r'exit code (-?\d+)', str(e))  # Grain gives it only in its message
            if not self._workers or not exit_code:
                raise
            raise workers.worker_error(int(exit_code[1]), _WORKERS_HINT) from e
        except OSError as e:
            if not self._workers or e.errno != errno.ENOSPC:
                raise
            raise workers.worker_error(-signal.SIGBUS, _WORKERS_HINT) from e


def fits_on_device(splits: Iterable[Split]) -> bool:
    """Return whether `auto` keeps all images of some splits on the accelerator."""
    splits = list(splits)
    return not any(split.is_streamed for split in splits) and sum(split.nbytes for split in splits) <= DEVICE_LIMIT


def all_examples(split: Split) -> Batch:
    """Return all images and targets of a split, in order, as device placement keeps them on the accelerator."""
    return {'image': split.take(np.arange(len(split))), **split.targets}


def eval_batches(split: Split, batch_size: int, *, on_device: bool, process_rows: ProcessRows = all_rows) -> Iterator[Batch]:
    """Yield batches of one size that hold every image of a split once, in order; the last one is padded.

    Args:
      split: the split.
      batch_size: size of the global batch.
      on_device: whether the batches hold positions instead of images and targets.
      process_rows: gives the rows of a global batch that this process provides.

    Yields:
      This process's rows: `mask` (b,) float32, which is 0 for padding, with `position`, or with `image` and the targets.
    """
    def batch(start: int) -> Batch:
        positions = np.arange(start, start + batch_size)
        mask = (positions < len(split)).astype(np.float32)
        rows = process_rows(batch_size)
        padded = np.where(mask > 0, positions, 0).astype(np.int32)[rows]
        if on_device:
            return {'mask': mask[rows], 'position': padded}
        return {'mask': mask[rows], 'image': split.take(padded), **split.take_targets(padded)}
    starts = range(0, len(split), batch_size)
    if not split.is_streamed:
        yield from map(batch, starts)
        return
    with futures.ThreadPoolExecutor(1) as reader:  # the next batch is decoded while this one is evaluated
        pending = reader.submit(batch, 0)
        for start in starts[1:]:
            ready, pending = pending, reader.submit(batch, start)
            yield ready.result()
        yield pending.result()
