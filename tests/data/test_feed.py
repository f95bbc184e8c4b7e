"""Which images a step trains on: each once an epoch, in an order that is a function of seed and epoch."""

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
from jaxcnn.train import parallel


def timeline(count, batch_size=32, schedule=(), **duration):
    fields = {'batch_size': batch_size, 'duration': duration or {'epochs': 3}, 'batch_schedule': schedule}
    return Timeline(cfg.parse(fields), count)


def numbered(count, shape=(2, 2, 1)):
    """A split in which image and label tell its position: pixels hold it, and `index` is not the identity."""
    index = np.random.default_rng(0).permutation(2 * count)[:count]
    images = np.zeros((2 * count, *shape), np.uint8)
    images[index, 0, 0, 0], images[index, 0, 1, 0] = np.arange(count) // 256, np.arange(count) % 256
    return Split(images, index, {'label': np.arange(count, dtype=np.int32)})


def numbered_file(count, folder):
    """The same, its images in a file, as worker processes can read it."""
    split = numbered(count)
    np.save(folder / 'images.npy', split.images)
    return Split(cache.ArrayFile(str(folder / 'images.npy')), split.index, split.targets)


def seen(batch):
    """The positions that a batch holds, whichever placement it is of."""
    if 'position' in batch:
        return np.asarray(batch['position'])
    high, low = (np.asarray(batch['image'])[..., 0, i, 0].astype(np.int64) for i in (0, 1))
    np.testing.assert_array_equal(256 * high + low, batch['label'])
    return np.asarray(batch['label'])


def read(a_feed, step, count, batch_size):
    """The positions of the batches of `count` steps, (count, b), whichever placement the feed is of."""
    batch = a_feed.batch(step, count)
    if batch:
        return seen(batch)
    order = a_feed.order(a_feed.epoch(step))
    return np.stack([order[first:first + batch_size] for first in a_feed.first(step, count)])


def positions(order, first, end):
    return np.concatenate([order.positions(step) for step in range(first, end)])


def make_feed(split, when, *, on_device, seed=0, **fields):
    return feed.TrainFeed(split, seed, when, on_device=on_device, **fields)


# the order


@pytest.mark.parametrize('batch_size', [1, 7, 32, 50, 64, 100, 101, 350])
def test_each_epoch_holds_every_image_once_whatever_the_batch_size(batch_size):
    when = timeline(101, batch_size, epochs=4)
    order = feed.Order(3, when)
    sizes = [len(order.positions(step)) for step in range(when.total)]
    assert set(sizes) == {batch_size}
    stream = positions(order, 0, when.total)
    assert len(stream) >= 4 * 101
    for epoch in range(4):
        np.testing.assert_array_equal(np.sort(stream[epoch * 101:(epoch + 1) * 101]), np.arange(101))


def test_each_epoch_holds_every_image_once_where_the_batch_size_changes():
    when = timeline(60, 16, schedule=(({'steps': 5}, 24), ({'epochs': 3}, 150)), epochs=6)
    order = feed.Order(0, when)
    assert [len(order.positions(step)) for step in (4, 5)] == [16, 24]
    stream = positions(order, 0, when.total)
    for epoch in range(6):
        np.testing.assert_array_equal(np.sort(stream[epoch * 60:(epoch + 1) * 60]), np.arange(60))


def test_the_order_is_a_function_of_seed_and_epoch_and_not_of_the_batch_size():
    streams = {}
    for name, seed, batch_size in (('a', 0, 10), ('same', 0, 10), ('wider', 0, 45), ('other seed', 1, 10)):
        when = timeline(90, batch_size)
        streams[name] = positions(feed.Order(seed, when), 0, when.total)[:270].reshape(3, 90)
    np.testing.assert_array_equal(streams['a'], streams['same'])
    np.testing.assert_array_equal(streams['a'], streams['wider'])
    agreeing = (streams['a'] == streams['other seed']).mean()  # 1 in 90 by chance
    assert agreeing < 0.1
    for one, another in ((0, 1), (1, 2), (0, 2)):
        assert (streams['a'][one] == streams['a'][another]).mean() < 0.1


def test_first_places_are_drawn_evenly():
    first = [feed.Order(seed, timeline(8, 4)).positions(0)[0] for seed in range(800)]
    counts = np.bincount(first, minlength=8)  # 100 each by expectation, deviation 9.4
    assert 60 < counts.min() <= counts.max() < 140


