"""Object proposals: boxes that may hold an object of any class, for detectors that classify regions of an image.

`config.data.proposals` names a method with its arguments, as in `'selective_search(mode="quality")'`. Its proposals are
computed from the images as they are stored after resizing, when the cache is created, and become targets of each example:

- `proposals`: (P, 4) float32, `x0, y0, x1, y1` in pixels of the stored image, padded with zeros; P is the method's
  `max_proposals`;
- `proposal_valid`: (P,) bool, false for padding.

The order of the proposals is a function of the boxes alone, so that each run and each machine gets the same ones. They are
sorted by a pseudo-random number that is computed from their coordinates, so that any prefix of the list holds boxes of all
sizes in proportion. Of more than `max_proposals` boxes the first ones are used. OpenCV's own order is not used: it ranks
boxes by random numbers of the C library, which differ in each call, while its set of boxes does not.

To add a method, write a function from its arguments to a `ProposalMethod`, and put `@register` above it.

References: Uijlings et al., Selective Search for Object Recognition, 2013; Girshick et al., Rich Feature Hierarchies for
Accurate Object Detection and Semantic Segmentation, 2014 (R-CNN).
"""

import dataclasses
import functools
import hashlib
import inspect
import io
import math
import os
import pathlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from jaxcnn.config import DataConfig, bind, parse_call
from jaxcnn.config.arguments import check_choice, check_number, check_whole_number
from jaxcnn.data.resizing import resize
from jaxcnn.errors import UserError, name_field
from jaxcnn.registry import Registry

VERSION = 2  # of the order and of the methods in this file; part of the key of a cache
FIELD = 'config.data.proposals'
MODES = {'fast': 'switchToSelectiveSearchFast', 'quality': 'switchToSelectiveSearchQuality',
         'single': 'switchToSingleStrategy'}
