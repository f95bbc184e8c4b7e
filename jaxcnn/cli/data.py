"""Show what is in a data set before training: sizes, classes, duplicates, odd and unreadable images, statistics.

    jaxcnn data --config=food_shallow --config.data.dir=food-11
    jaxcnn data --config=food_shallow --config.data.dir=food-11 --images=2000 --json

The image files are read at their true size. What to know before training is printed first; the page data.html shows all of
it, and duplicates.csv lists the images that occur more than once.
"""

import argparse
import os

from jaxcnn import cli, config
from jaxcnn.errors import UserError


def run(args: argparse.Namespace) -> int:
    """Run the command with its parsed arguments, and return its exit code."""
    os.environ['JAX_PLATFORMS'] = 'cpu'  # this process must not reserve GPU memory
    if args.images < 0:
        raise UserError(f'expected 0 or more, got {args.images}', field='--images')
    from jaxcnn import plugins, tasks
    from jaxcnn.data_report import page
    settings = config.load(args.config, args.overrides)
    plugins.load(settings.plugins)
    folder = args.out or os.path.join('data_report', settings.name or settings.data.name.replace('/', '-'))
    page.make_folder(folder)  # an error comes before images are read, which may take minutes
    report = page.make_report(settings.data, tasks.find(settings.task).kind, args.images)
    path = page.write_report(report, folder, f'Data of {settings.name or settings.data.name}', args.json)
    print('\n'.join(page.summary(report)))
    print(f'page: {path}')
    return 0


def main() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog='Any field of the config can be set: --config.data.dir=photos')
    parser.add_argument('--config', required=True, help='a config file, the name of a config that comes with jaxcnn, or the '
                        'config.json of a run')
    parser.add_argument('--images', type=int, default=0, metavar='N', help='number of images of each split to read, '
                        'drawn at random; 0: all (default: 0)')
    parser.add_argument('--out', default='', metavar='DIR', help='folder of the page and its figures (default: '
                        'data_report/NAME, with the name of the config)')
    parser.add_argument('--json', action='store_true', help='also write the numbers as data.json')
    cli.main(parser, run, needs_jax=False)
