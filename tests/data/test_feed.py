"""The order of training images, the batches of training and evaluation, and the statistics and splits of data sets."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxcnn import config as cfg
from jaxcnn import data
from jaxcnn.data import cache, dataset, feed, workers
from jaxcnn.data.dataset import Split, channel_statistics
from jaxcnn.errors import UserError
from jaxcnn.timeline import Timeline
from jaxcnn.training import parallel


def timeline(count, batch_size=32, schedule=(), **duration):
    fields = {'batch_size': batch_size, 'duration': duration or {'epochs': 3}, 'batch_schedule': schedule}
    return Timeline(cfg.parse(fields), count)


def numbered(count, shape=(2, 2, 1)):
    """Return a split whose images and labels encode their positions, and whose `index` is not the identity."""
    index = np.random.default_rng(0).permutation(2 * count)[:count]
    images = np.zeros((2 * count, *shape), np.uint8)
    images[index, 0, 0, 0], images[index, 0, 1, 0] = np.arange(count) // 256, np.arange(count) % 256
    return Split(images, index, {'label': np.arange(count, dtype=np.int32)})


def numbered_file(count, folder):
    """Return such a split with its images in a file, which worker processes can read."""
    split = numbered(count)
    np.save(folder / 'images.npy', split.images)
    return Split(cache.ArrayFile(str(folder / 'images.npy')), split.index, split.targets)


def positions_in(batch):
    """Return the positions of the images of a batch of either placement."""
    if 'position' in batch:
        return np.asarray(batch['position'])
    high, low = (np.asarray(batch['image'])[..., 0, i, 0].astype(np.int64) for i in (0, 1))
    np.testing.assert_array_equal(256 * high + low, batch['label'])
    return np.asarray(batch['label'])


def read(train_feed, step, count, batch_size):
    """Return the positions of the images of `count` steps, (count, b), with either placement."""
    batch = train_feed.batch(step, count)
    if batch:
        return positions_in(batch)
    order = train_feed.epoch_order(train_feed.epoch(step))
    return np.stack([order[offset:offset + batch_size] for offset in train_feed.batch_offsets(step, count)])


def positions(order, begin, end):
    return np.concatenate([order.positions(step) for step in range(begin, end)])


def make_feed(split, steps, *, on_device, seed=0, **fields):
    return feed.TrainFeed(split, seed, steps, on_device=on_device, **fields)


# the order


@pytest.mark.parametrize('batch_size', [1, 7, 32, 50, 64, 100, 101, 350])
def test_each_epoch_has_every_image_once_for_any_batch_size(batch_size):
    steps = timeline(101, batch_size, epochs=4)
    order = feed.Order(3, steps)
    sizes = [len(order.positions(step)) for step in range(steps.total)]
    assert set(sizes) == {batch_size}
    stream = positions(order, 0, steps.total)
    assert len(stream) >= 4 * 101
    for epoch in range(4):
        np.testing.assert_array_equal(np.sort(stream[epoch * 101:(epoch + 1) * 101]), np.arange(101))


def test_each_epoch_has_every_image_once_when_the_batch_size_changes():
    steps = timeline(60, 16, schedule=(({'steps': 5}, 24), ({'epochs': 3}, 150)), epochs=6)
    order = feed.Order(0, steps)
    assert [len(order.positions(step)) for step in (4, 5)] == [16, 24]
    stream = positions(order, 0, steps.total)
    for epoch in range(6):
        np.testing.assert_array_equal(np.sort(stream[epoch * 60:(epoch + 1) * 60]), np.arange(60))


def test_order_depends_on_seed_and_epoch_but_not_on_batch_size():
    streams = {}
    for name, seed, batch_size in (('a', 0, 10), ('same', 0, 10), ('wider', 0, 45), ('other seed', 1, 10)):
        steps = timeline(90, batch_size)
        streams[name] = positions(feed.Order(seed, steps), 0, steps.total)[:270].reshape(3, 90)
    np.testing.assert_array_equal(streams['a'], streams['same'])
    np.testing.assert_array_equal(streams['a'], streams['wider'])
    assert (streams['a'] == streams['other seed']).mean() < 0.1  # by chance, 1 in 90 agrees
    for i, j in ((0, 1), (1, 2), (0, 2)):
        assert (streams['a'][i] == streams['a'][j]).mean() < 0.1


def test_first_image_is_uniformly_distributed():
    first = [feed.Order(seed, timeline(8, 4)).positions(0)[0] for seed in range(800)]
    counts = np.bincount(first, minlength=8)  # expected: 100 each, standard deviation 9.4
    assert 60 < counts.min() <= counts.max() < 140


# the feed


@pytest.mark.parametrize('on_device', [True, False], ids=['device', 'host'])
def test_feed_gives_the_same_batches_from_any_first_step(on_device):
    split, steps = numbered(101), timeline(101, 32, steps=12)
    from_beginning = make_feed(split, steps, on_device=on_device)
    expected = [read(from_beginning, step, 1, 32)[0] for step in range(12)]
    for step in range(12):
        np.testing.assert_array_equal(expected[step], feed.Order(0, steps).positions(step))
    for start in (0, 3, 4, 11):
        from_start = make_feed(split, steps, on_device=on_device)
        for step in range(start, 12):
            np.testing.assert_array_equal(read(from_start, step, 1, 32)[0], expected[step])


@pytest.mark.parametrize('on_device', [True, False], ids=['device', 'host'])
def test_feed_stacks_the_batches_of_any_range_of_steps(on_device):
    split, steps = numbered(101), timeline(101, 16, steps=30)
    order, train_feed = feed.Order(0, steps), make_feed(split, steps, on_device=on_device, max_steps=5)
    for step, count in ((0, 4), (4, 3), (20, 5), (2, 1), (3, 2), (29, 1)):
        batches = read(train_feed, step, count, 16)
        assert batches.shape == (count, 16)
        np.testing.assert_array_equal(batches.ravel(), positions(order, step, step + count))


@pytest.mark.parametrize('batch_size', [7, 40, 90])
def test_batches_give_position_and_epoch_of_each_image(batch_size):
    split, steps = numbered(40), timeline(40, batch_size)
    host = make_feed(split, steps, on_device=False)
    order = feed.Order(0, steps)
    pairs = []
    for step in range(steps.total):
        batch = host.batch(step, 1)
        np.testing.assert_array_equal(batch['position'][0], batch['label'][0])  # labels encode positions
        pairs += zip(batch['epoch'][0].tolist(), batch['position'][0].tolist(), strict=True)
        np.testing.assert_array_equal(batch['epoch'][0], order.epochs(step))
    assert len(set(pairs)) == len(pairs)
    assert set(pairs[:120]) == {(epoch, position) for epoch in range(3) for position in range(40)}


def test_worker_processes_give_the_same_batches(tmp_path):
    split, steps = numbered_file(101, tmp_path), timeline(101, 32, steps=8)
    process_rows = parallel.make_backend(cfg.ParallelConfig()).process_rows  # must be picklable
    host = make_feed(split, steps, on_device=False, workers=1, process_rows=process_rows)
    for step in (2, 3, 7):
        np.testing.assert_array_equal(positions_in(host.batch(step, 1))[0], feed.Order(0, steps).positions(step))


KILLED_RUN = '''
import os, signal, sys
from multiprocessing import active_children
from jaxcnn import config
from jaxcnn.training.setup import Setup
setup = Setup(config.parse(config.make(data=dict(name='digits', placement='host', workers=2))), sys.argv[1])
setup.feed.batch(0, 1)
print(*[child.pid for child in active_children()], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
'''


def test_worker_processes_end_when_the_run_is_killed(tmp_path):
    result = subprocess.run([sys.executable, '-c', KILLED_RUN, tmp_path], stdout=subprocess.PIPE)
    assert result.returncode == -signal.SIGKILL
    pids = result.stdout.split()
    assert len(pids) == 2
    while any(os.path.exists(f'/proc/{int(pid)}') for pid in pids):
        time.sleep(0.05)


def test_worker_processes_ignore_stop_signals_and_a_killed_one_is_reported(tmp_path):
    split, steps = numbered_file(101, tmp_path), timeline(101, 32, steps=400)
    before = set(multiprocessing.active_children())
    host = make_feed(split, steps, on_device=False, workers=1)
    host.batch(0, 1)
    worker, = set(multiprocessing.active_children()) - before
    for signum in workers.STOP_SIGNALS:
        os.kill(worker.pid, signum)
    host.batch(1, 200)
    assert worker.is_alive()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r'killed by SIGKILL \(exit code -9\).*memory.*config\.data\.workers=0'):
        host.batch(201, 199)


def test_closing_train_feed_ends_its_processes(tmp_path):
    split, steps = numbered_file(101, tmp_path), timeline(101, 32, steps=400)
    before = set(multiprocessing.active_children())
    host = make_feed(split, steps, on_device=False, workers=1)
    host.batch(0, 1)
    assert set(multiprocessing.active_children()) != before
    host.close()
    assert set(multiprocessing.active_children()) == before


@pytest.mark.parametrize(('max_steps', 'batch_size'), [(1, 8), (7, 8), (1, 40), (5, 40)])
def test_epoch_order_suffices_for_every_range_that_begins_in_the_epoch(max_steps, batch_size):
    steps = timeline(11, batch_size, steps=30)  # ranges of up to 200 images, epochs of 11
    train_feed, expected = make_feed(numbered(11), steps, on_device=True, max_steps=max_steps), feed.Order(0, steps)
    for step in range(30 - max_steps):
        np.testing.assert_array_equal(read(train_feed, step, max_steps, batch_size).ravel(),
                                      positions(expected, step, step + max_steps))
    assert len({train_feed.epoch_order(epoch).shape for epoch in range(5)}) == 1  # one shape, so one compilation


def test_rows_of_two_processes_form_the_global_batch():
    split, steps = numbered(101), timeline(101, 32, steps=6)
    feeds = [make_feed(split, steps, on_device=False, process_rows=lambda size, process=process: slice(
        process * size // 2, (process + 1) * size // 2)) for process in range(2)]
    for step in range(0, 6, 2):
        batches = np.concatenate([positions_in(f.batch(step, 2)) for f in feeds], axis=1)
        np.testing.assert_array_equal(batches.ravel(), positions(feed.Order(0, steps), step, step + 2))


def test_positions_of_the_feed_index_all_examples():
    split, steps = numbered(50), timeline(50, 16, steps=3)
    examples = feed.all_examples(split)
    batch = read(make_feed(split, steps, on_device=True), 0, 1, 16)[0]
    np.testing.assert_array_equal(positions_in({name: values[batch] for name, values in examples.items()}), batch)


# evaluation


@pytest.mark.parametrize('on_device', [True, False], ids=['device', 'host'])
@pytest.mark.parametrize('devices', [1, 8])
@pytest.mark.parametrize(('count', 'batch_size'), [(1797, 256), (1009, 64), (512, 256), (256, 256), (3, 64), (65, 64)])
def test_evaluation_covers_every_image_exactly_once(count, batch_size, devices, on_device):
    split = numbered(count)
    evaluated, shapes = [], set()
    for device in range(devices):
        def rows(size, device=device):
            return slice(device * size // devices, (device + 1) * size // devices)
        for batch in feed.eval_batches(split, batch_size, on_device=on_device, process_rows=rows):
            shapes.add((batch['mask'].shape, positions_in(batch).shape))
            assert batch['mask'].dtype == np.float32
            evaluated.append(positions_in(batch)[batch['mask'] == 1])
            assert set(np.unique(batch['mask'])) <= {0, 1}
    np.testing.assert_array_equal(np.sort(np.concatenate(evaluated)), np.arange(count))
    assert shapes == {((batch_size // devices,),) * 2}  # one shape, so one compilation


def test_evaluation_preserves_the_order():
    batches = feed.eval_batches(numbered(70), 32, on_device=True)
    flat = np.concatenate([b['position'][b['mask'] > 0] for b in batches])
    np.testing.assert_array_equal(flat, np.arange(70))


# statistics and splits


@pytest.mark.parametrize('channels', [1, 3])
def test_statistics_equal_those_in_float64(channels):
    images = np.random.default_rng(0).integers(0, 256, (300, 7, 5, channels), np.uint8)
    images[..., 0] //= 5
    index = np.random.default_rng(1).permutation(300)[:217]
    mean, std = channel_statistics(Split(images, index, np.zeros(217, np.int32)), block=50)
    scaled = images[index].astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std((0, 1, 2)), rtol=1e-10)
    assert channel_statistics(Split(images, index, np.zeros(217, np.int32))) == (mean, std)


def test_statistics_are_exact_when_the_deviation_is_tiny():
    images = np.full((5000, 32, 32, 1), 254, np.uint8)
    images[0, 0, 0, 0] = 255
    _, std = channel_statistics(Split(images, np.arange(5000), np.zeros(5000, np.int32)))
    fraction = 1 / images.size
    np.testing.assert_allclose(std[0] * 255, np.sqrt(fraction * (1 - fraction)), rtol=1e-3)


def test_statistics_are_computed_once_and_again_when_their_file_is_damaged(tmp_path, monkeypatch):
    def load(**fields):
        data_set = data.load(cfg.DataConfig(name='digits', cache_dir=str(tmp_path), **fields))
        return data_set.mean, data_set.std

    calls = []
    monkeypatch.setattr(dataset, 'channel_statistics', lambda split: calls.append(split) or channel_statistics(split))
    first = load(split_seed=3)
    second = load(split_seed=4)
    assert len(calls) == 2
    assert second != first
    assert [load(split_seed=3), load(split_seed=4)] == [first, second]
    assert len(calls) == 2
    paths = list(tmp_path.glob('*/train.images.npy.*.json'))
    assert len(paths) == 2
    for path in paths:
        path.write_text(path.read_text().replace('0.', '1.', 1))
    assert [load(split_seed=3), load(split_seed=4)] == [first, second]
    assert len(calls) == 4


def test_a_constant_channel_has_deviation_one():
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 2), np.uint8)
    images[..., 1] = 77
    mean, std = channel_statistics(Split(images, np.arange(20), {'label': np.zeros(20, np.int32)}))
    assert std[0] != 1
    assert (mean[1], std[1]) == (77 / 255, 1.0)


def test_validation_split_is_disjoint_and_stratified_and_leaves_the_test_split_alone():
    uncut = data.load(cfg.DataConfig(name='digits', val_fraction=0.0))
    assert set(uncut.splits) == {'train', 'test'}
    cut = data.load(cfg.DataConfig(name='digits', val_fraction=0.2))
    train, val = cut.splits['train'], cut.splits['val']
    count = len(uncut.splits['train'])
    assert len(val) == round(0.2 * count)
    np.testing.assert_array_equal(np.sort(np.concatenate([train.index, val.index])), np.arange(count))
    class_counts = np.array(uncut.class_counts('train'))
    assert (np.abs(np.array(cut.class_counts('val')) - 0.2 * class_counts) < 1).all()
    for split in (train, val):
        np.testing.assert_array_equal(split.targets['label'], uncut.splits['train'].targets['label'][split.index])
        np.testing.assert_array_equal(split.take(np.arange(3)), uncut.splits['train'].take(split.index[:3]))
    np.testing.assert_array_equal(feed.all_examples(cut.splits['test'])['image'],
                                  feed.all_examples(uncut.splits['test'])['image'])


def test_validation_split_depends_on_split_seed_and_statistics_exclude_it():
    first, same, other = (data.load(cfg.DataConfig(name='digits', val_fraction=0.5, split_seed=s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.splits['val'].index, same.splits['val'].index)
    assert not np.array_equal(first.splits['val'].index, other.splits['val'].index)
    pixels = first.splits['train'].take(np.arange(len(first.splits['train']))) / 255
    np.testing.assert_allclose(first.mean[0], pixels.mean(), rtol=1e-12)
    assert first.mean != other.mean


def test_an_empty_validation_split_is_an_error():
    with pytest.raises(UserError, match=r'config\.data\.val_fraction: 0\.0001 of 1438 images'):
        data.load(cfg.DataConfig(name='digits', val_fraction=0.0001))


def test_info_describes_a_data_set():
    info = data.load(cfg.DataConfig(name='digits', image_size=12)).info()
    assert info['image_shape'] == [12, 12, 1]
    assert info['class_names'] == [str(i) for i in range(10)]
    assert info['sizes'] == {'train': 1294, 'val': 144, 'test': 359}
    assert info['ink'] == {'size': 8, 'box': 8, 'by_mass': False}


# balanced sampling


def test_a_balanced_epoch_has_equally_many_images_of_each_class_and_all_images_of_rare_classes():
    labels = np.repeat([0, 1, 2], [300, 25, 7])
    order, same, other = (feed.Order(seed, timeline(332, 10), labels) for seed in (3, 3, 4))
    for epoch in range(3):
        begin, end = 332 * epoch, 332 * (epoch + 1)
        drawn = order.positions_between(begin, end)
        counts = np.bincount(labels[drawn])
        assert counts.sum() == 332
        assert set(counts) <= {110, 111}
        assert set(np.flatnonzero(labels > 0)) <= set(drawn)
        assert np.bincount(drawn)[labels == 2].max() - np.bincount(drawn)[labels == 2].min() <= 1
        assert len(set(drawn[labels[drawn] == 0])) == counts[0]
        np.testing.assert_array_equal(drawn, same.positions_between(begin, end))
        assert np.any(drawn != other.positions_between(begin, end))
        assert np.abs(np.corrcoef(np.arange(332), labels[drawn])[0, 1]) < 0.25
