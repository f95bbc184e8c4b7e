"""A run on digits of 8 x 8 pixels that the tests of robustness share."""

import os

import pytest

from jaxcnn import config
from jaxcnn.training import train


@pytest.fixture(scope='session')
def digits_workdir(tmp_path_factory):
    return str(tmp_path_factory.mktemp('runs') / 'digits')


@pytest.fixture
def digits_run(digits_workdir, no_pictures):
    """The workdir of a small convolutional network, which is trained once."""
    if not os.path.exists(os.path.join(digits_workdir, 'summary.json')):
        train(config.make(
            duration=dict(steps=200), batch_size=64,
            model=dict(name='sequential', layers='conv(12, 3)|relu|max_pool(2)|flatten|dense(32)|relu|dense'),
            data=dict(name='digits', image_size=8), optim=dict(optimizer='adam', learning_rate=0.005),
            parallel=dict(devices=1), eval=dict(every=dict(steps=200))), digits_workdir)
    return digits_workdir
