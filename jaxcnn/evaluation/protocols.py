"""Evaluation protocols: the views of an image whose predicted probabilities are averaged.

    protocol = protocols.parse('multi_crop(scales=(256, 384, 512)) + dense')
    predictions = protocols.predict_split(run, 'test', protocol)

The views are cut from the original image, of any size, and take the place of `config.data.eval_augment`.
"""

import abc
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.config import bind, parse_call
from jaxcnn.config.arguments import check_whole_number
from jaxcnn.data import Dataset
from jaxcnn.errors import UserError, check_bool, name_field, unknown
from jaxcnn.evaluation import crops
from jaxcnn.evaluation.data import load_data, original_images
from jaxcnn.evaluation.fully_convolutional import check_any_size, fully_convolutional
from jaxcnn.evaluation.predictions import Predictions, check_is_classifier
from jaxcnn.evaluation.views import View, ViewEvaluator, read_ahead
from jaxcnn.experiment import Experiment
from jaxcnn.metrics import Measurement
from jaxcnn.run import Run
from jaxcnn.tasks import Accumulated
from jaxcnn.training.state import Weights, variables

_PROGRESS_INTERVAL = 10  # seconds between lines of progress
_PAPER_CROP = 224  # side in pixels of the crops for which the papers give their scales
Known = dict[str, np.ndarray]  # the logarithms of the probabilities (N, classes) by the text of views
Cut = Callable[[np.ndarray, tuple[int, int]], np.ndarray]  # (image (H, W, C), size of the crops) -> (K, h, w, C)
log = logging.getLogger('jaxcnn')


class Protocol(abc.ABC):
    """How the images of a split are evaluated; see `parse` and `sampling.parse`."""

    @abc.abstractmethod
    def describe(self, experiment: Experiment) -> str:
        """Return the protocol as text, with the values of arguments that depend on the network's input."""

    @abc.abstractmethod
    def log_probabilities(self, experiment: Experiment, variables: Any, dataset: Dataset, split: str,
                          known: Known | None = None) -> np.ndarray:
        """Return the logarithms of the probabilities that a network predicts for a split, (N, classes); see `predict`."""

    def predict(self, experiment: Experiment, variables: Any, dataset: Dataset, split: str,
                known: Known | None = None) -> Predictions:
        """Return the predictions for all images of a split.

        Args:
          experiment: an experiment with one class for each image.
          variables: the variables of its network.
          dataset: the data, with the classes of the experiment.
          split: name of the split.
          known: the logarithms of the probabilities by the views of protocols that were evaluated with the same arguments,
            which are used and added to.

        Raises:
          UserError: The protocol does not fit the network or the images, or there is no such split.
        """
        if split not in dataset.splits:
            raise UserError(f'no split {split!r}; there are: {", ".join(dataset.splits)}', field='--split')
        log_probabilities = self.log_probabilities(experiment, variables, dataset, split, known)
        names = [dataset.image_name(split, position) for position in range(len(log_probabilities))]
        labels = dataset.splits[split].targets['label'].astype(np.int32)
        return Predictions(names, labels, log_probabilities, dataset.class_names)


def predict_split(run: Run, split: str, protocol: Protocol, data_dir: str = '') -> Predictions:
    """Return a run's predictions for all images of a split by a protocol.

    Args:
      run: a run with one class for each image.
      split: `train`, `val` or `test`.
      protocol: see `parse` and `sampling.parse`.
      data_dir: another `config.data.dir` than in training; see `data.load_data`.

    Raises:
      UserError: The run does not predict one class for each image; or see `Protocol.predict` and `data.load_data`.
    """
    check_is_classifier(run)
    return protocol.predict(run.experiment, run.variables, load_data(run, data_dir), split)


class ProtocolEvaluator:
    """Evaluates weights on one split of a data set by a protocol.

    Args:
      experiment: the experiment of a run.
      dataset: its data.
      split: name of the split.
      protocol: the protocol.
      known: see `Protocol.predict`; None if several weights are evaluated.
    """

    def __init__(self, experiment: Experiment, dataset: Dataset, split: str, protocol: Protocol, known: Known | None = None):
        self._experiment, self._dataset, self._split, self._protocol = experiment, dataset, split, protocol
        self._known = known

    def __call__(self, weights: Weights) -> tuple[int, dict[Measurement, float]]:
        """Return the number of images, and the metrics of the moving averages if these select the best checkpoint, and of
        the parameters otherwise."""
        ema = self._experiment.best.ema
        predictions = self._protocol.predict(self._experiment, variables(weights)[ema], self._dataset, self._split,
                                             self._known)
        task = self._experiment.task
        sums = task.eval_sums(jnp.asarray(predictions.log_probabilities), {'label': jnp.asarray(predictions.labels)},
                              jnp.ones(len(predictions.labels)))
        values = task.compute(Accumulated(jax.tree.map(np.asarray, sums), {}))
        return predictions.num_images, {Measurement(self._split, task.metrics[name], ema, False): value
                                         for name, value in values.items()}


