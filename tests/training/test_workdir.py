"""The workdir of a run: its lock, its config, its metrics and its other small files."""

import json
import os
import subprocess
import sys

import pytest
from event_files import read_events

from jaxcnn import config as cfg
from jaxcnn.errors import UserError
from jaxcnn.training import workdir
from jaxcnn.training.workdir import MetricsLog, claim, read_config, read_json, read_metrics, write_json

LOCKING_PROGRAM = '''
import sys
from jaxcnn import config
from jaxcnn.training.workdir import claim
with claim(sys.argv[1], config.parse({})):
    print('locked', flush=True)
    sys.stdin.read()
'''


def parse(**fields):
    return cfg.parse(fields)


def read_files(folder):
    """Return the content of each file of a folder but the lock."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file() and p.name != '.lock'}


def claim_once(folder, **fields):
    with claim(str(folder), parse(**fields)):
        write_json(str(folder / 'config.json'), cfg.to_dict(parse(**fields)))  # as a run does after its checks
        (folder / 'checkpoints' / '1').mkdir(parents=True, exist_ok=True)


# claiming


def test_a_claimed_workdir_can_be_claimed_again_with_its_config(tmp_path):
    settings = parse(seed=3, optim={'warmup': {'epochs': 0.5}, 'switch': [{'at': {'steps': 7}}]},
                     batch_schedule=[({'steps': 5}, 64)], model={'name': 'shallow_cnn', 'widths': (1, 2, 3, 4)})
    with claim(str(tmp_path / 'a' / 'run'), settings):
        write_json(str(tmp_path / 'a' / 'run' / 'config.json'), cfg.to_dict(settings))
        assert cfg.differences(read_config(str(tmp_path / 'a' / 'run')), settings) == []
        assert json.loads((tmp_path / 'a' / 'run' / 'config.json').read_text())['seed'] == 3
    with claim(str(tmp_path / 'a' / 'run'), settings):
        pass


def test_a_run_of_an_earlier_version_is_refused_with_the_new_name_of_the_field(tmp_path):
    fields = cfg.to_dict(parse())
    fields['optim']['label_smoothing'] = 0.1
    write_json(str(tmp_path / 'config.json'), fields)
    line = (r'config\.json: config\.optim\.label_smoothing is now config\.loss\.label_smoothing; '
            r'if another version of jaxcnn wrote this run, use that version, or a new workdir')
    with pytest.raises(UserError, match=line):
        read_config(str(tmp_path))


def test_a_workdir_that_another_process_has_claimed_is_refused(tmp_path):
    with subprocess.Popen([sys.executable, '-c', LOCKING_PROGRAM, str(tmp_path)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == 'locked\n'
        before = read_files(tmp_path)
        with pytest.raises(UserError, match=rf'in use by another run \(process {holder.pid}\)') as error:
            claim_once(tmp_path)
        assert repr(str(tmp_path)) in str(error.value)
        assert read_files(tmp_path) == before
        holder.stdin.close()
        assert holder.wait() == 0
    claim_once(tmp_path)


def test_a_killed_process_releases_the_workdir(tmp_path):
    with subprocess.Popen([sys.executable, '-c', LOCKING_PROGRAM, str(tmp_path)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == 'locked\n'
        holder.kill()
        holder.wait()
    claim_once(tmp_path)


def test_an_error_in_the_block_releases_the_workdir(tmp_path):
    with pytest.raises(RuntimeError), claim(str(tmp_path), parse()):
        raise RuntimeError
    claim_once(tmp_path)


def test_another_config_is_refused_with_the_changed_fields(tmp_path):
    claim_once(tmp_path, seed=1, model='lenet5')
    before = read_files(tmp_path)
    with pytest.raises(UserError) as error:
        claim_once(tmp_path, seed=2, model={'name': 'lenet5', 'dropout': 0.25}, duration={'epochs': 3},
                   optim={'learning_rate': 0.5}, log_every={'steps': 10})
    message = str(error.value)
    for change in ("config.seed: 1 -> 2", "config.duration: {'epochs': 10} -> {'epochs': 3}",
                   'config.model.dropout: its default -> 0.25',
                   'config.optim.learning_rate: 0.1 -> 0.5'):
        assert change in message
    assert 'batch_size' not in message
    assert '\n' not in message
    assert read_files(tmp_path) == before


HARMLESS = {  # another value of each field that cannot change the result
    'name': {'name': 'renamed'}, 'dir': {'data': {'dir': '/elsewhere'}}, 'cache_dir': {'data': {'cache_dir': '/x'}},
    'placement': {'data': {'placement': 'host'}}, 'workers': {'data': {'workers': 2}},
    'batch_size': {'eval': {'batch_size': 100}}, 'every': {'checkpoint': {'every': {'steps': 3}}},
    'keep': {'checkpoint': {'keep': 5}}, 'log_histograms': {'log_histograms': {'epochs': 1}},
    'log_images': {'log_images': {'epochs': 1}}, 'figures': {'figures': {'epochs': 1}}}


@pytest.mark.parametrize('field', HARMLESS)
def test_a_field_that_does_not_change_the_result_may_differ(tmp_path, field):
    claim_once(tmp_path)
    claim_once(tmp_path, **HARMLESS[field])
    assert read_config(str(tmp_path)) == parse(**HARMLESS[field])


@pytest.mark.parametrize('fields', [
    {'seed': 1}, {'batch_size': 64}, {'duration': {'steps': 5}}, {'data': {'augment': 'flip_lr'}},
    {'data': {'val_fraction': 0.2}}, {'data': {'split_seed': 1}}, {'optim': {'ema_decay': 0.9}},
    {'parallel': {'backend': 'pmap'}}, {'eval': {'every': {'epochs': 2}}}, {'checkpoint': {'metric': 'val_loss'}},
    {'freeze_bn': {'epochs': 1}}])
def test_a_field_that_changes_the_result_may_not_differ(tmp_path, fields):
    claim_once(tmp_path)
    with pytest.raises(UserError, match='Changed: config'):
        claim_once(tmp_path, **fields)


def test_a_run_without_a_checkpoint_is_removed(tmp_path):
    claim_once(tmp_path, seed=1)
    (tmp_path / 'data.json').write_text('of other data')
    (tmp_path / 'checkpoints' / '1').rmdir()
    (tmp_path / 'checkpoints' / '2.orbax-checkpoint-tmp').mkdir()  # a save that was killed
    with claim(str(tmp_path), parse(seed=2)):
        assert not (tmp_path / 'config.json').exists()
        assert not (tmp_path / 'data.json').exists()


@pytest.mark.parametrize('result', ['checkpoints/3', 'checkpoints.damaged/3', 'checkpoints.replaced/3', 'summary.json'])
def test_a_run_with_a_result_is_not_removed(tmp_path, result):
    claim_once(tmp_path, seed=1)
    (tmp_path / 'checkpoints' / '1').rmdir()
    (tmp_path / result).mkdir(parents=True)
    before = read_files(tmp_path)
    with pytest.raises(UserError, match='Changed: config'):
        claim_once(tmp_path, seed=2)
    assert read_files(tmp_path) == before


@pytest.mark.parametrize('folder', ['file', 'file/run', '/proc/nowhere/run'])
def test_a_workdir_that_cannot_be_written_is_named_in_the_error(tmp_path, folder):
    (tmp_path / 'file').write_text('content')
    with pytest.raises(UserError, match=r'workdir .* cannot be written') as error:
        claim_once(tmp_path / folder)
    assert str(tmp_path / folder) in str(error.value)
    assert (tmp_path / 'file').read_text() == 'content'


@pytest.mark.parametrize('damaged', ['', '{"seed": 1', '[]', '{"seeed": 1}', '\x00\x00'])
def test_a_damaged_config_is_an_error_and_is_not_changed(tmp_path, damaged):
    claim_once(tmp_path)
    (tmp_path / 'config.json').write_text(damaged)
    with pytest.raises(UserError):
        claim_once(tmp_path)
    assert (tmp_path / 'config.json').read_text() == damaged


# JSON files


def test_json_is_written_and_read(tmp_path):
    path = str(tmp_path / 'a.json')
    for value in ({'a': [1, 2.5, None, 'ä']}, {'b': 1}):
        write_json(path, value)
        assert read_json(path) == value
    assert os.listdir(tmp_path) == ['a.json']


class Unserializable:
    """A value that JSON cannot represent."""


@pytest.mark.parametrize('cause', ['value', 'disk'])
def test_a_failed_write_does_not_change_the_file(tmp_path, monkeypatch, cause):
    path = str(tmp_path / 'a.json')
    write_json(path, {'old': True})

    def fail(*args):
        raise OSError(28, 'No space left on device')

    if cause == 'disk':
        monkeypatch.setattr(workdir.os, 'fsync', fail)
    with pytest.raises((TypeError, OSError)) as error:
        write_json(path, {'a': 1, 'b': Unserializable() if cause == 'value' else 2})
    assert read_json(path) == {'old': True}
    assert os.listdir(tmp_path) == ['a.json']
    if cause == 'disk':
        assert error.value.filename == path


def test_an_error_of_opening_a_file_names_it_and_not_its_temporary_name(tmp_path):
    path = str(tmp_path / 'missing' / 'a.json')
    with pytest.raises(FileNotFoundError) as error:
        write_json(path, {})
    assert error.value.filename == path


def test_a_reader_never_sees_an_incomplete_file(tmp_path, monkeypatch):
    """At the moment of the rename, the new file is complete and the old one is still in place."""
    path, contents, replace = str(tmp_path / 'a.json'), [], os.replace
    write_json(path, {'version': 1})

    def record_and_replace(source, target):
        contents.append((read_json(source), read_json(target)))
        replace(source, target)

    monkeypatch.setattr(workdir.os, 'replace', record_and_replace)
    write_json(path, {'version': 2, 'long': list(range(10000))})
    assert contents == [({'version': 2, 'long': list(range(10000))}, {'version': 1})]


def test_a_missing_file_means_that_there_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r'holds no run \(no config\.json\)') as error:
        read_config(str(tmp_path))
    assert str(tmp_path) in str(error.value)


def test_a_damaged_file_is_named_in_the_error(tmp_path):
    (tmp_path / 'data.json').write_text('{"a": ')
    with pytest.raises(UserError, match=r'data\.json: cannot be read'):
        read_json(str(tmp_path / 'data.json'))


# metrics


def rows(*steps):
    return [{'step': step, 'epoch': step / 4, 'train_loss': step / 8} for step in steps]


def write_rows(folder, *steps, resumed_from=0):
    log = MetricsLog(str(folder), resumed_from)
    for step in steps:
        log.write(step, step / 4, 'train', {'loss': step / 8})
    log.close()


def test_metrics_are_one_line_for_each_step(tmp_path):
    write_rows(tmp_path, 5, 10)
    lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows(5, 10) == read_metrics(str(tmp_path))


def test_rows_are_written_immediately(tmp_path):
    log = MetricsLog(str(tmp_path), 0)
    log.write(5, 5 / 4, 'train', {'loss': 5 / 8})
    assert read_metrics(str(tmp_path)) == rows(5)
    log.close()


def test_rows_after_the_resumed_step_are_removed(tmp_path):
    write_rows(tmp_path, 5, 10, 15, 20)
    log = MetricsLog(str(tmp_path), 10)
    assert read_metrics(str(tmp_path)) == rows(5, 10)
    log.write(15, 15 / 4, 'train', {'loss': 15 / 8})
    log.close()
    assert read_metrics(str(tmp_path)) == rows(5, 10, 15)


def test_a_run_from_the_beginning_removes_all_rows(tmp_path):
    write_rows(tmp_path, 5, 10)
    write_rows(tmp_path, resumed_from=0)
    assert read_metrics(str(tmp_path)) == []


@pytest.mark.parametrize('end', ['{"step": 15, "train_lo', '{"step": 1', '{', '\x00\x00\x00', '{"step": 15}}'])
def test_an_incomplete_last_line_is_removed(tmp_path, end):
    write_rows(tmp_path, 5, 10)
    with open(tmp_path / 'metrics.jsonl', 'a') as f:
        f.write(end)
    assert read_metrics(str(tmp_path)) == rows(5, 10)
    write_rows(tmp_path, 15, resumed_from=10)
    assert read_metrics(str(tmp_path)) == rows(5, 10, 15)
    assert len((tmp_path / 'metrics.jsonl').read_text().splitlines()) == 3


def test_a_workdir_without_metrics_has_no_rows(tmp_path):
    assert read_metrics(str(tmp_path)) == []


def start_steps(events):
    """Return the steps of session starts: TensorBoard hides earlier events of these steps and later ones."""
    return [event.step for event in events if event.session_log.status == event.session_log.START]


def test_a_run_from_the_beginning_hides_all_events_and_flush_writes_the_scalars(tmp_path):
    log = MetricsLog(str(tmp_path), 0)
    log.write(5, 0.5, 'train', {'loss': 1.0})
    log.write(6, 0.6, 'train', {'loss': 1.0})
    log.flush()
    events = list(read_events(next(tmp_path.glob('events.out.tfevents.*'))))
    log.close()
    assert start_steps(events) == [1]
    assert [event.step for event in events for value in event.summary.value if value.tag == 'train/loss'] == [5, 6]


def test_a_resumed_run_hides_the_events_after_its_step(tmp_path):
    write_rows(tmp_path, 5, 10, 15)
    path, = tmp_path.glob('events.out.tfevents.*')
    path.rename(tmp_path / 'first')  # two files of the same second would have the same name
    write_rows(tmp_path, 15, 20, resumed_from=10)
    path, = tmp_path.glob('events.out.tfevents.*')
    scalars = [[(event.step, value.simple_value) for event in read_events(p) for value in event.summary.value
                if value.tag == 'train/loss'] for p in (tmp_path / 'first', path)]
    assert scalars == [[(step, step / 8) for step in steps] for steps in ((5, 10, 15), (15, 20))]
    assert start_steps(read_events(path)) == [11]


def test_metrics_are_named_by_their_split_and_infinite_ones_have_no_tensorboard_scalar(tmp_path):
    log = MetricsLog(str(tmp_path), 0)
    log.write(5, 0.5, 'train', {'loss': 1.0, 'grad_norm': float('inf')}, learning_rate=0.25)
    log.write(5, 0.5, 'val', {'ema_top5': 0.75, 'test_like': 0.125})
    log.close()
    assert read_metrics(str(tmp_path)) == [
        {'step': 5, 'epoch': 0.5, 'train_loss': 1.0, 'train_grad_norm': float('inf'), 'learning_rate': 0.25},
        {'step': 5, 'epoch': 0.5, 'val_ema_top5': 0.75, 'val_test_like': 0.125}]
    path, = tmp_path.glob('events.out.tfevents.*')
    scalars = {value.tag: value.simple_value for event in read_events(path) for value in event.summary.value}
    assert scalars == {'epoch': 0.5, 'train/loss': 1.0, 'learning_rate': 0.25, 'val/ema_top5': 0.75, 'val/test_like': 0.125}
