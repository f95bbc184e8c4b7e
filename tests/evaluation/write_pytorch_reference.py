"""Write pytorch_reference.npz: the probabilities of a small VGG in PyTorch by ten-crop and by dense evaluation.

    python tests/evaluation/write_pytorch_reference.py

It needs torch==2.14.1, torchvision==0.29.1 and Pillow.
"""

import pathlib

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import v2

PATH = pathlib.Path(__file__).with_name('pytorch_reference.npz')
SIZE, SHORTER, MAP, CLASSES = 16, 22, 4, 4  # side of the crops, length of the shorter side, and side of the last map
MEAN, STD = (0.45, 0.5, 0.55), (0.2, 0.25, 0.3)


def dense_layers_as_convolutions(params: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Return the scores (N, classes, H', W') of images (N, 3, H, W)."""
    for i in range(2):
        kernel = params[f'Conv_{i}/kernel'].permute(3, 2, 0, 1)
        x = F.max_pool2d(F.relu(F.conv2d(x, kernel, params[f'Conv_{i}/bias'], padding=1)), 2)
    first = params['Dense_0/kernel'].reshape(MAP, MAP, -1, params['Dense_0/kernel'].shape[1]).permute(3, 2, 0, 1)
    x = F.conv2d(x, first, params['Dense_0/bias'])
    for i in (1, 2):
        x = F.conv2d(F.relu(x), params[f'Dense_{i}/kernel'].T[..., None, None], params[f'Dense_{i}/bias'])
    return x


def main() -> None:
    rng = np.random.default_rng(0)
    shapes = {'Conv_0': (3, 3, 3, 4), 'Conv_1': (3, 3, 4, 6), 'Dense_0': (MAP * MAP * 6, 8), 'Dense_1': (8, 8),
              'Dense_2': (8, CLASSES)}
    params = {}
    for name, shape in shapes.items():
        params[f'{name}/kernel'] = rng.normal(size=shape).astype(np.float32) * (2 / np.prod(shape[:-1])) ** 0.5
        params[f'{name}/bias'] = rng.normal(size=shape[-1:]).astype(np.float32) * 0.1
    params['Dense_2/kernel'] *= 5  # for probabilities that differ from each other
    tensors = {name: torch.tensor(value, dtype=torch.float32) for name, value in params.items()}
    # an odd horizontal margin would shift the centre of TenCrop's mirror images, which are cropped after mirroring
    images = [rng.integers(0, 256, shape).astype(np.uint8) for shape in ((37, 30, 3), (24, 40, 3), (20, 20, 3))]
    to_input = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    resize = v2.Resize(SHORTER, antialias=True)
    ten_crop, dense = [], []
    for image in images:
        resized = resize(Image.fromarray(image))
        crops = torch.stack([to_input(crop) for crop in v2.TenCrop(SIZE)(resized)])
        ten_crop.append(dense_layers_as_convolutions(tensors, crops)[..., 0, 0].softmax(1).mean(0))
        both = torch.stack([to_input(x) for x in (resized, v2.functional.hflip(resized))])
        dense.append(dense_layers_as_convolutions(tensors, both).mean((2, 3)).softmax(1).mean(0))
    np.savez_compressed(PATH, **params, **{f'image_{i}': image for i, image in enumerate(images)}, mean=MEAN, std=STD,
                        ten_crop=torch.stack(ten_crop).numpy(), dense=torch.stack(dense).numpy())


if __name__ == '__main__':
    main()
