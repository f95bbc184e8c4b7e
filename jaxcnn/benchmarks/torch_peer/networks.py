"""jaxcnn's networks in PyTorch."""

import itertools
import math

import torch
from torch import nn
from torch.nn import functional as F


class ShallowCNN(nn.Module):
    """jaxcnn's `shallow_cnn`."""

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
    """airbench 0.1.8's `make_net94`, whose GELU uses erf."""
    class Scaled(nn.Module):
        def forward(self, x):
            return x / 9

    def norm(width):
        layer = nn.BatchNorm2d(width, eps=1e-12, momentum=0.4)
        layer.weight.requires_grad = False
        return layer

    layers, before = [nn.Conv2d(3, 24, 2), nn.GELU()], 24
    for width in (64, 256, 256):
        layers += [nn.Conv2d(before, width, 3, padding='same', bias=False), nn.MaxPool2d(2), norm(width), nn.GELU(),
                   nn.Conv2d(width, width, 3, padding='same', bias=False), norm(width), nn.GELU()]
        before = width
    layers[0].weight.requires_grad = False
    return nn.Sequential(*layers, nn.MaxPool2d(3), nn.Flatten(), nn.Linear(before, 10, bias=False), Scaled())


class Performer(nn.Module):
    """A token transformer of T2T-ViT with the performer's attention and `dim` output features, as in the authors' code."""

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
    """The same with softmax attention and without biases of queries, keys and values."""

    def __init__(self, features, dim, dropout):
        super().__init__(features, dim, 0.0)
        self.qkv = nn.Linear(features, 3 * dim, bias=False)

    def attend(self, x):
        q, k, v = self.qkv(self.norm1(x)).chunk(3, 2)
        return F.scaled_dot_product_attention(q, k, v, scale=x.shape[2] ** -0.5), v


class Block(nn.Module):
    """A block of a vision transformer."""

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
    """jaxcnn's `t2t_vit_14`."""

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
    """Return jaxcnn's `lenet5` or `lenet_mnist`."""
    first, second, conv, dense, kind = (6, 16, 0, (400, 120, 84), nn.Tanh) if name == 'lenet5' else (
        32, 64, 2, (3136, 512), nn.ReLU)
    pool = nn.AvgPool2d if name == 'lenet5' else nn.MaxPool2d
    layers = [nn.Conv2d(1, first, 5, padding=2), kind(), pool(2), nn.Conv2d(first, second, 5, padding=conv), kind(), pool(2),
              nn.Flatten()]
    for size, features in itertools.pairwise(dense):
        layers += [nn.Linear(size, features), kind()] + ([nn.Dropout(0.5)] if name == 'lenet_mnist' else [])
    return nn.Sequential(*layers, nn.Linear(dense[-1], 10))