@dataclasses.dataclass(frozen=True)
class Views:
    """The views of one name in a protocol.

    Attributes:
      call: the call as text, in which `{}` stands for the scales in pixels.
      scales: lengths in pixels to which the shorter side of the image is resized.
      are_relative: whether these are the lengths for crops of 224 pixels, and are adapted to the network's input.
      cut: cuts the views from the resized image, each of the size of the network's input; None for a single view, the
        image as a whole, to which the network is applied in its fully convolutional form.
      flip: whether each view comes with its mirror image.
      multiple: a number of pixels, to a multiple of which the longer side is rounded.
    """

    call: str
    scales: tuple[int, ...]
    are_relative: bool
    cut: Cut | None
    flip: bool
    multiple: int = 1

    def lengths(self, experiment: Experiment) -> tuple[int, ...]:
        """Return the lengths of the shorter side in pixels for the images of an experiment."""
        side = max(experiment.image_shape[:2])
        return tuple(round(side * scale / _PAPER_CROP) if self.are_relative else scale for scale in self.scales)

    def describe(self, experiment: Experiment) -> str:
        """Return the call with the scales in pixels."""
        lengths = self.lengths(experiment)
        return self.call.format(lengths[0] if len(lengths) == 1 else lengths)

    def check(self, experiment: Experiment) -> None:
        """Check that the scales fit the network.

        Raises:
          UserError: A scale is smaller than the crops, or than the smallest image that the network accepts.
        """
        height, width, channels = experiment.image_shape
        for length in self.lengths(experiment):
            with name_field(f'--protocol {self.describe(experiment)}'):
                if self.cut is None:
                    fully_convolutional(experiment).check_image((length, length, channels))
                elif length < max(height, width):
                    raise UserError(f'images whose shorter side is {length} pixels are smaller than the crops, {height} x '
                                    f"{width}, the network's input", hint=f'the smallest scale is {max(height, width)}')

    def of_image(self, image: np.ndarray, experiment: Experiment) -> list[np.ndarray]:
        """Return the views of an image (H, W, C), for each scale an array (K, h, w, C)."""
        height, width, _ = experiment.image_shape
        resized = [crops.resize_shorter_side(image, length, self.multiple) for length in self.lengths(experiment)]
        return [x[None] if self.cut is None else self.cut(x, (height, width)) for x in resized]


@dataclasses.dataclass(frozen=True)
class ViewProtocol(Protocol):
    """A protocol that averages the probabilities of views; the views of each name have the same total weight."""

    parts: tuple[Views, ...]

    def describe(self, experiment: Experiment) -> str:
        """See `Protocol`."""
        return ' + '.join(part.describe(experiment) for part in self.parts)

    def log_probabilities(self, experiment: Experiment, variables: Any, dataset: Dataset, split: str,
                          known: Known | None = None) -> np.ndarray:
        """See `Protocol`."""
        for part in self.parts:
            part.check(experiment)
        known = {} if known is None else known
        by_part = []
        for part in self.parts:
            text = part.describe(experiment)
            if text not in known:
                known[text] = _evaluate_views(part, experiment, variables, dataset, split)
            by_part.append(known[text])
        result: np.ndarray = np.logaddexp.reduce(by_part) - np.log(np.float32(len(by_part)))
        return result


def _evaluate_views(part: Views, experiment: Experiment, variables: Any, dataset: Dataset, split: str) -> np.ndarray:
    """Return the logarithms of the mean probabilities over views, (N, classes).

    Threads read and resize images while the network is applied to those before them.
    """
    network = experiment.network
    if part.cut is None:
        network = fully_convolutional(experiment)
        check_any_size(experiment, network, variables)
    height, width, _ = experiment.image_shape
    evaluator = ViewEvaluator(network, variables, experiment.preprocessor.normalize,
                              experiment.config.eval.batch_size * height * width, part.describe(experiment))
    count, read_image = len(dataset.splits[split]), original_images(dataset, split)

    def read_views(index: int) -> list[View]:
        image = read_image(index)
        with name_field(dataset.image_name(split, index)):
            arrays = part.of_image(image, experiment)
        weight = 1 / sum(map(len, arrays))
        return [View(index, weight, pixels, part.flip) for array in arrays for pixels in array]

    views = (view for image_views in read_ahead(read_views, count) for view in image_views)
    return evaluator(views, count, experiment.task.num_classes)


def log_progress(items: Iterable[Any], count: int, subject: str, unit: str = 'images') -> Iterator[Any]:
    """Yield the items, and log how many of `count` have been yielded every few seconds."""
    next_progress = time.monotonic() + _PROGRESS_INTERVAL
    for number, item in enumerate(items):
        if time.monotonic() >= next_progress:
            log.info('%s: %s of %s %s', subject, f'{number:,}', f'{count:,}', unit)
            next_progress = time.monotonic() + _PROGRESS_INTERVAL
        yield item


def center(shorter: int | None = None) -> Views:
    """Return one view: the crop of the centre, as usual on ImageNet.

    Args:
      shorter: length of the shorter side in pixels; by default 256/224 of the network's input.
    """
    return _make('center', 'shorter', shorter, (256,), crops.center_crop, flip=False)


