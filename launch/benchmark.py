"""Measures speed, as ratios within one run on one machine.

    python launch/benchmark.py train_step [--models shallow_cnn,resnet18,...] [--peers torch,compiled,jax,xla]
    python launch/benchmark.py eval [--models ...] [--peers ...]
    python launch/benchmark.py data --config=configs/cifar10_shallow.py [--peers torch]
    python launch/benchmark.py train --config=configs/mnist_lenet.py [--config.model=lenet5 --config.duration.epochs=2]
    python launch/benchmark.py train --config=configs/cifar10_fast.py
    python launch/benchmark.py checkpoint [--models resnet50] [--peers torch]
    python launch/benchmark.py loop --config=configs/mnist_lenet.py [--config.a.b=VALUE ...]
    python launch/benchmark.py startup --config=configs/digits_lenet5.py
    python launch/benchmark.py train_step loop --config=configs/cifar10_fast.py --write=docs/performance.md \\
        --config.model.dtype=bfloat16

Several may be given. With --write each one's table goes into FILE, in the place of the one that was written there before;
train's after each round, those of train_step and eval after each network.

train_step, eval: images/s of a network's whole training step, or of its inference, over those of peers: PyTorch
(`torch`, and `compiled` by torch.compile; channels_last; by --torch_python, which needs torch and pytorchcv==0.0.67), and
jaxcnn with other convolutions: `jax` in plain JAX, `xla` as plain Flax has them. In turn, A B A B. On a GPU in bfloat16
(autocast in PyTorch), at sizes and batches for one; on a CPU in float32. `of matmul` and `of bandwidth`: the parts of the
machine's matrix product rate and of its memory bandwidth, both measured in the same run, that the network's multiply-adds
(those of padding, too), and the arrays that the compiled program's operations read and write, make up.
data: images/s of a config's training images, augmented and normalised, from either placement, over those of a PyTorch
DataLoader with a worker a core that does the same by PIL (pad_crop, random_resized_crop, flip_lr, auto_augment); and data's
part of the training step. Of images in files: a first epoch, which builds the cache, against the DataLoader that reads the
files; building the cache against PIL in a plain loop in as many processes; memory of the whole `train.py`, 20 steps, with
all images and with one of each class.
train: seconds that PyTorch takes over those of the whole `train.py`, from the command to the report, and of its training
steps alone, without compilation; and the accuracy of both; a round is a seed. Decoded images and compiled programs come from
the caches where a run before left them. A LeNet on MNIST is beside the plain script with a DataLoader (of no workers and of
one a core) that trains and tests it; any network on CIFAR-10 beside airbench==0.1.8's own `train94`, 9.9 epochs of 48
batches of 1024 (on a CPU in float32), each by its own recipe. The time of airbench's steps holds its whitening filters; that
of ours, on a GPU, what is done once (cuDNN's plans), which airbench has done before it looks at the clock.
checkpoint: seconds to save (until it is on the disk), to hand over (while the loop waits) and to read a network's state with
SGD's momentum, beside torch.save and torch.load of the same, synchronised to the disk.
loop: images/s of the training loop as `train.py` runs it (feeding, logging, progress) over those of the bare compiled
step on one batch that is already on the device; in turn, A B A B.
startup: seconds from the command to its first finished step, with an empty compilation cache and with a full one.
"""

import argparse
import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable

from benchmarks import data, networks, runs
from benchmarks.measure import Table, machine, write

from jaxcnn import cli
from jaxcnn.errors import UserError, unknown

PEERS = ('torch', 'compiled', 'jax', 'xla')
BENCHMARKS: dict[str, Callable[[argparse.Namespace], Table | Iterable[Table]]] = {
    'train_step': functools.partial(networks.compare, what='train_step'),
    'eval': functools.partial(networks.compare, what='eval'), 'data': data.compare,
    'train': runs.train, 'checkpoint': runs.checkpoint, 'loop': runs.loop, 'startup': runs.startup}


def run(args: argparse.Namespace) -> int:
    for name, least in (('rounds', 1), ('seconds', 0.01)):
        if not getattr(args, name) >= least:
            raise UserError(f'--{name}: expected at least {least}, got {getattr(args, name)}')
    for peer in filter(None, args.peers.split(',')):
        if peer not in PEERS:
            raise unknown('peer', peer, PEERS)
    for flag, path in (('json', args.json), ('write', args.write)):
        if path and not os.path.isdir(folder := os.path.dirname(os.path.abspath(path))):
            raise UserError(f'--{flag}: there is no folder {folder}')
    found: dict[str, object] = {'machine': machine()}
    for what in args.what:
        tables = BENCHMARKS[what](args)
        for made in [tables] if isinstance(tables, Table) else tables:  # each in the place of the one before
            found[what] = made.figures
            if args.write:
                write(args.write, made)
            if args.json:
                with open(args.json, 'w', encoding='utf-8') as f:
                    json.dump(found, f, indent=2)
        print(made.title, '', *made.lines, '', json.dumps(machine()), sep='\n', flush=True)
    return 0


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what it started ends with it
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # of a GPU, which PyTorch's process shares
    parser.add_argument('what', nargs='+', choices=BENCHMARKS)
    parser.add_argument('--config', default='', help='configs/NAME.py, of data, train, loop and startup')
    parser.add_argument('--models', default='', help='of train_step, eval and checkpoint, with commas between')
    parser.add_argument('--peers', default='torch,compiled', help='see above (default: torch,compiled)')
    parser.add_argument('--torch_python', default=sys.executable, help='of an environment with PyTorch (default: this one)')
    parser.add_argument('--rounds', type=int, default=5, help='how often each is measured (default: 5)')
    parser.add_argument('--seconds', type=float, default=5, help='of each measurement (default: 5)')
    parser.add_argument('--json', default='', metavar='FILE', help='write the figures there, too')
    parser.add_argument('--write', default='', metavar='FILE', help='write the tables into this Markdown file, too')
    cli.main(parser, run)
