"""Draw augmented pictures: a row for each op of a pipeline, and a row for the pipeline.

Without a pipeline, every op is drawn. With --workdir, the pipeline and the images are those of a run, and ops may attack its
network.
"""

import argparse
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jaxcnn import cli

if TYPE_CHECKING:
    import numpy as np

    from jaxcnn.config import DataConfig
    from jaxcnn.data import augment
    from jaxcnn.run import Run
    from jaxcnn.tasks import Task

EXAMPLES = (
    'pad_crop(16)', 'random_crop(96)', 'center_crop(96)', 'random_resized_crop(128)', 'scale_jitter(128, (128, 256))',
    'large_scale_jitter', 'resize(48)', 'pad(8, "reflect")', 'flip_lr', 'alternating_flip', 'flip_ud', 'rotate(30)',
    'translate(0.2)', 'scale((0.6, 1.4))', 'shear(20)', 'affine(20, 0.1, (0.8, 1.2), 10)', 'brightness(0.5)',
    'contrast(0.5)', 'saturation(0.8)', 'hue(0.2)', 'color_jitter(0.4, 0.4, 0.4, 0.1)', 'grayscale(0.5)', 'invert',
    'solarize(0.5)', 'posterize(2)', 'equalize', 'autocontrast', 'sharpness(0.9)', 'channel_shift(0.3)',
    'gaussian_noise(0.1)', 'salt_and_pepper(0.1)', 'gaussian_blur(9, (0.5, 3.0))', 'cutout(48)', 'random_erasing(0.9)',
    'corruption("snow", 3)', 'mixup(1.0)', 'cutmix(1.0)', 'auto_augment("cifar10")', 'auto_augment("imagenet")',
    'rand_augment(2, 9)', 'trivial_augment', 'fgsm(0.03)', 'pgd(0.03, 0.01, 10)',
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the figure: a pipeline, and the text above it.

    Attributes:
      heading: the text.
      pipeline: the pipeline; None if only `crops` are applied.
      crops: the operations that act on the image files before the pipeline; None: it gets images of one size.
    """

    heading: str
    pipeline: 'augment.Pipeline | None'
    crops: 'augment.FileCrops | None' = None


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The examples that the pipelines are applied to, and the task and the network that they need.

    Attributes:
      images: uint8 (H, W, C); the first one is augmented, and mixed with the last one.
      targets: targets of the images, by name.
      task: mixes, moves and draws the targets.
      gradient: gradient of the network's loss with respect to images; None without a run.
      originals: for a run whose images keep their sizes, the images of the files, uint8 (H, W, C).
    """

    images: 'Sequence[np.ndarray]'
    targets: 'Mapping[str, np.ndarray]'
    task: 'Task'
    gradient: 'augment.Gradient | None' = None
    originals: 'Sequence[np.ndarray]' = ()


def inputs_of_pictures(args: argparse.Namespace) -> Inputs:
    """Return the pictures of --images, or two photographs, with two made-up classes."""
    import numpy as np

    from jaxcnn import config, tasks
    from jaxcnn.data import picture, resizing
    if args.images:
        pixels = [picture.read(path, 'RGB') for path in args.images]
    else:
        from sklearn.datasets import load_sample_images
        pixels = load_sample_images().images
    images = [resizing.resize(image, (args.size, args.size), 'crop') for image in pixels]
    task = tasks.create(config.parse({}), ['first', 'second'], [1, 1], 2)
    return Inputs(images, {'label': np.arange(len(images))}, task)


def inputs_of_run(args: argparse.Namespace, loaded: 'Run') -> Inputs:
    """Return the pictures of --images with the labels that the network predicts, or two training images of the run."""
    import numpy as np

    from jaxcnn import data
    from jaxcnn.data import picture
    from jaxcnn.evaluation.data import original_images
    from jaxcnn.training.step import image_gradient
    task, settings = loaded.experiment.task, loaded.config.data
    gradient = image_gradient(loaded.experiment.network, loaded.experiment.preprocessor, task, loaded.variables)
    if args.images:
        images = [loaded.load_picture(path)[0] for path in args.images]
        mode = 'L' if loaded.info['image_shape'][-1] == 1 else 'RGB'
        originals = [picture.read(path, mode) for path in args.images] if settings.keeps_sizes else []
        return Inputs(images, task.targets_of(loaded.predict(np.stack(images))), task, gradient,
                      [image.reshape(*image.shape[:2], -1) for image in originals])
    dataset = data.load(settings, task.kind)
    train = dataset.splits['train']
    positions = np.random.default_rng(args.seed).permutation(len(train))[:2]
    originals = [*map(original_images(dataset, 'train'), positions)] if settings.keeps_sizes else []
    return Inputs(list(train.take(positions)), train.take_targets(positions), task, gradient, originals)


def rows_of(text: str, has_network: bool, is_default: bool) -> list[Row]:
    """Return a row for each op of a pipeline, and one for the pipeline, unless the last op's row shows all of it.

    Args:
      text: the pipeline.
      has_network: whether there is a network to attack. The row of an attack begins with the ops before it, which may change
        the size of images to what the network takes.
      is_default: the pipeline is the list of all examples: attacks without a network are left out, and there is no row for
        the pipeline.

    Raises:
      UserError: the pipeline attacks a network, but there is none.
    """
    from jaxcnn.data import augment
    from jaxcnn.errors import UserError
    pipeline = augment.parse_pipeline(text)
    assert pipeline is not None
    texts = [part.strip() for part in text.split('|')]
    rows, attacks = [], []
    for i, op in enumerate(pipeline.ops):
        start = 0 if isinstance(op, augment.Attack) and has_network else i
        part = augment.Pipeline(texts[i], pipeline.ops[start:i + 1])
        heading = '|'.join(texts[start:i + 1])
        if part.has_attack and not has_network:
            attacks.append(heading)
        else:
            rows.append(Row(heading, part))
    if attacks and not is_default:
        raise UserError(f'{attacks[0]} attacks a network', hint='name a run with --workdir, whose network is attacked')
    if attacks:
        cli.log.info('skipped: %s; they attack a network, which --workdir names', ', '.join(attacks))
    if len(rows) > 1 and part.ops != pipeline.ops and not is_default:
        rows.append(Row(text, pipeline))
    return rows


def rows_of_files(text: str, settings: 'DataConfig') -> list[Row]:
    """Return the rows for images that keep their sizes: the crops of the files, each op after them, and the pipeline.

    Raises:
      UserError: the pipeline does not begin with crops to one size.
    """
    from jaxcnn.data import augment
    crops, rest = augment.split_pipeline(dataclasses.replace(settings, augment=text), train=True)
    assert crops is not None
    shorter = [f'shorter side of {settings.shorter_side}'] if settings.shorter_side else []
    rows = [Row('|'.join(filter(None, [*shorter, crops.text])), None, crops)]
    return rows if rest is None else [*rows, *rows_of(rest.text, True, is_default=True), Row(text, rest, crops)]


@dataclasses.dataclass
class Tiles:
    """The images of the figure.

    Attributes:
      images: float (H, W, C) in [0, 1].
      targets: the targets of each image, by name.
      titles: the title of each image.
    """

    images: 'list[np.ndarray]'
    targets: 'list[dict[str, np.ndarray]]'
    titles: list[str]


def augment_images(row: Row, inputs: Inputs, draws: int, seed: int) -> Tiles:
    """Return the first image and its augmented versions.

    Every other row of the batch holds the image with which the next one is mixed.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxcnn.data.stream import crop_generator
    from jaxcnn.training.state import run_once
    images = [inputs.images[i] for i in (-1, 0)] * draws
    original = inputs.images[0]
    if row.crops:
        original = inputs.originals[0]
        for i in range(2 * draws):
            pixels = inputs.originals[(-1, 0)[i % 2]]
            drawn = row.crops.draw(crop_generator(seed, i), *pixels.shape[:2])
            images[i] = drawn.apply(pixels, *pixels.shape[:2])
    examples = {'image': jnp.asarray(np.stack(images), jnp.float32) / 255}
    for name, values in inputs.targets.items():
        examples[name] = jnp.concatenate([jnp.asarray(values[[-1, 0]])] * draws)
    keys = jnp.repeat(jax.random.split(jax.random.key(seed), draws), 2, 0)

    def augment_batch(keys: jax.Array, examples: dict) -> dict:
        if row.pipeline is None:
            return examples
        return row.pipeline.batch(keys, examples, inputs.task, lambda x: jnp.roll(x, 1, 0), inputs.gradient)
    results = jax.jit(augment_batch, compiler_options=run_once())(keys, examples)
    augmented = {name: np.asarray(values)[1::2] for name, values in results.items()}
    results_of_draws = augmented.pop('image')
    targets = [{name: values[i] for name, values in augmented.items()} for i in range(draws)]
    titles = [inputs.task.title(values) if row.pipeline and row.pipeline.num_mixes else '' for values in targets]
    original_targets = {name: np.asarray(values[0]) for name, values in inputs.targets.items()}
    first = np.asarray(original, np.float32) / 255
    return Tiles([first, *results_of_draws], [original_targets, *targets], ['original', *titles])


def run(args: argparse.Namespace) -> int:
    """Run the command with its parsed arguments, and return its exit code."""
    if args.ops:
        from jaxcnn.data import augment
        print('\n'.join(map(augment.describe, augment.names())), end='')
        return 0
    from jaxcnn.errors import UserError, counted
    for name, value, minimum in (('--draws', args.draws, 1), ('--size', args.size, 8)):
        if value < minimum:
            raise UserError(f'expected at least {minimum}, got {value}', field=name)
    if len(args.images) > 2:
        raise UserError(f'expected one or two, got {len(args.images)}', field='--images')
    text = args.pipeline.strip()
    loaded = cli.load_run(args.workdir) if args.workdir else None
    if loaded:
        text = text or loaded.config.data.augment.strip()
        if not text:
            raise UserError(f'the run in {args.workdir!r} has no augmentation', hint='name a pipeline')
    if loaded and loaded.config.data.keeps_sizes:
        rows = rows_of_files(text, loaded.config.data)
    else:
        rows = rows_of(text or '|'.join(EXAMPLES), bool(loaded), is_default=not text)
    inputs = inputs_of_run(args, loaded) if loaded else inputs_of_pictures(args)
    for row in rows:
        if row.pipeline:
            inputs.task.check_augmentation(row.pipeline)
    tiles = Tiles([], [], [])
    for row in rows:
        new = augment_images(row, inputs, args.draws, args.seed)
        tiles = Tiles(tiles.images + new.images, tiles.targets + new.targets, tiles.titles + new.titles)
    path = args.out or os.path.join(args.workdir, 'figures', 'augmentations.png')
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        inputs.task.draw_examples(tiles.images, tiles.targets, path, tiles.titles, args.draws + 1,
                                  [row.heading for row in rows])
    except (OSError, ValueError) as e:  # ValueError for an unknown format
        raise UserError(f'cannot be written: {getattr(e, "strerror", None) or e}', field=path) from e
    print(f'{counted(len(rows), "row")}: {path}')
    return 0


def main() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('pipeline', nargs='?', default='',
                        help="as in config.data.augment, for example 'random_resized_crop(96)|flip_lr' (default: every op)")
    parser.add_argument('--ops', action='store_true', help='print every op with its arguments, and draw nothing')
    parser.add_argument('--images', nargs='+', default=[], metavar='IMAGE',
                        help='the picture to augment, and one to mix it with; with --workdir, they get the labels that the '
                        'network predicts (default: two photographs, or two training images of the run)')
    parser.add_argument('--workdir', default='', help='a run, whose pipeline, training images and network are used')
    parser.add_argument('--size', type=int, default=128,
                        help='side in pixels of the square to which pictures are resized (default: 128)')
    parser.add_argument('--draws', type=int, default=7, help='number of augmented images in each row (default: 7)')
    parser.add_argument('--seed', type=int, default=0, help='seed of all random numbers (default: 0)')
    parser.add_argument('--out', default='', metavar='FILE',
                        help='the figure to write (default: figures/augmentations.png, in the workdir if there is one)')
    cli.main(parser, run)
