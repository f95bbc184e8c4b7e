"""Measure the speed of jaxcnn, and its ratio to that of other libraries on the same machine.

    jaxcnn benchmark train_step [--models shallow_cnn,resnet18,...] [--peers torch,jax,...] [--dtype=bfloat16]
    jaxcnn benchmark eval [--models ...] [--peers ...]
    jaxcnn benchmark data --config=cifar10_shallow [--peers torch]
    jaxcnn benchmark train --config=mnist_lenet [--config.model=lenet5 --config.duration.epochs=2]
    jaxcnn benchmark train --config=cifar10_fast
    jaxcnn benchmark operators [--models nms,roi_align,...] [--peers torch]
    jaxcnn benchmark faster_rcnn [--models train,eval] [--batch=2] [--peers torch]
    jaxcnn benchmark detectors [--models rcnn,spp_net,...] [--backbone=vgg16] [--rounds=1]
    jaxcnn benchmark int8 [--models resnet18,resnet18_small] [--batch=32]
    jaxcnn benchmark checkpoint [--models resnet50] [--peers torch]
    jaxcnn benchmark loop --config=mnist_lenet [--config.a.b=VALUE ...]
    jaxcnn benchmark startup --config=digits_lenet5
    jaxcnn benchmark integrated_gradients [--models=shallow_cnn] [--steps=50] [--peers=torch]
    jaxcnn benchmark train_step loop --config=cifar10_fast --write=docs/performance.md \\
        --config.model.dtype=bfloat16

Several benchmarks may be given. --write writes the table of each into a Markdown file, where it replaces its previous
version. The tables of train_step and eval are written after each network, and that of train after each round.

train_step, eval: The images/s of the training step or of the inference of a network, and the ratio to those of its peers.
The peers are PyTorch (`torch`, and `compiled` with torch.compile, both in channels_last format) and jaxcnn with other
convolutions (`jax` and `xla`). PyTorch is run by --torch_python, which needs torch and pytorchcv==0.0.67. The peers are
measured alternately. GPUs use bfloat16 (autocast in PyTorch) and larger images and batches, CPUs float32; --dtype chooses
another type. `of matmul` is the
rate of the network's floating-point operations, including those on padding, as a fraction of the rate of a large matrix
product. `of bandwidth` is the rate at which the operations of the compiled program read and write memory, as a fraction of
the memory bandwidth. Both limits are measured in the same run.

data: The images/s of the training images of a config, augmented and normalised, for both values of data.placement; their
ratio to those of a PyTorch DataLoader that does the same with PIL and one worker per core (pad_crop, random_resized_crop,
flip_lr and auto_augment are supported); and the time of the data as a fraction of that of the training step. For images in
files, it also compares a first epoch, which builds the cache, with the DataLoader that reads the files, and building the
cache with PIL in as many processes; and it measures the memory of 20 steps of `jaxcnn train`, with all images and with one
image of each class. Streamed images are compared with DataLoaders that decode with PIL and with simplejpeg.

train: The time of `jaxcnn train` from the command to the report, the time of its training steps without compilation, the
ratios of PyTorch's times to them, and the accuracy of both. Each round has another seed. Decoded images and compiled
programs come from the caches if an earlier run has left them there. A LeNet on MNIST is compared with a plain script with a
DataLoader, without workers and with one worker per core. Any network on CIFAR-10 is compared with `train94` of
airbench==0.1.8, which trains 9.9 epochs of 48 batches of 1024 images (in float32 on a CPU); each side uses its own recipe.
The time of airbench includes its whitening filters. On a GPU, the time of jaxcnn includes the choice of cuDNN's algorithms,
which airbench makes before its clock starts.

operators: The milliseconds of the operators of object detection (non-maximum suppression, RoIAlign, RoI max pooling and
their gradients), and the ratio of their speed to that of torchvision's operators. --torch_python needs torch==2.14.1 and
torchvision==0.29.1.

faster_rcnn: The images/s of a training step (forward and backward pass and SGD) and of an inference of Faster R-CNN, with a
ResNet-18 and a feature pyramid, for images of 480 x 640 pixels, and the ratio to those of torchvision's with the same
settings: 2,000 proposals, of which 512 are trained, and in inference 1,000; 256 anchors; three classes; frozen BatchNorm.
--torch_python needs torch==2.14.1 and torchvision==0.29.1.

detectors: The seconds in which R-CNN, SPP-Net, Fast R-CNN and Faster R-CNN detect objects in one image of 480x640 pixels
with 2,000 given proposals, and the ratio of R-CNN's time to them. R-CNN with VGG-16 takes minutes an image on a CPU.

int8: The images/s of the inference of a network in float32, in float32 with BatchNorm folded into the convolutions, and with
int8 convolutions of oneDNN, and the ratios of int8 to both. The instruction set is that which oneDNN uses.

checkpoint: The seconds to save the state of a network and of SGD with momentum to the disk, to hand it over (while the
training loop waits), and to read it, compared with torch.save and torch.load.

loop: The images/s of the training loop of `jaxcnn train`, which includes feeding, logging and progress, and their ratio to
those of the bare compiled step on one batch on the device. Both are measured alternately.

integrated_gradients: The images/s of the integrated gradients of 64 images, and their ratio to those of captum==0.9.0 with
PyTorch, which computes ten steps of all images at a time.

startup: The seconds from the command to its first finished step, with an empty and with a full compilation cache.
"""

