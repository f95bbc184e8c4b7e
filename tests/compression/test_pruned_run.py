"""Pruning of a finished run without training."""

import argparse
import os

import jax
import numpy as np
import pytest
from scipy import sparse

from jaxcnn import config as cfg
from jaxcnn.analysis.markdown import escape
from jaxcnn.cli import prune
from jaxcnn.compression.pruned_run import sizes
from jaxcnn.errors import UserError
from jaxcnn.run import load_run
from jaxcnn.studies.compare import compare_runs
from jaxcnn.studies.report import format_seconds, table_rows, write_study_report
from jaxcnn.training import train
from jaxcnn.training.workdir import read_json

pytestmark = pytest.mark.usefixtures('no_pictures')


def test_sizes_are_those_of_compressed_rows_and_bit_maps():
    rng = np.random.default_rng(0)
    params = {'kernel': rng.normal(size=(3, 3, 5, 7)).astype(np.float32), 'bias': np.ones(7, np.float32)}
    params['kernel'][rng.random(params['kernel'].shape) < 0.9] = 0
    rows = sparse.csr_matrix(params['kernel'].reshape(-1, 7).T)
    size = sizes(params)
    assert (size.parameters, size.nonzero, size.dense) == (322, rows.nnz + 7, 4 * 322)
    assert size.compressed_rows == rows.data.nbytes + rows.indices.nbytes + rows.indptr.nbytes + 4 * 7
    assert size.bitmap == 4 * rows.nnz + len(np.packbits(params['kernel'].ravel() != 0)) + 4 * 7
    assert sizes({'kernel': np.ones((5, 5), np.float32)}).compressed_rows == 100  # not above its dense size


def arguments(**flags):
    defaults = dict(structure='weights', sparsity=[], method='magnitude', scope='global', match=r'kernel$',
                    exclude='first_and_last', checkpoint='best', split='', data_dir='')
    return argparse.Namespace(**{**defaults, **flags})


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp('dense'))
    train(cfg.make(
        duration=dict(steps=40), batch_size=64, model=dict(name='sequential', layers='flatten|dense(8)|relu|dense(6)|dense'),
        data=dict(name='digits'), optim=dict(optimizer='adam', learning_rate=0.01, ema_decay=0.9), parallel=dict(devices=1),
        eval=dict(every=dict(steps=20))), folder)
    return folder


def test_the_command_reports_and_writes_runs_that_others_start_from(workdir, tmp_path, capsys):
    assert prune.run(arguments(workdir=workdir, output=str(tmp_path / 'pruned'), sparsity=[0.5, 0.9], exclude='first')) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in table[1:4]] == ['before', '50.0', '89.8']  # 97 of the 108 weights of two layers
    dense, pruned = load_run(workdir), load_run(str(tmp_path / 'pruned' / 'sparsity0.9'))
    for old, new in ((dense.weights.params, pruned.weights.params), (dense.weights.ema[0], pruned.weights.ema[0])):
        kernels = {name: np.asarray(layer['kernel']) for name, layer in new.items()}
        np.testing.assert_array_equal(kernels['Dense_0'], old['Dense_0']['kernel'])
        assert sum((kernels[name] == 0).sum() for name in ('Dense_1', 'Dense_2')) == round(0.9 * (48 + 60))
    magnitudes = np.concatenate([abs(dense.weights.params[name]['kernel']).ravel() for name in ('Dense_1', 'Dense_2')])
    remaining = np.concatenate([pruned.weights.params[name]['kernel'].ravel() for name in ('Dense_1', 'Dense_2')]) != 0
    assert magnitudes[remaining].min() >= magnitudes[~remaining].max()
    report = read_json(str(tmp_path / 'pruned' / 'pruning.json'))
    accuracy = pruned.evaluate('test')['test_accuracy']
    assert report['after'][1]['values']['accuracy'] == accuracy
    summary = read_json(f'{pruned.workdir}/summary.json')
    assert summary['test_accuracy'] == accuracy
    assert not {'train_seconds', 'train_accuracy', 'epochs', 'device', 'versions'} & {*summary}  # they are the dense run's
    assert os.path.exists(tmp_path / 'pruned' / 'pruning.html')

    table = compare_runs([workdir, pruned.workdir])
    write_study_report(table, str(tmp_path / 'comparison'), 'compare')
    assert [row[-1] for row in table_rows(table)[1:]] == [format_seconds(table.arms[0].mean_of('train_seconds')), '']
    assert f'pruned runs: {escape(table.arms[1].name)}.' in (tmp_path / 'comparison' / 'compare.md').read_text()

    config = cfg.make(**{**cfg.to_dict(dense.config), 'duration': dict(steps=2), 'init': dict(run=pruned.workdir),
                         'pruning': dict(masks=pruned.workdir, exclude='first')})
    train(config, str(tmp_path / 'tuned'))
    tuned = load_run(str(tmp_path / 'tuned'), 'latest')
    for a, b in zip(*(jax.tree.leaves(run.weights.params) for run in (pruned, tuned)), strict=True):
        if a.ndim > 1:
            np.testing.assert_array_equal(a == 0, b == 0)


WRONG = {
    'no sparsity': ({}, r'--sparsity: must be set'),
    'sparsity': (dict(sparsity=[1.0]), r'--sparsity: expected at least 0 and below 1, got 1'),
    'workdir': (dict(sparsity=[0.5], workdir='nope'), "--workdir: workdir 'nope' does not exist$"),
    'no run': (dict(sparsity=[0.5], workdir='docs'), r'--workdir: docs: holds no run \(no config.json\)'),
    'checkpoint': (dict(sparsity=[0.5], checkpoint='7'), "--checkpoint: no checkpoint '7' in "),
    'pattern': (dict(sparsity=[0.5], match='Conv'), r"--match: 'Conv' matches no parameter; "),
    'no layer': (dict(sparsity=[0.5], match='Dense_0/k'), r"--exclude: 'Dense_0/k' matches only layers that .*exclude="),
    'output': (dict(sparsity=[0.5], output='.'), r"--output: '\.' exists and is not empty")}


@pytest.mark.parametrize('name', WRONG)
def test_a_wrong_flag_gives_one_line(workdir, tmp_path, name):
    flags, message = WRONG[name]
    with pytest.raises(UserError, match=f'^{message}'):
        prune.run(arguments(**{'workdir': workdir, 'output': str(tmp_path / 'x'), **flags}))
