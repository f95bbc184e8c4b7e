"""Invalid input and failing runs end with one line that says how to correct them, and change no file."""

import json
import re
import shutil
import time

import jax
import numpy as np
import pytest
from PIL import Image

from jaxcnn import config
from jaxcnn.errors import UserError
from jaxcnn.run import load_run
from jaxcnn.training import train

pytestmark = pytest.mark.launch


@pytest.fixture
def copy_of_run(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / 'run')
    return tmp_path / 'run'


def assert_one_line_error(result, *fragments):
    """Check that a command failed with one line that contains all fragments, besides waiting for a cache of another test."""
    code, out, err = result
    err = [line for line in err if not line.startswith('waiting for process')]
    assert code not in (0, None)
    assert code > 0, f'died of signal {-code}'
    assert len(err) == 1, '\n'.join(err)
    assert 'Traceback' not in err[0]
    for fragment in fragments:
        assert fragment in err[0]
    assert out == []


def assert_error_in_last_line(result, *fragments):
    """Check that a run failed after it had begun: the last line of its log is an error that contains all fragments."""
    code, _, err = result
    assert code > 0, f'died of signal {-code}'
    assert 'Traceback' not in '\n'.join(err)
    assert err[-1].startswith('error: ')
    for fragment in fragments:
        assert fragment in err[-1]


INVALID_CONFIGS = {
    'unknown field': (['optim.learning_rat=0.1'], ['config.optim.learning_rat', 'config.optim.learning_rate']),
    'wrong type': (['batch_size=many'], ['config.batch_size', "'many'", 'whole number']),
    'negative duration': (['duration.steps=-3'], ['config.duration.steps', 'positive', '-3']),
    'zero duration': (['duration.epochs=0'], ['config.duration.epochs', 'positive', '0']),
    'unknown model': (['model.name=lenet6'], ['model', "'lenet6'", 'lenet5']),
    'unknown data set': (['data.name=digit'], ['data set', "'digit'", 'digits']),
}

INVALID_CONFIGS_IN_PROCESS = {  # trained in this process, for speed
    'unknown unit': (['duration.hours=2'], ['config.duration', 'hours', 'epochs']),
    'unknown optimizer': (['optim.optimizer=adm'], ['optimizer', "'adm'", 'adam']),
    'unknown schedule': (['optim.schedule=cosin'], ['schedule', "'cosin'", 'cosine']),
    'unknown op': (['data.augment=pad_crop(2)|flip_rl'], ['augmentation', "'flip_rl'", 'flip_lr']),
    'two settings of an optimizer': (['optim.optimizer=sgd', 'optim.optimizer.momentun=0.5'], ['momentun', 'momentum']),
    'negative seed of the cut': (['data.split_seed=-1'], ['config.data.split_seed', '-1']),
    'seed too large': (['seed=4294967296'], ['config.seed', '4294967296']),
    'classes of the model': (['model.num_classes=5'], ['num_classes']),
    'images too small': (['model=leedl_cnn'], ['config.model', 'LeeDL', '32 x 32', '16 x 16']),
    'images too small for a layer': (
        ['model=dict(name="sequential", layers="max_pool(5)|conv(2, 5, padding=0)|flatten|dense")'],
        ['config.model.layers', '25 x 25', '16 x 16', 'layer 2, conv(2, 5, padding=0)']),
    'map of scores': (['model=leedl_cnn', 'model.widths=(4,4,8,8)', 'model.head=dense_conv', 'model.window=1'],
                      ['config.model.head', "'dense_conv'", "head='dense'"]),
    'cache folder': (['data.cache_dir=/proc/nowhere'], ['config.data.cache_dir', '/proc/nowhere']),
}


@pytest.mark.parametrize('kind', INVALID_CONFIGS)
def test_an_invalid_config_is_reported_before_any_work(tiny_config, command, tmp_path, snapshot, kind):
    assignments, fragments = INVALID_CONFIGS[kind]
    result = command('train', f'--config={tiny_config}', f'--workdir={tmp_path / "run"}',
                     *(f'--config.{a}' for a in assignments))
    assert_one_line_error(result, *fragments)
    assert not snapshot(tmp_path), 'a workdir with a config would refuse the corrected one'


