"""Tells what a trained network sees in pictures: its prediction, and the probabilities of the classes."""

import argparse
import csv
import os
import unicodedata
from collections.abc import Sequence
from concurrent import futures

from jaxcnn import cli
from jaxcnn.errors import UserError, as_text, counted

BATCH = 64


def run(args: argparse.Namespace) -> int:
    import numpy as np

    from jaxcnn.data import picture
    from jaxcnn.run import load_run
    for path in filter(None, (args.csv, args.submission)):
        if not os.access(os.path.dirname(os.path.abspath(path)), os.W_OK):
            raise UserError(f'{path}: its folder is missing or cannot be written')
    ids = submission_ids(args.images) if args.submission else {}
    trained = load_run(args.workdir, args.checkpoint)
    if args.ink != 'auto' and not trained.info['ink']:
        raise UserError(f'--ink: {args.ink}: handwriting is found for networks trained on mnist or digits; this one '
                        f'takes images as they are, as those of {trained.info["name"]!r}')
    _ = trained.weights  # errors in the checkpoint come before errors in images
    rows, bad = [], 0

    def load(path: str) -> np.ndarray | UserError:
        try:
            return picture.load(path, trained.info, trained.config.data.resize, args.ink)
        except UserError as e:  # the others are predicted all the same
            return e

    for start in range(0, len(args.images), BATCH):
        paths, images = [], []
        given = args.images[start:start + BATCH]
        with futures.ThreadPoolExecutor() as readers:
            decoded = [*readers.map(load, given)]
        for path, found in zip(given, decoded, strict=True):
            if isinstance(found, UserError):
                cli.log.error('error: %s', found)
                bad += 1
            else:
                images.append(found)
                paths.append(path)
        if not images:
            continue
        padded = np.zeros((min(BATCH, len(args.images)), *trained.info['image_shape']), np.uint8)
        padded[:len(images)] = images
        for path, prediction in zip(paths, trained.predict(padded), strict=False):
            rows.append((path, prediction))
    task = trained.experiment.task
    if args.csv and rows:
        cells = [task.row(prediction) for _, prediction in rows]
        write(args.csv, ['image', *cells[0]], [[path, *row.values()] for (path, _), row in zip(rows, cells, strict=True)])
    if args.submission and rows:
        predicted = {path: task.category(prediction) for path, prediction in rows}
        write(args.submission, ['Id', 'Category'], [[name, predicted.get(path, '')] for path, name in ids.items()])
        if bad:
            unread = [as_text(path) for path in ids if path not in predicted]
            cli.log.warning('%s: %d of %d images cannot be read and have an empty Category: %s%s', args.submission, bad,
                            len(ids), ', '.join(unread[:5]), ', ...' * (bad > 5))
    for path, prediction in rows:  # after the tables, which are whole where standard output is full or a pipe ends early
        print(f'{as_text(path)}: {task.describe(prediction)}')
    return 2 if bad else 0


def submission_ids(paths: Sequence[str]) -> dict[str, str]:
    """The Id of each image, by its path: the file's name without the ending.

    Raises:
      UserError: two images have the same one.
    """
    ids: dict[str, str] = {}
    first: dict[str, str] = {}  # path of each Id
    for path in paths:
        name = os.path.splitext(os.path.basename(path))[0]
        if other := first.get(unicodedata.normalize('NFC', name)):
            if other == path:
                raise UserError(f'--submission: {as_text(path)} is given twice, and a table has one row for each Id')
            raise UserError(f'--submission: {as_text(other)} and {as_text(path)} have the same Id, {as_text(name)!r}, and a '
                            'table has one row for each: give them in two calls, or rename one')
        ids[path], first[unicodedata.normalize('NFC', name)] = name, path
    return ids


def write(path: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table, under a temporary name until it is whole."""
    try:
        with open(f'{path}.tmp', 'w', newline='', encoding='utf-8', errors='surrogateescape') as f:
            csv.writer(f).writerows([head, *rows])
        os.replace(f'{path}.tmp', path)
    except OSError as e:
        raise UserError(f'{path}: cannot be written: {e.strerror}') from e
    cli.log.info('%s: %s', counted(len(rows), 'prediction'), path)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--workdir', required=True, help='folder of the run')
    parser.add_argument('--checkpoint', default='best', help='best, latest or a step (default: best)')
    parser.add_argument('--csv', default='', metavar='FILE', help='write the predictions there, too')
    parser.add_argument('--submission', default='', metavar='FILE',
                        help="write a homework's or contest's table there: Id (the file's name without its end), Category")
    parser.add_argument('--ink', default='auto', choices=('auto', 'dark', 'light'),
                        help='handwriting: darker or lighter than its ground (default: found out)')
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='PNG, JPEG, ... of any size')
    cli.main(parser, run)
