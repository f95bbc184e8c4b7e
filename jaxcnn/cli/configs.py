"""List the configs that come with jaxcnn, each with what it trains and its measured result, or print one."""

import argparse
import ast
import os
import re

from jaxcnn import cli, config


def run(args: argparse.Namespace) -> int:
    """Run the command with its parsed arguments, and return its exit code."""
    if args.name:
        with open(config.find_config_file(args.name), encoding='utf-8') as f:
            print(f.read(), end='')
        return 0
    paths = {os.path.splitext(os.path.basename(path))[0]: path for path in config.shipped_configs()}
    width = max(map(len, paths), default=0)
    for name, path in paths.items():
        with open(path, encoding='utf-8') as f:
            documentation = ast.get_docstring(ast.parse(f.read())) or ''
        result = re.search(r'Result\b.*?\.(?=\s|$)', documentation, re.DOTALL)
        print(f'{name:{width}}  {documentation.partition(chr(10))[0]}')
        if result:
            print(f'{"":{width}}  {" ".join(result[0].split())}')
    return 0


def main() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('name', nargs='?', default='', metavar='NAME', help='print this config')
    cli.main(parser, run, needs_jax=False)
