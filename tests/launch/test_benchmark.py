"""Tests of the output and of the errors of `jaxcnn benchmark`; they measure no speed."""

import importlib.util
import json
import os
import runpy
import subprocess
import sys

import jax
import numpy as np
import pytest
from tfds_files import write_tfds

from jaxcnn.benchmarks.data import peer_op
from jaxcnn.benchmarks.measure import memory_traffic
from jaxcnn.ops import conv
from jaxcnn.ops.geometry import NHWC

pytestmark = pytest.mark.launch


def test_a_benchmark_prints_a_table_and_writes_json(command, tmp_path):
    json_path, page = tmp_path / 'figures.json', tmp_path / 'page.md'
    page.write_text('# Before\n\nStays.\n')
    for rounds in (1, 2):  # the second table replaces the first
        code, out, err = command('benchmark', 'checkpoint', '--models=lenet5', '--peers=', f'--rounds={rounds}',
                                 f'--json={json_path}', f'--write={page}', fresh=rounds == 1)
        assert code == 0, '\n'.join(err)
    content = page.read_text()
    assert content.startswith('# Before\n\nStays.\n\n<!-- ')
    assert content.endswith('<!-- end -->\n')
    assert content.count('| save |') == content.count('--rounds=2') == 1
    figures = json.loads(json_path.read_text())['checkpoint']
    assert figures['bytes'] > 1e6  # parameters and their momentum
    assert all(len(values) == 2 and min(values) > 0 for values in figures['values'].values())
    assert {'hand over', 'save', 'read'} == set(figures['values'])
    assert any('| save |' in line for line in out)


@pytest.mark.parametrize('benchmarks', [
    {'eval': 64}, pytest.param({'train_step': 128, 'eval': 64}, marks=pytest.mark.slow)], ids=' '.join)
def test_rates_are_compared_with_the_limits_of_the_machine(command, tmp_path, benchmarks):
    """`benchmarks` gives the batch size of each benchmark."""
    path = tmp_path / 'figures.json'
    code, out, err = command('benchmark', *benchmarks, '--models=shallow_cnn', '--peers=', '--rounds=1',
                             '--seconds=0.1', f'--json={path}')
    assert code == 0, '\n'.join(err)
    figures = json.loads(path.read_text())
    assert set(figures) == {'machine', *benchmarks}
    for name, images in benchmarks.items():
        (title, values), = figures[name].items()
        assert title == f'shallow_cnn, 32 px, batch {images}'
        assert min(values['images/s']['jaxcnn']) > 0
        assert values['of matmul'][0] > 0
        assert values['of bandwidth'][0] > 0
        assert any(line.startswith(f'| {title} |') for line in out)


def test_operators_of_object_detection_are_measured(command, tmp_path):
    path = tmp_path / 'figures.json'
    code, _, err = command('benchmark', 'operators', '--models=nms', '--peers=', '--rounds=1', '--seconds=0.1',
                           f'--json={path}')
    assert code == 0, '\n'.join(err)
    (rates,) = json.loads(path.read_text())['operators'].values()
    assert min(rates['calls/s']['jaxcnn']) > 0


@pytest.mark.parametrize(('arguments', 'fragments'), [
    (['train_step', '--models=resnet19'], ["'resnet19'", 'resnet18']),
    (['operators', '--models=roi_pool'], ["'roi_pool'", 'roi_max_pool']),
    (['detectors', '--models=rcnnn'], ["'rcnnn'", 'rcnn']),
    (['operators', '--torch_python=false'], ['--torch_python', "'false'", 'torchvision==0.29.1']),
    (['faster_rcnn', '--models=tarin'], ["'tarin'", 'train']),
    (['faster_rcnn', '--batch=0'], ['--batch', 'at least 1', '0']),
    (['eval', '--peers=torhc'], ["'torhc'", 'torch']),
    (['data', '--config=configs/food_shallow.py'], ["augmentation of the PyTorch peer 'color_jitter'", 'flip_lr']),
    (['train', '--config=configs/digits_lenet5.py'], ['config.data.name', 'lenet5 on digits', 'mnist']),
    (['train', '--config=configs/mnist_lenet.py', '--torch_python=nowhere/python'], ['--torch_python', "'nowhere/python'"]),
    (['integrated_gradients', '--models=resnet81'], ["'resnet81'", 'resnet18']),
    (['integrated_gradients', '--torch_python=false'], ['--torch_python', "'false'", 'captum==0.9.0']),
    (['eval', '--torch_python=false'], ['--torch_python', "'false'", 'torch==2.13.0']),
    (['startup', '--config=configs/digits_lenet5.py', '--config.optim.learning_rat=1'], ['config.optim.learning_rate']),
    (['train_step', '--rounds=0'], ['--rounds', 'at least 1', '0']),
    (['eval', '--write=nowhere/page.md'], ['--write', 'nowhere']),
    (['loop', '--config=configs/digits_lenet5.py', '--seconds=0'], ['--seconds', '0.0']),
])
def test_an_invalid_argument_is_reported_in_one_line(command, arguments, fragments):
    code, out, err = command('benchmark', *arguments)
    assert (code, out, len(err)) == (2, [], 1)
    assert all(fragment in err[0] for fragment in fragments)