def test_a_missing_device_is_reported(tiny_config, command, tmp_path, snapshot, monkeypatch):
    monkeypatch.setenv('JAX_PLATFORMS', 'rocket')
    result = command('train', f'--config={tiny_config}', f'--workdir={tmp_path / "run"}', fresh=True)
    assert_one_line_error(result, 'no device', "'rocket'")
    assert not snapshot(tmp_path)


@pytest.mark.parametrize('kind', INVALID_CONFIGS_IN_PROCESS)
def test_other_invalid_configs_are_reported_before_any_work(tiny_config, tmp_path, snapshot, kind):
    assignments, fragments = INVALID_CONFIGS_IN_PROCESS[kind]
    with pytest.raises(UserError) as error:
        train(config.load(tiny_config, assignments), str(tmp_path / 'run'))
    for fragment in fragments:
        assert fragment in str(error.value)
    assert not snapshot(tmp_path), 'a workdir with a config would refuse the corrected one'


def test_a_batch_size_that_the_devices_cannot_share_evenly_is_reported(tiny_config, command, tmp_path, snapshot):
    result = command('train', f'--config={tiny_config}', f'--workdir={tmp_path / "run"}', '--config.batch_size=60',
                     devices=8)
    assert_one_line_error(result, 'config.batch_size', '60', '8 devices', '56', '64')
    assert not snapshot(tmp_path)


def test_a_missing_data_folder_is_reported_with_the_command_that_prepares_it(tiny_config, command, tmp_path, snapshot):
    result = command('train', f'--config={tiny_config}', f'--workdir={tmp_path / "run"}', '--config.data.name=mnist',
                     f'--config.data.dir={tmp_path / "nowhere"}')
    assert_one_line_error(result, str(tmp_path / 'nowhere'), 'config.data.dir', 'tfds build mnist')
    assert not snapshot(tmp_path)


def test_a_missing_config_file_is_reported_with_the_nearest_name(command, tmp_path):
    result = command('train', '--config=configs/digits_lenet.py', f'--workdir={tmp_path / "run"}')
    assert_one_line_error(result, "'configs/digits_lenet.py'", 'configs/digits_lenet5.py')
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(('text', 'message'), [('def get_config(:\n', 'SyntaxError'), ('x = 1\n', 'get_config')])
def test_the_error_for_an_invalid_config_file_names_it(tmp_path, text, message):
    (tmp_path / 'mine.py').write_text(text)
    with pytest.raises(UserError, match=message) as error:
        config.load(tmp_path / 'mine.py')
    assert str(tmp_path / 'mine.py') in str(error.value)


def test_a_workdir_that_cannot_be_written_is_reported(tiny_config, command, tmp_path):
    (tmp_path / 'file').write_text('content')
    result = command('train', f'--config={tiny_config}', f'--workdir={tmp_path / "file" / "run"}')
    assert_one_line_error(result, str(tmp_path / 'file' / 'run'), 'cannot be written')
    assert (tmp_path / 'file').read_text() == 'content'


def test_resuming_with_another_model_is_refused_with_the_changed_fields(copy_of_run, tiny_config, command, snapshot):
    before = snapshot(copy_of_run)
    result = command('train', f'--config={tiny_config}', f'--workdir={copy_of_run}', '--config.model.hidden=32',
                     '--config.data.workers=1')
    assert_one_line_error(result, str(copy_of_run), 'config.model.hidden: 16 -> 32')
    assert 'workers' not in result[2][0]
    assert snapshot(copy_of_run) == before


