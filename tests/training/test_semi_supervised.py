"""Training with pseudo-labels for unlabelled images."""

import os
import signal

import golden
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from jaxcnn import config as cfg
from jaxcnn import data
from jaxcnn.data.pseudo_labels import PseudoLabels
from jaxcnn.errors import UserError
from jaxcnn.run import load_run
from jaxcnn.timeline import Timeline
from jaxcnn.training import train
from jaxcnn.training.callbacks import Callback
from jaxcnn.training.loop import TrainingRun
from jaxcnn.training.setup import Setup
from jaxcnn.training.signals import Interrupted, StopRequest

pytestmark = pytest.mark.usefixtures('no_pictures')
THRESHOLD = 0.5


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Three digits as in the homework: labelled images for training and validation, and unlabelled ones."""
    root, digits = tmp_path_factory.mktemp('digits'), load_digits()
    (root / 'training' / 'unlabeled').mkdir(parents=True)
    (root / 'validation').mkdir()
    for i in np.flatnonzero(digits.target < 3)[:150]:
        labelled_name = f'{digits.target[i]}_{i}.png'
        name = (f'training/{labelled_name}', f'validation/{labelled_name}', *[f'training/unlabeled/{i}.png'] * 2)[i % 4]
        Image.fromarray((digits.images[i] * 15.9).astype(np.uint8)).save(root / name)
    return root


@pytest.fixture
def config(folder):
    """A run of 16 steps, which predicts labels before the steps 6 and 11."""
    return cfg.make(
        duration=dict(steps=16), batch_size=8, model=dict(name='sequential', layers='flatten|dense'),
        data=dict(name='flat', dir=str(folder), image_size=8, augment='flip_lr'), parallel=dict(devices=1),
        optim=dict(optimizer='adam', learning_rate=3e-3, schedule='constant'), eval=dict(every=dict(steps=8)),
        checkpoint=dict(at=(dict(steps=11),)),
        semi_supervised=dict(threshold=THRESHOLD, start=dict(steps=6), every=dict(steps=5)))


class Stop(Callback):
    def on_evaluate(self, step, metrics):
        os.kill(os.getpid(), signal.SIGINT)


def test_confident_images_join_the_epochs_and_a_resumed_run_has_the_same_bits(config, tmp_path):
    with TrainingRun(cfg.parse(config), str(tmp_path / 'a'), StopRequest()) as run:
        run.train()
    setup, labels = run.setup, np.array(run.progress.pseudo_labels)
    unlabelled, num_train = setup.dataset.unlabelled, len(setup.dataset.splits['train'])
    probabilities = load_run(str(tmp_path / 'a'), 11).predict(unlabelled.take(np.arange(len(unlabelled))))
    expected = np.where(probabilities.max(-1) >= THRESHOLD, probabilities.argmax(-1), -1)
    assert {-1, 0} < {*expected}
    np.testing.assert_array_equal(labels, expected)
    epoch = setup.feed.epoch_order(3)[:num_train]
    assert len({*epoch}) == num_train
    drawn = epoch[epoch >= num_train] - num_train
    assert 0 < len(drawn) < num_train
    assert (labels[drawn] >= 0).all()

    with pytest.raises(Interrupted):
        train(config, str(tmp_path / 'b'), callbacks=[Stop()])
    train(config, str(tmp_path / 'b'))
    states = [{name: array.tobytes() for name, array in golden.read_state(str(tmp_path / name), 16).items()}
              for name in 'ab']
    assert states[0] == states[1]

    config.data.placement = 'host'
    host = Setup(cfg.parse(config), str(tmp_path / 'a'))
    host.set_pseudo_labels(run.progress.read_pseudo_labels(len(labels)))
    batch, positions = host.feed.batch(11, 1), host.feed.positions(11)
    host.feed.close()
    np.testing.assert_array_equal(positions, setup.feed.positions(11))
    examples = {name: np.asarray(values) for name, values in setup.resident_data['examples'].items()}
    for name in ('image', 'label'):
        np.testing.assert_array_equal(batch[name][0], examples[name][positions])


def test_a_prediction_within_an_epoch_leaves_its_order(config, tmp_path):
    """Epochs are drawn by the labels that are known when they begin, whatever is predicted later."""
    orders, labels = [], []
    config.semi_supervised.every = {'steps': 3}
    with TrainingRun(cfg.parse(config), str(tmp_path / 'a'), StopRequest()) as run:
        setup, replace = run.setup, run.setup.set_pseudo_labels
        orders.append(setup.feed)

        def record(new):
            replace(new)
            orders.append(setup.feed)
            labels.append(new)
        setup.set_pseudo_labels = record
        run.train()
        num_train = setup.timeline.num_train
        steps = [6, 9, 12, 15]
        assert len(labels) == len(steps)
        drawn = [feed.epoch_order(epoch)[:num_train] for epoch in range(4) for feed in orders]
    assert [new.first_epoch for new in labels] == [-(-8 * step // num_train) for step in steps]
    by_epoch = np.array(drawn).reshape(4, len(orders), num_train)
    for number, step in enumerate(steps):
        running = 8 * step // num_train
        np.testing.assert_array_equal(by_epoch[running, number + 1], by_epoch[running, number])  # unchanged
        unlabelled = by_epoch[running, number + 1] - num_train
        assert (labels[number].used[unlabelled[unlabelled >= 0]] >= 0).all()
    for number, new in enumerate(labels):
        if new.first_epoch < 4:
            unlabelled = by_epoch[new.first_epoch, number + 1] - num_train
            assert (new.newest[unlabelled[unlabelled >= 0]] >= 0).all()


def test_labels_are_predicted_before_the_epochs_that_use_them(config):
    """With 38 images and batches of 8, epoch 2 begins at image 76, within step 9."""
    config.duration, config.checkpoint.at = {'epochs': 6}, ()
    config.semi_supervised = {'threshold': THRESHOLD, 'start': {'epochs': 2}, 'every': {'epochs': 2}}
    timeline = Timeline(cfg.parse(config), 38)
    assert timeline.pseudo_label_steps == [9, 19]
    labels = PseudoLabels.none(4)
    assert [labels.replaced(labels.newest, timeline.examples(step), 38).first_epoch for step in (9, 19)] == [2, 4]
    assert Timeline(cfg.parse(config), 40).pseudo_label_steps == [10, 20]  # no batch reaches across the end of an epoch


def test_unlabelled_images_are_streamed(config, tmp_path):
    """The figures of a streamed run are those of one whose images are on the device, also if it is stopped."""
    train(config, str(tmp_path / 'device'))
    config.data.update(placement='stream')
    with pytest.raises(Interrupted):
        train(config, str(tmp_path / 'stream'), callbacks=[Stop()])
    train(config, str(tmp_path / 'stream'))
    streamed, stored = (golden.read_state(str(tmp_path / name), 16) for name in ('stream', 'device'))
    for name, values in stored.items():
        np.testing.assert_allclose(streamed[name], values, atol=1e-6)


def test_unlabelled_images_are_those_of_the_folder(config, folder):
    dataset = data.load(cfg.parse(config).data, unlabelled=True)
    names = sorted((folder / 'training' / 'unlabeled').iterdir(), key=lambda path: path.name)
    np.testing.assert_array_equal(dataset.unlabelled.take(np.arange(len(names)))[..., 0],
                                  [np.asarray(Image.open(path)) for path in names])
    without = data.load(cfg.parse(config).data)
    assert without.digest.items() < dataset.digest.items()
    with pytest.raises(UserError, match=r'no training images without a label; config\.semi_supervised needs them'):
        data.load(cfg.DataConfig(name='digits'), unlabelled=True)
