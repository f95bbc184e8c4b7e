"""Images for a DataLoader, read, augmented and normalised one by one with PIL."""

import json
import math
import os
import random

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps


def enhance(image, op, amount):
    """Apply an operation of AutoAugment with PIL."""
    def affine(*matrix):
        return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)
    if op in ('brightness', 'color', 'contrast', 'sharpness'):
        return getattr(ImageEnhance, op.capitalize())(image).enhance(1 + amount)
    return {'shear_x': lambda: affine(1, amount, 0, 0, 1, 0), 'shear_y': lambda: affine(1, 0, 0, amount, 1, 0),
            'translate_x': lambda: affine(1, 0, -amount, 0, 1, 0), 'translate_y': lambda: affine(1, 0, 0, 0, 1, -amount),
            'rotate': lambda: image.rotate(amount), 'posterize': lambda: ImageOps.posterize(image, 8 - int(amount)),
            'solarize': lambda: ImageOps.solarize(image, amount)}.get(op, lambda: getattr(ImageOps, op)(image))()


class Images(torch.utils.data.Dataset):
    """Images, augmented by PIL and normalised one by one, as torchvision's transforms are.

    Args:
      source: `files`, paths of images, or `array`, the path of a uint8 array (N, H, W, C); `ops`, the names and
        arguments of augmentations; and `decoder`, `simplejpeg` for JPEG files that it decodes instead of PIL.
      size: side to which files are resized, unless a crop does that.
    """

    def __init__(self, source, size):
        self.files, self.ops, self.size = source.get('files'), source['ops'], size
        self.decoder = source.get('decoder')
        self.images = None if self.files else np.load(source['array'], mmap_mode='r')

    def __len__(self):
        return len(self.files or self.images)

    def read(self, i):
        if not self.files:
            return Image.fromarray(self.images[i].squeeze())
        if self.decoder == 'simplejpeg':
            import simplejpeg
            with open(self.files[i], 'rb') as file:
                return Image.fromarray(simplejpeg.decode_jpeg(file.read()))
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


def batches(path, size, batch):
    """Return a function that waits for the next batch of a DataLoader with one worker per core."""
    with open(path, encoding='utf-8') as f:
        images = Images(json.load(f), size)
    loader = torch.utils.data.DataLoader(images, batch, shuffle=True, drop_last=True, persistent_workers=True,
                                         num_workers=len(os.sched_getaffinity(0)))
    torch.set_num_threads(1)

    def forever():
        while True:
            yield from loader
    iterator = forever()
    next(iterator)
    return lambda: next(iterator)


def set_images(value):
    """Set the images of this process, once rather than with each task."""
    global images
    images = value


def decode(i):
    return np.asarray(images.read(i).resize((images.size, images.size), Image.Resampling.BILINEAR)).shape