# the feed


@pytest.mark.parametrize('on_device', [True, False], ids=['device', 'host'])
def test_a_feed_that_starts_at_any_step_gives_what_one_from_the_beginning_gives(on_device):
    split, when = numbered(101), timeline(101, 32, steps=12)
    whole = make_feed(split, when, on_device=on_device)
    expected = [read(whole, step, 1, 32)[0] for step in range(12)]
    for step in range(12):
        np.testing.assert_array_equal(expected[step], feed.Order(0, when).positions(step))
    for start in (0, 3, 4, 11):
        begun = make_feed(split, when, on_device=on_device)
        for step in range(start, 12):
            np.testing.assert_array_equal(read(begun, step, 1, 32)[0], expected[step])


@pytest.mark.parametrize('on_device', [True, False], ids=['device', 'host'])
def test_several_steps_at_once_are_their_batches_stacked_and_a_feed_may_jump(on_device):
    split, when = numbered(101), timeline(101, 16, steps=30)
    order, one = feed.Order(0, when), make_feed(split, when, on_device=on_device, most_steps=5)
    for step, count in ((0, 4), (4, 3), (20, 5), (2, 1), (3, 2), (29, 1)):
        found = read(one, step, count, 16)
        assert found.shape == (count, 16)
        np.testing.assert_array_equal(found.ravel(), positions(order, step, step + count))


@pytest.mark.parametrize('batch_size', [7, 40, 90])
def test_each_image_comes_with_its_place_and_its_epoch(batch_size):
    split, when = numbered(40), timeline(40, batch_size)
    host = make_feed(split, when, on_device=False)
    order = feed.Order(0, when)
    pairs = []
    for step in range(when.total):
        batch = host.batch(step, 1)
        np.testing.assert_array_equal(batch['position'][0], batch['label'][0])  # of `numbered`
        pairs += zip(batch['epoch'][0].tolist(), batch['position'][0].tolist(), strict=True)
        np.testing.assert_array_equal(batch['epoch'][0], order.epochs(step))
    assert len(set(pairs)) == len(pairs)
    assert set(pairs[:120]) == {(epoch, place) for epoch in range(3) for place in range(40)}


def test_worker_processes_feed_the_same_batches(tmp_path):
    split, when = numbered_file(101, tmp_path), timeline(101, 32, steps=8)
    rows = parallel.make_backend(cfg.ParallelConfig()).rows  # as a run hands it over
    host = make_feed(split, when, on_device=False, workers=1, rows=rows)
    for step in (2, 3, 7):
        np.testing.assert_array_equal(seen(host.batch(step, 1))[0], feed.Order(0, when).positions(step))


KILLED = '''
import os, signal, sys
from multiprocessing import active_children
from jaxcnn import config
from jaxcnn.train.setup import Setup
setup = Setup(config.parse(config.make(data=dict(name='digits', placement='host', workers=2))), sys.argv[1])
setup.feed.batch(0, 1)
print(*[child.pid for child in active_children()], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
'''


def test_worker_processes_end_with_a_run_that_is_killed(tmp_path):
    done = subprocess.run([sys.executable, '-c', KILLED, tmp_path], stdout=subprocess.PIPE)
    assert done.returncode == -signal.SIGKILL
    pids = done.stdout.split()
    assert len(pids) == 2
    while any(os.path.exists(f'/proc/{int(pid)}') for pid in pids):
        time.sleep(0.05)


def test_worker_processes_outlive_stop_signals_and_one_that_is_killed_is_named(tmp_path):
    split, when = numbered_file(101, tmp_path), timeline(101, 32, steps=400)
    before = set(multiprocessing.active_children())
    host = make_feed(split, when, on_device=False, workers=1)
    host.batch(0, 1)
    worker, = set(multiprocessing.active_children()) - before
    for signum in workers.STOP_SIGNALS:
        os.kill(worker.pid, signum)
    host.batch(1, 200)
    assert worker.is_alive()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r'killed by SIGKILL \(exit code -9\).*memory.*config\.data\.workers=0'):
        host.batch(201, 199)


def test_a_feed_that_is_closed_leaves_no_process(tmp_path):
    split, when = numbered_file(101, tmp_path), timeline(101, 32, steps=400)
    before = set(multiprocessing.active_children())
    host = make_feed(split, when, on_device=False, workers=1)
    host.batch(0, 1)
    assert set(multiprocessing.active_children()) != before
    host.close()
    assert set(multiprocessing.active_children()) == before