STRATEGIES = {'colour': 'Color', 'texture': 'Texture', 'size': 'Size', 'fill': 'Fill'}
Search = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class ProposalMethod:
    """A method of object proposals with its arguments.

    Attributes:
      search: maps an image, uint8 (H, W, C) with 1 or 3 channels, to boxes (n, 4) in any order, duplicates allowed.
      max_proposals: the largest number of proposals for an image.
      min_side: the smallest side of a proposal in pixels.
      ranked: whether `search` returns boxes without duplicates, best first; they keep this order.
      checksum: of the file that the proposals are read from, if there is one.
      versions: returns the versions of the packages that `search` needs, by name; raises a UserError if one is missing.
    """

    search: Search
    max_proposals: int
    min_side: float = 0
    ranked: bool = False
    checksum: str = ''
    versions: Callable[[], Mapping[str, str]] = dict

    def propose(self, image: np.ndarray) -> np.ndarray:
        """Return the proposals for an image: (n, 4) float32 with n at most `max_proposals`."""
        boxes = np.clip(self.search(image), 0, [image.shape[1], image.shape[0]] * 2).astype(np.float32)
        return (boxes if self.ranked else sort_proposals(boxes, self.min_side))[:self.max_proposals]

    def encode(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Return the targets `proposals` (P, 4) and `proposal_valid` (P,) of an image."""
        boxes = self.propose(image)
        return {'proposals': np.pad(boxes, [(0, self.max_proposals - len(boxes)), (0, 0)]),
                'proposal_valid': np.arange(self.max_proposals) < len(boxes)}


T = TypeVar('T', bound=Callable[..., ProposalMethod])
_METHODS: Registry[Callable[..., ProposalMethod]] = Registry('proposal method')


def register(factory: T) -> T:
    """Make a method known to `config.data.proposals`, as a decorator of the function that returns its `ProposalMethod`."""
    _METHODS.add(factory.__name__, factory)
    return factory


def names() -> list[str]:
    """Return the names of the registered methods."""
    return _METHODS.names()


def _parse(text: str) -> tuple[Callable[..., ProposalMethod], dict[str, Any]]:
    """Return the function and the arguments of a call such as `'sliding_windows(stride=0.25)'`."""
    name, args, kwargs = parse_call(text, FIELD)
    factory = _METHODS.get(name)
    return factory, bind(factory, args, kwargs, f'proposal method {name}')


def find(text: str) -> ProposalMethod:
    """Return the method that a call such as `'selective_search(mode="fast")'` describes.

    Raises:
      UserError: the text is no call, the method is unknown or does not take an argument.
    """
    with name_field(FIELD):
        factory, arguments = _parse(text)
        return factory(**arguments)


def canonical(text: str) -> str:
    """Return a method's call with all arguments, defaults included, which is the same however the call is written."""
    with name_field(FIELD):
        factory, arguments = _parse(text)
        bound = inspect.signature(factory).bind(**arguments)
    bound.apply_defaults()
    return f'{factory.__name__}({", ".join(f"{name}={value!r}" for name, value in bound.arguments.items())})'


def proposals_for(images: np.ndarray, config: DataConfig) -> dict[str, np.ndarray]:
    """Return the proposals for images that are not in a cache, as for prediction; several images are processed in parallel.

    Args:
      images: uint8 (N, H, W, C), resized as `config` says.
      config: its field `proposals` names the method.

    Returns:
      `proposals` (N, P, 4) and `proposal_valid` (N, P), equal to those in a cache.
    """
    import joblib
    method = find(config.proposals)
    method.versions()
    cores = len(os.sched_getaffinity(0))
    encoded = joblib.Parallel(cores, backend='threading')(joblib.delayed(method.encode)(image) for image in images)
    shapes = {'proposals': (method.max_proposals, 4), 'proposal_valid': (method.max_proposals,)}
    return {name: np.array([arrays[name] for arrays in encoded], dtype).reshape(len(images), *shapes[name])
            for name, dtype in (('proposals', np.float32), ('proposal_valid', np.bool_))}


# ---- order


def sort_proposals(boxes: np.ndarray, min_side: float = 0) -> np.ndarray:
    """Remove duplicates and boxes with a side of 0 or below `min_side`, and sort the others; see the module's docstring.

    Args:
      boxes: (n, 4) float32.
      min_side: the smallest side in pixels.

    Returns:
      (m, 4) float32, the same for any order of `boxes`.
    """
    boxes = np.unique(np.asarray(boxes, np.float32).reshape(-1, 4) + 0.0, axis=0)  # -0 becomes 0
    sides = boxes[:, 2:] - boxes[:, :2]
    boxes = boxes[((sides > 0) & (sides >= min_side)).all(1)]
    return boxes[np.argsort(_random_numbers(boxes), kind='stable')]


def _random_numbers(boxes: np.ndarray) -> np.ndarray:
    """Return a pseudo-random uint64 for each box (n, 4) float32, computed from its coordinates by SplitMix64."""
    state = np.zeros(len(boxes), np.uint64)
    for column in boxes.view(np.uint32).astype(np.uint64).T:
        state = (state ^ column) + np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
        state ^= state >> np.uint64(31)
    return state


# ---- files


def image_key(image: np.ndarray) -> str:
    """Return the SHA-256 checksum of the pixels and the shape of an image, by which a file of proposals identifies it."""
    return hashlib.sha256(f'{image.shape}'.encode() + np.ascontiguousarray(image).data).hexdigest()


def save(path: str, keys: Sequence[str], boxes: np.ndarray, valid: np.ndarray) -> None:
    """Write proposals to a file for the method `saved`.

    Args:
      path: the file, whose name ends in `.npz`.
      keys: the `image_key` of each of the N images.
      boxes: (N, P, 4) in pixels of the images, best first.
      valid: (N, P), false for padding.
    """
    np.savez_compressed(path, keys=np.array(keys), boxes=boxes.astype(np.float32),
                        valid=valid)


@functools.lru_cache(maxsize=1)
def _read_saved(path: str, mtime_ns: int, size: int) -> tuple[dict[str, int], np.ndarray, np.ndarray, str]:
    """Return the positions of images by their keys, the boxes, which of them exist, and the checksum of a file.

    The time of the change and the size are part of the key under which the content is remembered.
    """
    content = pathlib.Path(path).read_bytes()
    with np.load(io.BytesIO(content)) as file:
        positions = {key: i for i, key in enumerate(file['keys'].tolist())}
        return positions, file['boxes'], file['valid'], hashlib.sha256(content).hexdigest()


@register
def saved(path: str, max_proposals: int = 0) -> ProposalMethod:
    """Read proposals from a file that `save` or `jaxcnn proposals --save` has written, such as those of a trained run.

    Args:
      path: the file.
      max_proposals: the number of proposals that are used of each image, best first; 0: all.
    """
    check_whole_number('saved', 0, max_proposals=max_proposals)
    try:
        status = os.stat(path)
        positions, boxes, valid, checksum = _read_saved(path, status.st_mtime_ns, status.st_size)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as e:
        raise UserError(f'{path}: is no readable file of proposals', field='saved',
                        hint='jaxcnn proposals --workdir=RUN --save=FILE writes one') from e

    def search(image: np.ndarray) -> np.ndarray:
        position = positions.get(image_key(image))
        if position is None:
            raise UserError(f'{path}: has no proposals for this image', field='saved',
                            hint='its images must be those of the data set, resized in the same way')
        ranked: np.ndarray = boxes[position][valid[position]]
        return ranked
    return ProposalMethod(search, max_proposals or boxes.shape[1], ranked=True, checksum=checksum)


# ---- methods


def _import_opencv() -> Any:
    """Return the module `cv2` with selective search, which only the contributed modules of OpenCV have.

    Raises:
      UserError: it is not installed.
    """
    try:
        import cv2
        from cv2.ximgproc import segmentation  # noqa: F401
    except ImportError:
        raise UserError('selective_search needs OpenCV with its contributed modules, which is not installed', field=FIELD,
                        hint="pip install 'jaxcnn[detection]'") from None
    return cv2


@dataclasses.dataclass(frozen=True)
class _SelectiveSearch:
    mode: str
    strategy: str
    k: int
    sigma: float
    width: int

    def __call__(self, image: np.ndarray) -> np.ndarray:
        segmentation = _import_opencv().ximgproc.segmentation
        height, width = image.shape[:2]
        if self.width and self.width != width:
            image = resize(image, (max(1, round(height * self.width / width)), self.width), 'squash')
        search = segmentation.createSelectiveSearchSegmentation()
        colours = image[..., ::-1] if image.shape[-1] == 3 else image.repeat(3, -1)  # OpenCV's order is blue, green, red
        search.setBaseImage(np.ascontiguousarray(colours))
        scales = (self.k, self.sigma) if self.mode == 'single' else (self.k, self.k, self.sigma)
        getattr(search, MODES[self.mode])(*scales)
        if self.strategy != 'all':
            search.clearStrategies()
            create = getattr(segmentation, f'createSelectiveSearchSegmentationStrategy{STRATEGIES[self.strategy]}')
            search.addStrategy(create())
        left, top, box_width, box_height = np.asarray(search.process(), np.float64).reshape(-1, 4).T
        scale_x, scale_y = width / image.shape[1], height / image.shape[0]
        return np.stack([left * scale_x, top * scale_y, (left + box_width) * scale_x, (top + box_height) * scale_y], -1)


@register
def selective_search(mode: str = 'fast', max_proposals: int = 2000, min_side: float = 2, strategy: str = 'all',
                     k: int | None = None, sigma: float = 0.8, width: int = 0) -> ProposalMethod:
    """Merge the most similar neighbouring segments of an image step by step; the box of each is a proposal (OpenCV's).

    Args:
      mode: `fast` segments 2 colour spaces with 4 scales and merges by 2 combinations of the similarities; `quality`
        takes 5 colour spaces and 4 combinations; `single` takes one of each. R-CNN uses `fast`.
      max_proposals: the largest number of proposals for an image.
      min_side: the smallest side of a proposal in pixels of the stored image. OpenCV's segments have 100 pixels or more.
      strategy: `all`, or the only similarity by which segments are merged: `colour`, `texture`, `size` or `fill`.
      k: the smallest scale of the segments and the distance to the next one: larger values give fewer and larger segments;
        by default 200 for `single` and otherwise 150.
      sigma: standard deviation of the Gaussian filter before the segmentation.
      width: the width in pixels to which the image is resized for the search, as R-CNN does with 500; 0: not resized.
    """
    check_choice('selective_search', [*MODES], mode=mode)
    check_choice('selective_search', ['all', *STRATEGIES], strategy=strategy)
    check_whole_number('selective_search', max_proposals=max_proposals)
    check_whole_number('selective_search', 0, width=width)
    k = (200 if mode == 'single' else 150) if k is None else k
    check_whole_number('selective_search', k=k)
    check_number('selective_search', min_side=min_side)
    check_number('selective_search', 1e-3, sigma=sigma)
    return ProposalMethod(_SelectiveSearch(mode, strategy, k, float(sigma), width), max_proposals, min_side,
                          versions=lambda: {'opencv': _import_opencv().__version__})


@dataclasses.dataclass(frozen=True)
class _SlidingWindows:
    scales: Sequence[float]
    ratios: Sequence[float]
    stride: float

    def __call__(self, image: np.ndarray) -> np.ndarray:
        windows = [_grid(image.shape[0], image.shape[1], max(1, round(scale * math.sqrt(ratio))),
                         max(1, round(scale / math.sqrt(ratio))), self.stride)
                   for scale in self.scales for ratio in self.ratios]
        return np.concatenate(windows)


def _grid(height: int, width: int, window_height: int, window_width: int, stride: float) -> np.ndarray:
    """Return the windows of one size in an image: (n, 4); none if the window is larger than the image."""
    if window_height > height or window_width > width:
        return np.zeros((0, 4))
    tops, lefts = (np.round(np.linspace(0, side - window, math.ceil((side - window) / (stride * window)) + 1))
                   for side, window in ((height, window_height), (width, window_width)))
    top, left = (values.ravel() for values in np.meshgrid(tops, lefts, indexing='ij'))
    return np.stack([left, top, left + window_width, top + window_height], -1)


def _check_positive(**arguments: Sequence[float]) -> None:
    for name, values in arguments.items():
        if not isinstance(values, (tuple, list)) or not values:
            raise UserError(f'expected several numbers as in (0.5, 1, 2), got {values!r}', field=f'sliding_windows.{name}')
        for value in values:
            check_number('sliding_windows', 1e-3, **{name: value})


@register
def sliding_windows(scales: Sequence[float] = (32, 64, 128, 256), ratios: Sequence[float] = (0.5, 1, 2),
                    stride: float = 0.5, max_proposals: int = 2000, min_side: float = 0) -> ProposalMethod:
    """Place windows of several sizes and shapes on regular grids, which cover the image to its edges.

    Args:
      scales: square roots of the windows' areas, in pixels of the stored image. Windows larger than the image are left out.
      ratios: heights of windows over their widths.
      stride: the largest distance of neighbouring windows as a fraction of their side.
      max_proposals: the largest number of proposals for an image; a larger `stride` gives fewer.
      min_side: the smallest side of a proposal in pixels of the stored image.
    """
    _check_positive(scales=scales, ratios=ratios)
    check_number('sliding_windows', 0.01, stride=stride)
    check_number('sliding_windows', min_side=min_side)
    check_whole_number('sliding_windows', max_proposals=max_proposals)
    return ProposalMethod(_SlidingWindows(tuple(scales), tuple(ratios), stride), max_proposals, min_side)
