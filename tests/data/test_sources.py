"""Data sources: scikit-learn's digits, prepared TFDS data sets, and the stratified cut."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits
from tfds_files import VERSION, write_tfds

from jaxcnn import data
from jaxcnn.config import DataConfig
from jaxcnn.data import sources
from jaxcnn.errors import UserError
from jaxcnn.train import train_and_evaluate

COUNTS = {'train': 50, 'test': 20}
SHAPES = {'mnist': (28, 28, 1), 'cifar10': (32, 32, 3)}


def random_parts(name, seed=0):
    rng = np.random.default_rng(seed)
    return {split: (rng.integers(0, 256, (n, *SHAPES[name]), np.uint8), rng.permutation(np.arange(n) % 10))
            for split, n in COUNTS.items()}


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """The folder of a tiny MNIST and a tiny CIFAR-10, and what was written."""
    folder = tmp_path_factory.mktemp('tfds')
    written = {name: random_parts(name) for name in SHAPES}
    for name, parts in written.items():
        write_tfds(folder, name, parts)
    return folder, written


def config(folder, name='mnist', **fields):
    return DataConfig(name=name, dir=str(folder), **{'val_fraction': 0.0, **fields})


def load_fresh(folder, tmp_path):
    return data.load(config(folder, cache_dir=str(tmp_path / 'fresh')))


# ImageNet


def test_imagenet_is_read_as_tfds_prepares_it(tmp_path):
    """JPEG files of any size, 1,000 classes, a test part without labels: networks are judged by its validation part."""
    rng = np.random.default_rng(0)

    def images(count):
        sides = rng.integers(60, 120, (count, 2)) // 8 * 8
        return [np.broadcast_to(rng.integers(0, 256, 3, np.uint8), (*side, 3)) for side in sides]
    labels = rng.permutation(np.tile(np.arange(0, 1000, 50), 3))
    parts = {'train': (images(60), labels), 'validation': (images(20), labels[:20]), 'test': (images(5), [-1] * 5)}
    write_tfds(tmp_path, 'imagenet2012', parts, classes=1000, kind='JPEG')
    dataset = data.load(config(tmp_path, 'imagenet2012', val_fraction=0.2, image_size=32, cache_dir=str(tmp_path / 'cache')))
    assert {name: len(split) for name, split in dataset.splits.items()} == {'train': 48, 'val': 12, 'test': 20}
    assert (dataset.num_classes, dataset.image_shape) == (1000, (32, 32, 3))
    test = dataset.splits['test']
    for i, (image, label) in enumerate(zip(*parts['validation'], strict=True)):
        assert test.targets['label'][i] == label
        np.testing.assert_allclose(test.take(np.array(i)).astype(int), image[:32, :32], atol=3)  # but for JPEG's rounding
    used = data.load(config(tmp_path, 'imagenet2012', val_fraction=None, image_size=32, cache_dir=str(tmp_path / 'cache')))
    assert {name: len(split) for name, split in used.splits.items()} == {'train': 54, 'val': 6, 'test': 20}


# digits


def test_digits_are_cut_into_fixed_disjoint_stratified_parts():
    source = sources.find(DataConfig(name='digits'))
    parts = {name: read() for name, read in source.splits.items()}
    assert {name: len(part) for name, part in parts.items()} == {'train': 1438, 'test': 359}
    everything = load_digits()
    for c in range(10):
        share = sum(label == c for label in parts['test'].targets['label']) / np.sum(everything.target == c)
        assert abs(share - 0.2) < 1 / 170
    # every image once: no two images of the set are equal
    seen = np.concatenate([part.images.reshape(-1, 64) for part in parts.values()])
    written = np.round(everything.images * 255 / 16).astype(np.uint8).reshape(-1, 64)
    assert len(np.unique(written, axis=0)) == len(written) == 1797
    np.testing.assert_array_equal(np.unique(seen, axis=0), np.unique(written, axis=0))
    # and no seed of the run moves it
    again = sources.find(DataConfig(name='digits', split_seed=7)).splits['test']()
    np.testing.assert_array_equal(again.images, parts['test'].images)


def test_digits_test_part_is_the_same_in_every_release():
    labels = load_digits().target
    _, test = sources.stratified_cut(labels, 0.2, seed=0)
    assert test[:10].tolist() == [6, 17, 20, 32, 36, 37, 46, 47, 51, 56]
    assert int(test.astype(np.int64) @ np.arange(len(test))) == 77730253


# the stratified cut


@pytest.mark.parametrize(('counts', 'fraction'), [
    ([100] * 10, 0.1), ([178, 182, 177, 183, 181, 182, 181, 179, 174, 180], 0.2), ([1, 1, 1, 1], 0.5),
    ([1000, 3, 40], 1 / 3), ([7, 11, 13], 0.9),
    ([5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949], 0.1)])
def test_a_cut_has_the_exact_size_and_the_share_of_every_class(counts, fraction):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    large, small = sources.stratified_cut(labels, fraction, seed=3)
    assert len(small) == round(fraction * len(labels))
    np.testing.assert_array_equal(np.sort(np.concatenate([large, small])), np.arange(len(labels)))
    for part in (large, small):
        assert (np.diff(part) > 0).all()
    taken = np.bincount(labels[small], minlength=len(counts))
    assert (np.abs(taken - np.array(counts) * fraction) < 1).all()


def test_a_cut_is_a_function_of_its_seed():
    labels = np.arange(400) % 7
    cuts = [sources.stratified_cut(labels, 0.25, seed)[1] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(cuts[0], cuts[1])
    assert len(np.intersect1d(cuts[0], cuts[2])) < 60  # a quarter of 100 by chance


def test_a_cut_draws_from_the_whole_of_each_class():
    drawn = np.concatenate([sources.stratified_cut(np.zeros(50, int), 0.2, seed)[1] for seed in range(100)])
    counts = np.bincount(drawn, minlength=50)  # 20 each by expectation
    assert 5 < counts.min() <= counts.max() < 40


# prepared TFDS data sets


@pytest.mark.parametrize('name', SHAPES)
def test_a_prepared_data_set_gives_the_images_and_labels_that_were_written(prepared, name):
    folder, written = prepared
    loaded = data.load(config(folder, name))
    assert loaded.class_names == [f'class {i}' for i in range(10)]
    assert set(loaded.splits) == {'train', 'test'}
    for split, (images, labels) in written[name].items():
        part = loaded.splits[split]
        np.testing.assert_array_equal(part.take(np.arange(len(part))), images)
        np.testing.assert_array_equal(part.targets['label'], labels)
        assert part.images[0].dtype == np.uint8
        assert part.targets['label'].dtype == np.int32


def test_reading_a_prepared_data_set_imports_no_tensorflow(prepared, tmp_path):
    folder, written = prepared
    touched = tmp_path / 'touched'
    (tmp_path / 'stub' / 'tensorflow').mkdir(parents=True)  # found before any installed one
    (tmp_path / 'stub' / 'tensorflow' / '__init__.py').write_text(
        f'open({str(touched)!r}, "w").close()\nraise ImportError("no TensorFlow here")\n')
    code = (f'import sys; sys.path.insert(0, {str(tmp_path / "stub")!r})\n'
            'from jaxcnn import data; from jaxcnn.config import DataConfig\n'
            f'd = data.load(DataConfig(name="mnist", dir={str(folder)!r}, cache_dir={str(tmp_path / "cache")!r}))\n'
            'assert "tensorflow" not in sys.modules\n'
            'print(sum(int(s.take(range(len(s))).sum()) for s in d.splits.values()))')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == sum(int(images.sum()) for images, _ in written['mnist'].values())
    assert not touched.exists()


def test_the_newest_version_is_read(prepared, tmp_path):
    folder, _ = prepared
    root = tmp_path / 'versions' / 'mnist'
    for version in ('2.9.9', VERSION, '10.0.0'):
        shutil.copytree(folder / 'mnist' / VERSION, root / version)
    (root / '11.0.0.incomplete').mkdir()
    assert sources.find(config(tmp_path / 'versions')).key['version'] == '10.0.0'


def test_missing_data_tells_how_to_prepare_it(tmp_path, monkeypatch):
    with pytest.raises(UserError) as error:
        data.load(config(tmp_path / 'nowhere', 'cifar10'))
    message = str(error.value)
    assert "'cifar10'" in message
    assert str(tmp_path / 'nowhere') in message
    assert 'config.data.dir' in message
    assert f'tfds build cifar10 --file_format=array_record --data_dir={tmp_path / "nowhere"}' in message
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'from_environment'))
    with pytest.raises(UserError, match='from_environment'):
        data.load(DataConfig(name='mnist'))


def test_an_empty_version_folder_is_not_a_prepared_data_set(tmp_path):
    (tmp_path / 'mnist' / VERSION).mkdir(parents=True)
    with pytest.raises(UserError, match=r"config\.data\.dir: data set 'mnist' is not prepared in"):
        data.load(config(tmp_path))


def test_an_unknown_data_set_gives_the_nearest_names():
    with pytest.raises(UserError, match=r"unknown data set 'cifar11'; nearest: cifar10"):
        data.load(DataConfig(name='cifar11'))
    with pytest.raises(UserError, match=r"unknown data set 'zzzz'; known: arrays, cifar10, .*digits.*; any other TFDS set"):
        data.load(DataConfig(name='zzzz'))


def test_any_prepared_classification_set_trains(tmp_path, small):
    version = write_tfds(tmp_path, 'eurosat', random_parts('cifar10'))
    fields = dict(data=dict(name='eurosat', dir=str(tmp_path), image_size=16), duration=dict(steps=2))
    assert train_and_evaluate(small(**fields), str(tmp_path / 'run'))['dataset'] == 'eurosat'
    features = json.loads((version / 'features.json').read_text())
    features['featuresDict']['features']['kind'] = features['featuresDict']['features'].pop('label')
    (version / 'features.json').write_text(json.dumps(features))
    with pytest.raises(UserError, match='has no label of classes to train on; there are: image, kind'):
        sources.find(config(tmp_path, 'eurosat')).class_names()


def test_an_image_that_does_not_decode_is_named_with_its_file(tmp_path):
    version = write_tfds(tmp_path, 'mnist', random_parts('mnist'), broken=7)
    with pytest.raises(UserError) as error:
        load_fresh(tmp_path, tmp_path)
    assert str(version) in str(error.value)
    assert 'train image 7' in str(error.value)
    assert 'cache_dir' not in str(error.value)


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[:len(content) // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(('file', 'damage'), [
    ('dataset_info.json', cut), ('features.json', cut), ('features.json', os.remove),
    ('mnist-train.array_record-00000-of-00001', cut), ('mnist-train.array_record-00000-of-00001', flip),
    ('mnist-test.array_record-00000-of-00001', os.remove)])
def test_a_damaged_data_folder_is_named(prepared, tmp_path, file, damage):
    folder, _ = prepared
    shutil.copytree(folder / 'mnist', tmp_path / 'mnist')
    damage(tmp_path / 'mnist' / VERSION / file)
    with pytest.raises(UserError) as error:
        load_fresh(tmp_path, tmp_path)
    assert str(tmp_path / 'mnist') in str(error.value)
