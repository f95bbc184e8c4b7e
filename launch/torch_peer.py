"""The other side of `benchmark.py`: the same networks in PyTorch, in a process of their own that waits to be asked.

    python launch/torch_peer.py train_step resnet18 32 64 [--compile]

Says `ready`; then for each line with a number of seconds on its standard input prints the images/s of that long. float32,
channels_last, SGD with momentum and weight decay. Needs torch==2.13.0 and pytorchcv==0.0.67.
"""

import argparse
import os
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F


class ShallowCNN(nn.Module):
    """As jaxcnn's `shallow_cnn`."""

    def __init__(self, size):
        super().__init__()
        widths, layers = (3, 64, 128, 256, 256), []
        for i, k in enumerate((7, 3, 3, 3)):
            layers += [nn.Conv2d(widths[i], widths[i + 1], k, padding=k // 2, bias=False), nn.BatchNorm2d(widths[i + 1]),
                       nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(256 * (size // 16) ** 2, 512), nn.ReLU(), nn.Dropout(0.5),
                                  nn.Linear(512, 10))

    def forward(self, x):
        return self.head(self.features(x))


def create(name, size, stem):
    if name == 'shallow_cnn':
        return ShallowCNN(size)
    from pytorchcv.model_provider import get_model
    net = get_model({'mobilenet_v1': 'mobilenet_w1', 'vgg16_bn': 'bn_vgg16b'}.get(name, name), num_classes=10)
    if name == 'vgg16_bn':
        net.output.fc1.fc = nn.Linear(512 * (size // 32) ** 2, 4096)
        return nn.Sequential(net.features, nn.Flatten(), net.output)  # its own `view` does not take channels_last
    net.features.final_pool = nn.AdaptiveAvgPool2d(1)
    if stem == 'small':
        net.features.init_block = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64),
                                                nn.ReLU(inplace=True))
    return net


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=('train_step', 'eval'))
    parser.add_argument('model')
    parser.add_argument('size', type=int)
    parser.add_argument('batch', type=int)
    parser.add_argument('--stem', default='imagenet')
    parser.add_argument('--compile', action='store_true')
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    net = create(args.model, args.size, args.stem).to(memory_format=torch.channels_last)
    if args.model != 'shallow_cnn':
        assert net(torch.zeros(2, 3, args.size, args.size)).shape == (2, 10)
    x = torch.randn(args.batch, 3, args.size, args.size).to(memory_format=torch.channels_last)
    y = torch.arange(args.batch) % 10
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    run = torch.compile(net) if args.compile else net

    def step():
        if args.what == 'eval':
            with torch.inference_mode():
                return run(x)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(run(x), y).backward()
        optimizer.step()

    net.train(args.what == 'train_step')
    for _ in range(3):
        step()
    print('ready', sum(p.numel() for p in net.parameters()), flush=True)
    for line in sys.stdin:
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < float(line):
            step()
            count += 1
        print(count * args.batch / (time.perf_counter() - began), flush=True)


if __name__ == '__main__':
    main()
