"""Measure speed, as ratios within one run on one machine.

    jaxcnn benchmark train_step [--models shallow_cnn,resnet18,...] [--peers torch,compiled,jax,xla]
    jaxcnn benchmark eval [--models ...] [--peers ...]
    jaxcnn benchmark data --config=cifar10_shallow [--peers torch]
    jaxcnn benchmark train --config=mnist_lenet [--config.model=lenet5 --config.duration.epochs=2]
    jaxcnn benchmark train --config=cifar10_fast
    jaxcnn benchmark checkpoint [--models resnet50] [--peers torch]
    jaxcnn benchmark loop --config=mnist_lenet [--config.a.b=VALUE ...]
    jaxcnn benchmark startup --config=digits_lenet5
    jaxcnn benchmark train_step loop --config=cifar10_fast --write=docs/performance.md \\
        --config.model.dtype=bfloat16

Several benchmarks may be given. --write puts the table of each into a Markdown file, in the place of its previous version.
The tables of train_step and eval are written after each network, that of train after each round.

train_step, eval: images/s of a network's training step, or of its inference, and their ratio to those of peers: PyTorch
(`torch`, and `compiled` by torch.compile; channels_last; run by --torch_python, which needs torch and pytorchcv==0.0.67),
and jaxcnn with other convolutions, `jax` or `xla`. Peers are measured in turns. GPUs use bfloat16 (autocast in PyTorch) and
larger images and batches, CPUs float32. `of matmul` is the network's multiply-adds, including those of padding, as a
fraction of the machine's rate in matrix products; `of bandwidth` is the bytes that the compiled program's operations read
and write, as a fraction of its memory bandwidth. Both limits are measured in the same run.

data: images/s of a config's training images, augmented and normalised, from either placement, and their ratio to those of a
PyTorch DataLoader with one worker per core that does the same with PIL (pad_crop, random_resized_crop, flip_lr,
auto_augment); and the fraction of the training step that they take. For images in files also: a first epoch, which builds
the cache, against the DataLoader that reads the files; building the cache against PIL in as many processes; and the memory
of `jaxcnn train` in 20 steps, with all images and with one of each class.

train: the time of `jaxcnn train` from the command to the report, and of its training steps without compilation, and the
ratio of PyTorch's to it; and the accuracy of both. Each round has another seed. Decoded images and compiled programs come
from the caches if an earlier run left them there. A LeNet on MNIST is compared with a plain script with a DataLoader
(without workers and with one per core). Any network on CIFAR-10 is compared with `train94` of airbench==0.1.8, 9.9 epochs of
48 batches of 1024 (on a CPU in float32), each with its own recipe. airbench's time includes its whitening filters; jaxcnn's,
on a GPU, includes the choice of cuDNN's algorithms, which airbench makes before it starts the clock.

checkpoint: seconds to save a network's state with SGD's momentum to the disk, to hand it over (while the loop waits) and to
read it, beside torch.save and torch.load of the same.

loop: images/s of the training loop of `jaxcnn train` (feeding, logging, progress), and their ratio to those of the bare
compiled step on one batch on the device. Both are measured in turns.

startup: seconds from the command to its first finished step, with an empty and with a full compilation cache.
"""

import argparse
import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable

from jaxcnn import cli
from jaxcnn.benchmarks import data, networks, runs
from jaxcnn.benchmarks.measure import Table, machine, write
from jaxcnn.errors import UserError, unknown

PEERS = ('torch', 'compiled', 'jax', 'xla')
BENCHMARKS: dict[str, Callable[[argparse.Namespace], Table | Iterable[Table]]] = {
    'train_step': functools.partial(networks.compare, benchmark='train_step'),
    'eval': functools.partial(networks.compare, benchmark='eval'), 'data': data.compare,
    'train': runs.train, 'checkpoint': runs.checkpoint, 'loop': runs.loop, 'startup': runs.startup}


def run(args: argparse.Namespace) -> int:
    """Run the command with its parsed arguments, and return its exit code."""
    for name, minimum in (('rounds', 1), ('seconds', 0.01)):
        if not getattr(args, name) >= minimum:
            raise UserError(f'--{name}: expected at least {minimum}, got {getattr(args, name)}')
    for peer in filter(None, args.peers.split(',')):
        if peer not in PEERS:
            raise unknown('peer', peer, PEERS)
    for flag, path in (('json', args.json), ('write', args.write)):
        if path and not os.path.isdir(folder := os.path.dirname(os.path.abspath(path))):
            raise UserError(f'--{flag}: there is no folder {folder}')
    figures: dict[str, object] = {'machine': machine()}
    for name in args.what:
        tables = BENCHMARKS[name](args)
        for result in [tables] if isinstance(tables, Table) else tables:  # each replaces the one before
            figures[name] = result.figures
            if args.write:
                write(args.write, result)
            if args.json:
                with open(args.json, 'w', encoding='utf-8') as f:
                    json.dump(figures, f, indent=2)
        print(result.title, '', *result.lines, '', json.dumps(machine()), sep='\n', flush=True)
    return 0


def main() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # its child processes end with it
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # PyTorch's process shares the GPU
    parser.add_argument('what', nargs='+', choices=BENCHMARKS)
    parser.add_argument('--config', default='', help='for data, train, loop and startup: a config file, or the name of a '
                        'config that comes with jaxcnn')
    parser.add_argument('--models', default='', help='networks for train_step, eval and checkpoint, separated by commas')
    parser.add_argument('--peers', default='torch,compiled', help='see above (default: torch,compiled)')
    parser.add_argument('--torch_python', default=sys.executable, help='a Python with PyTorch (default: this one)')
    parser.add_argument('--rounds', type=int, default=5, help='number of measurements (default: 5)')
    parser.add_argument('--seconds', type=float, default=5, help='seconds of each measurement (default: 5)')
    parser.add_argument('--json', default='', metavar='FILE', help='also write the figures to this file')
    parser.add_argument('--write', default='', metavar='FILE', help='also write the tables into this Markdown file')
    cli.main(parser, run)
