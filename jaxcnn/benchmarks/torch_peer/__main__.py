"""PyTorch's side of `jaxcnn benchmark`: the same networks in PyTorch, in a process that measures on request.

    python jaxcnn/benchmarks/torch_peer train_step resnet18 32 64 [--compile] [--device=cuda --dtype=bfloat16]
    python jaxcnn/benchmarks/torch_peer data IMAGES.json 64 128
    python jaxcnn/benchmarks/torch_peer checkpoint resnet50 224 0 --folder=DIR
    python jaxcnn/benchmarks/torch_peer integrated_gradients resnet18 64 64 --steps=50
    python jaxcnn/benchmarks/torch_peer operator roi_align 0 1 --folder=DIR
    python jaxcnn/benchmarks/torch_peer faster_rcnn train 640 1 --folder=DIR
    python jaxcnn/benchmarks/torch_peer train lenet5 28 128 --folder=DIR --epochs=2 --workers=2
    python jaxcnn/benchmarks/torch_peer train airbench94 32 1024 --folder=DIR

`train` is a plain script: a DataLoader over the images in DIR, epochs, a test after each; for airbench94 it is the paper's
own program. The last line of its output is JSON: the accuracy on the test images and the seconds of the training steps.

The other commands print `ready`. Then, for each line with a number of seconds on their standard input, they print the
images/s over that time, `operator` the calls/s, or `checkpoint` the seconds to save and to read. They use channels_last and
SGD with momentum and weight decay; bfloat16 is autocast's.

It needs torch (on a CPU 2.13.0), pytorchcv==0.0.67, airbench==0.1.8 for its program, and captum==0.9.0 for integrated
gradients. `operator` and `faster_rcnn` need torch==2.14.1 and torchvision==0.29.1 instead.
"""

import argparse
import collections
import functools
import json
import multiprocessing
import os
import sys
import time

import torch
from faster_rcnn import faster_rcnn
from networks import create
from operators import operator
from pictures import Images, batches, decode, set_images
from torch.nn import functional as F
from trainings import train, train_airbench


def serve(step, batch, cuda=False):
    """Print the images/s over the number of seconds in each line of standard input. On a GPU, two steps run ahead."""
    print('ready', flush=True)
    for line in sys.stdin:
        pending = collections.deque()
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < float(line):
            step()
            count += 1
            if cuda:
                pending.append(torch.cuda.Event())
                pending[-1].record()
                if len(pending) > 2:
                    pending.popleft().synchronize()
        if cuda:
            torch.cuda.synchronize()
        print(count * batch / (time.perf_counter() - began), flush=True)


def serve_decoding(path, size):
    """Measure decoding and resizing of the files into arrays, in one process per core."""
    with open(path, encoding='utf-8') as f:
        images = Images({**json.load(f), 'ops': []}, size)
    with multiprocessing.Pool(initializer=set_images, initargs=(images,)) as pool:
        def one_pass():
            for _ in pool.imap_unordered(decode, range(len(images)), 64):
                pass
        serve(one_pass, len(images))


def serve_checkpoints(net, optimizer, size, folder):
    F.cross_entropy(net(torch.randn(2, 3, size, size)), torch.tensor([0, 1])).backward()
    optimizer.step()  # momentum
    print('ready', flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        path = os.path.join(folder, 'torch.pt')
        with open(path, 'wb') as f:
            torch.save({'model': net.state_dict(), 'optimizer': optimizer.state_dict()}, f)
            f.flush()
            os.fsync(f.fileno())
        saved = time.perf_counter()
        torch.load(path)
        print(saved - began, time.perf_counter() - saved, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=('train_step', 'eval', 'data', 'decode', 'checkpoint', 'operator', 'faster_rcnn',
                                         'train', 'integrated_gradients'))
    parser.add_argument('model')
    parser.add_argument('size', type=int)
    parser.add_argument('batch', type=int)
    parser.add_argument('--stem', default='imagenet')
    parser.add_argument('--compile', action='store_true')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--dtype', default='float32')
    parser.add_argument('--folder', default='.')
    parser.add_argument('--epochs', type=int, default=0, help='of train; 0: 9.9, for airbench')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--workers', type=int, default=0)
    parser.add_argument('--steps', type=int, default=50, help='of integrated_gradients')
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if args.what == 'train':
        if args.model == 'airbench94':
            return train_airbench(args.epochs, args.folder, args.device)
        return train(args.model, args.batch, args.epochs, args.workers, args.folder, args.device)
    if args.what in ('operator', 'faster_rcnn'):
        step = (operator if args.what == 'operator' else faster_rcnn)(args.model, args.folder, args.device)
        step()
        return serve(step, args.batch, args.device == 'cuda')
    if args.what == 'data':
        return serve(batches(args.model, args.size, args.batch), args.batch)
    if args.what == 'decode':
        return serve_decoding(args.model, args.size)
    classes = 1000 if args.what == 'checkpoint' else 10
    net = create(args.model, args.size, args.stem, classes).to(args.device, memory_format=torch.channels_last)
    x = torch.randn(args.batch, 3, args.size, args.size).to(args.device, memory_format=torch.channels_last)
    y = torch.arange(args.batch, device=args.device) % 10
    cuda = args.device == 'cuda'
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = True  # as cuDNN's convolutions and all of JAX's products
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=cuda)
    if args.what == 'checkpoint':
        return serve_checkpoints(net, optimizer, args.size, args.folder)
    if args.what == 'integrated_gradients':
        from captum.attr import IntegratedGradients
        net.eval()
        method, part = IntegratedGradients(net), 10 * args.batch  # faster than one step of all images at a time
        return serve(lambda: method.attribute(x, target=y, n_steps=args.steps, internal_batch_size=part), args.batch, cuda)
    run = torch.compile(net) if args.compile else net

    autocast = functools.partial(torch.autocast, args.device, getattr(torch, args.dtype), enabled=args.dtype != 'float32')

    def step():
        if args.what == 'eval':
            with torch.inference_mode(), autocast():
                return run(x)
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            loss = F.cross_entropy(run(x), y)
        loss.backward()
        optimizer.step()

    net.train(args.what == 'train_step')
    for _ in range(3):
        step()
    serve(step, args.batch, cuda)


if __name__ == '__main__':
    main()