def test_a_second_process_in_a_workdir_is_refused(tiny_config, command, start, tmp_path, snapshot):
    folder = tmp_path / 'run'
    first = start('train', f'--config={tiny_config}', f'--workdir={folder}', '--config.duration.steps=1000000')
    try:
        while not (folder / 'config.json').exists():
            assert first.poll() is None, first.communicate()
            time.sleep(0.02)
        before = (folder / 'config.json').read_bytes()
        result = command('train', f'--config={tiny_config}', f'--workdir={folder}')
        assert first.poll() is None
        assert_one_line_error(result, str(folder), 'in use', str(first.pid))
        assert (folder / 'config.json').read_bytes() == before
    finally:
        first.kill()
        first.communicate()


# runs that fail after they have begun


@pytest.mark.parametrize('high_rate_step', [2, 3], ids=['in a training step', 'in an evaluation'])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
        tiny_config, command, tmp_path, high_rate_step):
    """From step `high_rate_step` on, the learning rate is 1e25 times as high; checkpoints are due at steps 2, 4, ..."""
    folder = tmp_path / 'run'
    result = command('train', f'--config={tiny_config}', f'--workdir={folder}', '--config.duration.steps=40',
                     f"--config.optim.schedule={{'name': 'step', 'at': [{{'steps': {high_rate_step}}}], 'factor': 1e25}}")
    assert_error_in_last_line(result, 'config.optim.learning_rate', 'the last good checkpoint is step 2')
    assert high_rate_step < int(re.search(r'step (\d+)', result[2][-1]).group(1)) <= high_rate_step + 3
    trained = load_run(str(folder))
    assert trained.find_step('latest') == 2, 'a resumed run would continue from the broken state'
    state = trained.load_weights(2)
    assert all(np.abs(leaf).max() < 100 for leaf in jax.tree.leaves(state.params))


def test_a_full_disk_ends_the_run_with_one_line_and_keeps_the_earlier_checkpoint(
        copy_of_run, tiny_config, command, snapshot):
    shutil.rmtree(copy_of_run / 'checkpoints' / '4')
    before = snapshot(copy_of_run / 'checkpoints' / '2')
    limit = max(len(content) for content in before.values()) // 2  # bytes that a file may have
    result = command('train', f'--config={tiny_config}', f'--workdir={copy_of_run}', file_limit=limit)
    assert_error_in_last_line(result, 'checkpoint', str(copy_of_run))
    assert snapshot(copy_of_run / 'checkpoints' / '2') == before
    assert load_run(str(copy_of_run)).checkpoints.steps() == [2]


# evaluate and predict


def test_an_unknown_split_is_reported_with_the_available_ones(tiny_run, command, snapshot):
    before = snapshot(tiny_run)
    assert_one_line_error(command('evaluate', f'--workdir={tiny_run}', '--split=tset'), "'tset'", 'train, val, test')
    assert snapshot(tiny_run) == before


def test_an_unknown_checkpoint_is_reported_with_the_available_ones(tiny_run):
    trained = load_run(str(tiny_run))
    for name in ('newest', '3', '-4', '4.0', '²', ''):
        with pytest.raises(UserError, match='best, latest, 2, 4') as error:
            trained.find_step(name)
        assert repr(name) in str(error.value)


def test_evaluating_a_folder_without_a_run_is_reported(command, tmp_path):
    with pytest.raises(UserError, match='nowhere'):
        load_run(str(tmp_path / 'nowhere'))
    assert_one_line_error(command('evaluate', f'--workdir={tmp_path}'), str(tmp_path), 'no run')
    assert list(tmp_path.iterdir()) == []


def test_evaluating_on_missing_or_changed_data_is_reported(copy_of_run, command):
    info = json.loads((copy_of_run / 'data.json').read_text())
    (copy_of_run / 'data.json').write_text(json.dumps({**info, 'mean': [0.5]}))
    with pytest.raises(UserError, match=r'config\.data\.dir: the data is not what .*run. was trained on'):
        load_run(str(copy_of_run)).evaluator('test')
    settings = json.loads((copy_of_run / 'config.json').read_text())
    settings['data'].update(name='eurosat', dir='/no/such')
    (copy_of_run / 'config.json').write_text(json.dumps(settings))
    result = command('evaluate', f'--workdir={copy_of_run}')
    assert_one_line_error(result, "must be prepared in '/no/such' (config.data.dir); --data_dir names another folder")
    result = command('evaluate', f'--workdir={copy_of_run}', '--data_dir=/nor/this')
    assert_one_line_error(result, 'error: --data_dir: ', "in '/nor/this'")


