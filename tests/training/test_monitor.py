"""Histograms, images and curves during training show the run and do not change it."""

import gc
import io
import os
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from event_files import read_events
from PIL import Image

from jaxcnn import config
from jaxcnn.analysis.histograms import histogram
from jaxcnn.run import load_run
from jaxcnn.training import Callback, train
from jaxcnn.training.setup import Setup
from jaxcnn.training.workdir import read_metrics

pytestmark = pytest.mark.usefixtures('no_pictures')
MONITORED = dict(log_histograms=dict(steps=4), log_images=dict(steps=8), figures=dict(steps=8))
MODEL = dict(name='sequential', layers='conv(4)|relu|max_pool(4)|flatten|dropout(0.5)|dense')


class FailAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_evaluate(self, step, metrics):
        if step == self.step:
            raise ValueError('stop')


def summaries(folder, kind):
    """Return the values of a kind in all events of the only event file, by step and tag, and remove the file."""
    path, = folder.glob('events.out.tfevents.*')
    values = {(event.step, value.tag): getattr(value, kind) for event in read_events(path) for value in event.summary.value
              if value.HasField(kind)}
    path.unlink()
    return values


def test_a_histogram_counts_finite_values():
    values = np.float32([0, 0.1, 0.1, 1, 2, np.nan, np.inf])
    x = jax.jit(histogram, static_argnums=1)(values, 4)
    assert x.counts.tolist() == [3, 0, 1, 1]
    assert (float(x.low), float(x.high), int(x.size)) == (0, 2, 5)
    assert float(x.total) == pytest.approx(3.2)
    assert float(x.total_squares) == pytest.approx(5.02)
    assert histogram(jnp.full((2, 3), 7), 4).counts.tolist() == [6, 0, 0, 0]
    assert int(histogram(jnp.full(3, jnp.nan)).size) == 0


@pytest.mark.parametrize('backend', ['sharded', pytest.param('pmap', marks=pytest.mark.slow)])
def test_a_monitored_run_gives_the_same_bits_also_if_it_is_resumed(small, tmp_path, backend):
    fields = dict(model=MODEL, parallel=dict(devices=2, backend=backend, steps_per_dispatch=3))
    monitored_fields = {**fields, **MONITORED, 'log_images': dict(steps=20)}  # drawing takes long
    plain, monitored = tmp_path / 'plain', tmp_path / 'monitored'
    train(small(**fields), str(plain))
    with pytest.raises(Exception, match='stop'):
        train(small(**monitored_fields), str(monitored), callbacks=[FailAt(20)])
    first = summaries(monitored, 'histo')
    train(small(**monitored_fields), str(monitored))  # from step 10
    resumed = summaries(monitored, 'histo')
    assert sorted({step for step, _ in first}) == [6, 9, 12, 18, 20]  # the ends of dispatches
    assert sorted({step for step, _ in resumed}) == [12, 18, 20]
    for key, value in resumed.items():
        assert value == first[key]
    runs = [load_run(str(folder), 20) for folder in (plain, monitored)]
    jax.tree.map(np.testing.assert_array_equal, *(run.variables for run in runs))
    rows = [[{name: value for name, value in row.items() if name != 'images_per_second'}
             for row in read_metrics(str(folder))] for folder in (plain, monitored)]
    assert rows[0] == rows[1]


def test_histograms_are_those_of_the_next_step_and_images_and_curves_are_drawn(small, tmp_path, monkeypatch):
    monkeypatch.undo()
    train(small(model=MODEL, duration=dict(steps=9), optim=dict(optimizer='sgd', schedule='constant'),
                checkpoint=dict(every=dict(steps=1), keep=20), **MONITORED), str(tmp_path))
    path, = tmp_path.glob('events.out.tfevents.*')
    images = {(event.step, value.tag): value.image for event in read_events(path) for value in event.summary.value
              if value.HasField('image')}
    histograms = summaries(tmp_path, 'histo')
    before, after = (load_run(str(tmp_path), step).variables['params'] for step in (8, 9))
    leaves = jax.tree_util.tree_leaves_with_path(before)
    for (path, leaf), later in zip(leaves, jax.tree.leaves(after), strict=True):
        name = '/'.join(key.key for key in path)
        params, gradients = histograms[8, f'params/{name}'], histograms[8, f'gradients/{name}']
        assert params.num == gradients.num == leaf.size == sum(params.bucket)
        assert params.sum == pytest.approx(leaf.sum(), abs=1e-4)
        assert (params.min, params.max) == (leaf.min(), leaf.max())
        assert gradients.sum == pytest.approx((leaf - later).sum() / 0.05, rel=1e-3, abs=1e-3)
    activations = {tag.split('/')[1]: value.num for (step, tag), value in histograms.items() if 'activations' in tag}
    assert activations == {name: 32 * x[0].size for name, x in
                           load_run(str(tmp_path)).features(np.zeros((1, 16, 16, 1), np.uint8)).items()}
    assert sorted(images) == [(8, 'train/batch'), (9, 'train/batch')]
    with Image.open(io.BytesIO(images[8, 'train/batch'].encoded_image_string)) as sheet:
        assert sheet.size == (images[8, 'train/batch'].width, images[8, 'train/batch'].height)
    assert os.path.getsize(tmp_path / 'figures' / 'batch.png') > 1000


def test_a_batch_that_was_drawn_keeps_no_run_in_memory(small, tmp_path):
    os.makedirs(tmp_path / 'figures')
    setup = Setup(config.parse(small()), str(tmp_path))
    setup.augmented_batch(0, 2, setup.initial_state(None))
    reference = weakref.ref(setup)
    setup.feed.close()
    del setup
    gc.collect()
    assert reference() is None