import argparse
import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable

from jaxcnn import cli
from jaxcnn.benchmarks import data, detectors, explanations, faster_rcnn, int8, networks, operators, runs
from jaxcnn.benchmarks.measure import Table, machine, write
from jaxcnn.errors import UserError, unknown

PEERS = ('torch', 'compiled', 'jax', 'xla')
BENCHMARKS: dict[str, Callable[[argparse.Namespace], Table | Iterable[Table]]] = {
    'train_step': functools.partial(networks.compare, benchmark='train_step'),
    'eval': functools.partial(networks.compare, benchmark='eval'), 'data': data.compare, 'operators': operators.compare,
    'faster_rcnn': faster_rcnn.compare,
    'detectors': detectors.compare, 'int8': int8.compare,
    'train': runs.train, 'checkpoint': runs.checkpoint, 'loop': runs.loop, 'startup': runs.startup,
    'integrated_gradients': explanations.compare}


def run(args: argparse.Namespace) -> int:
    """Run the command with its parsed arguments, and return its exit code."""
    for name, minimum in (('rounds', 1), ('seconds', 0.01), ('batch', 1)):
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
        for result in [tables] if isinstance(tables, Table) else tables:  # each table replaces the previous one
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # child processes end with it
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # the PyTorch process shares the GPU
    parser.add_argument('what', nargs='+', choices=BENCHMARKS)
    parser.add_argument('--config', default='', help='config for data, train, loop and startup: a file, or the name of a '
                        'config that comes with jaxcnn')
    parser.add_argument('--models', default='', help='comma-separated networks for train_step, eval, checkpoint and '
                        'integrated_gradients, operators, detectors, or train and eval for faster_rcnn')
    parser.add_argument('--batch', type=int, default=2, help='images in a batch of faster_rcnn (default: 2) '
                        'and of int8 (default: 32)')
    parser.add_argument('--backbone', default='vgg16', help='classifier within detectors (default: vgg16)')
    parser.add_argument('--steps', type=int, default=50, help='steps of integrated_gradients (default: 50)')
    parser.add_argument('--peers', default='torch,compiled', help='comma-separated peers: torch, compiled, jax, xla '
                        '(default: torch,compiled)')
    parser.add_argument('--dtype', default='', help='type of the computation of train_step and eval, in PyTorch by '
                        'autocast: float32, bfloat16 or float16 (default: bfloat16 on a GPU, float32 on a CPU)')
    parser.add_argument('--torch_python', default=sys.executable, help='Python interpreter with PyTorch (default: this one)')
    parser.add_argument('--rounds', type=int, default=5, help='number of measurements of each value (default: 5)')
    parser.add_argument('--seconds', type=float, default=5, help='duration of each measurement in seconds (default: 5)')
    parser.add_argument('--json', default='', metavar='FILE', help='also write the figures to this JSON file')
    parser.add_argument('--write', default='', metavar='FILE', help='also write the tables into this Markdown file')
    cli.main(parser, run)
