"""Layouts of images with boxes: each is read as the same boxes, and mistakes in it are one line each, or counted."""

import collections
import logging
import pathlib
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from jaxcnn import data
from jaxcnn.config import DataConfig
from jaxcnn.data.targets import BOXES
from jaxcnn.errors import UserError

WIDTH, HEIGHT = 16, 12
CLASSES = ['ant', 'bee']
# by split and name of the image, the class, the box and whether it is difficult
SCENE = {
    'train': {'one': [('bee', (0, 0, 16, 12), False)], 'two': [('ant', (2, 3, 8, 9), False), ('bee', (4, 6, 12, 12), True)],
              'empty': []},
    'val': {'three': [('ant', (8, 0, 16, 6), False), ('ant', (0, 3, 4, 12), False)]},
    'test': {'four': [('bee', (1, 1, 15, 11), False)]}}


def save_image(path, seed=0, size=(WIDTH, HEIGHT)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([seed, *path.stem.encode()]).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write_voc(root):
    for split, images in SCENE.items():
        (root / 'ImageSets' / 'Main').mkdir(parents=True, exist_ok=True)
        (root / 'ImageSets' / 'Main' / f'{split}.txt').write_text(''.join(f'{name}\n' for name in images))
        for name, objects in images.items():
            save_image(root / 'JPEGImages' / f'{name}.png')
            (root / 'Annotations').mkdir(exist_ok=True)
            (root / 'Annotations' / f'{name}.xml').write_text(
                f'<annotation><size><width>{WIDTH}</width><height>{HEIGHT}</height></size>' + ''.join(
                    f'<object><name>{class_name}</name><difficult>{int(difficult)}</difficult><bndbox><xmin>{x0 + 1}</xmin>'
                    f'<ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox>'
                    '<part><name>head</name><bndbox><xmin>9</xmin></bndbox></part></object>'
                    for class_name, (x0, y0, x1, y1), difficult in objects) + '</annotation>')
    return root


def load(tmp_path, name, root, **fields):
    fields = {'max_boxes': 3, **fields}
    return data.load(DataConfig(name=name, dir=str(root), cache_dir=str(tmp_path / 'cache'), **fields), BOXES)


def contents(dataset):
    """Return the objects of each image of a data set, as in `SCENE`."""
    scene = {}
    for name, split in dataset.splits.items():
        rows = zip(*(split.targets[target] for target in ('classes', 'boxes', 'difficult', 'valid')), strict=True)
        scene[name] = {pathlib.Path(dataset.image_name(name, position)).stem: [
            (dataset.class_names[c], tuple(box.tolist()), bool(difficult))
            for c, box, difficult, valid in zip(*row, strict=True) if valid] for position, row in enumerate(rows)}
    return scene


WRITERS = {'voc': write_voc}


@pytest.mark.parametrize('name', WRITERS)
def test_each_layout_gives_the_same_boxes(tmp_path, name):
    dataset = load(tmp_path, name, WRITERS[name](tmp_path / 'set'))
    assert contents(dataset) == SCENE
    assert dataset.class_names == CLASSES
    assert dataset.image_shape == (HEIGHT, WIDTH, 3)
    assert dataset.class_counts('train') == [1, 2]
    image = dataset.splits['val'].take(np.array([0]))[0]
    save_image(tmp_path / 'three.png')
    np.testing.assert_array_equal(image, np.asarray(Image.open(tmp_path / 'three.png')))


# ---- mistakes


def change(path, old, new, count=1):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def assert_error_or_skipped(tmp_path, caplog, name, root, message, expected):
    """Check that a mistake is a one-line error, and that `skip_broken` skips what is wrong and logs the same."""
    with pytest.raises(UserError, match=message) as raised:
        load(tmp_path, name, root)
    assert '\n' not in str(raised.value)
    assert 'config.data.skip_broken=True' in raised.value.hint
    with caplog.at_level(logging.WARNING):
        dataset = load(tmp_path, name, root, skip_broken=True)
    assert contents(dataset) == {**SCENE, **expected}
    assert any(raised.value.message.split(': ', 1)[-1][:30] in line for line in caplog.messages), caplog.messages
    return dataset


NO_SECOND_ANT = {'val': {'three': SCENE['val']['three'][:1]}}
WITHOUT_ONE = {'train': {'two': SCENE['train']['two'], 'empty': []}}
VOC_MISTAKES = {
    'no area': ('three', '<xmin>1</xmin>', '<xmin>4</xmin>', 'x0=4, y0=4, x1=4, y1=12 has no area', NO_SECOND_ANT),
    'outside': ('three', '<xmin>1</xmin><ymin>4</ymin><xmax>4<', '<xmin>31</xmin><ymin>4</ymin><xmax>34<',
                'is outside the image, which is 16 x 12 pixels', NO_SECOND_ANT),
    'across the edge': ('one', '<xmax>16<', '<xmax>18<', 'reaches beyond the image', {}),
    'class': ('three', '<name>ant</name><difficult>0</difficult><bndbox><xmin>1<',
              '<name>Bee</name><difficult>0</difficult><bndbox><xmin>1<', "three.xml: unknown class 'Bee'; nearest: bee",
              NO_SECOND_ANT),
    'truncated': ('one', '</annotation>', '', 'cannot be read as XML: .* line 1', WITHOUT_ONE),
    'encoding': ('one', '<annotation>', '<?xml version="1.0" encoding="klingon"?><annotation>', 'cannot be read as XML',
                 WITHOUT_ONE),
    'no name': ('one', '<name>bee</name>', '', 'one.xml: object 1 has no name', WITHOUT_ONE),
    'no number': ('one', '<ymax>12<', '<ymax>a<', r"object 1 \(bee\) has no number for ymax: 'a'", WITHOUT_ONE),
    'size': ('one', '<width>16<', '<width>12<', r'is 16 x 12 pixels .* but .*one.xml says 12 x 12', WITHOUT_ONE)}


@pytest.mark.parametrize('mistake', VOC_MISTAKES)
def test_mistakes_in_an_annotation_of_voc(tmp_path, caplog, mistake):
    name, old, new, message, expected = VOC_MISTAKES[mistake]
    root = write_voc(tmp_path / 'set')
    change(root / 'Annotations' / f'{name}.xml', old, new)
    dataset = assert_error_or_skipped(tmp_path, caplog, 'voc', root, message, expected)
    assert dataset.broken == {'train': int(expected is WITHOUT_ONE), 'val': 0, 'test': 0}


@pytest.mark.parametrize(('file', 'message'), [
    ('JPEGImages/one.png', r"train.txt: line 1: names 'one', but .*JPEGImages holds no such image"),
    ('Annotations/one.xml', r"train.txt: line 1: names 'one', but .*one.xml does not exist")])
def test_a_file_of_an_image_set_is_missing(tmp_path, caplog, file, message):
    root = write_voc(tmp_path / 'set')
    (root / file).unlink()
    dataset = assert_error_or_skipped(tmp_path, caplog, 'voc', root, message, WITHOUT_ONE)
    assert dataset.broken['train'] == 1


@pytest.mark.parametrize('name', WRITERS)
def test_more_boxes_than_max_boxes(tmp_path, name):
    root = WRITERS[name](tmp_path / 'set')
    with pytest.raises(UserError, match=r't\w+\.png: has 2 boxes, but config.data.max_boxes=1; set config.data.max_boxes=2'):
        load(tmp_path, name, root, max_boxes=1, skip_broken=True)


# ---- splits


def test_the_splits_of_voc(tmp_path):
    root = write_voc(tmp_path / 'set')
    sets = root / 'ImageSets' / 'Main'
    (sets / 'trainval.txt').write_text('one\ntwo\nempty\nthree\n')
    (sets / 'bee_train.txt').write_text('one 1\n')
    assert contents(load(tmp_path, 'voc', root)) == SCENE
    trainval = {'train': {**SCENE['train'], **SCENE['val']}, 'test': SCENE['test']}
    assert contents(load(tmp_path, 'voc_trainval', root, val_fraction=0)) == trainval
    (sets / 'train.txt').unlink()
    assert contents(load(tmp_path, 'voc', root, val_fraction=0)) == trainval
    (sets / 'trainval.txt').unlink()
    with pytest.raises(UserError, match=r'holds no train\.txt or trainval\.txt'):
        load(tmp_path, 'voc', root)
    for path in sets.iterdir():
        path.unlink()
    splits = load(tmp_path, 'voc', root, val_fraction=0.2).splits
    assert {name: len(split) for name, split in splits.items()} == {'train': 4, 'val': 1}
    with pytest.raises(UserError, match='holds no folders Annotations and JPEGImages'):
        load(tmp_path, 'voc', tmp_path)


def test_a_changed_annotation_is_read_again(tmp_path):
    root = write_voc(tmp_path / 'set')
    load(tmp_path, 'voc', root)
    change(root / 'Annotations' / 'four.xml', '<difficult>0<', '<difficult>1<')
    assert contents(load(tmp_path, 'voc', root))['test'] == {'four': [('bee', (1, 1, 15, 11), True)]}


BCCD = next((path for parent in pathlib.Path(__file__).parents if (path := parent / 'shared' / 'data' / 'BCCD').is_dir()),
            None)


@pytest.mark.slow
@pytest.mark.skipif(BCCD is None, reason='needs the data set BCCD')
def test_bccd_has_the_boxes_that_its_files_list(tmp_path):
    counts, empty = collections.Counter(), 0
    for path in (BCCD / 'Annotations').iterdir():
        for item in ElementTree.parse(path).iter('object'):
            x0, y0, x1, y1 = (int(item.findtext(f'bndbox/{side}')) for side in ('xmin', 'ymin', 'xmax', 'ymax'))
            counts[item.findtext('name')] += (x1 - x0) * (y1 - y0) > 0
            empty += (x1 - x0) * (y1 - y0) <= 0
    assert (empty, counts.total()) == (2, 4886)
    dataset = load(tmp_path, 'voc', BCCD, skip_broken=True, max_boxes=30, image_size=64, resize='pad')
    loaded = collections.Counter()
    for split in dataset.splits.values():
        loaded.update(dataset.class_names[c] for c in split.targets['classes'][split.targets['valid']])
    assert loaded == counts
    assert {name: len(split) for name, split in dataset.splits.items()} == {'train': 205, 'val': 87, 'test': 72}
