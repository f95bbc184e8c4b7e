"""Tar shards as WebDataset writes them."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from jaxcnn import data
from jaxcnn.config import ColumnsConfig, DataConfig
from jaxcnn.data import picture, sources
from jaxcnn.data.targets import LABELS
from jaxcnn.errors import UserError

COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]


def image(label, size=(8, 6), kind='PNG'):
    file = io.BytesIO()
    Image.new('RGB', size, COLOURS[label]).save(file, kind)
    return file.getvalue()


def write_shard(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w') as shard:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    return path


def samples(*labels, start=0):
    return [(f'{start + i:04d}.{ending}', content) for i, label in enumerate(labels)
            for ending, content in (('png', image(label)), ('cls', str(label).encode()))]


def config(root, **fields):
    return DataConfig(name='webdataset', dir=str(root), cache_dir=str(root.parent / 'cache'), **fields)


@pytest.mark.parametrize(('train', 'test'), [('train-000000.tar', 'set-validation-0.tar'), ('train/0.tar', 'valid/0.tar')])
def test_shards_hold_images_with_labels(tmp_path, train, test):
    """Labels are numbers, fields of JSON or names; names of files may be long, and files of other kinds are ignored."""
    root, key = tmp_path / 'set', 'a' * 120 + '/b'
    first = [('0.png', image(2)), ('0.cls', b'2\n'), ('0.txt', b'a photo'), ('x/1.json', b'{"label": "ant"}'),
             ('x/1.PNG', image(0)), (f'{key}.webp', image(1, kind='WEBP')), (f'{key}.txt', b'bee'),
             ('3.json', b'{"label": null}'), ('3.png', image(0)), ('.hidden', b'')]
    write_shard(root / train, first)
    write_shard(root / train.replace('0.tar', '1.tar'), samples(1, 1))
    write_shard(root / test, samples(0, 1, 2))
    (tmp_path / 'classes.txt').write_text('ant\nbee\ncow')
    for _ in range(2):  # the second time with the cached index
        source = sources.find(config(root, class_file=str(tmp_path / 'classes.txt')))
    examples = source.splits['train']()
    assert isinstance(examples, sources.EncodedExamples)
    assert source.class_names() == ['ant', 'bee', 'cow']
    assert source.paths['train'][1] == f'{train}/x/1.PNG'
    assert examples.read_targets()['label'].tolist() == [2, 0, 1, 1, 1]
    for index, label in enumerate([2, 0, 1, 1, 1]):
        assert examples[index]['label'] == label
        assert np.abs(examples[index]['image'].astype(int) - COLOURS[label]).max() < 8
        assert examples[index]['image'].shape == (6, 8, 3)
    assert examples.encoded(0) == image(2)
    np.testing.assert_array_equal(picture.decode(image(2), examples.mode), examples[0]['image'])
    dataset = data.load(config(root, class_file=str(tmp_path / 'classes.txt')))
    assert dataset.splits['val'].targets['label'].tolist() == [0, 1, 2]
    assert dataset.class_counts('train') == [1, 3, 1]


def test_json_may_hold_several_classes(tmp_path):
    files = [('0.json', json.dumps({'tags': ['ant', 'cow']}).encode()), ('0.png', image(0)), ('1.json', b'{"tags": []}'),
             ('1.png', image(0))]
    path = write_shard(tmp_path / 'set' / 'all.tar', files)
    source = sources.find(config(path, columns=ColumnsConfig(label='tags')), LABELS)
    assert source.splits['train']().read_targets()['labels'].tolist() == [[1, 1], [0, 0]]
    with pytest.raises(UserError, match=r"all\.tar/0\.png: has 2 classes; config\.task='multilabel' takes several"):
        sources.find(config(path, columns=ColumnsConfig(label='tags')))


def truncated(path, size):
    content = path.read_bytes()
    path.write_bytes(content[:size])


MEMBERS = 512 * 2  # bytes of a header and of a short file


@pytest.mark.parametrize(('damage', 'line', 'count'), [
    (lambda path: truncated(path, 4 * MEMBERS + 540), r"is truncated or damaged after '0002\.png': unexpected end .*", 2),
    (lambda path: truncated(path, 4 * MEMBERS), r"is truncated or damaged after '0001\.cls'", 2),
    (lambda path: path.write_bytes(path.read_bytes().replace(b'0002.png', b'0002.pn!')),
     r"is truncated or damaged after '0001\.cls'", 2),
    (lambda path: path.write_bytes(b'\x1f\x8b' + bytes(2000)), 'is not an uncompressed tar archive: .*', 0),
    (lambda path: write_shard(path, [*samples(0, 1), ('0001.png', image(2))]),
     "the sample '0001' has two files .png; the keys of samples must differ", 2),
    (lambda path: write_shard(path, samples(0, 1)[:-1]),
     r"the sample '0001' has no label; expected a number in a file \.cls, .*", 1),
    (lambda path: write_shard(path, [*samples(0, 1), ('5.cls', b'1')]),
     r"the sample '5' has no image; its files end in \.cls", 2),
    (lambda path: write_shard(path, [*samples(0, 1), ('5.jpg', b''), ('5.png', b'')]),
     r"the sample '5' has several images; its files end in \.jpg, \.png", 2),
    (lambda path: write_shard(path, [*samples(0, 1), ('5.jpg', b''), ('5.json', b'{')]),
     "the sample '5' has a file .json that is not valid JSON: .*", 2)])
def test_a_broken_shard_is_named_or_skipped_and_counted(tmp_path, caplog, damage, line, count):
    write_shard(tmp_path / 'set' / 'train-0.tar', samples(0, 1))
    damage(write_shard(tmp_path / 'set' / 'train-1.tar', samples(0, 1, 1)))
    with pytest.raises(UserError, match=rf'^config\.data\.dir: .*/train-1\.tar: {line}; config\.data\.skip_broken=True sk'):
        sources.find(config(tmp_path / 'set'))
    examples = sources.find(config(tmp_path / 'set', skip_broken=True)).splits['train']()
    assert len(examples) == 2 + count
    assert 'train-1.tar: ' in caplog.text
    assert 'broken sample' in caplog.text


def test_an_image_that_cannot_be_decoded_is_named(tmp_path):
    write_shard(tmp_path / 'set' / 'a.tar', [*samples(0, 1), ('9.png', image(0)[:50]), ('9.cls', b'1')])
    with pytest.raises(UserError, match=r'a\.tar/9\.png: .*; config\.data\.skip_broken=True skips such images'):
        data.load(config(tmp_path / 'set'))


@pytest.mark.parametrize(('names', 'line'), [
    (['train.tar.gz'], r'holds no \.tar files; decompress train\.tar\.gz'),
    ([], r'holds no \.tar files; expected shards such as train-000000\.tar'),
    (['train-0.tar', 'x.tar'], r"x\.tar: its name holds no split, but others' do; expected train-\*\.tar"),
    (['test-0.tar'], 'has shards of test, but none to train on'),
    (['train-dev-0.tar'], r'train-dev-0\.tar: its name holds several splits: train, val')])
def test_the_error_for_wrong_names_of_shards_is_one_line(tmp_path, names, line):
    (tmp_path / 'set').mkdir()
    for name in names:
        write_shard(tmp_path / 'set' / name, samples(0, 1))
    with pytest.raises(UserError, match=line):
        sources.find(config(tmp_path / 'set'))


def test_a_number_must_be_one_of_the_classes_in_the_file(tmp_path):
    write_shard(tmp_path / 'set' / 'a.tar', samples(0, 2))
    (tmp_path / 'classes.txt').write_text('ant\nbee')
    with pytest.raises(UserError, match=r'a\.tar/0001\.png: its label 2 is not the number of one of the 2 classes in .*txt'):
        sources.find(config(tmp_path / 'set', class_file=str(tmp_path / 'classes.txt')))


def test_training_images_without_a_label_are_those_for_pseudo_labels(tmp_path):
    """Those with the label -1, and those of shards whose names say so; the other splits' are not among them."""
    root = tmp_path / 'set'
    write_shard(root / 'train-0.tar', [*samples(0, 1, 0), ('7.png', image(2)), ('7.cls', b'-1')])
    write_shard(root / 'unlabelled-0.tar', [('8.png', image(1)), ('9.png', image(0)), ('9.cls', b'1')])
    write_shard(root / 'test-0.tar', [*samples(0, 1), ('7.png', image(2))])
    for placement in ('host', 'stream'):
        dataset = data.load(config(root, placement=placement, val_fraction=0.0), unlabelled=True)
        colours = dataset.unlabelled.take(np.arange(3))[:, 0, 0]
        np.testing.assert_array_equal(colours, [COLOURS[2], COLOURS[1], COLOURS[0]])
        assert {name: len(split) for name, split in dataset.splits.items()} == {'train': 3, 'test': 2}
    assert data.load(config(root, val_fraction=0.0)).unlabelled is None
