"""Checks of the data: what the network is fed, the balance of classes, and duplicates between splits."""

import numpy as np

from jaxcnn.analysis import figures
from jaxcnn.checks.base import FAILED, WARNING, Findings, Verdict
from jaxcnn.checks.context import Context
from jaxcnn.checks.layers import first_layer_input
from jaxcnn.data import duplicates
from jaxcnn.errors import counted
from jaxcnn.training.state import variables

MAX_IMAGES = 256  # whose statistics are computed
MAX_MEAN, MIN_STD, MAX_STD = 1.0, 0.05, 2.0  # of what a network is fed; standardised images have 0 and 1
MAX_DRAWN_PAIRS = 16
MAX_IMBALANCE = 10.0
SHARED_FRACTION = 0.01  # of a split, from which duplicates are an error


def _statistics_error(mean: np.ndarray, std: np.ndarray) -> bool:
    """Return whether the statistics (channels,) are far from those of standardised images and of pixels in [0, 1]."""
    return bool((np.abs(mean) > MAX_MEAN).any() or (std > MAX_STD).any() or std.max() < MIN_STD)


def _format(values: np.ndarray) -> str:
    """Format a value for each channel; of more than four, the smallest and the largest."""
    if len(values) > 4:
        return f'{values.min():.2f} to {values.max():.2f}'
    return ', '.join(f'{value:.2f}' for value in values)


def check_batch(context: Context) -> Verdict:
    """Draw the first batch after augmentation, and check the mean and the deviation of what the network is fed."""
    setup, findings = context.setup, Findings()
    examples = context.train_examples(MAX_IMAGES)
    images = np.asarray(examples['image'], np.float32)
    with figures.warn_on_error(path := context.figure_path('batch')):
        setup.draw_batch(0, setup.backend.replicate(context.host_state), path)
    mean, std = images.mean((0, 1, 2)), images.std((0, 1, 2))
    train = setup.dataset.splits['train']
    pixels = train.take(np.arange(min(len(train), MAX_IMAGES)))
    # weights from elsewhere may need what they were trained with, such as pixels up to 255
    severity = WARNING if context.config.init else FAILED
    if not np.isfinite(images).all():
        findings.add(FAILED, 'the input of the network has values that are not finite', 'check config.data.normalize')
    elif pixels.max() <= 1:
        findings.add(FAILED, f'no pixel is above {pixels.max()} of 255',
                     'store images with pixels from 0 to 255: these look as if they had been divided by 255 before')
    elif _statistics_error(mean, std):
        findings.add(severity, f'the input should have a mean within {MAX_MEAN:g} of 0 and a deviation from {MIN_STD:g} to '
                     f'{MAX_STD:g}', 'check that images are normalised once: config.data.normalize gets pixels in [0, 1]')
    first = first_layer_input(setup.experiment.network, variables(context.host_state)[False], images)
    if first is not None and np.isfinite(images).all():
        x = np.asarray(first)
        axes = tuple(range(x.ndim - 1))
        inner_mean, inner_std = x.mean(axes), x.std(axes)
        if _statistics_error(inner_mean, inner_std) and not _statistics_error(mean, std):
            findings.add(severity, f'but the first layer is fed mean {_format(inner_mean)}, deviation {_format(inner_std)}',
                         'the network changes the scale of images that config.data.normalize has normalised already: remove '
                         "one of the two, or set config.data.normalize='none'")
    return findings.verdict(
        f'the network is fed images of {" x ".join(map(str, images.shape[1:]))} with mean {_format(mean)} and deviation '
        f'{_format(std)}', ['The first images of the first batch, after augmentation and before normalisation, with their '
                            'targets. Check that each image can be recognised and has the right label.'], ['batch'])


def shared_images_status(count: int, size: int) -> str:
    """Return the status of `count` training images among the `size` images of another split."""
    return FAILED if count > SHARED_FRACTION * size else WARNING


def check_data(context: Context) -> Verdict:
    """Check the balance of the classes, and look for images that are in two splits or have several labels."""
    setup, findings = context.setup, Findings()
    dataset = setup.dataset
    counts = np.asarray(dataset.class_counts('train'))
    smallest, largest = int(counts.argmin()), int(counts.argmax())
    names = [figures.shortened(name) for name in dataset.class_names]
    figures_drawn = ['classes']
    with figures.warn_on_error(path := context.figure_path('classes')):
        draw_class_counts(counts, names, path)
    if not counts[smallest]:
        findings.add(WARNING, f'{(counts == 0).sum()} of the classes have no training images, such as {names[smallest]}',
                     'the network cannot learn these classes')
    elif counts[largest] > MAX_IMBALANCE * counts[smallest] and context.config.data.balance == 'none':
        findings.add(WARNING, f'{names[largest]} has {counts[largest] / counts[smallest]:.0f} times as many images as '
                     f'{names[smallest]}', "compare with config.data.balance='sampling' or 'loss'")
    equal_images = duplicates.find(dataset.splits)
    for name, positions in equal_images.shared.items():
        if not len(positions):
            continue
        size = len(dataset.splits[name])
        findings.add(shared_images_status(len(positions), size),
                     f'{len(positions)} of {counted(size, f"{name} image")} are also training images '
                     f'({100 * len(positions) / size:.2f} %)',
                     'remove the training images that are also in another split: results on it are too good otherwise')
        with figures.warn_on_error(path := context.figure_path(f'duplicates_{name}')):
            _draw_duplicates(context, equal_images, name, path)
        figures_drawn.append(f'duplicates_{name}')
    if equal_images.num_ambiguous:
        findings.add(WARNING, f'{counted(equal_images.num_ambiguous, "image")} with equal pixels but different labels',
                     'correct these labels: the network cannot learn them')
    sizes = ', '.join(f'{len(split):,} {name}' for name, split in dataset.splits.items())
    lines = ['Training images of each class. Below it, images of another split that are also training images, if there are '
             'any, beside the training images that they equal.']
    return findings.verdict(
        f'{sizes} images of {dataset.num_classes} classes, {counts.min():,} to {counts.max():,} training images for a class',
        lines, figures_drawn)


def draw_class_counts(counts: np.ndarray, names: list[str], path: str) -> None:
    """Draw the number of training images of each class; of more than 40 classes, sorted and without names."""
    num_classes = len(counts)
    with figures.open_figure(path, min(4 + 0.35 * num_classes, 14), 3.6, names, layout='constrained') as figure:
        axis = figure.subplots()
        many = num_classes > 40
        axis.bar(range(num_classes), np.sort(counts)[::-1] if many else counts)
        axis.set(xlabel='classes, sorted by their number of images' if many else 'class', ylabel='training images')
        if not many:
            axis.set_xticks(range(num_classes), names, rotation=90 if max(map(len, names)) > 2 else 0)
        axis.grid(axis='y', alpha=0.3)


def _draw_duplicates(context: Context, equal_images: duplicates.Duplicates, name: str, path: str) -> None:
    """Draw images of a split beside the training images that they equal."""
    task, splits = context.setup.experiment.task, context.setup.dataset.splits
    train, split = splits['train'], splits[name]
    tiles, titles = [], []
    for position in equal_images.shared[name][:MAX_DRAWN_PAIRS]:
        pair = (name, split, position), ('train', train, equal_images.train_position(name, position))
        for part, examples, index in pair:
            tiles.append(examples.take(np.array([index]))[0] / 255)
            targets = {key: value[0] for key, value in examples.take_targets(np.array([index])).items()}
            titles.append(f'{part} {index}\n{task.title(targets)}')
    figures.image_grid(tiles, titles, path)
