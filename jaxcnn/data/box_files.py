"""Image files with boxes: what the layouts of object detection have in common.

A layout lists the images of each split with their annotations. `make_box_source` checks them as far as it can without
decoding the images; `targets.ObjectBoxes` checks the boxes against the sizes of the images.
"""

import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Mapping, Sequence

import numpy as np

from jaxcnn.config import DataConfig
from jaxcnn.data import picture
from jaxcnn.data.classes import compose_unicode, natural_order, read_class_file, unique_names
from jaxcnn.data.image_files import stored_path
from jaxcnn.data.sources import Example, Source
from jaxcnn.data.targets import BOXES, check_number_of_boxes
from jaxcnn.errors import UserError, as_text, unknown

SKIP_IMAGE_HINT = 'config.data.skip_broken=True skips such images'
SKIP_BOX_HINT = 'config.data.skip_broken=True leaves out such boxes'
Box = tuple[float, float, float, float]


@dataclasses.dataclass
class AnnotatedImage:
    """An image with its boxes.

    Attributes:
      path: its path, relative to the folder of the layout.
      annotation: the file, or the line of a file, that holds the boxes, for errors.
      boxes: `x0, y0, x1, y1` of each object, in pixels or, if the layout says so, in fractions of the image.
      classes: the class of each object.
      difficult: whether evaluation ignores each object.
      size: width and height of the image according to the annotation; None if it does not say.
      problem: why the image is skipped; '' if it is not.
      box_problems: why boxes are left out.
    """

    path: str
    annotation: str = ''
    boxes: list[Box] = dataclasses.field(default_factory=list)
    classes: list[str] = dataclasses.field(default_factory=list)
    difficult: list[bool] = dataclasses.field(default_factory=list)
    size: tuple[int, int] | None = None
    problem: str = ''
    box_problems: list[str] = dataclasses.field(default_factory=list)

    def add(self, box: Box, class_name: str, difficult: bool = False) -> None:
        """Add an object."""
        self.boxes.append(box)
        self.classes.append(compose_unicode(class_name))
        self.difficult.append(difficult)

    def leave_out(self, error: UserError, config: DataConfig) -> None:
        """Count a box that is left out; without `config.skip_broken`, raise the error."""
        if not config.skip_broken:
            error.add_hint(SKIP_BOX_HINT)
            raise error
        self.box_problems.append(str(error))

    def skip(self, error: UserError, config: DataConfig) -> None:
        """Mark the image as broken, so that it is skipped and counted; without `config.skip_broken`, raise the error."""
        if not config.skip_broken:
            error.add_hint(SKIP_IMAGE_HINT)
            raise error
        self.problem = str(error)


BoxListing = dict[str, list[AnnotatedImage]]  # the images of each split


@dataclasses.dataclass(frozen=True)
class BoxFiles:
    """The examples of a split in image files.

    The boxes of all images are in arrays, which worker processes share, and not in an object for each image.

    Attributes:
      root: the folder that the paths are relative to.
      paths: (N,) the paths of the images.
      annotations: (N,) the file, or the line of a file, that holds the boxes of each image, for errors.
      sizes: (N, 2) width and height of each image according to its annotation; 0 if it does not say.
      starts: (N + 1,) the position of each image's first object in the following arrays.
      boxes: (n, 4) `x0, y0, x1, y1`.
      classes: (n,) numbers of classes.
      difficult: (n,) bool.
      problems: by the index of an image, why it is skipped.
      box_problems: by the index of an image, why boxes are left out.
      in_fractions: whether the boxes are in fractions of the width and height of their image, and not in pixels.
    """

    root: str
    paths: Sequence[str]
    annotations: Sequence[str]
    sizes: np.ndarray
    starts: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    difficult: np.ndarray
    problems: Mapping[int, str]
    box_problems: Mapping[int, Sequence[str]]
    in_fractions: bool

    @classmethod
    def from_images(cls, root: str, images: Sequence[AnnotatedImage], labels: Mapping[str, int],
                    in_fractions: bool) -> 'BoxFiles':
        """Return the examples of annotated images; `labels` gives the number of each class."""
        return cls(root, [image.path for image in images], [image.annotation for image in images],
                   sizes=np.array([image.size or (0, 0) for image in images]),
                   starts=np.cumsum([0, *(len(image.boxes) for image in images)]),
                   boxes=np.array([box for image in images for box in image.boxes], np.float64).reshape(-1, 4),
                   classes=np.array([labels[c] for image in images for c in image.classes], np.int64),
                   difficult=np.array([value for image in images for value in image.difficult], bool),
                   problems={index: image.problem for index, image in enumerate(images) if image.problem},
                   box_problems={index: image.box_problems for index, image in enumerate(images) if image.box_problems},
                   in_fractions=in_fractions)

    def __len__(self) -> int:
        return len(self.paths)

    def image_name(self, index: int) -> str:
        """Return the path of an image."""
        return as_text(os.path.join(self.root, self.paths[index]))

    def __getitem__(self, index: int) -> Example:
        if index in self.problems:
            raise UserError(self.problems[index])
        pixels = picture.read(os.path.join(self.root, self.paths[index]), 'RGB')
        height, width = pixels.shape[:2]
        expected_width, expected_height = self.sizes[index]
        if expected_width and (width, height) != (expected_width, expected_height):
            raise UserError(f'is {width} x {height} pixels (width x height), but {as_text(self.annotations[index])} says '
                            f'{expected_width} x {expected_height}', field=self.image_name(index))
        objects = slice(self.starts[index], self.starts[index + 1])
        scale = np.array([width, height, width, height]) if self.in_fractions else 1
        return {'image': pixels, 'boxes': self.boxes[objects] * scale, 'classes': self.classes[objects],
                'difficult': self.difficult[objects], 'problems': self.box_problems.get(index, ())}