@pytest.mark.torch
@pytest.mark.parametrize('text', ['flip_lr', 'flip_lr(p=1.0)', 'pad_crop(2)', 'pad_crop(pad=3, mode="reflect")',
                                  'random_resized_crop(16, ratio=(1, 1))', 'auto_augment("cifar10")'])
def test_the_pytorch_peer_supports_augmentations_as_configs_write_them(text):
    pytest.importorskip('torch')
    from PIL import Image
    name, fields = peer_op(text, 16)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    peer = runpy.run_path('jaxcnn/benchmarks/torch_peer/pictures.py')
    images = peer['Images']({'array': '', 'files': ['a'], 'ops': []}, 16)
    actual = np.asarray(getattr(images, name)(Image.fromarray(pixels), **fields))
    assert actual.shape == (16, 16, 3)
    if name == 'pad_crop':
        pad, mode = fields['pad'], fields.get('mode', 'constant')
        padded = np.pad(pixels, [(pad, pad), (pad, pad), (0, 0)], mode)
        assert any((actual == padded[i:i + 16, j:j + 16]).all() for i in range(2 * pad + 1) for j in range(2 * pad + 1))
    if text == 'flip_lr(p=1.0)':
        np.testing.assert_array_equal(actual, pixels[:, ::-1])


@pytest.mark.torch
def test_the_pytorch_peer_imports_its_modules():
    pytest.importorskip('torch')
    process = subprocess.run([sys.executable, 'jaxcnn/benchmarks/torch_peer', 'train_step', '--help'], capture_output=True)
    assert (process.returncode, process.stderr) == (0, b'')


@pytest.mark.slow
@pytest.mark.torch
def test_a_training_run_is_compared_with_pytorch(command, tmp_path):
    pytest.importorskip('torch')
    rng = np.random.default_rng(0)
    write_tfds(tmp_path, 'mnist', {split: (rng.integers(0, 256, (count, 28, 28, 1), np.uint8), np.arange(count) % 10)
                                   for split, count in (('train', 40), ('test', 20))})
    path = tmp_path / 'figures.json'
    code, out, err = command('benchmark', 'train', '--config=configs/mnist_lenet.py', f'--config.data.dir={tmp_path}',
                             '--config.model=lenet5', '--config.duration.epochs=1', '--config.batch_size=8', '--rounds=1',
                             f'--json={path}')
    assert code == 0, '\n'.join(err)
    figures = {name: values[0] for name, values in json.loads(path.read_text())['train']['values'].items()}
    cores = len(os.sched_getaffinity(0))
    for what in ('whole command', 'training steps alone'):
        best = min(figures[f'{what}, torch, {workers} workers'] for workers in (0, cores))
        assert figures[f'{what}, best torch / train.py'] == pytest.approx(best / figures[f'{what}, train.py'])
    for side in ('train.py', 'torch, 0 workers', f'torch, {cores} workers'):
        correct = 20 * figures[f'test accuracy, {side}']
        assert correct == pytest.approx(round(correct))
        assert 0 < figures[f'training steps alone, {side}'] < figures[f'whole command, {side}']
        assert any(line.startswith(f'| whole command, {side} |') for line in out)


