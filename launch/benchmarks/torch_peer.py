"""The other side of `benchmark.py`: the same networks in PyTorch, in a process of their own that waits to be asked.

    python launch/benchmarks/torch_peer.py train_step resnet18 32 64 [--compile] [--device=cuda --dtype=bfloat16]
    python launch/benchmarks/torch_peer.py data IMAGES.json 64 128
    python launch/benchmarks/torch_peer.py checkpoint resnet50 224 0 --folder=DIR
    python launch/benchmarks/torch_peer.py train lenet5 28 128 --folder=DIR --epochs=2 --workers=2
    python launch/benchmarks/torch_peer.py train airbench94 32 1024 --folder=DIR

`train` is the plain script that a person would write: a DataLoader over the images in DIR, epochs, a test after each; and
for airbench94 the paper's own program. Their last line is JSON: accuracy on the test images, seconds of the training steps.
The others say `ready`; then for each line with a number of seconds on its standard input print the images/s of that long,
or `checkpoint` the seconds to save and to read. channels_last, SGD with momentum and weight decay; bfloat16 is autocast's.
Needs torch (on a CPU 2.13.0), pytorchcv==0.0.67, and airbench==0.1.8 for its program.
"""

import argparse
import collections
import functools
import itertools
import json
import math
import multiprocessing
import os
import random
import sys
import time
import types

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
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


def airbench():
    """As airbench 0.1.8's `make_net94`: GELU by erf."""
    class Scaled(nn.Module):
        def forward(self, x):
            return x / 9

    def norm(width):
        made = nn.BatchNorm2d(width, eps=1e-12, momentum=0.4)
        made.weight.requires_grad = False
        return made

    layers, before = [nn.Conv2d(3, 24, 2), nn.GELU()], 24
    for width in (64, 256, 256):
        layers += [nn.Conv2d(before, width, 3, padding='same', bias=False), nn.MaxPool2d(2), norm(width), nn.GELU(),
                   nn.Conv2d(width, width, 3, padding='same', bias=False), norm(width), nn.GELU()]
        before = width
    layers[0].weight.requires_grad = False
    return nn.Sequential(*layers, nn.MaxPool2d(3), nn.Flatten(), nn.Linear(before, 10, bias=False), Scaled())


