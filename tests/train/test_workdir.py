"""The folder of a run: its lock, its config, its metrics and its small files."""

import json
import os
import struct
import subprocess
import sys

import pytest

from jaxcnn import config as cfg
from jaxcnn.errors import UserError
from jaxcnn.train import workdir
from jaxcnn.train.workdir import MetricsLog, claim, read_config, read_json, read_metrics, write_json

HOLDER = '''
import sys
from jaxcnn import config
from jaxcnn.train.workdir import claim
with claim(sys.argv[1], config.parse({})):
    print('holding', flush=True)
    sys.stdin.read()
'''


def parse(**fields):
    return cfg.parse(fields)


def content(folder):
    """Every file of a folder but the lock, with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file() and p.name != '.lock'}


def claim_once(folder, **fields):
    with claim(str(folder), parse(**fields)):
        write_json(str(folder / 'config.json'), cfg.to_dict(parse(**fields)))  # as a run does, once all is checked
        (folder / 'checkpoints' / '1').mkdir(parents=True, exist_ok=True)


# claiming


def test_a_claimed_workdir_holds_its_config(tmp_path):
    settings = parse(seed=3, optim={'warmup': {'epochs': 0.5}, 'switch': [{'at': {'steps': 7}}]},
                     batch_schedule=[({'steps': 5}, 64)], model={'name': 'shallow_cnn', 'widths': (1, 2, 3, 4)})
    with claim(str(tmp_path / 'a' / 'run'), settings):
        write_json(str(tmp_path / 'a' / 'run' / 'config.json'), cfg.to_dict(settings))
        assert cfg.differences(read_config(str(tmp_path / 'a' / 'run')), settings) == []
        assert json.loads((tmp_path / 'a' / 'run' / 'config.json').read_text())['seed'] == 3
    with claim(str(tmp_path / 'a' / 'run'), settings):  # and lets itself be claimed again
        pass


def test_a_run_of_an_earlier_version_is_refused_with_the_new_name_of_the_field(tmp_path):
    fields = cfg.to_dict(parse())
    fields['optim']['label_smoothing'] = 0.1
    write_json(str(tmp_path / 'config.json'), fields)
    line = (r'config\.json: config\.optim\.label_smoothing is now config\.loss\.label_smoothing; '
            r'if another version of jaxcnn wrote this run, use that version, or a new workdir')
    with pytest.raises(UserError, match=line):
        read_config(str(tmp_path))


def test_a_second_holder_in_another_process_is_refused(tmp_path):
    with subprocess.Popen([sys.executable, '-c', HOLDER, str(tmp_path)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == 'holding\n'
        before = content(tmp_path)
        with pytest.raises(UserError, match=rf'in use by another run \(process {holder.pid}\)') as error:
            claim_once(tmp_path)
        assert repr(str(tmp_path)) in str(error.value)
        assert content(tmp_path) == before
        holder.stdin.close()
        assert holder.wait() == 0
    claim_once(tmp_path)


def test_a_killed_holder_leaves_the_workdir_free(tmp_path):
    with subprocess.Popen([sys.executable, '-c', HOLDER, str(tmp_path)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == 'holding\n'
        holder.kill()
        holder.wait()
    claim_once(tmp_path)


def test_an_error_within_lets_go_of_the_workdir(tmp_path):
    with pytest.raises(RuntimeError), claim(str(tmp_path), parse()):
        raise RuntimeError
    claim_once(tmp_path)


def test_a_changed_config_is_refused_with_the_changed_fields(tmp_path):
    claim_once(tmp_path, seed=1, model='lenet5')
    before = content(tmp_path)
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
    assert content(tmp_path) == before


FREE = {  # another value of every field that cannot change the result
    'name': {'name': 'renamed'}, 'dir': {'data': {'dir': '/elsewhere'}}, 'cache_dir': {'data': {'cache_dir': '/x'}},
    'placement': {'data': {'placement': 'host'}}, 'workers': {'data': {'workers': 2}},
    'batch_size': {'eval': {'batch_size': 100}}, 'every': {'checkpoint': {'every': {'steps': 3}}},
    'keep': {'checkpoint': {'keep': 5}}}


@pytest.mark.parametrize('field', FREE)
def test_a_field_that_cannot_change_the_result_may_differ(tmp_path, field):
    claim_once(tmp_path)
    claim_once(tmp_path, **FREE[field])
    assert read_config(str(tmp_path)) == parse(**FREE[field])  # and is kept


@pytest.mark.parametrize('fields', [
    {'seed': 1}, {'batch_size': 64}, {'duration': {'steps': 5}}, {'data': {'augment': 'flip_lr'}},
    {'data': {'val_fraction': 0.2}}, {'data': {'split_seed': 1}}, {'optim': {'ema_decay': 0.9}},
    {'parallel': {'backend': 'pmap'}}, {'eval': {'every': {'epochs': 2}}}, {'checkpoint': {'metric': 'val_loss'}},
    {'freeze_bn': {'epochs': 1}}])
def test_a_field_that_can_change_the_result_may_not(tmp_path, fields):
    claim_once(tmp_path)
    with pytest.raises(UserError, match='Changed: config'):
        claim_once(tmp_path, **fields)


def test_a_run_without_a_checkpoint_does_not_block_its_workdir(tmp_path):
    claim_once(tmp_path, seed=1)
    (tmp_path / 'data.json').write_text('of other data')
    (tmp_path / 'checkpoints' / '1').rmdir()
    (tmp_path / 'checkpoints' / '2.orbax-checkpoint-tmp').mkdir()  # a save that was killed
    with claim(str(tmp_path), parse(seed=2)):
        assert not (tmp_path / 'config.json').exists()
        assert not (tmp_path / 'data.json').exists()


@pytest.mark.parametrize('result', ['checkpoints/3', 'checkpoints.damaged/3', 'checkpoints.replaced/3', 'summary.json'])
def test_a_run_that_has_left_anything_else_blocks_its_workdir(tmp_path, result):
    claim_once(tmp_path, seed=1)
    (tmp_path / 'checkpoints' / '1').rmdir()
    (tmp_path / result).mkdir(parents=True)
    before = content(tmp_path)
    with pytest.raises(UserError, match='Changed: config'):
        claim_once(tmp_path, seed=2)
    assert content(tmp_path) == before


@pytest.mark.parametrize('folder', ['file', 'file/run', '/proc/nowhere/run'])
def test_a_workdir_that_cannot_be_written_is_named(tmp_path, folder):
    (tmp_path / 'file').write_text('kept')
    with pytest.raises(UserError, match=r'workdir .* cannot be written') as error:
        claim_once(tmp_path / folder)
    assert str(tmp_path / folder) in str(error.value)
    assert (tmp_path / 'file').read_text() == 'kept'


@pytest.mark.parametrize('damaged', ['', '{"seed": 1', '[]', '{"seeed": 1}', '\x00\x00'])
def test_a_damaged_config_is_told_and_left_alone(tmp_path, damaged):
    claim_once(tmp_path)
    (tmp_path / 'config.json').write_text(damaged)
    with pytest.raises(UserError):
        claim_once(tmp_path)
    assert (tmp_path / 'config.json').read_text() == damaged


# small files


def test_written_json_is_read_back(tmp_path):
    path = str(tmp_path / 'a.json')
    for value in ({'a': [1, 2.5, None, 'ä']}, {'b': 1}):
        write_json(path, value)
        assert read_json(path) == value
    assert os.listdir(tmp_path) == ['a.json']


class Failing:
    """A value that JSON cannot hold."""


@pytest.mark.parametrize('fail', ['value', 'disk'])
def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch, fail):
    path = str(tmp_path / 'a.json')
    write_json(path, {'whole': True})

    def full(*args):
        raise OSError(28, 'No space left on device')

    if fail == 'disk':
        monkeypatch.setattr(workdir.os, 'fsync', full)
    with pytest.raises((TypeError, OSError)):
        write_json(path, {'a': 1, 'b': Failing() if fail == 'value' else 2})
    assert read_json(path) == {'whole': True}


def test_a_reader_never_sees_half_a_file(tmp_path, monkeypatch):
    """At the moment of the rename the new content is whole on the disk, and the old is still in place."""
    path, seen, replace = str(tmp_path / 'a.json'), [], os.replace
    write_json(path, {'version': 1})

    def watched(source, target):
        seen.append((read_json(source), read_json(target)))
        replace(source, target)

    monkeypatch.setattr(workdir.os, 'replace', watched)
    write_json(path, {'version': 2, 'long': list(range(10000))})
    assert seen == [({'version': 2, 'long': list(range(10000))}, {'version': 1})]


def test_a_missing_file_tells_that_there_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r'holds no run \(no config\.json\)') as error:
        read_config(str(tmp_path))
    assert str(tmp_path) in str(error.value)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / 'data.json').write_text('{"a": ')
    with pytest.raises(UserError, match=r'data\.json: cannot be read'):
        read_json(str(tmp_path / 'data.json'))


# metrics


def rows(*steps):
    return [{'step': step, 'train_loss': step / 8} for step in steps]


def write_rows(folder, *steps, resumed_from=0):
    log = MetricsLog(str(folder), resumed_from)
    for row in rows(*steps):
        log.write(row['step'], {'train_loss': row['train_loss']})
    log.close()


def test_metrics_are_one_line_a_step(tmp_path):
    write_rows(tmp_path, 5, 10)
    lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows(5, 10) == read_metrics(str(tmp_path))


def test_rows_reach_the_disk_as_they_are_written(tmp_path):
    log = MetricsLog(str(tmp_path), 0)
    log.write(5, {'train_loss': 5 / 8})
    assert read_metrics(str(tmp_path)) == rows(5)
    log.close()


def test_rows_after_the_resumed_step_are_taken_back(tmp_path):
    write_rows(tmp_path, 5, 10, 15, 20)
    log = MetricsLog(str(tmp_path), 10)
    assert read_metrics(str(tmp_path)) == rows(5, 10)
    log.write(15, {'train_loss': 15 / 8})
    log.close()
    assert read_metrics(str(tmp_path)) == rows(5, 10, 15)


def test_a_run_from_the_beginning_takes_all_rows_back(tmp_path):
    write_rows(tmp_path, 5, 10)
    write_rows(tmp_path, resumed_from=0)
    assert read_metrics(str(tmp_path)) == []


@pytest.mark.parametrize('end', ['{"step": 15, "train_lo', '{"step": 1', '{', '\x00\x00\x00', '{"step": 15}}'])
def test_a_line_that_a_crash_cut_short_is_taken_back(tmp_path, end):
    write_rows(tmp_path, 5, 10)
    with open(tmp_path / 'metrics.jsonl', 'a') as f:
        f.write(end)
    assert read_metrics(str(tmp_path)) == rows(5, 10)
    write_rows(tmp_path, 15, resumed_from=10)
    assert read_metrics(str(tmp_path)) == rows(5, 10, 15)
    assert len((tmp_path / 'metrics.jsonl').read_text().splitlines()) == 3


def test_a_workdir_without_metrics_has_no_rows(tmp_path):
    assert read_metrics(str(tmp_path)) == []


def events(path):
    """The TensorBoard events of a file: records of length, checksum, content, checksum."""
    from tensorboardX.proto.event_pb2 import Event
    data, at = path.read_bytes(), 0
    while at < len(data):
        length, = struct.unpack_from('<Q', data, at)
        yield Event.FromString(data[at + 12:at + 12 + length])
        at += 16 + length


def test_a_run_that_begins_again_purges_all_and_a_save_writes_the_scalars_out(tmp_path):
    log = MetricsLog(str(tmp_path), 0)
    log.write(5, {'train_loss': 1.0})
    log.write(6, {'train_loss': 1.0})
    log.flush()
    found = list(events(next(tmp_path.glob('events.out.tfevents.*'))))
    log.close()
    assert [event.step for event in found if event.session_log.status == event.session_log.START] == [1]
    assert [event.step for event in found for _ in event.summary.value] == [5, 6]


def test_every_figure_is_a_tensorboard_scalar_and_a_resumed_run_purges_what_lies_after_its_step(tmp_path):
    write_rows(tmp_path, 5, 10, 15)
    first, = tmp_path.glob('events.out.tfevents.*')
    first.rename(tmp_path / 'first')  # two within a second would share one name
    write_rows(tmp_path, 15, 20, resumed_from=10)
    second, = tmp_path.glob('events.out.tfevents.*')
    found = [[(value.tag, event.step, value.simple_value) for event in events(path) for value in event.summary.value]
             for path in (tmp_path / 'first', second)]
    assert found == [[('train/loss', step, step / 8) for step in steps] for steps in ((5, 10, 15), (15, 20))]
    starts = [event.step for event in events(second) if event.session_log.status == event.session_log.START]
    assert starts == [11]  # TensorBoard hides earlier events of this step and later