def ten_crop(shorter: int | None = None) -> Views:
    """Return the crops of the four corners and of the centre, and their mirror images (Krizhevsky et al. 2012, section 4.1).

    Args:
      shorter: length of the shorter side in pixels; by default 256/224 of the network's input.
    """
    return _make('ten_crop', 'shorter', shorter, (256,), crops.five_crops, flip=True)


def multi_crop(scales: Any = None, grid: int = 5, flip: bool = True) -> Views:
    """Return the crops of a regular grid at several scales, and their mirror images, by default 150 for each image
    (Simonyan & Zisserman 2015, section 3.2).

    Args:
      scales: lengths of the shorter side in pixels; by default 256, 384 and 512, in proportion to the network's input.
      grid: number of rows and of columns of the grid.
      flip: whether to use the mirror images.
    """
    check_whole_number('multi_crop', grid=grid)
    cut = functools.partial(crops.grid_crops, count=grid)
    return _make('multi_crop', 'scales', scales, (256, 384, 512), cut, flip, f', grid={grid}{_describe_flip(flip)}')


def dense(scales: Any = None, flip: bool = True, multiple: int = 1) -> Views:
    """Return the image as a whole and its mirror image. The network's scores are averaged over all positions before the
    softmax (Simonyan & Zisserman 2015, section 3.2).

    Args:
      scales: lengths of the shorter side in pixels; by default one, 256/224 of the network's input.
      flip: whether to use the mirror image.
      multiple: a number of pixels, to a multiple of which the longer side is rounded. With a larger one, the images have
        fewer sizes, for each of which a program is compiled.
    """
    return _make_dense('dense', scales, (256,), flip, multiple)


def multi_scale(scales: Any = None, flip: bool = True, multiple: int = 1) -> Views:
    """Return the views of `dense`, with other default scales: 256, 384 and 512, in proportion to the network's input."""
    return _make_dense('multi_scale', scales, (256, 384, 512), flip, multiple)


def _make_dense(name: str, scales: Any, default: tuple[int, ...], flip: bool, multiple: int) -> Views:
    """Return the views of `dense`, with errors about the arguments of `name`."""
    check_whole_number(name, multiple=multiple)
    others = f'{_describe_flip(flip)}{f", multiple={multiple}" if multiple > 1 else ""}'
    views = _make(name, 'scales', scales, default, None, flip, others)
    return dataclasses.replace(views, call=f'dense{views.call.removeprefix(name)}', multiple=multiple)


def _describe_flip(flip: bool) -> str:
    return '' if flip else ', flip=False'


def _make(name: str, argument: str, value: Any, default: tuple[int, ...], cut: Cut | None, flip: bool,
          other_arguments: str = '') -> Views:
    """Return views after checking the arguments.

    Args:
      name: name of the views.
      argument: name of the argument for the scales, `shorter` for a single one or `scales`.
      value: its value, a number or several; None for the default.
      default: the scales for crops of 224 pixels.
      cut, flip: see `Views`.
      other_arguments: the other arguments as text.
    """
    check_bool(f'{name}.flip', True, flip)
    is_sequence = argument == 'scales' and isinstance(value, (tuple, list)) and len(value) > 0
    scales = default if value is None else tuple(value) if is_sequence else (value,)
    for scale in scales:
        check_whole_number(name, **{argument: scale})
    return Views(f'{name}({argument}={{}}{other_arguments})', scales, value is None, cut, flip)


_PROTOCOLS: dict[str, Callable[..., Views]] = {f.__name__: f for f in (center, ten_crop, multi_crop, dense, multi_scale)}


def parse(text: str, others: Mapping[str, Callable[..., Protocol]] = MappingProxyType({})) -> Protocol:
    """Return the protocol that a string such as `'multi_crop(grid=3) + dense'` describes.

    Args:
      text: calls that are separated by `+`. Their names are `center`, `ten_crop`, `multi_crop`, `dense` and `multi_scale`.
      others: further protocols by their names, which are not combined by `+`.

    Raises:
      UserError: The string is not a protocol, a name is unknown, or it does not take an argument.
    """
    parts: list[Views] = []
    calls = text.split('+')
    for call in calls:
        try:
            name, args, kwargs = parse_call(call, '--protocol')
        except UserError as e:
            e.add_hint("several are separated by '+'")
            raise
        with name_field('--protocol'):
            if name in others and len(calls) > 1:
                raise UserError(f'{name} cannot be combined with other protocols')
            if name in others:
                return others[name](**bind(others[name], args, kwargs, f'protocol {name}'))
        if name not in _PROTOCOLS:
            raise unknown('protocol', name, [*_PROTOCOLS, *others], field='--protocol')
        with name_field('--protocol'):
            parts.append(_PROTOCOLS[name](**bind(_PROTOCOLS[name], args, kwargs, f'protocol {name}')))
    return ViewProtocol(tuple(parts))
