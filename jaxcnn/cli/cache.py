"""List the caches of decoded images and compiled programs with their sizes, or clear them."""

import argparse
import contextlib
import glob
import os

from jaxcnn import cli
from jaxcnn.cache_folder import cache_folder
from jaxcnn.data import cache
from jaxcnn.errors import UserError

# folder in the cache folder: the pattern of its files, and what they are
FILES = {'xla': ('*-cache*', 'compiled programs'), 'onednn': ('conv-*.so', 'compiled convolutions'),
         'matplotlib': ('fontlist-*', 'its list of fonts')}


def size(path: str) -> int:
    """Return the size in bytes of a file, or of all files in a folder."""
    if os.path.isfile(path):
        files = [path]
    else:
        files = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
    return sum(os.path.getsize(file) for file in files if os.path.isfile(file))


def format_size(size: float) -> str:
    """Return a number of bytes with its unit, such as `125 kB`."""
    for unit in ('B', 'kB', 'MB'):
        if size < 1000:
            return f'{size:.3g} {unit}'
        size /= 1000
    return f'{size:.3g} GB' if size < 1000 else f'{size:,.0f} GB'


def list_and_clear(root: str, clear: bool) -> None:
    """Print the caches in a folder and, with `clear`, remove those that no process reads."""
    total_size = removed_size = 0
    for folder, location in cache.list_caches(root).items():
        folder_size = size(folder) + size(f'{folder}.tmp')
        total_size += folder_size
        is_removed = clear and cache.remove(folder)
        if is_removed:
            removed_size += folder_size
        in_use = '; in use, or it cannot be removed' if clear and not is_removed else ''
        print(f'{format_size(folder_size):>8}  {os.path.basename(folder)}: images of {location}{in_use}')
    for folder, (pattern, description) in FILES.items():
        files = glob.glob(os.path.join(glob.escape(root), folder, pattern))
        files_size = sum(map(size, files))
        total_size += files_size
        if files:
            print(f'{format_size(files_size):>8}  {folder}: {description}')
        if clear:  # processes that use the files have them in memory
            for file in files:
                with contextlib.suppress(FileNotFoundError):  # another process may be clearing the folder, too
                    os.remove(file)
            removed_size += files_size
    print(f'{format_size(total_size):>8}  in {root}' + (f', of which {format_size(removed_size)} removed' if clear else ''))


def run(args: argparse.Namespace) -> None:
    """Run the command with its parsed arguments."""
    root = cache_folder(args.cache_dir)
    try:
        list_and_clear(root, args.clear)
    except OSError as e:
        raise UserError(str(e.strerror), field=str(e.filename or root)) from e


def main() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--cache_dir', default='', metavar='FOLDER',
                        help='the config.data.cache_dir of runs; by default $JAXCNN_CACHE or else ~/.cache/jaxcnn')
    parser.add_argument('--clear', action='store_true',
                        help='remove the caches that no process reads; they are built again when they are needed')
    cli.main(parser, run)
