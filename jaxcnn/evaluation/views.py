"""Evaluation of views: images of several shapes, such as crops, whose predictions are averaged for each example."""

import collections
import concurrent.futures
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.data.normalize import Normalization
from jaxcnn.models import Network
from jaxcnn.training.state import run_once

PENDING_BYTES = 1 << 28  # bytes of images that wait for others of their shape
_IN_FLIGHT = 3  # batches whose results are not yet fetched
_MANY_SHAPES = 20
_FEW_VIEWS = 4  # up to which a program that runs once is faster without optimisations
_PROGRESS_INTERVAL = 10  # seconds between lines of progress
log = logging.getLogger('jaxcnn')


@dataclasses.dataclass(frozen=True)
class View:
    """An image that a network gets for an example.

    Attributes:
      index: the index of the example.
      weight: the weight of the view in the mean of the probabilities; those of an example add up to 1.
      pixels: uint8 (H, W, C), of any size.
      flip: whether the prediction is the mean of those for the view and for its mirror image.
    """

    index: int
    weight: float
    pixels: np.ndarray
    flip: bool


def log_probabilities(network: Network, variables: Any, normalize: Normalization, pixels: jax.Array) -> jax.Array:
    """Return the logarithms of the classes' probabilities, (N, classes), for images (N, H, W, C) in [0, 1].

    Scores (N, H', W', classes) at several positions are averaged before the softmax.
    """
    scores: Any = network.apply(variables, normalize(pixels), train=False)
    outputs = scores.astype(jnp.float32)
    return jax.nn.log_softmax(outputs.mean((1, 2)) if outputs.ndim == 4 else outputs)


