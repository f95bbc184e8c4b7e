"""The operations at the beginning of a pipeline that act on image files of different sizes."""

import dataclasses

import numpy as np

from jaxcnn.config import DataConfig
from jaxcnn.data.augment.registry import AUGMENTATIONS, Geometric, Pipeline, parse_pipeline
from jaxcnn.data.crops import Crop, DrawCrop
from jaxcnn.errors import UserError

_PROBED_SIZES = ((20000, 30000), (30000, 25000))  # larger than any crop


@dataclasses.dataclass(frozen=True)
class FileCrops:
    """Operations that crop image files of different sizes to images of one size.

    Attributes:
      text: describes them.
      operations: one or several operations.
      size: height and width of the results.
    """

    text: str
    operations: tuple[DrawCrop, ...]
    size: tuple[int, int]

    def draw(self, rng: np.random.Generator, height: int, width: int) -> Crop:
        """Return the crop of an image of the given size.

        Raises:
          UserError: the image is smaller than the crop.
        """
        return _apply(self.operations, rng, height, width)


def _apply(operations: tuple[DrawCrop, ...], rng: np.random.Generator, height: int, width: int) -> Crop:
    crop = Crop.full(height, width)
    for operation in operations:
        crop = operation(rng, crop)
    return crop


def split_pipeline(config: DataConfig, train: bool) -> tuple[FileCrops | None, Pipeline | None]:
    """Return the part of a pipeline that acts on image files, and the part that acts on images of one size.

    Args:
      config: the data fields of a config. If they bring all images to one size, the first part is None.
      train: whether to return the parts of `augment`, for training; otherwise those of `eval_augment`.

    Raises:
      UserError: the pipeline is invalid, or images keep their sizes and its first operations do not crop them to one size.
    """
    text, name = (config.augment, 'augment') if train else (config.eval_augment, 'eval_augment')
    pipeline = parse_pipeline(text, deterministic=not train)
    if not config.keeps_sizes:
        return None, pipeline
    ops = pipeline.ops if pipeline else ()
    operations: list[DrawCrop] = []
    for op in ops:
        if not (isinstance(op, Geometric) and op.crop):
            break
        operations.append(op.crop)
    shorter = config.shorter_side
    texts, count = text.split('|'), len(operations)
    if shorter:
        operations.insert(0, lambda rng, crop: crop.resize_shorter(shorter))
    try:
        sizes = {_apply(tuple(operations), np.random.default_rng(0), *size).size for size in _PROBED_SIZES}
    except UserError as e:
        raise UserError(f'{text!r} crops more than there is of images with config.data.image_size={config.image_size!r}',
                        field=f'config.data.{name}', hint=e.hint) from e
    if len(sizes) > 1:
        choices = [op_name for op_name, augmentation in AUGMENTATIONS.items() if train or augmentation.deterministic]
        croppers = [op_name for op_name in ('random_resized_crop', 'scale_jitter', 'random_crop', 'center_crop', 'resize')
                    if op_name in choices]
        raise UserError(f'must begin with operations that bring images to one size, because config.data.image_size='
                        f'{config.image_size!r} keeps their proportions; got {text!r}', field=f'config.data.{name}',
                        hint=f'these do: {", ".join(croppers)}')
    crops = FileCrops('|'.join(texts[:count]), tuple(operations), sizes.pop())
    return crops, Pipeline('|'.join(texts[count:]), ops[count:]) if ops[count:] else None
