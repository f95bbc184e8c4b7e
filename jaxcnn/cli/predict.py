"""Predict the classes or the objects of image files with a trained network, and print their probabilities."""

import argparse
import collections
import csv
import dataclasses
import importlib.util
import itertools
import json
import operator
import os
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import TYPE_CHECKING, Any

from jaxcnn import cli
from jaxcnn.errors import UserError, as_text, counted, name_field
from jaxcnn.files import open_replacement

if TYPE_CHECKING:
    import numpy as np

    from jaxcnn.run import Run
    from jaxcnn.tasks import Task

BATCH_SIZE = 64  # at most, and no more than in the evaluations of the run


def run(args: argparse.Namespace) -> int:
    """Run the command with its parsed arguments, and return its exit code."""
    for path in filter(None, (args.csv, args.submission, args.coco)):
        if not os.access(os.path.dirname(os.path.abspath(path)), os.W_OK):
            raise UserError(f'{path}: its folder is missing or cannot be written')
    if args.draw:
        check_drawing(args.draw)
    if args.samples is not None and not args.tta:
        raise UserError('--samples: needs --tta')
    if not (args.workdir or args.ensemble):
        raise UserError('the following arguments are required: --workdir')
    folders = [path for path in args.images if os.path.isdir(path)]
    if args.submission and folders and len(args.images) > 1:
        raise UserError('takes a single folder, or image files', field='--submission',
                        hint='the Ids of a folder are the positions of its images')
    args.images = [image for path in args.images for image in find_images(path)]
    ids = submission_ids(args.images, by_position=bool(folders)) if args.submission else {}
    loaded_run, *others = load_runs(args)
    if args.svms:
        from jaxcnn.region_svms.detector import with_svms
        with name_field('--svms'):
            loaded_run = with_svms(loaded_run, args.svms)
    if args.ink != 'auto' and not loaded_run.info['ink']:
        raise UserError(f'--ink: {args.ink}: this network was trained on {loaded_run.info["name"]!r}, whose images are used '
                        'as they are; handwriting is located only for mnist and digits')
    task = loaded_run.experiment.task
    if args.threshold is not None:
        task = with_threshold(task, args.threshold)
    if args.coco and task.kind.name != 'boxes':
        raise UserError(f'the task {task.name!r} of this run predicts no boxes', field='--coco', hint='--csv writes a table')
    for member in (loaded_run, *others):
        _ = member.weights  # errors in the checkpoint come before those in images
    predictions = list(predict(loaded_run, args, args.images))
    if others:
        predictions = average(predictions, others, args)
    if args.csv and predictions:
        write_table(args.csv, ['image', *task.columns],
                    [[path, *row] for path, prediction in predictions for row in task.rows(prediction)])
    if args.coco:
        write_coco(args.coco, task, predictions)
    if args.draw:
        draw(args.draw, task, predictions)
    if args.submission and predictions:
        write_submission(args.submission, ids, {path: task.category(prediction) for path, prediction in predictions})
    for path, prediction in predictions:  # after the tables, which are complete even if standard output cannot be written
        print(f'{as_text(path)}: {task.describe(prediction)}')
    return 0 if len(predictions) == len(args.images) else 2


def find_images(path: str) -> list[str]:
    """Return the images in a folder and in those below it, sorted by name; an image file is returned as it is.

    Raises:
      UserError: The folder holds no images, or cannot be read.
    """
    from jaxcnn.data import image_files
    if not os.path.isdir(path):
        return [path]
    skipped: collections.Counter[str] = collections.Counter()
    images = [os.path.join(path, name) for name in image_files.find_images(path, path, skipped)]
    image_files.log_skipped(path, skipped)
    if not images:
        raise UserError('holds no images', field=as_text(path), hint='give image files, or a folder that holds some')
    return images


def load_runs(args: argparse.Namespace) -> list['Run']:
    """Return the run, or those of the ensemble.

    Raises:
      UserError: A workdir holds no run, or the runs cannot be averaged.
    """
    from jaxcnn.evaluation.ensemble import Ensemble, check_same_classes
    runs = cli.load_ensemble(args, quantized=True)
    if args.ensemble:
        if args.svms:
            raise UserError('--svms cannot be combined with --ensemble')
        Ensemble(runs)  # checks the runs
        for other in runs[1:]:
            check_same_classes(runs[0].info['class_names'], other.info['class_names'], runs[0].workdir, other.workdir)
    return runs


