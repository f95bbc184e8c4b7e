"""Complete trainings in PyTorch. Their last line is JSON: the test accuracy and the seconds of the training steps."""

import json
import math
import os
import sys
import time
import types

import numpy as np
import torch
from networks import lenet
from torch import nn
from torch.nn import functional as F


def train(name, batch, epochs, workers, folder, device):
    parts = {part: [torch.from_numpy(np.load(os.path.join(folder, f'{part}_{what}.npy'))) for what in ('images', 'labels')]
             for part in ('train', 'test')}

    class Part(torch.utils.data.Dataset):
        def __init__(self, part):
            self.images, self.labels = parts[part]

        def __len__(self):
            return len(self.images)

        def __getitem__(self, i):
            return (self.images[i].permute(2, 0, 1).float() / 255 - 0.1307) / 0.3081, self.labels[i]

    net, seconds = lenet(name).to(device), 0.0
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    options = dict(num_workers=workers, persistent_workers=workers > 0)
    loader = torch.utils.data.DataLoader(Part('train'), batch, shuffle=True, **options)
    tests = torch.utils.data.DataLoader(Part('test'), 1000, **options)
    for epoch in range(epochs):
        began = time.perf_counter()
        net.train()
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(net(x.to(device)), y.to(device)).backward()
            optimizer.step()
        seconds += time.perf_counter() - began
        net.eval()
        with torch.no_grad():
            right = sum((net(x.to(device)).argmax(1).cpu() == y).sum().item() for x, y in tests) / len(tests.dataset)
        print(f'epoch {epoch}: test accuracy {right:.4f}', flush=True)
    print(json.dumps({'test_accuracy': right, 'train_seconds': seconds}))


class Event:
    """Replaces torch.cuda.Event for airbench where there is no GPU."""

    def __init__(self, enable_timing):
        pass

    def record(self):
        self.time = time.perf_counter()

    def elapsed_time(self, other):
        return (other.time - self.time) * 1e3


def train_airbench(epochs, folder, device):
    """Run `airbench.train94` of airbench 0.1.8 unchanged, on a CPU in float32. Its time includes the whitening filters."""
    transforms = types.ModuleType('torchvision.transforms')  # airbench uses no more of torchvision once the images are there
    transforms.Normalize = lambda mean, std: lambda x: (x - mean.to(x).view(-1, 1, 1)) / std.to(x).view(-1, 1, 1)
    torchvision = types.ModuleType('torchvision')
    torchvision.transforms = transforms
    sys.modules.update({'torchvision': torchvision, 'torchvision.transforms': transforms})
    if device == 'cpu':
        for kind in (torch.Tensor, nn.Module):
            kind.half, kind.cuda = kind.float, lambda self: self
        torch.cuda.Event, torch.cuda.synchronize = Event, lambda: None
    import airbench
    if device == 'cpu':
        load = airbench.CifarLoader.__init__
        load.__defaults__ = (*load.__defaults__[:-1], 'cpu')  # of its last argument, `gpu`
    os.chdir(folder)
    os.makedirs('cifar10', exist_ok=True)
    for part in () if os.path.exists('cifar10/test.pt') else ('train', 'test'):
        images, labels = (torch.from_numpy(np.load(f'{part}_{what}.npy')) for what in ('images', 'labels'))
        torch.save({'images': images, 'labels': labels, 'classes': []}, f'cifar10/{part}.pt')
    rows, evaluate = [], airbench.utils.evaluate
    airbench.utils.print_training_details = lambda values, is_final_entry: rows.append(dict(values))
    # not after every epoch, as train.py does not
    airbench.utils.evaluate = lambda net, loader, tta_level: evaluate(net, loader, tta_level) if tta_level else math.nan
    if device != 'cpu':
        airbench.warmup94()
    airbench.train94(**({'epochs': epochs} if epochs else {}))
    *_, last, tested = rows
    print(json.dumps({'test_accuracy': tested['tta_val_acc'], 'train_seconds': last['total_time_seconds']}))
