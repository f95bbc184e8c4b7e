"""Shows the size of the caches, which hold decoded images and compiled programs, or clears them."""

import argparse
import contextlib
import glob
import os

from jaxcnn import cli
from jaxcnn.cache_folder import cache_folder
from jaxcnn.data import cache
from jaxcnn.errors import UserError

FILES = {'xla: compiled programs': '*-cache*', 'onednn: compiled convolutions': 'conv-*.so',
         'matplotlib: its list of fonts': 'fontlist-*'}


def size(path: str) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path] if os.path.isfile(path) else [os.path.join(folder, name) for folder, _, names in os.walk(path)
                                                 for name in names]
    return sum(os.path.getsize(file) for file in files if os.path.isfile(file))


def shown(count: float) -> str:
    for unit in ('B', 'kB', 'MB'):
        if count < 1000:
            return f'{count:.3g} {unit}'
        count /= 1000
    return f'{count:.3g} GB' if count < 1000 else f'{count:,.0f} GB'


def show(root: str, clear: bool) -> None:
    total = freed = 0
    for folder, origin in cache.list_caches(root).items():
        byte_count = size(folder) + size(f'{folder}.tmp')
        removed = clear and cache.remove(folder)
        in_use = '; in use, or it cannot be removed' if clear and not removed else ''
        print(f'{shown(byte_count):>8}  {os.path.basename(folder)}: images of {origin}{in_use}')
        total, freed = total + byte_count, freed + byte_count * removed
    for what, pattern in FILES.items():
        files = glob.glob(os.path.join(glob.escape(root), what.partition(':')[0], pattern))
        byte_count = sum(map(size, files))
        if files:
            print(f'{shown(byte_count):>8}  {what}')
        total += byte_count
        if clear:  # a process that uses them has them in memory
            for file in files:
                with contextlib.suppress(FileNotFoundError):  # a second process may be clearing it, too
                    os.remove(file)
            freed += byte_count
    print(f'{shown(total):>8}  in {root}' + (f', of which {shown(freed)} are removed' if clear else ''))


def run(args: argparse.Namespace) -> None:
    root = cache_folder(args.cache_dir)
    try:
        show(root, args.clear)
    except OSError as e:
        raise UserError(f'{e.filename or root}: {e.strerror}') from e


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--cache_dir', default='', metavar='FOLDER',
                        help='the config.data.cache_dir of runs; else $JAXCNN_CACHE, else ~/.cache/jaxcnn')
    parser.add_argument('--clear', action='store_true',
                        help='remove all that no process reads; it is decoded or compiled anew when it is needed')
    cli.main(parser, run)
