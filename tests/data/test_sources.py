"""Sources: scikit-learn's digits and prepared TFDS data sets; the stratified split."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits
from tfds_files import VERSION, write_tfds, write_tfds_boxes

from jaxcnn import data
from jaxcnn.config import DataConfig
from jaxcnn.data import picture, sources
from jaxcnn.data.targets import BOXES
from jaxcnn.errors import UserError

COUNTS = {'train': 50, 'test': 20}
SHAPES = {'mnist': (28, 28, 1), 'cifar10': (32, 32, 3)}


def random_splits(name):
    rng = np.random.default_rng(0)
    return {split: (rng.integers(0, 256, (n, *SHAPES[name]), np.uint8), rng.permutation(np.arange(n) % 10))
            for split, n in COUNTS.items()}


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """The folder of a small MNIST and a small CIFAR-10, and their images and labels by data set and split."""
    folder = tmp_path_factory.mktemp('tfds')
    contents = {name: random_splits(name) for name in SHAPES}
    for name, splits in contents.items():
        write_tfds(folder, name, splits)
    return folder, contents


def config(folder, name='mnist', **fields):
    return DataConfig(name=name, dir=str(folder), **{'val_fraction': 0.0, **fields})


# boxes


@pytest.mark.parametrize(('name', 'flag', 'expected', 'splits'), [
    ('voc/2007', 'is_difficult', [[3, 2, 8, 12], [0, 0, 16, 6]], {'train': 2, 'val': 1, 'test': 3}),
    ('voc/2012', 'is_difficult', [[3, 2, 8, 12], [0, 0, 16, 6]], {'train': 2, 'test': 1}),
    ('coco/2017', 'is_crowd', [[4, 3, 8, 12], [1, 1, 16, 6]], {'train': 2, 'test': 1})])
def test_boxes_are_read_as_tfds_prepares_them(tmp_path, name, flag, expected, splits):
    """TFDS gives `y0, x0, y1, x1` in fractions of the image, for Pascal VOC of the numbers in its files."""
    objects = [(1, (3 / 12, 4 / 16, 1, 8 / 16), False), (0, (1 / 12, 1 / 16, 6 / 12, 1), True)]
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (12, 16, 3), np.uint8) for _ in range(6)]
    write_tfds_boxes(tmp_path, name, {'train': [(images[0], objects), (images[1], [])], 'validation': [(images[2], objects)],
                                      'test': [(image, objects) for image in images[3:]]}, flag)
    dataset = data.load(DataConfig(name=name, dir=str(tmp_path), cache_dir=str(tmp_path / 'cache'), val_fraction=None
                                   if 'val' in splits else 0.0, max_boxes=3), BOXES)
    assert {split: len(examples) for split, examples in dataset.splits.items()} == splits
    assert dataset.class_names == ['ant', 'bee']
    train = dataset.splits['train']
    np.testing.assert_array_equal(train.take(np.arange(2)), images[:2])
    np.testing.assert_allclose(train.targets['boxes'][0, :2], expected, atol=1e-5)
    assert train.targets['valid'].tolist() == [[True, True, False], [False] * 3]
    assert train.targets['classes'][0].tolist() == [1, 0, 0]
    assert train.targets['difficult'][0].tolist() == [False, True, False]


# ImageNet


def test_imagenet_is_read_as_tfds_prepares_it(tmp_path):
    """It has JPEG files of any size, 1,000 classes and a test split without labels, so `validation` is the test split."""
    rng = np.random.default_rng(0)

    def images(count):
        sides = rng.integers(60, 120, (count, 2)) // 8 * 8
        return [np.broadcast_to(rng.integers(0, 256, 3, np.uint8), (*side, 3)) for side in sides]
    labels = rng.permutation(np.tile(np.arange(0, 1000, 50), 3))
    contents = {'train': (images(60), labels), 'validation': (images(20), labels[:20]), 'test': (images(5), [-1] * 5)}
    write_tfds(tmp_path, 'imagenet2012', contents, classes=1000, kind='JPEG')

    def load(val_fraction):
        return data.load(config(tmp_path, 'imagenet2012', val_fraction=val_fraction, image_size=32,
                                cache_dir=str(tmp_path / 'cache')))
    dataset = load(0.2)
    assert {name: len(split) for name, split in dataset.splits.items()} == {'train': 48, 'val': 12, 'test': 20}
    assert (dataset.num_classes, dataset.image_shape) == (1000, (32, 32, 3))
    test = dataset.splits['test']
    for i, (image, label) in enumerate(zip(*contents['validation'], strict=True)):
        assert test.targets['label'][i] == label
        np.testing.assert_allclose(test.take(np.array(i)).astype(int), image[:32, :32], atol=3)  # JPEG is lossy
    assert {name: len(split) for name, split in load(None).splits.items()} == {'train': 54, 'val': 6, 'test': 20}


# digits


def test_digits_have_disjoint_stratified_splits_that_no_seed_changes():
    source = sources.find(DataConfig(name='digits'))
    splits = {name: read() for name, read in source.splits.items()}
    assert {name: len(split) for name, split in splits.items()} == {'train': 1438, 'test': 359}
    digits = load_digits()
    for c in range(10):
        fraction = np.sum(splits['test'].targets['label'] == c) / np.sum(digits.target == c)
        assert abs(fraction - 0.2) < 1 / 170
    # each image occurs once: no two images of the data set are equal
    images = np.concatenate([split.images.reshape(-1, 64) for split in splits.values()])
    expected = np.round(digits.images * 255 / 16).astype(np.uint8).reshape(-1, 64)
    assert len(np.unique(expected, axis=0)) == len(expected) == 1797
    np.testing.assert_array_equal(np.unique(images, axis=0), np.unique(expected, axis=0))
    with_other_seed = sources.find(DataConfig(name='digits', split_seed=7)).splits['test']()
    np.testing.assert_array_equal(with_other_seed.images, splits['test'].images)


def test_the_test_split_of_digits_is_the_same_in_every_release():
    _, test = sources.stratified_split(load_digits().target, 0.2, seed=0)
    assert test[:10].tolist() == [6, 17, 20, 32, 36, 37, 46, 47, 51, 56]
    assert int(test.astype(np.int64) @ np.arange(len(test))) == 77730253


# the stratified split


@pytest.mark.parametrize(('counts', 'fraction'), [
    ([100] * 10, 0.1), ([178, 182, 177, 183, 181, 182, 181, 179, 174, 180], 0.2), ([1, 1, 1, 1], 0.5),
    ([1000, 3, 40], 1 / 3), ([7, 11, 13], 0.9),
    ([5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949], 0.1)])
def test_a_stratified_split_has_the_exact_size_and_the_fraction_of_each_class(counts, fraction):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    first, second = sources.stratified_split(labels, fraction, seed=3)
    assert len(second) == round(fraction * len(labels))
    np.testing.assert_array_equal(np.sort(np.concatenate([first, second])), np.arange(len(labels)))
    for indices in (first, second):
        assert (np.diff(indices) > 0).all()
    second_counts = np.bincount(labels[second], minlength=len(counts))
    assert (np.abs(second_counts - np.array(counts) * fraction) < 1).all()


def test_a_stratified_split_depends_only_on_its_seed():
    labels = np.arange(400) % 7
    subsets = [sources.stratified_split(labels, 0.25, seed)[1] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(subsets[0], subsets[1])
    assert len(np.intersect1d(subsets[0], subsets[2])) < 60  # 25 are expected by chance


def test_a_stratified_split_draws_all_members_of_a_class_with_equal_probability():
    drawn = np.concatenate([sources.stratified_split(np.zeros(50, int), 0.2, seed)[1] for seed in range(100)])
    counts = np.bincount(drawn, minlength=50)  # 20 of each are expected
    assert 5 < counts.min() <= counts.max() < 40


# prepared TFDS data sets


@pytest.mark.parametrize('name', SHAPES)
def test_a_prepared_data_set_has_the_images_and_labels_that_were_written(prepared, name):
    folder, contents = prepared
    dataset = data.load(config(folder, name))
    assert dataset.class_names == [f'class {i}' for i in range(10)]
    assert set(dataset.splits) == {'train', 'test'}
    for split_name, (images, labels) in contents[name].items():
        split = dataset.splits[split_name]
        np.testing.assert_array_equal(split.take(np.arange(len(split))), images)
        np.testing.assert_array_equal(split.targets['label'], labels)
        assert split.images[0].dtype == np.uint8
        assert split.targets['label'].dtype == np.int32
        examples = sources.find(config(folder, name)).splits[split_name]()
        assert isinstance(examples, sources.EncodedExamples)
        pixels = picture.decode(examples.encoded(3), examples.mode)
        np.testing.assert_array_equal(pixels.reshape(SHAPES[name]), images[3])
        np.testing.assert_array_equal(examples.read_targets()['label'], labels)


def test_reading_a_prepared_data_set_imports_no_tensorflow(prepared, tmp_path):
    folder, contents = prepared
    import_mark = tmp_path / 'imported'
    (tmp_path / 'stub' / 'tensorflow').mkdir(parents=True)  # comes before an installed one
    (tmp_path / 'stub' / 'tensorflow' / '__init__.py').write_text(
        f'open({str(import_mark)!r}, "w").close()\nraise ImportError("no TensorFlow here")\n')
    code = (f'import sys; sys.path.insert(0, {str(tmp_path / "stub")!r})\n'
            'from jaxcnn import data; from jaxcnn.config import DataConfig\n'
            f'd = data.load(DataConfig(name="mnist", dir={str(folder)!r}, cache_dir={str(tmp_path / "cache")!r}))\n'
            'assert "tensorflow" not in sys.modules\n'
            'print(sum(int(s.take(range(len(s))).sum()) for s in d.splits.values()))')
    process = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert int(process.stdout) == sum(int(images.sum()) for images, _ in contents['mnist'].values())
    assert not import_mark.exists()


def test_the_newest_version_is_read(prepared, tmp_path):
    folder, _ = prepared
    root = tmp_path / 'versions' / 'mnist'
    for version in ('2.9.9', VERSION, '10.0.0'):
        shutil.copytree(folder / 'mnist' / VERSION, root / version)
    (root / '11.0.0.incomplete').mkdir()
    assert sources.find(config(tmp_path / 'versions')).key['version'] == '10.0.0'


def test_the_error_for_missing_data_says_how_to_prepare_it(tmp_path, monkeypatch):
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


def test_the_error_for_an_unknown_data_set_names_the_nearest_ones():
    with pytest.raises(UserError, match=r"unknown data set 'cifar11'; nearest: cifar10"):
        data.load(DataConfig(name='cifar11'))
    with pytest.raises(UserError, match=r"unknown data set 'zzzz'; known: arrays, cifar10, .*digits.*; any other TFDS set"):
        data.load(DataConfig(name='zzzz'))


def test_any_prepared_classification_data_set_can_be_loaded(tmp_path):
    splits = random_splits('cifar10')
    version = write_tfds(tmp_path, 'eurosat', splits)
    dataset = data.load(config(tmp_path, 'eurosat', image_size=16))
    assert dataset.name == 'eurosat'
    assert dataset.image_shape == (16, 16, 3)
    np.testing.assert_array_equal(dataset.splits['train'].targets['label'], splits['train'][1])
    features = json.loads((version / 'features.json').read_text())
    features['featuresDict']['features']['kind'] = features['featuresDict']['features'].pop('label')
    (version / 'features.json').write_text(json.dumps(features))
    with pytest.raises(UserError, match='has no class label to train on; its features are: image, kind'):
        sources.find(config(tmp_path, 'eurosat')).class_names()


def test_the_error_for_an_image_that_cannot_be_decoded_names_it(tmp_path):
    version = write_tfds(tmp_path, 'mnist', random_splits('mnist'), broken=7)
    with pytest.raises(UserError) as error:
        data.load(config(tmp_path, cache_dir=str(tmp_path / 'cache')))
    assert str(version) in str(error.value)
    assert 'train image 7' in str(error.value)
    assert 'cache_dir' not in str(error.value)


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[:len(content) // 2])


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(('file', 'damage'), [
    ('dataset_info.json', truncate), ('features.json', truncate), ('features.json', os.remove),
    ('mnist-train.array_record-00000-of-00001', truncate), ('mnist-train.array_record-00000-of-00001', flip_bit),
    ('mnist-test.array_record-00000-of-00001', os.remove)])
def test_the_error_for_a_damaged_data_folder_names_it(prepared, tmp_path, file, damage):
    folder, _ = prepared
    shutil.copytree(folder / 'mnist', tmp_path / 'mnist')
    damage(tmp_path / 'mnist' / VERSION / file)
    with pytest.raises(UserError) as error:
        data.load(config(tmp_path, cache_dir=str(tmp_path / 'cache')))
    assert str(tmp_path / 'mnist') in str(error.value)
