"""List the configs and the studies that come with jaxcnn, each with what it trains and its measured result, or print one."""

import argparse
import ast
import os
import re

from jaxcnn import cli, config
from jaxcnn.errors import unknown


def run(args: argparse.Namespace) -> int:
    """Run the command with its parsed arguments, and return its exit code."""
    configs, studies = (_paths_by_name(kind) for kind in ('config', 'study'))
    if args.name:
        path = {**studies, **configs}.get(args.name, args.name)
        if not os.path.isfile(path):
            raise unknown('config or study', args.name, [*configs, *studies])
        with open(path, encoding='utf-8') as f:
            print(f.read(), end='')
        return 0
    print_list(configs)
    if studies:
        print('\nstudies, for jaxcnn study --study=NAME:\n')
        print_list(studies)
    return 0


def _paths_by_name(kind: str) -> dict[str, str]:
    return {os.path.splitext(os.path.basename(path))[0]: path for path in config.shipped_configs(kind)}


def print_list(paths: dict[str, str]) -> None:
    """Print the name of each file, the first line of its docstring, and its result."""
    width = max(map(len, paths), default=0)
    for name, path in paths.items():
        with open(path, encoding='utf-8') as f:
            documentation = ast.get_docstring(ast.parse(f.read())) or ''
        result = re.search(r'Result\b.*?\.(?=\s|$)', documentation, re.DOTALL)
        print(f'{name:{width}}  {documentation.partition(chr(10))[0]}')
        if result:
            print(f'{"":{width}}  {" ".join(result[0].split())}')


def main() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('name', nargs='?', default='', metavar='NAME', help='print this config or study')
    cli.main(parser, run, needs_jax=False)