def test_a_file_that_is_not_an_image_is_reported(tiny_run, command, tmp_path, snapshot):
    (tmp_path / 'notes.txt').write_text('a shopping list')
    Image.linear_gradient('L').save(tmp_path / 'good.png')
    before = snapshot(tiny_run)
    result = command('predict', f'--workdir={tiny_run}', f'--csv={tmp_path / "all.csv"}', tmp_path / 'notes.txt')
    assert_one_line_error(result, str(tmp_path / 'notes.txt'), 'not a picture')
    paths = [tmp_path / name for name in ('nowhere.png', 'notes.txt', 'good.png')]
    code, out, err = command('predict', f'--workdir={tiny_run}', *paths)
    assert code == 2  # although the last one is predicted
    for line, path, reason in zip(err, paths[:2], ('no such file', 'not a picture'), strict=True):
        assert str(path) in line
        assert reason in line
    assert [line.partition(': ')[0] for line in out] == [str(tmp_path / 'good.png')]
    assert snapshot(tiny_run) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ['good.png', 'notes.txt']


def test_a_submission_has_one_row_for_each_image(tiny_run, command, tmp_path):
    for name in ('a/7.png', 'b/7.jpg', 'b/8.png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.linear_gradient('L').save(tmp_path / name)
    (tmp_path / 'b' / '9.png').write_text('no picture')
    table = tmp_path / 'table.csv'
    arguments = ['predict', f'--workdir={tiny_run}', f'--submission={table}']
    result = command(*arguments, tmp_path / 'a/7.png', tmp_path / 'b/8.png', tmp_path / 'b/7.jpg')
    assert_one_line_error(result, f"{tmp_path / 'a/7.png'} and {tmp_path / 'b/7.jpg'} have the same Id, '7'")
    assert not table.exists()
    code, out, err = command(*arguments, tmp_path / 'b/9.png', tmp_path / 'a/7.png', tmp_path / 'b/8.png')
    assert code == 2
    assert len(out) == 2
    assert f'1 of 3 images cannot be read and have an empty Category: {tmp_path / "b/9.png"}' in err[-1]
    rows = [line.split(',') for line in table.read_text().splitlines()]
    assert [name for name, _ in rows] == ['Id', '9', '7', '8']
    assert [bool(category) for _, category in rows] == [True, False, True, True]


def test_a_workdir_without_a_checkpoint_is_reported(copy_of_run, command, tmp_path):
    Image.new('L', (30, 30), 255).save(tmp_path / 'good.png')
    for path in (copy_of_run / 'checkpoints').iterdir():
        shutil.rmtree(path)
    with pytest.raises(UserError, match='no checkpoint yet'):
        load_run(str(copy_of_run)).find_step('best')
    (copy_of_run / 'checkpoints').rmdir()
    result = command('predict', f'--workdir={copy_of_run}', tmp_path / 'good.png')
    assert_one_line_error(result, str(copy_of_run), 'checkpoint')


def test_a_damaged_checkpoint_is_reported(copy_of_run):
    for path in (copy_of_run / 'checkpoints' / '4' / 'state').rglob('*'):
        if path.is_file() and path.stat().st_size > 2000:
            path.write_bytes(path.read_bytes()[:-500])
    trained = load_run(str(copy_of_run))
    with pytest.raises(UserError, match=r'checkpoint 4 .* is damaged') as error:
        trained.load_weights(4)
    assert str(copy_of_run) in str(error.value)
    assert trained.load_weights(2).params
