"""Look inside a trained network: what it sees in an image, what its layers have learned, and where it is wrong.

    jaxcnn explain --workdir=runs/cifar10 gradcam cat.jpg
    jaxcnn explain --workdir=runs/cifar10 'gradcam|integrated_gradients(steps=100)' --class=dog cat.jpg

Without picture files, images of the test split are used. The figures are written into the folder `explain` of the workdir,
and `explain.html` shows all views that were requested so far.
"""

import argparse
import os

from jaxcnn import cli


def describe_views() -> str:
    """Return a table of the views, each with the first line of its docstring."""
    from jaxcnn.explain import views
    return '\n'.join(f'  {name:22} {text}' for name, text in views.descriptions().items())


def run(args: argparse.Namespace) -> int:
    """Run the command with its parsed arguments, and return its exit code."""
    from jaxcnn.errors import UserError, from_os_error
    if args.view is None:
        print(f'The views, whose options are in brackets:\n{describe_views()}')
        return 0
    if not args.workdir:
        raise UserError('expected the workdir of a run', field='--workdir')
    for flag, value, minimum in (('--count', args.count, 1), ('--seed', args.seed, 0)):
        if value < minimum:
            raise UserError(f'expected at least {minimum}, got {value}', field=flag)
    from jaxcnn.explain import page, views
    from jaxcnn.explain.request import Request
    sections, paths = views.parse(args.view, args.arguments)
    if paths and (args.mistakes or args.split):
        raise UserError('selects images of the data set, but there are picture files, too',
                        field='--mistakes' if args.mistakes else '--split')
    loaded = cli.load_run(args.workdir, args.checkpoint)
    views.check_outputs(sections, loaded.experiment.task.outputs)
    split = args.split or ('test' if 'test' in loaded.info['sizes'] else 'val')
    request = Request(loaded, paths, split=split, count=args.count,
                      only_mistakes=args.mistakes, class_name=args.class_name, data_dir=args.data_dir, seed=args.seed)
    try:
        os.makedirs(request.folder, exist_ok=True)
        for name, make_section in sections.items():
            cli.log.info('%s ...', name)
            page.write_section(request, name, make_section(request))
            cli.log.info('%s: %s', name, os.path.join(request.folder, f'{name}.md'))
        path = page.write_page(request)
    except OSError as e:
        raise from_os_error(e, request.folder) from e
    print(f'page: {path}')
    return 0


def main() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('view', nargs='?', metavar='VIEW', help="one or several views with their options, separated by '|' "
                        '(without it, the views are listed)')
    parser.add_argument('arguments', nargs='*', metavar='IMAGE', help='picture files (default: images of the split); before '
                        'them the layer, for views of a layer')
    parser.add_argument('--workdir', default='', help='folder of the run')
    parser.add_argument('--checkpoint', default='best', help='best, latest or a step (default: best)')
    parser.add_argument('--class', dest='class_name', default='', metavar='CLASS',
                        help='name or number of the class whose score is explained (default: the predicted class)')
    parser.add_argument('--split', default='', help='train, val or test (default: test, or val if there is no '
                        'labelled test split)')
    parser.add_argument('--count', type=int, default=8, help='number of images of the split (default: 8)')
    parser.add_argument('--mistakes', action='store_true', help='use the most confident mistakes of the split instead of '
                        'images that are drawn by the seed')
    parser.add_argument('--seed', type=int, default=0, help='seed of all random numbers (default: 0)')
    parser.add_argument('--data_dir', default='', help='another config.data.dir than in training')
    cli.main(parser, run)