@pytest.mark.slow
@pytest.mark.torch
def test_airbench_runs_unchanged_without_a_gpu(tmp_path):
    if not importlib.util.find_spec('airbench'):
        pytest.skip('airbench is not installed')
    for split, count in (('train', 1024), ('test', 10)):
        np.save(tmp_path / f'{split}_images.npy', np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8))
        np.save(tmp_path / f'{split}_labels.npy', np.arange(count) % 10)
    process = subprocess.run([sys.executable, 'jaxcnn/benchmarks/torch_peer', 'train', 'airbench94', '32', '1024',
                              '--epochs=1', f'--folder={tmp_path}'], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout.splitlines()[-1])
    assert result['train_seconds'] > 0
    assert 10 * result['test_accuracy'] == pytest.approx(round(10 * result['test_accuracy']))


PROGRAM = '''HloModule jit_step, is_scheduled=true

%fused (p.1: bf16[8,4]) -> f32[8,4] {
  %p.1 = bf16[8,4]{1,0} parameter(0)
  ROOT %convert.9 = f32[8,4]{1,0} convert(%p.1)
}

%called (p.2: f32[8,4]) -> f32[8,4] {
  %p.2 = f32[8,4]{1,0} parameter(0)
  ROOT %add.3 = f32[8,4]{1,0} add(%p.2, %p.2), metadata={op_name="jit(step)/add" source_line=3}
}

ENTRY %main (x: bf16[8,4], y: pred[]) -> (f32[16,4], pred[]) {
  %x = bf16[8,4]{1,0} parameter(0), sharding={replicated}
  %y = pred[] parameter(1)
  %c = f32[] constant(2)
  %conv = (bf16[8,4]{1,0}, /*index=1*/ u8[4096]{0}) custom-call(%x, %c), custom_call_target="__cudnn$convForward"
  %gte = bf16[8,4]{1,0} get-tuple-element(%conv), index=0
  %fusion = f32[8,4]{1,0} fusion(%gte), kind=kLoop, calls=%fused
  %call = f32[8,4]{1,0} call(%fusion), to_apply=%called
  %sum = f32[8,4]{1,0} all-reduce-start(%call), to_apply=%called
  %summed = f32[8,4]{1,0} all-reduce-done(%sum)
  %all = (f32[8,4]{1,0}, f32[16,4]{1,0}) all-gather-start(%summed), dimensions={0}
  %gathered = f32[16,4]{1,0} all-gather-done(%all)
  ROOT %out = (f32[16,4]{1,0}, pred[]) tuple(%gathered, %y)
}
'''


def test_memory_traffic_is_the_bytes_that_operations_read_and_write():
    custom_call, fusion, add, all_reduce, all_gather = 64 + 4 + 64, 64 + 128, 3 * 128, 128 + 128, 128 + 256
    assert memory_traffic(PROGRAM) == custom_call + fusion + add + all_reduce + all_gather


def test_memory_traffic_includes_native_convolutions_and_agrees_with_xla_otherwise():
    x, kernel = jax.numpy.ones((16, 8, 8, 32)), jax.numpy.ones((3, 3, 32, 32))
    for implementation in ('xla', 'auto'):
        program = jax.jit(lambda x, k, implementation=implementation: jax.numpy.tanh(conv.conv_general_dilated(
            x, k, (1, 1), 'SAME', dimension_numbers=NHWC, implementation=implementation))).lower(x, kernel).compile()
        assert memory_traffic(program.as_text()) == pytest.approx(4 * x.nbytes + kernel.nbytes, rel=0.1)
        if implementation == 'xla':
            assert memory_traffic(program.as_text()) == pytest.approx(program.cost_analysis()['bytes accessed'], rel=0.1)


@pytest.mark.slow
@pytest.mark.torch
def test_integrated_gradients_are_compared_with_captum(command, tmp_path):
    pytest.importorskip('captum')
    path = tmp_path / 'figures.json'
    code, out, err = command('benchmark', 'integrated_gradients', '--models=shallow_cnn', '--steps=2', '--peers=torch',
                             '--rounds=1', '--seconds=0.1', f'--json={path}')
    assert code == 0, '\n'.join(err)
    (title, values), = json.loads(path.read_text())['integrated_gradients'].items()
    assert title == 'shallow_cnn, 32 px, batch 64'
    assert {side: len(rates) for side, rates in values['images/s'].items() if min(rates) > 0} == {'jaxcnn': 1, 'captum': 1}
    assert any(line.startswith(f'| {title} |') for line in out)
