"""Layouts of images with boxes: each is read as the same boxes, and mistakes in it are one line each, or counted."""

import collections
import json
import logging
import pathlib
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from jaxcnn import data
from jaxcnn.config import ColumnsConfig, DataConfig
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


def write_yolo(root):
    (root / 'images').mkdir(parents=True)
    (root / 'data.yaml').write_text('train: ../train/images\nnc: 2\nnames:\n  0: ant\n  1: bee\n')
    for split, images in SCENE.items():
        (root / 'labels' / split).mkdir(parents=True)
        for name, objects in images.items():
            save_image(root / 'images' / split / f'{name}.png')
            if objects:
                (root / 'labels' / split / f'{name}.txt').write_text(''.join(
                    f'{CLASSES.index(class_name)} {(x0 + x1) / 2 / WIDTH} {(y0 + y1) / 2 / HEIGHT} {(x1 - x0) / WIDTH} '
                    f'{(y1 - y0) / HEIGHT}\n' for class_name, (x0, y0, x1, y1), _ in objects))
    return root


def write_coco(root):
    """The ids of the categories are in descending order, and those of images are not positions."""
    (root / 'annotations').mkdir(parents=True)
    for split, images in SCENE.items():
        content = {'images': [], 'annotations': [], 'categories': [{'id': 7, 'name': 'bee'}, {'id': 3, 'name': 'ant'}]}
        for image_id, (name, objects) in enumerate(images.items(), 100):
            save_image(root / f'{split}2017' / f'{name}.png')
            content['images'].append({'id': image_id, 'file_name': f'{name}.png', 'width': WIDTH, 'height': HEIGHT})
            content['annotations'] += [
                {'id': i, 'image_id': image_id, 'category_id': {'ant': 3, 'bee': 7}[class_name], 'iscrowd': int(difficult),
                 'bbox': [x0, y0, x1 - x0, y1 - y0]} for i, (class_name, (x0, y0, x1, y1), difficult) in enumerate(objects)]
        (root / 'annotations' / f'instances_{split}2017.json').write_text(json.dumps(content))
        (root / 'annotations' / f'captions_{split}2017.json').write_text('{}')
    return root


def write_csv(root):
    rows = ['split;filename;class;xmin;ymin;xmax;ymax;difficult;width;height']
    for split, images in SCENE.items():
        for name, objects in images.items():
            save_image(root / split / f'{name}.png')
            rows += [f'{split};{split}/{name}.png;{class_name};{";".join(map(str, box))};{int(difficult)};16;12'
                     for class_name, box, difficult in objects] or [f'{split};{split}/{name}.png;;;;;;;16;12']
    (root / 'boxes.csv').write_text('\n'.join(rows))
    return root / 'boxes.csv'


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


def without_difficult(scene):
    return {split: {name: [(class_name, box, False) for class_name, box, _ in objects] for name, objects in images.items()}
            for split, images in scene.items()}


def scene_of(name):
    return without_difficult(SCENE) if name == 'yolo' else SCENE


WRITERS = {'voc': write_voc, 'coco': write_coco, 'yolo': write_yolo, 'csv': write_csv}


@pytest.mark.parametrize('name', WRITERS)
def test_each_layout_gives_the_same_boxes(tmp_path, name):
    dataset = load(tmp_path, name, WRITERS[name](tmp_path / 'set'))
    assert contents(dataset) == scene_of(name)
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
    assert contents(dataset) == {**scene_of(name), **(without_difficult(expected) if name == 'yolo' else expected)}
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
    is_broken = expected is WITHOUT_ONE
    split = 'val' if name == 'three' else 'train'
    for counts, count in ((dataset.broken, int(is_broken)), (dataset.wrong_boxes, int(not is_broken))):
        assert counts == {'train': 0, 'val': 0, 'test': 0, split: count}
    assert dataset.info()['wrong_boxes'] == dataset.wrong_boxes


@pytest.mark.parametrize(('old', 'new', 'message', 'expected'), [
    ('0 0.125 0.625 0.25', '0 0.125 0.625 0', 'x0=2, y0=3, x1=2, y1=12 has no area', NO_SECOND_ANT),
    ('0 0.125 0.625 0.25', '0 1.5 0.625 0.25', 'x0=22, y0=3, x1=26, y1=12 is outside the image', NO_SECOND_ANT),
    ('0 0.125 0.625 0.25', '2 0.125 0.625 0.25', "unknown class '2'; known: ant, bee", NO_SECOND_ANT),
    ('0 0.125 0.625 0.25', '-1 0.125 0.625 0.25', r'three.txt: line 2 is .-1 0.125 .* expected the number of a class',
     {'val': {}}),
    ('0 0.125 0.625 0.25', '0 0.1 0.1 0.2 0.1 0.2 0.2', 'line 2 is', {'val': {}}),
    ('0 0.125 0.625 0.25', '0 0.125 b 0.25', "line 2 has no number for y: 'b'", {'val': {}})])