def average(predictions: list[tuple[str, Any]], others: Sequence['Run'],
            args: argparse.Namespace) -> list[tuple[str, Any]]:
    """Return the mean of the probabilities that the first run and others of an ensemble predict for each image."""
    sums = dict(predictions)
    for run in others:
        sums = {path: sums[path] + prediction for path, prediction in predict(run, args, [*sums])}
    return [(path, sums[path] / (1 + len(others))) for path, _ in predictions if path in sums]  # a path may be given twice


def predict(run: 'Run', args: argparse.Namespace, image_paths: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield the path and the prediction of each image, in the coordinates of its file.

    Images that cannot be read are logged and skipped.
    """
    import jax
    import numpy as np

    from jaxcnn.data.resizing import Resizing
    task = run.experiment.task
    sampler = SampledPictures(run, args) if args.tta else None

    def load(path: str) -> tuple[np.ndarray, Resizing] | UserError:
        try:
            return run.load_picture(path, args.ink)
        except UserError as e:
            return e

    batch_size = max(1, min(BATCH_SIZE, run.config.eval.batch_size, len(image_paths)))
    for start in range(0, len(image_paths), batch_size):
        batch_paths = image_paths[start:start + batch_size]
        with futures.ThreadPoolExecutor() as pool:
            loaded = [*pool.map(load, batch_paths)]
        paths, images, resizings = [], [], []
        for path, result in zip(batch_paths, loaded, strict=True):
            if isinstance(result, UserError):
                cli.log.error('error: %s', result)
            else:
                paths.append(path)
                images.append(result[0])
                resizings.append(result[1])
        if images:
            # batches have one shape, so that the network is compiled once
            num_padded = batch_size - len(images)
            batch = np.stack([*images, *images[:1] * num_padded])
            predictions = sampler.predict(batch, [*paths, *paths[:1] * num_padded]) if sampler else run.predict(batch)
            for i, (path, resizing) in enumerate(zip(paths, resizings, strict=True)):
                prediction = jax.tree.map(operator.itemgetter(i), predictions)
                yield path, task.map_back(prediction, resizing.map_boxes_back)


class SampledPictures:
    """Predicts pictures by random samples of `--tta`, which depend on the content of the file alone.

    Args:
      run: a classification run.
      args: `tta` is the augmentation, `samples` the number of samples.
    """

    def __init__(self, run: 'Run', args: argparse.Namespace):
        from jaxcnn.evaluation import sampling
        from jaxcnn.evaluation.predictions import check_is_classifier
        with name_field('--tta'):
            check_is_classifier(run)
        protocol = sampling.parse(args.tta, 10 if args.samples is None else args.samples)
        self._sampler, self._seed = sampling.Sampler(protocol, run.experiment, run.variables), protocol.seed
        self._mode = 'L' if run.info['image_shape'][-1] == 1 else 'RGB'

    def predict(self, images: 'np.ndarray', paths: Sequence[str]) -> 'np.ndarray':
        """Return the mean probabilities (N, classes) for the samples.

        Args:
          images: uint8 (N, H, W, C), as evaluation gets them. Where images keep their sizes, the files are cropped instead.
          paths: the paths of their files.
        """
        import numpy as np

        from jaxcnn.data import picture
        from jaxcnn.data.stream import crop_generator
        from jaxcnn.evaluation.sampling import sample_numbers
        numbers = np.array([zlib.crc32(picture.read_file(path)) for path in paths], np.uint32)
        crops = self._sampler.crops
        if crops is None:
            return np.exp(self._sampler(lambda sample: images, numbers))
        originals = {path: picture.read(path, self._mode) for path in paths}

        def crop(path: str, number: int) -> np.ndarray:
            image = originals[path]
            image = image.reshape(*image.shape[:2], -1)
            with name_field(as_text(path)):
                drawn = crops.draw(crop_generator(self._seed, number), *image.shape[:2])
            return drawn.apply(image, *image.shape[:2])

        def take(sample: int) -> np.ndarray:
            cropped = zip(paths, sample_numbers(numbers, sample), strict=True)
            return np.stack([crop(path, int(number)) for path, number in cropped])
        return np.exp(self._sampler(take, numbers))


def with_threshold(task: 'Task', threshold: float) -> 'Task':
    """Return the task with another threshold.

    Raises:
      UserError: The task has no threshold, or the threshold is not between 0 and 1.
    """
    if 'threshold' not in {field.name for field in dataclasses.fields(task)}:
        raise UserError(f'the task {task.name!r} of this run has no threshold', field='--threshold',
                        hint='leave the flag out; it is for runs of config.task=multilabel and detection')
    try:
        return dataclasses.replace(task, threshold=threshold)  # type: ignore[call-arg]
    except UserError as e:
        e.field = '--threshold'
        raise


def submission_ids(paths: Sequence[str], by_position: bool = False) -> dict[str, str]:
    """Return the Id of each image by its path.

    Args:
      paths: the paths.
      by_position: whether an Id is the position of the image in `paths`, with at least four digits: 0000, 0001, ...;
        otherwise, it is the name of the file without its extension.

    Raises:
      UserError: Two images have the same name without the extension.
    """
    ids: dict[str, str] = {}
    path_by_id: dict[str, str] = {}
    for path in paths:
        name = os.path.splitext(os.path.basename(path))[0]
        normalized = unicodedata.normalize('NFC', name)
        if other := path_by_id.get(normalized):
            if other == path:
                raise UserError(f'--submission: {as_text(path)} is given twice, but a table has one row for each Id')
            what = 'name' if by_position else 'Id'
            raise UserError(f'--submission: {as_text(other)} and {as_text(path)} have the same {what}, {as_text(name)!r}, '
                            'but a table has one row for each Id: predict them in two calls, or rename one')
        ids[path], path_by_id[normalized] = name, path
    if by_position:
        positions = {path: f'{i:04d}' for i, path in enumerate(paths)}
        number = next((path for path in paths if ids[path].isdecimal() and int(ids[path]) != int(positions[path])), None)
        if number:
            cli.log.warning('--submission: the Ids of a folder are the positions of its images, so that of %s is %s; '
                            'FOLDER/* instead of FOLDER makes the names the Ids', as_text(number), positions[number])
        return positions
    return ids


def write_submission(path: str, ids: dict[str, str], categories: dict[str, str]) -> None:
    """Write a table with the columns Id and Category; images without a prediction have an empty Category.

    Args:
      path: the CSV file.
      ids: the Id of each image by its path.
      categories: the predicted category by the path of the image.
    """
    write_table(path, ['Id', 'Category'], [[name, categories.get(image_path, '')] for image_path, name in ids.items()])
    unread = [as_text(image_path) for image_path in ids if image_path not in categories]
    if unread:
        cli.log.warning('%s: %d of %d images cannot be read and have an empty Category: %s%s', path, len(unread), len(ids),
                        ', '.join(unread[:5]), ', ...' * (len(unread) > 5))


def write_coco(path: str, task: 'Task', predictions: Sequence[tuple[str, Any]]) -> None:
    """Write detections in COCO's format of results, and beside it `..._ids.json`, which says what its ids mean.

    The images have the ids 1, 2, ... in the order of the command line, and the classes in the order of their numbers. The
    second file has the form of COCO's annotations, without boxes.
    """
    results = [entry for image_id, (_, prediction) in enumerate(predictions, 1)
               for entry in task.coco_results(prediction, image_id)]
    ids = {'images': [{'id': i, 'file_name': as_text(image_path)} for i, (image_path, _) in enumerate(predictions, 1)],
           'categories': [{'id': i, 'name': name} for i, name in enumerate(task.class_names, 1)], 'annotations': []}
    ids_path = f'{os.path.splitext(path)[0]}_ids.json'
    for json_path, content in ((path, results), (ids_path, ids)):
        try:
            with open_replacement(json_path) as f:
                json.dump(content, f)
        except OSError as e:
            raise UserError(f'{json_path}: cannot be written: {e.strerror}') from e
    cli.log.info('%s: %s; the ids of images and categories: %s', counted(len(results), 'detection'), path, ids_path)


def check_drawing(folder: str) -> None:
    """Make the folder for pictures.

    Raises:
      UserError: It cannot be made or written, or matplotlib is not installed.
    """
    if importlib.util.find_spec('matplotlib') is None:
        raise UserError('needs matplotlib', field='--draw', hint="pip install 'jaxcnn[plots]'")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as e:
        raise UserError(f'{folder}: cannot be made: {e.strerror}', field='--draw') from e
    if not os.access(folder, os.W_OK):
        raise UserError(f'{folder}: cannot be written', field='--draw')


def draw(folder: str, task: 'Task', predictions: Sequence[tuple[str, Any]]) -> None:
    """Draw each image with its prediction into a folder, as JPEG where the image is one, and as PNG otherwise."""
    from jaxcnn.data import picture
    names: set[str] = set()
    for path, prediction in predictions:
        stem, extension = os.path.splitext(os.path.basename(path))
        extension = extension.lower() if extension.lower() in ('.jpg', '.jpeg') else '.png'
        name = next(name for i in itertools.count(1) if (name := f'{stem}{f"_{i}" * (i > 1)}{extension}') not in names)
        names.add(name)
        target = os.path.join(folder, name)
        try:
            task.draw(picture.read(path, 'RGB'), prediction, target)
        except OSError as e:
            raise UserError(f'{as_text(target)}: cannot be written: {e.strerror}') from e
    cli.log.info('%s: %s', counted(len(predictions), 'picture'), folder)


def write_table(path: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a CSV file. It replaces an existing file only when it is complete."""
    try:
        with open_replacement(path, newline='', errors='surrogateescape') as f:
            csv.writer(f).writerows([columns, *rows])
    except OSError as e:
        raise UserError(f'{path}: cannot be written: {e.strerror}') from e
    cli.log.info('%s: %s', counted(len(rows), 'prediction'), path)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--workdir', default='', help='folder of the run')
    parser.add_argument('--checkpoint', default='best', help='best, latest or a step (default: best)')
    parser.add_argument('--csv', default='', metavar='FILE', help='also write the predictions to this CSV file')
    parser.add_argument('--coco', default='', metavar='FILE',
                        help='for detection runs: also write the detections to this JSON file, in the format of COCO '
                        'results, and beside it a file that ends in _ids.json and says what its ids mean')
    parser.add_argument('--draw', default='', metavar='FOLDER',
                        help='also draw each image with its prediction into this folder')
    parser.add_argument('--submission', default='', metavar='FILE',
                        help='also write a table for a homework or contest, with the columns Id and Category. The Ids of a '
                        'folder are the positions of its images in the order of their names, 0000, 0001 and so on; the Id '
                        'of an image file is its name without the extension')
    parser.add_argument('--threshold', type=float,
                        help='for multilabel and detection runs: the probability or score from which a class or an object '
                        'is predicted (default: config.task.threshold)')
    cli.add_svms_flag(parser)
    parser.add_argument('--ink', default='auto', choices=('auto', 'dark', 'light'),
                        help='handwriting: whether it is darker or lighter than the background (default: detected)')
    parser.add_argument('--ensemble', nargs='+', default=[], metavar='DIR',
                        help='for classification runs: folders of further runs with the same classes, whose probabilities '
                        'are averaged with those of --workdir; it stands after the images')
    parser.add_argument('--tta', default='', metavar='PIPELINE',
                        help='for classification runs: average the probabilities for random samples of an augmentation, '
                        "such as 'random_resized_crop(64)|flip_lr' (default: config.eval.tta of the run)")
    parser.add_argument('--samples', type=int, metavar='N', help='number of samples of each image for --tta (default: 10)')
    parser.add_argument('images', nargs='+', metavar='IMAGE',
                        help='image files of any size, such as PNG or JPEG, or folders with such files')
    return parser


def main() -> None:
    """Run the command with the arguments of the process."""
    cli.main(make_parser(), run)
