"""The command `jaxcnn`, one subcommand for each module of this package."""

import importlib
import sys

from jaxcnn import cli, memory
from jaxcnn.errors import unknown

COMMANDS = {
    'train': 'train the network of a config, or resume a run',
    'evaluate': 'evaluate a checkpoint of a run',
    'predict': 'predict the classes or the objects of image files',
    'data': 'show what is in a data set before training',
    'check': 'check whether the training of a config is sound',
    'explain': 'show what a trained network sees, and why it decided',
    'robustness': 'attack a trained network, corrupt its images, and show it others',
    'study': 'train the arms of a study, and compare them',
    'compare': 'compare runs',
    'prune': 'prune a trained network, and report what is gained and lost',
    'quantize': 'quantise the network of a run, and measure what it loses',
    'export': 'write a run into a folder for other programs',
    'configs': 'list the configs that come with jaxcnn',
    'models': 'show the cost of networks',
    'augment': 'draw what augmentation makes of images',
    'fit_svms': 'fit the SVMs and box regressions of R-CNN and SPP-Net',
    'proposals': 'compare object proposals by their recall',
    'cache': 'list or clear the caches of decoded images and compiled programs',
    'multiprocess': 'start several processes of one command on this machine',
    'benchmark': 'measure speed, as ratios to that of peers',
}


def main() -> None:
    """Run the subcommand that the first argument names."""
    cli.prepare_streams()
    memory.restart_with_retained_memory()
    name, *arguments = sys.argv[1:] or ['--help']
    if name in ('-h', '--help'):
        print('usage: jaxcnn COMMAND ...\n')
        for command, description in COMMANDS.items():
            print(f'  {command:13} {description}')
        print('\njaxcnn COMMAND --help lists the flags of a command.')
        sys.exit(0)
    if name not in COMMANDS:
        print(f'error: {unknown("command", name, COMMANDS)}', file=sys.stderr)
        sys.exit(2)
    sys.argv = [f'jaxcnn {name}', *arguments]
    sys.exit(importlib.import_module(f'jaxcnn.cli.{name}').main())


if __name__ == '__main__':
    main()
