"""User errors, and errors of the operating system: they name the path or the field that they are about, and no other."""

import errno
import os
import pickle
import types

import pytest

from jaxcnn import errors
from jaxcnn.config import DataConfig
from jaxcnn.data import cache, sources
from jaxcnn.errors import Diverged, UserError, counted, from_os_error, name_field, name_file
from jaxcnn.training import entry_point, train, workdir
from jaxcnn.training.workdir import MetricsLog

FULL = OSError(errno.ENOSPC, 'No space left on device')


def test_an_error_is_its_field_message_and_hint_on_one_line():
    assert str(UserError('is missing')) == 'is missing'
    error = Diverged('got 3', field='config.seed')
    assert str(error) == 'config.seed: got 3'
    error.add_hint('expected 4')
    error.add_hint('or 5')
    assert str(error) == 'config.seed: got 3; expected 4; or 5'
    copied = pickle.loads(pickle.dumps(error))  # errors of worker processes are pickled
    assert type(copied) is Diverged
    assert (copied.message, copied.field, copied.hint) == ('got 3', 'config.seed', 'expected 4; or 5')


@pytest.mark.parametrize(('error', 'field', 'message'), [
    (UserError('is missing', hint='make it'), 'config.data.dir', 'is missing'),
    (UserError('is missing', field='/data/a.npz', hint='make it'), 'config.data.dir', '/data/a.npz: is missing'),
    (UserError('is missing', field='config.data.name', hint='make it'), 'config.data.name', 'is missing'),
])
def test_name_field_sets_one_field_of_the_config(error, field, message):
    with pytest.raises(UserError) as raised, name_field('config.data.dir'):
        raise error
    assert (raised.value.field, raised.value.message, raised.value.hint) == (field, message, 'make it')


def test_name_file_sets_the_file_of_an_error_without_one():
    with pytest.raises(OSError, match='No space left') as error, name_file('/run/a.json'), open('/dev/full', 'w') as f:
        f.write('x')
    assert error.value.filename == '/run/a.json'
    with pytest.raises(FileNotFoundError) as other, name_file('/run/a.json'):
        os.stat('/nowhere')
    assert other.value.filename == '/nowhere'
    assert str(from_os_error(OSError('128 requested and 0 written'))) == '128 requested and 0 written'  # NumPy's


def test_the_error_for_a_full_disk_names_the_full_file_systems(tmp_path, monkeypatch):
    def status(folder):
        free = 0 if folder == '/dev/shm' else 1 << 30
        return types.SimpleNamespace(f_bavail=free, f_frsize=1, f_files=0, f_favail=0)
    monkeypatch.setattr(errors.os, 'statvfs', status)
    assert str(from_os_error(FULL, str(tmp_path))) == 'No space left on device: /dev/shm'
    assert str(from_os_error(OSError(errno.EIO, 'Input/output error'), str(tmp_path))) == 'Input/output error'


@pytest.mark.parametrize('error', [FULL, OSError(errno.ENOSPC, 'No space left on device', '/elsewhere/file')])
def test_a_full_disk_elsewhere_is_not_blamed_on_the_workdir(small, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error
    monkeypatch.setattr(entry_point, 'TrainingRun', fail)
    with pytest.raises(UserError, match=f'^{error.filename or ""}.*No space left') as raised:
        train(small(), str(tmp_path / 'run'))
    assert str(tmp_path) not in str(raised.value)


def test_the_error_for_a_metrics_file_that_cannot_be_written_names_it(tmp_path, monkeypatch):
    def open_full_when_appending(path, mode='r', **arguments):
        return open('/dev/full' if mode == 'a' else path, mode, **arguments)
    monkeypatch.setattr(workdir, 'open', open_full_when_appending, raising=False)
    log = MetricsLog(str(tmp_path), 0)
    with pytest.raises(OSError, match='No space left') as error:
        log.write(1, 0.5, 'train', {'loss': 1.0})
    assert error.value.filename == '/dev/full'


def test_an_error_of_the_source_is_not_blamed_on_the_cache(tmp_path):
    def fail():
        raise OSError(errno.EIO, 'Input/output error', '/data/shard-0')
    source = sources.Source('somewhere', {}, {'train': fail}, lambda: ['a', 'b'])
    with pytest.raises(UserError, match=r'^/data/shard-0: Input/output error$'):
        cache.open_cache(source, DataConfig('tiny', cache_dir=str(tmp_path)))


def test_counted_uses_the_plural_and_separates_thousands():
    assert [counted(n, 'row') for n in (0, 1, 2, 12345)] == ['0 rows', '1 row', '2 rows', '12,345 rows']
