"""Tells what a trained network sees in pictures: the class, and the five most probable ones."""

import argparse
import csv
import os

from jaxcnn import cli

BATCH = 64


def run(args: argparse.Namespace) -> int:
    import numpy as np

    from jaxcnn.data import picture
    from jaxcnn.errors import UserError
    from jaxcnn.train.trained import Trained, describe
    if args.csv and not os.access(os.path.dirname(os.path.abspath(args.csv)), os.W_OK):
        raise UserError(f'{args.csv}: its folder is missing or cannot be written')
    trained = Trained(args.workdir)
    state = trained.read(trained.find(args.checkpoint))
    rows, bad = [], 0
    for start in range(0, len(args.images), BATCH):
        paths, images = [], []
        for path in args.images[start:start + BATCH]:
            try:
                images.append(picture.load(path, trained.info, trained.config.data.resize, args.ink))
                paths.append(path)
            except UserError as e:  # the others are predicted all the same
                cli.log.error('error: %s', e)
                bad += 1
        if not images:
            continue
        padded = np.zeros((min(BATCH, len(args.images)), *trained.info['image_shape']), np.uint8)
        padded[:len(images)] = images
        for path, probabilities in zip(paths, trained.predict(state, padded), strict=False):
            best = describe(probabilities, trained.info['class_names'])
            rows.append((path, best))
            print(f'{path}: {best[0][0]}  (' + ', '.join(f'{name} {100 * p:.2f} %' for name, p in best) + ')')
    if args.csv and rows:
        try:
            with open(f'{args.csv}.tmp', 'w', newline='') as f:
                writer = csv.writer(f)
                ranks = range(1, 1 + max(len(best) for _, best in rows))
                writer.writerow(['image', *(f'{field}_{r}' for r in ranks for field in ('class', 'probability'))])
                writer.writerows([path, *(v for name, p in best for v in (name, f'{p:.6f}'))] for path, best in rows)
            os.replace(f'{args.csv}.tmp', args.csv)
        except OSError as e:
            raise UserError(f'{args.csv}: cannot be written: {e.strerror}') from e
        cli.log.info('%d predictions: %s', len(rows), args.csv)
    return 2 if bad else 0


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--workdir', required=True, help='folder of the run')
    parser.add_argument('--checkpoint', default='best', help='best, latest or a step (default: best)')
    parser.add_argument('--csv', default='', metavar='FILE', help='write the predictions there, too')
    parser.add_argument('--ink', default='auto', choices=('auto', 'dark', 'light'),
                        help='handwriting: darker or lighter than its ground (default: found out)')
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='PNG, JPEG, ... of any size')
    cli.main(parser, run)