def test_mistakes_in_a_file_of_yolo(tmp_path, caplog, old, new, message, expected):
    root = write_yolo(tmp_path / 'set')
    save_image(root / 'images' / 'val' / 'other.png', seed=1)
    change(root / 'labels' / 'val' / 'three.txt', old, new)
    expected = {'val': {**expected['val'], 'other': []}}
    assert_error_or_skipped(tmp_path, caplog, 'yolo', root, message, expected)


@pytest.mark.parametrize(('old', 'new', 'message', 'expected'), [
    ('"bbox": [0, 3, 4, 9]', '"bbox": [0, 3, 0, 9]', 'x0=0, y0=3, x1=0, y1=12 has no area', NO_SECOND_ANT),
    ('"bbox": [0, 3, 4, 9]', '"bbox": [20, 3, 4, 9]', 'is outside the image', NO_SECOND_ANT),
    ('"bbox": [0, 3, 4, 9]', '"bbox": [0, 3, 4]', r'annotation 1 has the bbox \[0, 3, 4\], expected', NO_SECOND_ANT),
    ('"id": 1, "image_id": 100, "category_id": 3', '"id": 1, "image_id": 100, "category_id": 4',
     'annotation 1 has the category_id 4, which is none of the categories; their ids are: 3, 7', NO_SECOND_ANT),
    ('"id": 1, "image_id": 100', '"id": 1, "image_id": [5]', r'annotation 1 is of the image \[5\]', NO_SECOND_ANT),
    ('"id": 1, "image_id": 100', '"id": 1, "image_id": 5', 'annotation 1 is of the image 5, which is not', NO_SECOND_ANT),
    ('"width": 16', '"width": 12', r'is 16 x 12 pixels .* but .*val2017.json says 12 x 12', {'val': {}}),
    ('three.png', 'four.png', r'names the image .*val2017/four.png, which does not exist', {'val': {}})])
def test_mistakes_in_a_file_of_coco(tmp_path, caplog, old, new, message, expected):
    root = write_coco(tmp_path / 'set')
    file = root / 'annotations' / 'instances_val2017.json'
    save_image(root / 'val2017' / 'other.png', seed=1)
    change(file, '"images": [', '"images": [{"id": "x", "file_name": "other.png"}, ')
    change(file, old, new)
    assert_error_or_skipped(tmp_path, caplog, 'coco', root, message, {'val': {**expected['val'], 'other': []}})


CSV_ROW = 'val/three.png;ant;0;3;4;12'


@pytest.mark.parametrize(('old', 'new', 'message', 'expected'), [
    (CSV_ROW, 'val/three.png;ant;4;3;0;12', 'x0=4, y0=3, x1=0, y1=12 has no area', NO_SECOND_ANT),
    (CSV_ROW, 'val/three.png;ant;0;31;4;32', 'is outside the image', NO_SECOND_ANT),
    (CSV_ROW, 'val/three.png;ants;0;3;4;12', r"line \d: unknown class 'ants'; nearest: ant", NO_SECOND_ANT),
    (f'{CSV_ROW};0;16', f'{CSV_ROW};0;17', 'is 16 x 12 pixels', {'val': {'other': []}}),
    (CSV_ROW, 'val/three.png;;0;3;4;12', r'boxes.csv: line 7: has a box, but no class', {'val': {'other': []}}),
    (CSV_ROW, 'val/three.png;ant;0;3;;12', r"line 7: the box of class 'ant' has no number for x1: ''",
     {'val': {'other': []}}),
    ('test/four.png', 'test/five.png', r'line \d: names the image .*five.png, which does not exist', None)])
def test_mistakes_in_a_table_of_boxes(tmp_path, caplog, old, new, message, expected):
    file = write_csv(tmp_path / 'set')
    with open(file, 'a', encoding='utf-8') as f:
        f.write('\nval;val/other.png;;;;;;;;\ntest;test/last.png;;;;;;;;')
    save_image(tmp_path / 'set' / 'val' / 'other.png', seed=1)
    save_image(tmp_path / 'set' / 'test' / 'last.png', seed=2)
    change(file, old, new)
    val = (expected or SCENE)['val']
    test = SCENE['test'] if expected else {}
    assert_error_or_skipped(tmp_path, caplog, 'csv', file, message,
                            {'val': {**val, 'other': []}, 'test': {**test, 'last': []}})


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