class Performer(nn.Module):
    """A token transformer of T2T-ViT with the performer's attention, as the authors' code: `dim` features after it."""

    def __init__(self, features, dim, dropout):
        super().__init__()
        self.norm1, self.norm2, self.qkv = nn.LayerNorm(features), nn.LayerNorm(dim), nn.Linear(features, 3 * dim)
        self.out, self.fc1, self.fc2 = (nn.Linear(dim, dim) for _ in range(3))
        self.drop = nn.Dropout(dropout)
        self.register_buffer('w', nn.init.orthogonal_(torch.empty(dim // 2, dim)) * math.sqrt(dim // 2))

    def lift(self, x):
        return torch.exp(x @ self.w.T - (x ** 2).sum(2, keepdim=True) / 2) / math.sqrt(len(self.w))

    def attend(self, x):
        k, q, v = self.qkv(self.norm1(x)).float().chunk(3, 2)
        with torch.autocast(x.device.type, enabled=False):
            k, q = self.lift(k), self.lift(q)
            return torch.einsum('ntm,nmd->ntd', q, torch.einsum('ntm,ntd->nmd', k, v)) / (
                (q * k.sum(1, keepdim=True)).sum(2, keepdim=True) + 1e-8), v

    def forward(self, x):
        y, v = self.attend(x)
        x = v + self.drop(self.out(y))
        return x + self.drop(self.fc2(F.gelu(self.fc1(self.norm2(x)))))


class TokenTransformer(Performer):
    """The same with softmax's attention, and no biases of queries, keys and values."""

    def __init__(self, features, dim, dropout):
        super().__init__(features, dim, 0.0)
        self.qkv = nn.Linear(features, 3 * dim, bias=False)

    def attend(self, x):
        q, k, v = self.qkv(self.norm1(x)).chunk(3, 2)
        return F.scaled_dot_product_attention(q, k, v, scale=x.shape[2] ** -0.5), v


class Block(nn.Module):
    """Of a vision transformer."""

    def __init__(self, features, heads, hidden):
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(features), nn.LayerNorm(features)
        self.qkv, self.out = nn.Linear(features, 3 * features, bias=False), nn.Linear(features, features)
        self.fc1, self.fc2 = nn.Linear(features, hidden), nn.Linear(hidden, features)

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class T2TViT(nn.Module):
    """As jaxcnn's `t2t_vit_14`."""

    def __init__(self, classes, tokens=Performer, splits=((7, 4, 2), (3, 2, 1), (3, 2, 1)), depth=14, embed=384, heads=6,
                 mlp_ratio=3, token_dim=64, dropout=0.1):
        super().__init__()
        self.splits = nn.ModuleList(nn.Unfold(size, stride=stride, padding=padding) for size, stride, padding in splits)
        widths = [(token_dim if i else 3) * size ** 2 for i, (size, _, _) in enumerate(splits)]
        self.tokens = nn.ModuleList(tokens(width, token_dim, dropout) for width in widths[:-1])
        self.project, self.first = nn.Linear(widths[-1], embed), nn.Parameter(torch.randn(1, 1, embed) * 0.02)
        self.blocks = nn.ModuleList(Block(embed, heads, embed * mlp_ratio) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(embed), nn.Linear(embed, classes)

    def forward(self, x):
        for split, tokens in zip(self.splits, [*self.tokens, self.project], strict=True):
            x = tokens(split(x).transpose(1, 2))
            if tokens is not self.project:
                x = x.transpose(1, 2).unflatten(2, (math.isqrt(x.shape[1]), -1))
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1)
        position, feature = torch.arange(x.shape[1], device=x.device)[:, None], torch.arange(x.shape[2], device=x.device)
        angle = position / 10000 ** (2 * (feature // 2) / x.shape[2])
        x = x + torch.where(feature % 2 == 0, angle.sin(), angle.cos())
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def create(name, size, stem, classes=10):
    if name == 'shallow_cnn':
        return ShallowCNN(size)
    if name == 'airbench94':
        return airbench()
    if name == 't2t_vit_14':
        return T2TViT(classes)
    from pytorchcv.model_provider import get_model
    net = get_model({'mobilenet_v1': 'mobilenet_w1', 'vgg16_bn': 'bn_vgg16b'}.get(name, name), num_classes=classes)
    if name == 'vgg16_bn':
        net.output.fc1.fc = nn.Linear(512 * (size // 32) ** 2, 4096)
        return nn.Sequential(net.features, nn.Flatten(), net.output)  # its own `view` does not take channels_last
    net.features.final_pool = nn.AdaptiveAvgPool2d(1)
    if stem == 'small':
        net.features.init_block = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64),
                                                nn.ReLU(inplace=True))
    return net


def lenet(name):
    """As jaxcnn's `lenet5` and `lenet_mnist`."""
    first, second, conv, dense, kind = (6, 16, 0, (400, 120, 84), nn.Tanh) if name == 'lenet5' else (
        32, 64, 2, (3136, 512), nn.ReLU)
    pool = nn.AvgPool2d if name == 'lenet5' else nn.MaxPool2d
    layers = [nn.Conv2d(1, first, 5, padding=2), kind(), pool(2), nn.Conv2d(first, second, 5, padding=conv), kind(), pool(2),
              nn.Flatten()]
    for size, features in itertools.pairwise(dense):
        layers += [nn.Linear(size, features), kind()] + ([nn.Dropout(0.5)] if name == 'lenet_mnist' else [])
    return nn.Sequential(*layers, nn.Linear(dense[-1], 10))


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
    """torch.cuda.Event's part that airbench uses, where there is no GPU."""

    def __init__(self, enable_timing):
        pass

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, other):
        return (other.at - self.at) * 1e3


def train_airbench(epochs, folder, device):
    """`airbench.train94` of airbench 0.1.8, as it is; on a CPU in float32. Its seconds hold the whitening filters."""
    transforms = types.ModuleType('torchvision.transforms')  # of torchvision it takes no more where the images are there
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


def serve(step, batch, cuda=False):
    """Images/s of so many seconds, for each line; a GPU is given two steps ahead."""
    print('ready', flush=True)
    for line in sys.stdin:
        under_way = collections.deque()
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < float(line):
            step()
            count += 1
            if cuda:
                under_way.append(torch.cuda.Event())
                under_way[-1].record()
                if len(under_way) > 2:
                    under_way.popleft().synchronize()
        if cuda:
            torch.cuda.synchronize()
        print(count * batch / (time.perf_counter() - began), flush=True)


def enhance(image, op, amount):
    """One op of AutoAugment, as PIL has it."""
    def moved(*matrix):
        return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)
    if op in ('brightness', 'color', 'contrast', 'sharpness'):
        return getattr(ImageEnhance, op.capitalize())(image).enhance(1 + amount)
    return {'shear_x': lambda: moved(1, amount, 0, 0, 1, 0), 'shear_y': lambda: moved(1, 0, 0, amount, 1, 0),
            'translate_x': lambda: moved(1, 0, -amount, 0, 1, 0), 'translate_y': lambda: moved(1, 0, 0, 0, 1, -amount),
            'rotate': lambda: image.rotate(amount), 'posterize': lambda: ImageOps.posterize(image, 8 - int(amount)),
            'solarize': lambda: ImageOps.solarize(image, amount)}.get(op, lambda: getattr(ImageOps, op)(image))()


class Images(torch.utils.data.Dataset):
    """Images, augmented by PIL and normalised one by one, as torchvision's transforms are.

    Args:
      what: `files`, or `array`, the path of one of uint8 (N, H, W, C); `ops`, names and arguments, of what augments them.
      size: what files are resized to, unless a crop does that.
    """

    def __init__(self, what, size):
        self.files, self.ops, self.size = what.get('files'), what['ops'], size
        self.images = None if self.files else np.load(what['array'], mmap_mode='r')

    def __len__(self):
        return len(self.files or self.images)

    def read(self, i):
        if not self.files:
            return Image.fromarray(self.images[i].squeeze())
        with Image.open(self.files[i]) as image:
            return image.convert('RGB')

    def __getitem__(self, i):
        image = self.read(i)
        crops = bool(self.ops) and self.ops[0][0] == 'random_resized_crop'
        if self.files and image.size != (self.size, self.size) and not crops:
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        for name, fields in self.ops:
            image = getattr(self, name)(image, **fields)
        x = torch.from_numpy(np.array(image)).reshape(*image.size[::-1], -1).permute(2, 0, 1).float() / 255
        return (x - 0.5) / 0.25

    def flip_lr(self, image, p=0.5):
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < p else image

    def pad_crop(self, image, pad, mode='constant'):
        if mode == 'constant':
            padded = ImageOps.expand(image, pad)
        else:
            padded = Image.fromarray(np.pad(image, [(pad, pad)] * 2 + [(0, 0)] * (len(image.getbands()) > 1), mode))
        left, top = random.randint(0, 2 * pad), random.randint(0, 2 * pad)
        return padded.crop((left, top, left + image.width, top + image.height))

    def random_resized_crop(self, image, size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)):
        for _ in range(10):
            area = image.width * image.height * random.uniform(*scale)
            shape = math.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1])))
            w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
            if 0 < w <= image.width and 0 < h <= image.height:
                left, top = random.randint(0, image.width - w), random.randint(0, image.height - h)
                return image.resize((size, size), Image.Resampling.BILINEAR, (left, top, left + w, top + h))
        return image.resize((size, size), Image.Resampling.BILINEAR)

    def auto_augment(self, image, policy):
        for op, chance, amount, signed in random.choice(policy):
            if random.random() < chance:
                image = enhance(image, op, -amount if signed and random.random() < 0.5 else amount)
        return image


