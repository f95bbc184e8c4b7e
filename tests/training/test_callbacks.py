"""Callbacks, and data that is handed over from Python."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxcnn.data import Source
from jaxcnn.errors import UserError
from jaxcnn.run import load_run
from jaxcnn.training import Callback, train
from jaxcnn.training.workdir import read_metrics

pytestmark = pytest.mark.usefixtures('no_pictures')


def digits():
    """The first 400 digits: images (8, 8) and labels, and a dataset of them."""
    images, labels = load_digits().images[:400], load_digits().target[:400]
    images = (15 * images).astype(np.uint8)
    return images, labels, Source.from_arrays(train=(images[:300], labels[:300]), test=(images[300:], labels[300:]))


class Recorder(Callback):
    def __init__(self):
        self.calls = []

    def on_begin(self, config, workdir, step):
        self.calls.append(('begin', step))

    def on_log(self, step, scalars):
        self.calls.append(('log', step, scalars))

    def on_evaluate(self, step, metrics):
        self.calls.append(('evaluate', step, metrics))

    def on_checkpoint(self, step, path):
        assert load_run(path.rsplit('/checkpoints/')[0], step).weights.params
        self.calls.append(('checkpoint', step))

    def on_end(self, summary):
        self.calls.append(('end', summary))


class Failing(Callback):
    def on_evaluate(self, step, metrics):
        if step == 20:
            raise ValueError('no\nway')


def test_callbacks_see_what_is_logged_and_one_that_fails_leaves_the_last_checkpoint(small, tmp_path):
    images, labels, source = digits()
    settings, folder = small(data={'augment': ''}, log_every=dict(steps=20)), str(tmp_path)
    first, second = Recorder(), Recorder()
    with pytest.raises(UserError, match=r'^callback Failing\.on_evaluate: raised ValueError: no way$'):
        train(settings, folder, data=source, callbacks=[first, Failing()])
    assert load_run(folder).steps() == [10]
    summary = train(settings, folder, data=source, callbacks=[second])
    assert [call[:2] for call in first.calls[:3]] == [('begin', 0), ('log', 9), ('evaluate', 10)]
    assert [call[0] for call in second.calls] == ['begin', 'log', 'log', 'evaluate', 'checkpoint', 'end']
    rows = {(row['step'], 'train_loss' in row): row for row in read_metrics(folder)}
    for kind, step, scalars in (call for call in second.calls if call[0] in ('log', 'evaluate')):
        row = rows[step, kind == 'log']
        assert scalars.items() <= row.items()
    assert second.calls[-1] == ('end', summary)

    run = load_run(folder)
    assert run.history == read_metrics(folder)
    values = run.evaluate('test', data=source)
    assert values['test_accuracy'] == pytest.approx(summary['test_accuracy'])
    with pytest.raises(UserError, match=r'config\.data\.name: the data of this run are arrays .*; hand them over again'):
        run.evaluate('test')
    with pytest.raises(UserError, match=r'the data is not what'):
        run.evaluate('test', data=Source.from_arrays(train=(images, labels), test=(images, labels)))


@pytest.mark.parametrize(('arrays', 'line'), [
    (dict(train=(np.zeros((4, 8, 8)), np.arange(4) % 2)), r'train images must be uint8 .* float64'),
    (dict(train=(np.zeros((4, 64), np.uint8), np.arange(4) % 2)), r'train images .*\(4, 64\)'),
    (dict(train=(np.zeros((4, 8, 8), np.uint8), np.arange(3) % 2)), r'train labels'),
    (dict(train=np.zeros((4, 8, 8), np.uint8)), r'train: expected \(images, labels\), got ndarray')])
def test_arrays_that_cannot_be_used_are_an_error(arrays, line):
    with pytest.raises(UserError, match=line) as error:
        Source.from_arrays(**arrays)
    assert '\n' not in str(error.value)


def test_a_callback_must_be_one_and_have_known_methods(small, tmp_path):
    with pytest.raises(UserError, match=r"Misspelled: unknown method of a callback 'on_eval'; nearest: on_evaluate"):
        type('Misspelled', (Callback,), {'on_eval': lambda self, step, metrics: None})
    with pytest.raises(UserError, match=r'callbacks: expected a list of callbacks, got None'):
        train(small(), str(tmp_path), callbacks=None)
    with pytest.raises(UserError, match=r'data: expected a jaxcnn\.Dataset, got tuple; jaxcnn\.Dataset\.from_arrays'):
        train(small(), str(tmp_path), data=(np.zeros((4, 8, 8), np.uint8), np.arange(4)))
    with pytest.raises(UserError, match=r'callbacks\[0\]: expected an instance of a subclass of jaxcnn\.Callback, got '):
        train(small(), str(tmp_path), callbacks=[print])
