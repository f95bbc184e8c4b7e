"""Runs on a few digits in a folder, which the tests of evaluation share."""

import os

import pytest
from PIL import Image
from sklearn.datasets import load_digits

from jaxcnn import config
from jaxcnn.training import train

CLASSES = {'zero': 0, 'one': 1, 'two': 2}


@pytest.fixture(scope='session')
def digits_folder(tmp_path_factory):
    """A folder with the splits train, val and test, and images of three classes."""
    digits, root = load_digits(), tmp_path_factory.mktemp('digits')
    for name, digit in CLASSES.items():
        for i, image in enumerate(digits.images[digits.target == digit][:60]):
            folder = root / ('train' if i < 30 else 'val' if i < 45 else 'test') / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 15.9).astype('uint8')).save(folder / f'{i}.png')
    return root


@pytest.fixture
def digits_runs(digits_folder, no_pictures):
    """The workdirs of two linear classifiers of different image sizes, which are trained once."""
    workdirs = []
    for image_size, steps in ((8, 12), (12, 4)):
        workdirs.append(f'{digits_folder}_runs/size{image_size}')
        if os.path.exists(os.path.join(workdirs[-1], 'summary.json')):
            continue
        train(config.make(duration=dict(steps=steps), batch_size=30, model=dict(name='sequential', layers='flatten|dense'),
                          data=dict(name='folder', dir=str(digits_folder), image_size=image_size, augment=''),
                          optim=dict(optimizer='adam', learning_rate=0.003), parallel=dict(devices=1),
                          eval=dict(tta='flip_shift(1)', batch_size=32)), workdirs[-1])
    return workdirs
