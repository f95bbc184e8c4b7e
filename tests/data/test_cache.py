"""The cache of decoded images: it is built once, and a damaged or incomplete one is never used."""

import dataclasses
import errno
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from PIL import Image

from jaxcnn.config import DataConfig
from jaxcnn.data import cache, resizing, sources
from jaxcnn.errors import UserError


@dataclasses.dataclass
class Images:
    """Examples in memory that count how often they are decoded, and of which one can be made to fail."""

    images: list
    labels: list
    decoded: int = 0
    failing_index: int = -1

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        self.decoded += 1
        if index == self.failing_index:
            raise RuntimeError('power cut')
        return {'image': self.images[index], 'label': self.labels[index]}


def random_images(count=12, size=6, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return Images(list(rng.integers(0, 256, (count, size, size, channels), np.uint8)),
                  rng.integers(0, 4, count).tolist())


def source_of(train, test=None, key='one'):
    test = random_images(5, seed=1) if test is None else test
    return sources.Source('somewhere', {'source': key}, {'train': lambda: train, 'test': lambda: test}, lambda: list('abcd'))


def open_cache(source, folder, image_size=0):
    return cache.open_cache(source, DataConfig('tiny', cache_dir=str(folder), image_size=image_size))


def assert_holds(splits, train):
    images, labels = splits['train'].images, splits['train'].targets['label']
    np.testing.assert_array_equal(images[np.arange(len(train))], np.stack(train.images))
    np.testing.assert_array_equal(labels, train.labels)
    assert labels.dtype == np.int32


def only_cache(folder):
    """Return the path of the only cache in a folder."""
    path, = (p for p in folder.iterdir() if p.is_dir())
    return path


def test_images_are_decoded_once(tmp_path):
    train = random_images()
    meta, splits = open_cache(source_of(train), tmp_path)
    assert_holds(splits, train)
    assert meta['class_names'] == list('abcd')
    assert train.decoded >= len(train)
    train.decoded = 0
    cached_meta, cached_splits = open_cache(source_of(train), tmp_path)
    assert train.decoded == 0
    assert_holds(cached_splits, train)
    assert cached_meta == meta


def test_each_source_and_image_size_has_its_own_cache(tmp_path):
    one, two = random_images(), random_images(seed=5)
    open_cache(source_of(one), tmp_path)
    assert_holds(open_cache(source_of(two, key='two'), tmp_path)[1], two)
    assert_holds(open_cache(source_of(one), tmp_path)[1], one)
    resized = open_cache(source_of(one), tmp_path, image_size=4)[1]['train'][0]
    assert resized.shape == (12, 4, 4, 3)


def test_a_changed_source_file_changes_the_key(tmp_path):
    version = tmp_path / 'mnist' / '3.0.1'
    version.mkdir(parents=True)
    (version / 'dataset_info.json').write_text('{"splits": [{"name": "train"}]}')
    record = version / 'mnist-train.array_record-00000-of-00001'
    record.write_bytes(b'first')

    def key():
        return sources.find(DataConfig(name='mnist', dir=str(tmp_path))).key

    keys = [key()]
    assert key() == keys[0]
    record.write_bytes(b'other length')
    keys.append(key())
    record.write_bytes(b'equal length')  # of the same size
    os.utime(record, ns=(0, os.stat(record).st_mtime_ns + 1))
    keys.append(key())
    (version / 'mnist-train.array_record-00001-of-00002').write_bytes(b'')
    keys.append(key())
    assert len({json.dumps(k) for k in keys}) == 4


# damage


def flip_bit(path, position=-1):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[:len(content) // 2])


def empty(path):
    path.write_bytes(b'')


CACHE_FILES = ['train.images.npy', 'train.label.npy', 'train.usable.npy', 'test.images.npy', 'meta.json']


@pytest.mark.parametrize(('file', 'damage'), [
    *((file, flip_bit) for file in CACHE_FILES), *((CACHE_FILES[0], damage) for damage in (truncate, os.remove, empty)),
    *(pytest.param(file, damage, marks=pytest.mark.slow)
      for file in CACHE_FILES[1:] for damage in (truncate, os.remove, empty))])
def test_a_damaged_file_is_never_used(tmp_path, file, damage):
    train, test = random_images(), random_images(5, seed=1)
    open_cache(source_of(train, test), tmp_path)
    damage(only_cache(tmp_path) / file)
    meta, splits = open_cache(source_of(train, test), tmp_path)
    assert_holds(splits, train)
    np.testing.assert_array_equal(splits['test'][0][np.arange(5)], np.stack(test.images))
    assert meta['class_names'] == list('abcd')
    train.decoded = 0
    open_cache(source_of(train, test), tmp_path)  # the cache is complete again
    assert train.decoded == 0


@pytest.mark.parametrize('step', [40, pytest.param(3, marks=pytest.mark.slow)])
def test_a_flipped_bit_anywhere_in_the_metadata_is_noticed(tmp_path, step):
    train = random_images(2, size=1)
    meta, _ = open_cache(source_of(train), tmp_path)
    path = only_cache(tmp_path) / 'meta.json'
    for position in range(0, len(path.read_bytes()), step):
        flip_bit(path, position)
        assert open_cache(source_of(train), tmp_path)[0] == meta, position


@pytest.mark.parametrize('content', ['[]', 'null', '3', '{}', '{"checksums": []}', '{"checksums": {}}'])
def test_a_folder_with_other_json_as_metadata_is_not_a_cache(tmp_path, content):
    train = random_images()
    open_cache(source_of(train), tmp_path)
    (only_cache(tmp_path) / 'meta.json').write_text(content)
    meta, splits = open_cache(source_of(train), tmp_path)
    assert meta['class_names'] == list('abcd')
    assert_holds(splits, train)


def test_rebuilding_a_damaged_cache_is_logged(tmp_path, caplog):
    train = random_images()
    open_cache(source_of(train), tmp_path)
    flip_bit(only_cache(tmp_path) / 'train.images.npy')
    open_cache(source_of(train), tmp_path)
    assert 'train.images.npy is damaged' in caplog.text


# interrupted builds


def test_a_failed_build_leaves_no_cache(tmp_path):
    train = random_images()
    train.failing_index = 7
    with pytest.raises(UserError, match='train image 7: cannot be read: RuntimeError: power cut'):
        open_cache(source_of(train), tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]
    train.failing_index = -1
    assert_holds(open_cache(source_of(train), tmp_path)[1], train)


BUILDER = '''
import os, sys, time
import numpy as np
from jaxcnn.config import DataConfig
from jaxcnn.data import cache, sources

class SlowExamples:
    """Image i is filled with i. Each decoding appends a character to a file; from the eleventh on it takes a while."""
    def __len__(self):
        return 40
    def __getitem__(self, index):
        with open(sys.argv[2], 'a') as f:
            f.write('.')
        time.sleep(float(sys.argv[3]) if os.path.getsize(sys.argv[2]) > 10 else 0)
        return {'image': np.full((3, 3, 1), index, np.uint8), 'label': index % 4}

source = sources.Source('somewhere', {'source': 'slow'}, {'train': SlowExamples, 'test': SlowExamples}, lambda: list('abcd'))
_, splits = cache.open_cache(source, DataConfig('slow', cache_dir=sys.argv[1]))
for images, targets, _ in splits.values():
    assert (images[:] == np.arange(40, dtype=np.uint8)[:, None, None, None]).all()
    assert (targets['label'] == np.arange(40) % 4).all()
print('correct')
'''


def start_build(folder, log, seconds=0.0):
    """Start a process that builds a cache in `folder`; each decoding from the eleventh on takes `seconds`."""
    return subprocess.Popen([sys.executable, '-c', textwrap.dedent(BUILDER), str(folder), str(log), str(seconds)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def count_decoded(log):
    return len(log.read_text()) if log.exists() else 0


def test_a_process_killed_while_decoding_leaves_no_cache(tmp_path):
    folder, log = tmp_path / 'cache', tmp_path / 'log'
    process = start_build(folder, log, seconds=3600)
    while count_decoded(log) < 10:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [p for p in folder.iterdir() if p.is_dir()], 'the process was killed before it wrote anything'
    before = count_decoded(log)
    out, err = start_build(folder, log).communicate()
    assert out.strip() == 'correct', err
    assert count_decoded(log) - before >= 80  # all images are decoded again
    assert [p.name for p in folder.iterdir() if p.is_dir()] == [only_cache(folder).name]
    assert not only_cache(folder).name.endswith('.tmp')


def test_two_simultaneous_processes_build_a_cache_once(tmp_path):
    folder, log = tmp_path / 'cache', tmp_path / 'log'
    processes = [start_build(folder, log, seconds=0.02) for _ in range(2)]
    for process in processes:
        out, err = process.communicate()
        assert out.strip() == 'correct', err
    assert 80 <= count_decoded(log) <= 80 + 2  # the first image of each split is read once more, for its shape


# superseded caches


def folders(path):
    return [p for p in path.iterdir() if p.is_dir()]


def test_a_superseded_cache_is_removed_unless_it_is_in_use(tmp_path):
    train = random_images()
    _, splits = open_cache(source_of(train, key='original'), tmp_path)
    open_cache(source_of(random_images(seed=1), key='changed'), tmp_path)
    assert len(folders(tmp_path)) == 2
    assert_holds(pickle.loads(pickle.dumps(splits)), train)  # as a worker process opens it
    del splits
    newest = random_images(seed=2)
    _, splits = open_cache(source_of(newest, key='changed again'), tmp_path)
    assert len(folders(tmp_path)) == 1
    assert len(list(tmp_path.iterdir())) == 2  # the cache and its lock
    assert_holds(splits, newest)


@pytest.mark.parametrize('fields', [dict(image_size=4), dict(dir='elsewhere'), dict(name='other'), dict(skip_broken=True)])
def test_a_cache_with_another_origin_or_other_settings_is_not_removed(tmp_path, fields):
    config = DataConfig('tiny', cache_dir=str(tmp_path))
    cache.open_cache(source_of(random_images(), key='one'), config)
    cache.open_cache(source_of(random_images(), key='two'), dataclasses.replace(config, **fields))
    assert len(folders(tmp_path)) == 2


def test_files_of_a_killed_process_are_removed_when_the_next_cache_is_built(tmp_path):
    for name in ('tiny-0123456789abcdef.tmp', 'tiny-0123456789abcdef.lock', 'tiny-123456789abcdef0.lock'):
        (tmp_path / name).mkdir() if name.endswith('.tmp') else (tmp_path / name).touch()
    (tmp_path / 'notes').mkdir()
    open_cache(source_of(random_images()), tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    assert (tmp_path / 'notes').exists()


def test_without_locks_no_cache_is_removed(tmp_path, monkeypatch):
    open_cache(source_of(random_images(), key='original'), tmp_path)

    def refuse(*_):
        raise OSError(errno.ENOLCK, 'No locks available')
    monkeypatch.setattr('fcntl.flock', refuse)
    open_cache(source_of(random_images(), key='changed'), tmp_path)
    assert len(folders(tmp_path)) == 2


# errors


def test_the_error_for_an_image_of_another_size_names_it(tmp_path):
    train = random_images()
    train.images[9] = np.zeros((6, 7, 3), np.uint8)
    with pytest.raises(UserError, match=r'train image 9: has the shape \(6, 7, 3\).*config\.data\.image_size'):
        open_cache(source_of(train), tmp_path)
    assert open_cache(source_of(train), tmp_path, image_size=6)[1]['train'][0].shape == (12, 6, 6, 3)


@pytest.mark.parametrize('index', [0, 5])
def test_the_error_for_an_image_of_another_type_names_it(tmp_path, index):
    train = random_images()
    train.images[index] = np.float32(train.images[index] / 255)
    with pytest.raises(UserError, match=rf'somewhere: train image {index}: image must be uint8 .* got float32 .*255 \* i'):
        open_cache(source_of(train), tmp_path)


@pytest.mark.parametrize('label', [-1, 4])
def test_the_error_for_a_label_out_of_range_names_the_image(tmp_path, label):
    train = random_images()
    train.labels[5] = label
    with pytest.raises(UserError, match=f'train image 5: label {label} is not one of the 4 classes'):
        open_cache(source_of(train), tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]


def test_the_error_for_an_empty_split_names_it(tmp_path):
    with pytest.raises(UserError, match='somewhere: the split test holds no images'):
        open_cache(source_of(random_images(), Images([], [])), tmp_path)


@pytest.mark.parametrize('folder', ['file/cache', '/proc/nowhere/cache'])
def test_the_error_for_a_cache_folder_that_cannot_be_written_names_it(tmp_path, folder):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError) as error:
        open_cache(source_of(random_images()), tmp_path / folder)
    assert error.value.field == 'config.data.cache_dir'
    assert str(tmp_path / folder) in error.value.message


def test_an_error_of_the_source_does_not_name_the_cache_folder(tmp_path):
    class Unreadable(Images):
        def __getitem__(self, index):
            raise OSError('cannot identify image file')

    with pytest.raises((UserError, OSError)) as error:
        open_cache(source_of(Unreadable([None], [0])), tmp_path)
    assert 'cache_dir' not in str(error.value)


def test_an_environment_variable_sets_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('JAXCNN_CACHE', str(tmp_path / 'elsewhere'))
    open_cache(source_of(random_images()), '')
    assert only_cache(tmp_path / 'elsewhere').name.startswith('tiny-')


# pixels


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize(('shape', 'size'), [((31, 31), 8), ((8, 8), 32), ((20, 45), 16), ((1, 9), 4)])
def test_resize_equals_that_of_pillow(shape, size, channels):
    image = np.random.default_rng(0).integers(0, 256, (*shape, channels), np.uint8)
    resized = resizing.resize(image, (size, size), 'squash')
    assert resized.shape == (size, size, channels)
    for c in range(channels):
        plane = Image.fromarray(image[..., c]).resize((size, size), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(resized[..., c], np.asarray(plane))


def test_shrinking_is_antialiased_bilinear():
    """The weight of an input pixel decreases linearly with its distance, to zero at the width of an output pixel."""
    size, factor = 8, 5
    image = np.random.default_rng(0).integers(0, 256, (size * factor, size * factor, 1), np.uint8)
    centres = (np.arange(size) + 0.5) * factor
    weights = np.maximum(0, 1 - np.abs(np.arange(size * factor) + 0.5 - centres[:, None]) / factor)
    weights /= weights.sum(1, keepdims=True)
    expected = weights @ image[..., 0].astype(np.float64) @ weights.T
    resized = resizing.resize(image, (size, size), 'squash')[..., 0]
    assert np.abs(resized - expected).max() <= 1.01  # rounded in each direction


def test_an_image_of_the_right_size_is_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    np.testing.assert_array_equal(resizing.resize(image, (9, 9), 'squash'), image)


def test_an_array_file_pickles_as_its_path(tmp_path):
    content = np.random.default_rng(0).integers(0, 256, (2000, 8, 8, 3), np.uint8)
    np.save(tmp_path / 'a.npy', content)
    images = cache.ArrayFile(str(tmp_path / 'a.npy'))
    pickled = pickle.dumps(images)
    assert len(pickled) < 500
    unpickled = pickle.loads(pickled)
    assert unpickled.shape == content.shape
    assert len(unpickled) == 2000
    np.testing.assert_array_equal(unpickled[np.array([[5, 1999], [0, 5]])], content[[[5, 1999], [0, 5]]])


def test_an_array_file_does_not_read_pickles(tmp_path):
    content = io.BytesIO()
    np.save(content, np.array([{}], object), allow_pickle=True)
    (tmp_path / 'a.npy').write_bytes(content.getvalue())
    with pytest.raises(ValueError, match=r'allow_pickle|Python objects'):
        cache.ArrayFile(str(tmp_path / 'a.npy'))