def make_box_source(name: str, root: str, listing: BoxListing, config: DataConfig, expected: str,
                    classes: Sequence[str] | None = None, in_fractions: bool = False) -> Source:
    """Return the source of image files with boxes.

    Args:
      name: the name of the layout.
      root: the folder that the paths are relative to.
      listing: the images of each split.
      config: holds `max_boxes`, `skip_broken` and `class_file`.
      expected: describes the layout, for errors.
      classes: the classes in the order of their numbers; by default those in `config.class_file`, or else those of the
        training images, sorted.
      in_fractions: see `BoxFiles`.

    Raises:
      UserError: there is nothing to train on, a class is unknown, an image has too many boxes, or a file is missing.
    """
    if not any(not image.problem for image in listing.get('train', [])):
        raise UserError('holds no images to train on', field=as_text(root), hint=f'expected {expected}')
    if config.class_file:
        classes = read_class_file(config.class_file)
    train_classes = {c for image in listing['train'] for c in image.classes}
    class_list = [*map(compose_unicode, classes)] if classes else sorted(train_classes, key=natural_order)
    if not class_list:
        raise UserError('no training image has a box', field=as_text(root), hint=f'expected {expected}')
    labels = {c: label for label, c in enumerate(class_list)}
    if len(labels) < len(class_list):
        repeated = next(c for c in class_list if class_list.count(c) > 1)
        raise UserError(f'has two classes called {repeated!r}', field=as_text(root), hint='rename one of them')
    digest = hashlib.sha256(os.fsencode(os.path.realpath(root)))
    for split, images in listing.items():
        for image in images:
            _remove_unknown_classes(image, labels, config)
            _find_file(root, image, config)
            _update_digest(digest, split, root, image)
    _check_max_boxes(root, listing, config)
    splits = {split: BoxFiles.from_images(root, images, labels, in_fractions) for split, images in listing.items() if images}
    names = unique_names(class_list, class_list)
    return Source(as_text(root), key={'source': name, 'files': digest.hexdigest(), 'names': names},
                  splits={split: functools.partial(splits.__getitem__, split) for split in splits},
                  class_names=lambda: names, kind=BOXES,
                  paths={split: files.paths for split, files in splits.items()})


def _remove_unknown_classes(image: AnnotatedImage, labels: Mapping[str, int], config: DataConfig) -> None:
    """Leave out the boxes of an image whose class is not in `labels`."""
    is_known = [c in labels for c in image.classes]
    if all(is_known):
        return
    for c in image.classes:
        if c not in labels:
            image.leave_out(unknown('class', c, labels, as_text(image.annotation)), config)
    image.boxes = [*itertools.compress(image.boxes, is_known)]
    image.classes = [*itertools.compress(image.classes, is_known)]
    image.difficult = [*itertools.compress(image.difficult, is_known)]


def _find_file(root: str, image: AnnotatedImage, config: DataConfig) -> None:
    """Change the path of an image to the one that is stored, which may differ in its Unicode form."""
    if image.problem:
        return
    listed_path = os.path.join(root, image.path)
    path = stored_path(listed_path)
    try:
        exists = os.path.isfile(path)
    except ValueError:  # a zero byte in the name
        exists = False
    if not exists:
        image.skip(UserError(f'names the image {as_text(listed_path)}, which does not exist',
                             field=as_text(image.annotation)), config)
    elif path != listed_path:
        image.path = os.path.relpath(path, root)


def _update_digest(digest: 'hashlib._Hash', split: str, root: str, image: AnnotatedImage) -> None:
    """Add everything to a digest on which the decoded image and its targets depend."""
    stamp = ''
    if not image.problem:
        status = os.stat(os.path.join(root, image.path))
        stamp = f'{status.st_size} {status.st_mtime_ns}'
    digest.update(f'{split} {stamp} {image!r}'.encode('utf-8', 'surrogatepass'))


def _check_max_boxes(root: str, listing: BoxListing, config: DataConfig) -> None:
    """Raise a UserError with the largest number of boxes of all images if it exceeds `config.max_boxes`."""
    usable = [image for images in listing.values() for image in images if not image.problem]
    fullest = max(usable, key=lambda image: len(image.boxes))
    try:
        check_number_of_boxes(len(fullest.boxes), config.max_boxes)
    except UserError as e:
        e.field = as_text(os.path.join(root, fullest.path))
        raise
