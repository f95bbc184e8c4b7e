"""Evaluation of views: images of several shapes, such as crops, whose predictions are averaged for each example."""

import collections
import concurrent.futures
import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.data.normalize import Normalization
from jaxcnn.models import Network

PENDING_BYTES = 1 << 28  # bytes of images that wait for others of their shape
_IN_FLIGHT = 3  # batches whose results are not yet fetched
_MANY_SHAPES = 20
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
    """Averages the probabilities of views, which are evaluated in batches of one shape.

    For each shape and each value of `View.flip` one program is compiled. A batch with fewer views is padded.

    Args:
      network: the network; it takes images of any size if the views have several sizes.
      variables: the variables of the network.
      normalize: the normalisation before the network.
      batch_pixels: the maximum number of pixels in a batch, of which the batch size of each shape follows.
    """

    def __init__(self, network: Network, variables: Any, normalize: Normalization, batch_pixels: int):
        def predict(variables: Any, images: jax.Array, flip: bool) -> jax.Array:
            pixels = images.astype(jnp.float32) / 255
            result = log_probabilities(network, variables, normalize, pixels)
            if not flip:
                return result
            mirrored = log_probabilities(network, variables, normalize, pixels[:, :, ::-1])
            return jnp.logaddexp(result, mirrored) - jnp.log(2.0)
        self._predict = jax.jit(predict, static_argnames='flip')
        self._variables = jax.device_put(variables)
        self._batch_pixels = batch_pixels
        self._batch_sizes: dict[Any, int] = {}  # by shape and flip
        self._in_flight: collections.deque[tuple[list[View], jax.Array]] = collections.deque()

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
            if len(groups[key]) == self._max_batch_size(key):
                pending_bytes -= self._start(groups.pop(key), result)
            elif pending_bytes > PENDING_BYTES:
                largest = max(groups, key=lambda key: sum(view.pixels.nbytes for view in groups[key]))
                pending_bytes -= self._start(groups.pop(largest), result)
        for group in groups.values():
            self._start(group, result)
        while self._in_flight:
            self._finish(result)
        return result

    def _max_batch_size(self, key: Any) -> int:
        (height, width, _), _ = key
        return self._batch_sizes.get(key, max(1, self._batch_pixels // (height * width)))

    def _start(self, views: list[View], result: np.ndarray) -> int:
        """Start the evaluation of views of one shape, and return their number of bytes.

        The first batch of a shape determines the size of the others.
        """
        key = views[0].pixels.shape, views[0].flip
        if key not in self._batch_sizes and len(self._batch_sizes) == _MANY_SHAPES:
            log.info('the images have more than %d sizes, for each of which a program is compiled; dense(multiple=32) '
                     'rounds them to fewer', _MANY_SHAPES)
        size = self._batch_sizes.setdefault(key, len(views))
        pixels = np.stack([view.pixels for view in views])
        padded = np.concatenate([pixels, np.repeat(pixels[-1:], size - len(views), 0)])
        while len(self._in_flight) >= _IN_FLIGHT:
            self._finish(result)
        self._in_flight.append((views, self._predict(self._variables, padded, flip=views[0].flip)))
        return pixels.nbytes

    def _finish(self, result: np.ndarray) -> None:
        """Add the predictions of the oldest batch in flight to the result."""
        views, output = self._in_flight.popleft()
        weights = np.log([view.weight for view in views], dtype=np.float32)
        values = np.asarray(output)[:len(views)] + weights[:, None]
        np.logaddexp.at(result, [view.index for view in views], values)


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
