"""Data sets that the library of Hugging Face has saved to disk."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from jaxcnn import data
from jaxcnn.config import ColumnsConfig, DataConfig
from jaxcnn.data import picture, sources
from jaxcnn.data.targets import LABELS
from jaxcnn.errors import UserError

COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
NAMES = ['cow', 'bee', 'ant']  # the order of the labels, which is not that of the alphabet


@pytest.fixture(scope='module')
def datasets():
    return pytest.importorskip('datasets')


def encoded(label):
    file = io.BytesIO()
    image = Image.new('RGB', (8, 6), COLOURS[label])
    exif = image.getexif()
    exif[0x0112] = 6  # rotated
    image.save(file, 'PNG', exif=exif)
    return file.getvalue()


def make_split(datasets, labels, feature=None, column='label', **columns):
    feature = feature or datasets.ClassLabel(names=NAMES)
    images = [{'bytes': encoded((label or 0) % 3 if isinstance(label, int) else 0), 'path': None} for label in labels]
    features = {'photo': datasets.Image(), column: feature, **{name: datasets.Value('int64') for name in columns}}
    return datasets.Dataset.from_dict({'photo': images, column: labels, **columns}, datasets.Features(features))


def config(root, **fields):
    return DataConfig(name='huggingface', dir=str(root), cache_dir=str(root.parent / 'cache'), **fields)


def test_a_saved_data_set_holds_images_and_labels(datasets, tmp_path):
    """The numbers of labels are kept, the order of a file replaces them, and unlabelled images are skipped."""
    splits = {'train': [2, 0, -1, 1, 0], 'validation': [1, 2], 'unsupervised': [-1]}
    saved = datasets.DatasetDict({name: make_split(datasets, labels) for name, labels in splits.items()})
    saved.save_to_disk(tmp_path / 'set')
    unlabelled = data.load(config(tmp_path / 'set'), unlabelled=True).unlabelled
    np.testing.assert_array_equal(unlabelled.take(np.arange(2))[:, 0, 0], [COLOURS[2]] * 2)  # of train, and of unsupervised
    dataset = data.load(config(tmp_path / 'set'))
    assert dataset.class_names == NAMES
    assert {name: split.targets['label'].tolist() for name, split in dataset.splits.items()} == {
        'train': [2, 0, 1, 0], 'val': [1, 2]}
    assert dataset.image_shape == (8, 6, 3)  # upright
    (tmp_path / 'classes.json').write_text('["ant", "bee", "cow", "elk"]')
    source = sources.find(config(tmp_path / 'set', class_file=str(tmp_path / 'classes.json')))
    assert source.class_names() == ['ant', 'bee', 'cow', 'elk']
    examples = source.splits['train']()
    assert isinstance(examples, sources.EncodedExamples)
    assert examples.read_targets()['label'].tolist() == [0, 2, 1, 2]
    assert examples.encoded(2) == encoded(1)
    np.testing.assert_array_equal(picture.decode(examples.encoded(2), examples.mode), examples[2]['image'])
    assert examples.image_name(2) == f'{tmp_path}/set: train row 3'


def test_labels_may_be_names_or_sets_and_columns_have_any_name(datasets, tmp_path):
    names = make_split(datasets, ['ant', 'cow', None], datasets.Value('string'), 'species', height=[1, 2, 3])
    names.save_to_disk(tmp_path / 'a')
    columns = ColumnsConfig(image='photo', label='species')
    source = sources.find(config(tmp_path / 'a', columns=columns))
    assert source.class_names() == ['ant', 'cow']
    assert source.splits['train']().read_targets()['label'].tolist() == [0, 1]
    with pytest.raises(UserError, match=r'a: train: no column holds labels; config\.data\.columns\.label names the column'):
        sources.find(config(tmp_path / 'a'))
    with pytest.raises(UserError, match=r"^config\.data\.columns\.label: .* has no column 'specie'; nearest: species"):
        sources.find(config(tmp_path / 'a', columns=ColumnsConfig(label='specie')))
    sets = make_split(datasets, [[0, 2], []], datasets.List(datasets.ClassLabel(names=NAMES)), 'labels')
    sets.save_to_disk(tmp_path / 'b')
    targets = sources.find(config(tmp_path / 'b'), LABELS).splits['train']().read_targets()
    assert targets['labels'].tolist() == [[1, 0, 1], [0, 0, 0]]


def test_the_error_for_another_folder_is_one_line(datasets, tmp_path):
    (tmp_path / 'set').mkdir()
    with pytest.raises(UserError, match=r'^config\.data\.dir: .*set: cannot be read: .*; expected what save_to_disk of a'):
        sources.find(config(tmp_path / 'set'))


def test_the_error_without_the_library_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'datasets', None)
    with pytest.raises(UserError, match=r"^config\.data\.name: .* library datasets; pip install 'jaxcnn\[huggingface\]'$"):
        sources.find(config(tmp_path))