def serve_data(what, size, batch):
    with open(what) as f:
        images = Images(json.load(f), size)
    loader = torch.utils.data.DataLoader(images, batch, shuffle=True, drop_last=True, persistent_workers=True,
                                         num_workers=len(os.sched_getaffinity(0)))
    torch.set_num_threads(1)

    def forever():
        while True:
            yield from loader
    batches = forever()
    next(batches)
    return lambda: next(batches)


def serve_decoding(what, size):
    """A plain loop over the files in a process a core: decoded and resized, into an array."""
    with open(what) as f:
        images = Images({**json.load(f), 'ops': []}, size)
    with multiprocessing.Pool(initializer=keep, initargs=(images,)) as pool:  # once, not with each part
        def one_pass():
            for _ in pool.imap_unordered(decode, range(len(images)), 64):
                pass
        serve(one_pass, len(images))


def keep(images):
    global decoded
    decoded = images


def decode(i):
    return np.asarray(decoded.read(i).resize((decoded.size, decoded.size), Image.Resampling.BILINEAR)).shape


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
    parser.add_argument('what', choices=('train_step', 'eval', 'data', 'decode', 'checkpoint', 'train'))
    parser.add_argument('model')
    parser.add_argument('size', type=int)
    parser.add_argument('batch', type=int)
    parser.add_argument('--stem', default='imagenet')
    parser.add_argument('--compile', action='store_true')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--dtype', default='float32')
    parser.add_argument('--folder', default='.')
    parser.add_argument('--epochs', type=int, default=0, help='of train; for airbench 0 is its own 9.9')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--workers', type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if args.what == 'train':
        if args.model == 'airbench94':
            return train_airbench(args.epochs, args.folder, args.device)
        return train(args.model, args.batch, args.epochs, args.workers, args.folder, args.device)
    if args.what == 'data':
        return serve(serve_data(args.model, args.size, args.batch), args.batch)
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