class ViewEvaluator:
    """Averages the probabilities of views, which are evaluated in batches of one shape, on all local devices.

    For each shape and each value of `View.flip` one program is compiled. A batch with fewer views is padded. Images of many
    sizes have many shapes with a few views each, for which compiling takes longer than computing. These wait until no views
    are left, and are compiled without optimisations.

    Args:
      network: the network; it takes images of any size if the views have several sizes.
      variables: the variables of the network.
      normalize: the normalisation before the network.
      batch_pixels: the maximum number of pixels in a batch, of which the batch size of each shape follows.
      subject: what is evaluated, in lines of progress.
    """

    def __init__(self, network: Network, variables: Any, normalize: Normalization, batch_pixels: int, subject: str = ''):
        def predict(variables: Any, images: jax.Array, flip: bool) -> jax.Array:
            pixels = images.astype(jnp.float32) / 255
            if not flip:
                return log_probabilities(network, variables, normalize, pixels)
            both = jnp.stack([pixels, pixels[:, :, ::-1]], 1)  # one call of the network halves the time to compile it
            result = log_probabilities(network, variables, normalize, both.reshape(-1, *pixels.shape[1:]))
            return jax.nn.logsumexp(result.reshape(len(pixels), 2, -1), 1) - jnp.log(2.0)
        self._predict = jax.jit(predict, static_argnames='flip')
        self._predict_once = jax.jit(predict, static_argnames='flip', compiler_options=run_once())
        mesh = jax.sharding.Mesh(np.array(jax.local_devices()), ('rows',))
        self._num_devices = mesh.size
        self._rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('rows'))
        self._variables = jax.device_put(variables, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
        self._batch_pixels = batch_pixels
        self._batch_sizes: dict[Any, int] = {}  # by shape and flip
        self._in_flight: collections.deque[tuple[list[View], jax.Array]] = collections.deque()
        self._progress = _Progress(subject)

    def __call__(self, views: Iterable[View], count: int, num_classes: int) -> np.ndarray:
        """Return the logarithms of the mean probabilities of `count` examples, (count, num_classes).

        Args:
          views: the views of all examples, each of which has at least one.
          count: the number of examples.
          num_classes: the number of classes.
        """
        result = np.full((count, num_classes), -np.inf, np.float32)
        groups: dict[Any, list[View]] = collections.defaultdict(list)
        pending_bytes = 0
        for view in views:
            key = view.pixels.shape, view.flip
            groups[key].append(view)
            pending_bytes += view.pixels.nbytes
            self._progress.read(view, count)
            if len(groups[key]) == self._max_batch_size(key):
                pending_bytes -= self._start(groups.pop(key), result)
            elif pending_bytes > PENDING_BYTES:
                largest = max(groups, key=lambda key: sum(view.pixels.nbytes for view in groups[key]))
                pending_bytes -= self._start(groups.pop(largest), result)
            self._progress.log(sum(key not in self._batch_sizes for key in groups))
        while groups:
            key = next(iter(groups))
            self._start(groups.pop(key), result, is_last=True)
            self._progress.log(sum(key not in self._batch_sizes for key in groups))
        while self._in_flight:
            self._finish(result)
        return result

    def _max_batch_size(self, key: Any) -> int:
        (height, width, _), flip = key
        return self._batch_sizes.get(key, max(1, self._batch_pixels // ((1 + flip) * height * width)))

    def _start(self, views: list[View], result: np.ndarray, is_last: bool = False) -> int:
        """Start the evaluation of views of one shape, and return their number of bytes.

        The first batch of a shape determines the size of the others.

        Args:
          views: the views.
          result: see `_finish`.
          is_last: whether no other views of this shape follow.
        """
        key = views[0].pixels.shape, views[0].flip
        is_new, begin = key not in self._batch_sizes, time.monotonic()
        if is_new and len(self._batch_sizes) == _MANY_SHAPES:
            log.info('the images have more than %d sizes, for each of which a program is compiled; dense(multiple=32) '
                     'rounds them to fewer', _MANY_SHAPES)
        size = self._batch_sizes.setdefault(key, -(-len(views) // self._num_devices) * self._num_devices)
        pixels = np.stack([view.pixels for view in views])
        padded = np.concatenate([pixels, np.repeat(pixels[-1:], size - len(views), 0)])
        while len(self._in_flight) >= _IN_FLIGHT:
            self._finish(result)
        is_faster = is_new and is_last and len(views) <= _FEW_VIEWS
        predict = self._predict_once if is_faster else self._predict
        images = jax.device_put(padded, self._rows)
        self._in_flight.append((views, predict(self._variables, images, flip=views[0].flip)))
        self._progress.started(len(views), time.monotonic() - begin if is_new else None)
        return pixels.nbytes

    def _finish(self, result: np.ndarray) -> None:
        """Add the predictions of the oldest batch in flight to the result."""
        views, output = self._in_flight.popleft()
        weights = np.log([view.weight for view in views], dtype=np.float32)
        values = np.asarray(output)[:len(views)] + weights[:, None]
        np.logaddexp.at(result, [view.index for view in views], values)


class _Progress:
    """Logs every few seconds how many images are evaluated, and estimates the time that is left.

    Args:
      subject: what is evaluated; empty: nothing is logged.
    """

    def __init__(self, subject: str):
        self._subject = subject
        self._begin = time.monotonic()
        self._next_line = self._begin + _PROGRESS_INTERVAL
        self._views_started = self._views_read = self._images_read = self._num_programs = 0
        self._count, self._last_index, self._compile_seconds = 0, -1, 0.0

    def read(self, view: View, count: int) -> None:
        """Note that a view of one of `count` images has been read."""
        self._count = count
        self._views_read += 1
        self._images_read += view.index != self._last_index
        self._last_index = view.index

    def started(self, num_views: int, compile_seconds: float | None) -> None:
        """Note that views have been evaluated, and the time to compile the program if it was a new one."""
        self._views_started += num_views
        if compile_seconds is not None:
            self._num_programs += 1
            self._compile_seconds += compile_seconds

    def log(self, new_shapes: int) -> None:
        """Log a line if it is time, where `new_shapes` programs have to be compiled for views that wait."""
        now = time.monotonic()
        if not self._subject or now < self._next_line or not self._views_started:
            return
        self._next_line = now + _PROGRESS_INTERVAL
        views_per_image = self._views_read / self._images_read
        images = self._views_started / views_per_image
        seconds_per_image = max(now - self._begin - self._compile_seconds, 0) / images
        seconds = (self._count - images) * seconds_per_image
        if new_shapes and self._num_programs:
            seconds += new_shapes * self._compile_seconds / self._num_programs
        sizes = f', {self._num_programs} of at least {self._num_programs + new_shapes} sizes' if new_shapes else ''
        log.info('%s: %s of %s images%s, about %s left', self._subject, f'{int(images):,}', f'{self._count:,}', sizes,
                 f'{int(seconds) // 60}:{int(seconds) % 60:02d}')


def read_ahead(function: Callable[[int], Any], count: int) -> Iterator[Any]:
    """Yield the results of a function for 0, 1 and so on up to `count`, which several threads compute ahead in order."""
    num_threads = len(os.sched_getaffinity(0))
    with concurrent.futures.ThreadPoolExecutor(num_threads) as executor:
        futures: collections.deque[concurrent.futures.Future] = collections.deque()
        try:
            for index in range(count):
                futures.append(executor.submit(function, index))
                if len(futures) > 2 * num_threads:
                    yield futures.popleft().result()
            while futures:
                yield futures.popleft().result()
        finally:
            for future in futures:
                future.cancel()
