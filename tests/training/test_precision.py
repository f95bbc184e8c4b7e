"""Complete small runs in float16, whose loss is scaled."""

import json
import os
import signal

import golden
import jax
import numpy as np
import pytest

from jaxcnn import config as cfg
from jaxcnn.errors import Diverged
from jaxcnn.training import train
from jaxcnn.training.callbacks import Callback
from jaxcnn.training.loop import TrainingRun
from jaxcnn.training.signals import Interrupted, StopRequest
from jaxcnn.training.workdir import read_metrics

pytestmark = pytest.mark.usefixtures('no_pictures')
PLAIN = {'augment': ''}


@pytest.fixture
def half(small):
    """A config that trains in float16: `half(**fields)`; `loss_scale` holds the arguments of the dynamic scale."""
    def make(loss_scale, **fields):
        model = dict(name='sequential', layers='conv(4)|norm|relu|global_avg_pool|dense', dtype='float16')
        optim = dict(loss_scale=dict(name='dynamic', **loss_scale), **fields.pop('optim', {}))
        return small(**{'model': model, 'data': PLAIN, 'optim': optim, **fields})
    return make


class Stop(Callback):
    def on_evaluate(self, step, metrics):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_run_that_skips_steps_logs_them_and_resumes_with_the_same_bits(half, tmp_path):
    config = half(dict(initial=2.0 ** 24, every=2, factor=64.0), duration=dict(steps=12), log_every=dict(steps=1),
                  eval={'every': dict(steps=6)}, optim={'ema_decay': 0.9})
    train(config, str(tmp_path / 'a'))
    rows = [row for row in read_metrics(str(tmp_path / 'a')) if 'loss_scale' in row]
    skipped = np.diff([0, *(row['skipped_steps'] for row in rows)]) == 1
    assert 0 < skipped[:6].sum() < 6
    assert skipped[6:].any()
    scales = [row['loss_scale'] for row in rows]
    for before, after, is_skipped in zip(scales, scales[1:], skipped, strict=False):
        assert after == before / 64 if is_skipped else after in (before, 64 * before)
    assert [('train_loss' in row) for row in rows] == list(~skipped)
    assert all(np.isfinite([*row.values()]).all() for row in rows)

    with pytest.raises(Interrupted):
        train(config, str(tmp_path / 'b'), callbacks=[Stop()])
    train(config, str(tmp_path / 'b'))
    states = [{name: array.tobytes() for name, array in golden.read_state(str(tmp_path / name), 12).items()}
              for name in 'ab']
    assert states[0] == states[1]
    assert "['loss_scale']['scale']" in states[0]
    summaries = [json.loads((tmp_path / name / 'summary.json').read_text()) for name in 'ab']
    assert summaries[0]['train_loss'] == summaries[1]['train_loss']


def test_a_run_whose_smallest_scale_overflows_has_diverged(half, tmp_path):
    config = half(dict(initial=2.0 ** 24, smallest=2.0 ** 22), duration=dict(steps=12))
    with pytest.raises(Diverged, match=r'the gradients at step 2 are not finite, with a loss scale of 4\.1943e\+06: '
                       r'training stopped.*config\.optim\.loss_scale'):
        train(config, str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize('backend', ['sharded', 'pmap'])
@pytest.mark.parametrize('gradient_dtype', ['', 'bfloat16'])
def test_four_devices_skip_the_same_steps_as_one(half, tmp_path, backend, gradient_dtype):
    states = []
    for devices in (1, 4):
        folder = tmp_path / str(devices)
        folder.joinpath('figures').mkdir(parents=True)
        config = half(dict(initial=2.0 ** 24, every=2, factor=64.0), duration=dict(steps=5), optim=dict(
            gradient_dtype=gradient_dtype, clip_norm=1.0, accumulate=2), parallel=dict(devices=devices, backend=backend))
        with TrainingRun(cfg.parse(config), str(folder), StopRequest()) as run:
            while run.step < 5:
                run.advance(cfg.Duration('steps', 1000))
            states.append(run.setup.backend.fetch(run.state))
    one, four = states
    assert {name: float(x) for name, x in one.loss_scale.items()} == {name: float(x) for name, x in four.loss_scale.items()}
    assert one.loss_scale['skipped'] > 0
    flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.params)]) for state in states]
    assert np.linalg.norm(flat[1] - flat[0]) < 2e-3 * np.linalg.norm(flat[0])