@pytest.mark.parametrize(('most_steps', 'batch_size'), [(1, 8), (7, 8), (1, 40), (5, 40)])
def test_an_order_reaches_to_the_end_of_every_stretch_that_begins_in_its_epoch(most_steps, batch_size):
    when = timeline(11, batch_size, steps=30)  # stretches of up to 200 images, epochs of 11
    a_feed, expected = make_feed(numbered(11), when, on_device=True, most_steps=most_steps), feed.Order(0, when)
    for step in range(30 - most_steps):
        np.testing.assert_array_equal(read(a_feed, step, most_steps, batch_size).ravel(),
                                      positions(expected, step, step + most_steps))
    assert len({a_feed.order(epoch).shape for epoch in range(5)}) == 1  # one shape, so one compilation


def test_rows_of_two_processes_make_the_global_batch():
    split, when = numbered(101), timeline(101, 32, steps=6)
    parts = [make_feed(split, when, on_device=False, rows=lambda size, part=part: slice(
        part * size // 2, (part + 1) * size // 2)) for part in range(2)]
    for step in range(0, 6, 2):
        both = np.concatenate([seen(part.batch(step, 2)) for part in parts], axis=1)
        np.testing.assert_array_equal(both.ravel(), positions(feed.Order(0, when), step, step + 2))


def test_a_resident_split_is_addressed_by_the_positions_of_the_feed():
    split, when = numbered(50), timeline(50, 16, steps=3)
    whole = feed.resident(split)
    batch = read(make_feed(split, when, on_device=True), 0, 1, 16)[0]
    np.testing.assert_array_equal(seen({name: leaf[batch] for name, leaf in whole.items()}), batch)


# evaluation


@pytest.mark.parametrize('on_device', [True, False], ids=['device', 'host'])
@pytest.mark.parametrize('devices', [1, 8])
@pytest.mark.parametrize(('count', 'batch_size'), [(1797, 256), (1009, 64), (512, 256), (256, 256), (3, 64), (65, 64)])
def test_evaluation_covers_every_image_exactly_once(count, batch_size, devices, on_device):
    split = numbered(count)
    taken, shapes = [], set()
    for part in range(devices):
        def rows(size, part=part):
            return slice(part * size // devices, (part + 1) * size // devices)
        for batch in feed.eval_batches(split, batch_size, on_device=on_device, rows=rows):
            shapes.add((batch['mask'].shape, seen(batch).shape))
            assert batch['mask'].dtype == np.float32
            taken.append(seen(batch)[batch['mask'] == 1])
            assert set(np.unique(batch['mask'])) <= {0, 1}
    np.testing.assert_array_equal(np.sort(np.concatenate(taken)), np.arange(count))
    assert shapes == {((batch_size // devices,),) * 2}  # one shape, so one compilation


def test_evaluation_keeps_the_order():
    batches = feed.eval_batches(numbered(70), 32, on_device=True)
    flat = np.concatenate([b['position'][b['mask'] > 0] for b in batches])
    np.testing.assert_array_equal(flat, np.arange(70))


# what is known of a data set


@pytest.mark.parametrize('channels', [1, 3])
def test_statistics_are_those_of_float64(channels):
    images = np.random.default_rng(0).integers(0, 256, (300, 7, 5, channels), np.uint8)
    images[..., 0] //= 5
    index = np.random.default_rng(1).permutation(300)[:217]
    mean, std = channel_statistics(Split(images, index, np.zeros(217, np.int32)), block=50)
    scaled = images[index].astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std((0, 1, 2)), rtol=1e-10)
    assert channel_statistics(Split(images, index, np.zeros(217, np.int32))) == (mean, std)


def test_statistics_stay_exact_where_the_mean_dwarfs_the_deviation():
    images = np.full((5000, 32, 32, 1), 254, np.uint8)
    images[0, 0, 0, 0] = 255
    _, std = channel_statistics(Split(images, np.arange(5000), np.zeros(5000, np.int32)))
    share = 1 / images.size
    np.testing.assert_allclose(std[0] * 255, np.sqrt(share * (1 - share)), rtol=1e-3)


def test_statistics_are_worked_out_once(tmp_path, monkeypatch):
    def load(**fields):
        found = data.load(cfg.DataConfig(name='digits', cache_dir=str(tmp_path), **fields))
        return found.mean, found.std

    counted = []
    monkeypatch.setattr(dataset, 'channel_statistics', lambda split: counted.append(split) or channel_statistics(split))
    first = load(split_seed=3)
    other = load(split_seed=4)
    assert len(counted) == 2
    assert other != first
    assert [load(split_seed=3), load(split_seed=4)] == [first, other]
    assert len(counted) == 2
    kept = list(tmp_path.glob('*/train.images.npy.*.json'))
    assert len(kept) == 2
    for path in kept:
        path.write_text(path.read_text().replace('0.', '1.', 1))
    assert [load(split_seed=3), load(split_seed=4)] == [first, other]
    assert len(counted) == 4


def test_a_channel_that_never_varies_has_deviation_one():
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 2), np.uint8)
    images[..., 1] = 77
    mean, std = channel_statistics(Split(images, np.arange(20), {'label': np.zeros(20, np.int32)}))
    assert std[0] != 1
    assert (mean[1], std[1]) == (77 / 255, 1.0)


def test_the_validation_part_is_disjoint_and_stratified_and_the_test_part_stays():
    whole = data.load(cfg.DataConfig(name='digits', val_fraction=0.0))
    assert set(whole.splits) == {'train', 'test'}
    parted = data.load(cfg.DataConfig(name='digits', val_fraction=0.2))
    train, val = parted.splits['train'], parted.splits['val']
    count = len(whole.splits['train'])
    assert len(val) == round(0.2 * count)
    np.testing.assert_array_equal(np.sort(np.concatenate([train.index, val.index])), np.arange(count))
    everyone = np.array(whole.class_counts('train'))
    assert (np.abs(np.array(parted.class_counts('val')) - 0.2 * everyone) < 1).all()
    for part in (train, val):
        np.testing.assert_array_equal(part.targets['label'], whole.splits['train'].targets['label'][part.index])
        np.testing.assert_array_equal(part.take(np.arange(3)), whole.splits['train'].take(part.index[:3]))
    np.testing.assert_array_equal(feed.resident(parted.splits['test'])['image'],
                                  feed.resident(whole.splits['test'])['image'])


def test_the_validation_part_follows_its_own_seed_and_statistics_leave_it_out():
    zero, again, one = (data.load(cfg.DataConfig(name='digits', val_fraction=0.5, split_seed=s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(zero.splits['val'].index, again.splits['val'].index)
    assert not np.array_equal(zero.splits['val'].index, one.splits['val'].index)
    pixels = zero.splits['train'].take(np.arange(len(zero.splits['train']))) / 255
    np.testing.assert_allclose(zero.mean[0], pixels.mean(), rtol=1e-12)
    assert zero.mean != one.mean


def test_a_validation_part_without_images_is_told():
    with pytest.raises(UserError, match=r'config\.data\.val_fraction: 0\.0001 of 1438 images'):
        data.load(cfg.DataConfig(name='digits', val_fraction=0.0001))


def test_a_data_set_is_described_by_its_info():
    info = data.load(cfg.DataConfig(name='digits', image_size=12)).info()
    assert info['image_shape'] == [12, 12, 1]
    assert info['class_names'] == [str(i) for i in range(10)]
    assert info['sizes'] == {'train': 1294, 'val': 144, 'test': 359}
    assert info['ink'] == {'size': 8, 'box': 8, 'by_mass': False}


# skewed classes


def test_a_balanced_epoch_has_as_many_images_of_each_class_and_every_image_of_the_rare_ones():
    labels = np.repeat([0, 1, 2], [300, 25, 7])
    order, again, other = (feed.Order(seed, timeline(332, 10), labels) for seed in (3, 3, 4))
    for epoch in range(3):
        drawn = order.stretch(332 * epoch, 332 * (epoch + 1))
        counts = np.bincount(labels[drawn])
        assert counts.sum() == 332
        assert set(counts) <= {110, 111}
        assert set(np.flatnonzero(labels > 0)) <= set(drawn)
        assert np.bincount(drawn)[labels == 2].max() - np.bincount(drawn)[labels == 2].min() <= 1
        assert len(set(drawn[labels[drawn] == 0])) == counts[0]
        np.testing.assert_array_equal(drawn, again.stretch(332 * epoch, 332 * (epoch + 1)))
        assert np.any(drawn != other.stretch(332 * epoch, 332 * (epoch + 1)))
        assert np.abs(np.corrcoef(np.arange(332), labels[drawn])[0, 1]) < 0.25