def test_splits_of_yolo_in_folders_of_their_own(tmp_path):
    root = write_yolo(tmp_path / 'set')
    expected = contents(load(tmp_path, 'yolo', root))
    for split in SCENE:
        (root / split).mkdir()
        (root / 'images' / split).rename(root / split / 'images')
        (root / 'labels' / split).rename(root / split / 'labels')
    (root / 'images').rmdir()
    (root / 'data.yaml').unlink()
    with pytest.raises(UserError, match=r'holds no data\.yaml or classes\.txt'):
        load(tmp_path, 'yolo', root)
    (root / 'labels' / 'classes.txt').write_text('ant\nbee\n')
    assert contents(load(tmp_path, 'yolo', root)) == expected
    (root / 'data.yaml').write_text('names: [ant, bee, "cat: small"]')
    assert load(tmp_path, 'yolo', root).class_names == ['ant', 'bee', 'cat: small']
    (root / 'test' / 'labels').rename(root / 'test' / 'annotations')
    with pytest.raises(UserError, match=r'four\.txt: does not exist, nor does the file of any other image of'):
        load(tmp_path, 'yolo', root)
    (root / 'data.yaml').write_text('names: [ant')
    with pytest.raises(UserError, match='cannot be read as YAML'):
        load(tmp_path, 'yolo', root)
    (root / 'data.yaml').write_text('names: {0: ant, 2: bee}')
    with pytest.raises(UserError, match='the classes have the numbers 0, 2, expected 0 to 1'):
        load(tmp_path, 'yolo', root)


def test_folders_of_coco(tmp_path):
    root = write_coco(tmp_path / 'set')
    for split in SCENE:
        (root / f'{split}2017').rename(root / split)
        (root / 'annotations' / f'instances_{split}2017.json').rename(root / split / '_annotations.coco.json')
    assert contents(load(tmp_path, 'coco', root)) == SCENE
    for split in SCENE:
        (root / split / '_annotations.coco.json').rename(root / f'{split}.json')
        for path in (root / split).glob('*.png'):
            save_image(root / 'images' / path.name)
            path.unlink()
        (root / split).rmdir()
    assert contents(load(tmp_path, 'coco', root)) == SCENE
    only_train = contents(load(tmp_path, 'coco', root / 'train.json', val_fraction=0.34))
    assert {**only_train['train'], **only_train['val']} == SCENE['train']
    (root / 'dev.json').write_text('{}')
    with pytest.raises(UserError, match=r'holds two files of the val split: dev\.json and val\.json'):
        load(tmp_path, 'coco', root)


@pytest.mark.parametrize(('old', 'new', 'message'), [
    ('"images"', '"image"', r"val2017\.json: has no list 'images'"), ('{', '', r'val2017\.json: cannot be read as JSON'),
    ('"id": 3, "name": "ant"', '"id": 3, "name": "fly"', "must have the same names: 3 is 'ant' there, and 'fly' here"),
    ('"id": 3, "name": "ant"', '"id": 7, "name": "ant"', 'has no id or name of its own'),
    ('"id": 3, "name": "ant"', '"id": null, "name": "ant"', 'has no id or name of its own'),
    ('"file_name"', '"name"', 'has no id or file_name of its own')])
def test_a_file_of_coco_that_cannot_be_used(tmp_path, old, new, message):
    root = write_coco(tmp_path / 'set')
    change(root / 'annotations' / 'instances_val2017.json', old, new)
    with pytest.raises(UserError, match=message):
        load(tmp_path, 'coco', root, skip_broken=True)


def test_tables_of_boxes_with_any_names_of_columns(tmp_path):
    file = write_csv(tmp_path / 'set')
    file.write_text(file.read_text().replace('split;filename;class;', 'fold;Photo;species;'))
    (tmp_path / 'classes.txt').write_text('bee\nant\n')
    dataset = load(tmp_path, 'csv', file, class_file=str(tmp_path / 'classes.txt'),
                   columns=ColumnsConfig(image='Photo', label='species', split='fold'))
    assert contents(dataset) == SCENE
    assert dataset.class_names == ['bee', 'ant']
    (tmp_path / 'classes.txt').write_text('bee\nfly\n')
    with pytest.raises(UserError, match=r"boxes\.csv: line 3: unknown class 'ant'; known: bee, fly"):
        load(tmp_path, 'csv', file, class_file=str(tmp_path / 'classes.txt'),
             columns=ColumnsConfig(image='Photo', label='species', split='fold'))


def test_tables_of_boxes_without_names_of_columns(tmp_path):
    root = tmp_path / 'set'
    for split, images in SCENE.items():
        rows = [f'{split}/{name}.png,{",".join(map(str, box))},{class_name}' for name, objects in images.items()
                for class_name, box, _ in objects]
        for name in images:
            save_image(root / split / f'{name}.png')
        (root / f'{split}.csv').write_text('\n'.join([*rows, 'train/empty.png,,,,,'] if split == 'train' else rows))
    assert contents(load(tmp_path, 'csv', root)) == without_difficult(SCENE)
    (root / 'val.csv').write_text('val/three.png,1,2,3,ant\n')
    with pytest.raises(UserError, match=r'val\.csv: line 1: has 5 cells, expected 6 or more'):
        load(tmp_path, 'csv', root)
    (root / 'val.csv').write_text('image,x,y,width,height,class\n')
    with pytest.raises(UserError, match=r'has no columns for x0, y0, x1 and y1; its columns are: image, x, y'):
        load(tmp_path, 'csv', root)


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
