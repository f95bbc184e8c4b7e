"""Layouts of images in files and arrays, the image formats that are read, and the errors for wrong data."""

import gzip
import json
import os
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jaxcnn import data
from jaxcnn.config import ColumnsConfig, DataConfig
from jaxcnn.data import arrays, layouts, picture, sources, tables
from jaxcnn.errors import UserError, printable

COLOURS = {'ant': (250, 0, 0), 'bee': (0, 250, 0), 'cow': (0, 0, 250)}


def save(path, colour, size=(8, 6), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, colour).save(path, **options)


def load(tmp_path, name, where, **fields):
    return data.load(DataConfig(name=name, dir=str(where), cache_dir=str(tmp_path / 'cache'), **{'image_size': 4, **fields}))


def classes_of(dataset, split_name):
    """Return the class of each image of a split by its colour, and by its label."""
    split = dataset.splits[split_name]
    pixels = split.take(np.arange(len(split)))[:, 2, 2].astype(int)
    by_colour = [min(COLOURS, key=lambda name: np.abs(pixel - COLOURS[name]).sum()) for pixel in pixels]
    return by_colour, [dataset.class_names[label] for label in split.targets['label']]


def assert_holds(dataset, **sizes):
    assert {name: len(split) for name, split in dataset.splits.items()} == sizes
    for split in dataset.splits:
        by_colour, by_label = classes_of(dataset, split)
        assert by_colour == by_label
        assert set(by_label) <= set(COLOURS)


def write_folder(root, **counts):
    for offset, (split, count) in enumerate(counts.items()):
        for name, colour in COLOURS.items():
            for i in range(count):
                save(root / split / name / f'{i}.png', tuple(abs(value - 4 * i - offset) for value in colour))
    return root


# ---- layouts


def test_folders_of_classes_with_folders_in_them(tmp_path):
    root = write_folder(tmp_path / 'set', training=5, valid=2, test=3)
    save(root / 'training' / 'bee' / 'wild' / 'more' / 'x.JPEG', COLOURS['bee'])
    (root / 'training' / 'bee' / 'notes.txt').write_text('not a picture')
    (root / 'training' / '.hidden').mkdir()
    dataset = load(tmp_path, 'folder', root)
    assert_holds(dataset, train=16, val=6, test=9)
    assert dataset.class_names == ['ant', 'bee', 'cow']


def test_folders_without_splits_are_training_images(tmp_path):
    for i in range(10):
        for name, colour in COLOURS.items():
            save(tmp_path / 'set' / name / f'{i}.png', colour)
    assert_holds(load(tmp_path, 'folder', tmp_path / 'set'), train=27, val=3)
    assert_holds(load(tmp_path, 'folder', tmp_path / 'set', val_fraction=0.5), train=15, val=15)


def test_val_fraction_replaces_the_validation_split_of_the_data_set(tmp_path, caplog):
    root = write_folder(tmp_path / 'set', train=10, val=2)
    assert_holds(load(tmp_path, 'folder', root), train=30, val=6)
    assert not caplog.text
    assert_holds(load(tmp_path, 'folder', root, val_fraction=0.2), train=24, val=6)
    assert 'its own validation split, 6 images, is not used, because config.data.val_fraction is 0.2;' in caplog.text
    with pytest.raises(UserError, match=r'no test split, and config\.data\.val_fraction=0 leaves no validation split'):
        load(tmp_path, 'folder', root, val_fraction=0.0)


def test_unlabelled_images_and_folders_that_are_not_splits_are_skipped_and_logged(tmp_path, caplog):
    root = write_folder(tmp_path / 'set', training=4, evaluation=2)
    save(root / 'training' / 'unlabeled' / '0.png', (1, 1, 1))
    save(root / 'extra' / '0.png', (1, 1, 1))
    with caplog.at_level('INFO', 'jaxcnn'):
        assert_holds(load(tmp_path, 'folder', root, val_fraction=0.25), train=9, val=3, test=6)
    assert 'skipped folders, which are not splits: extra' in caplog.text
    assert 'skipped 1 image without a label in the train split' in caplog.text


@pytest.mark.parametrize('table', ['', 'path\n', 'path,label\n'])
def test_a_test_split_without_labels_is_skipped_and_logged(tmp_path, caplog, table):
    root = write_folder(tmp_path / 'set', train=4, test=2)
    if table:
        rows = {split: [(f'{split}/{name}/{i}.png', name) for name in COLOURS for i in range(n)]
                for split, n in (('train', 4), ('test', 2))}
        (root / 'train.csv').write_text('path,label\n' + ''.join(f'{path},{name}\n' for path, name in rows['train']))
        (root / 'test.csv').write_text(table + ''.join(
            f'{path},?\n' if ',' in table else f'{path}\n' for path, _ in rows['test']))
    else:
        for name in COLOURS:
            (root / 'test' / name).rename(root / 'test' / f'{name}?')
    with caplog.at_level('INFO', 'jaxcnn'):
        assert_holds(load(tmp_path, 'csv' if table else 'folder', root, val_fraction=0.25), train=9, val=3)
    assert 'skipped' in caplog.text


def test_labels_in_file_names(tmp_path):
    root = tmp_path / 'food'
    names = list(COLOURS)
    for label in (0, 2, 10):
        for i in range(4):
            save(root / 'training' / f'{label}_{i}.jpg', COLOURS[names[(0, 2, 10).index(label)]], quality=95)
        save(root / 'validation' / f'{label}_9.jpg', COLOURS[names[(0, 2, 10).index(label)]])
    save(root / 'training' / '-1_77.jpg', (9, 9, 9))
    for i in range(3):
        save(root / 'testing' / f'{i:04d}.jpg', (9, 9, 9))
    dataset = load(tmp_path, 'flat', root)
    assert {name: len(split) for name, split in dataset.splits.items()} == {'train': 12, 'val': 3}
    assert dataset.class_names == ['0', '2', '10']
    by_colour, by_label = classes_of(dataset, 'train')
    assert [names.index(name) for name in by_colour] == [dataset.class_names.index(name) for name in by_label]


def test_a_label_in_a_file_name_may_have_underscores(tmp_path):
    for name in ('hot_dog', 'ice_cream'):
        for i in range(5):
            save(tmp_path / 'set' / f'{name}_{i}.png', (1, 2, 3))
    assert load(tmp_path, 'flat', tmp_path / 'set', val_fraction=0.4).class_names == ['hot_dog', 'ice_cream']


def test_a_dot_may_separate_a_label_from_a_number_in_a_file_name(tmp_path):
    for name in ('cat', 'dog', 'hot.dog_'):
        for i in range(5):
            save(tmp_path / 'set' / f'{name}.{i}.png' if '_' not in name else tmp_path / 'set' / f'{name}{i}.png', (1, 2, 3))
    for name in ('7.png', 'cat.png', 'cat.b.png', '.5.png'):  # without a label; the last one is a hidden file
        save(tmp_path / 'set' / name, (1, 2, 3))
    dataset = load(tmp_path, 'flat', tmp_path / 'set', val_fraction=0.4)
    assert dataset.class_names == ['cat', 'dog', 'hot.dog']
    assert sum(map(len, dataset.splits.values())) == 15


@pytest.mark.parametrize('is_one_table', [True, False])
def test_tables(tmp_path, is_one_table):
    root = write_folder(tmp_path / 'set', train=4, test=2)
    rows = [(split, f'{split}/{name}/{i}.png', name)
            for split, n in (('train', 4), ('test', 2)) for name in COLOURS for i in range(n)]
    if is_one_table:
        where = root / 'all.csv'
        where.write_text('Label,split,File\n' + ''.join(f'{name},{split},{path}\n' for split, path, name in rows))
    else:
        where = root
        for split in ('train', 'test'):
            head = 'path,label\n' if split == 'train' else ''
            name = 'train.csv' if split == 'train' else 'test.TSV'
            (root / name).write_text(head + ''.join(f'{path},{name}\n' for s, path, name in rows if s == split))
    assert_holds(load(tmp_path, 'csv', where, val_fraction=0.25), train=9, val=3, test=6)


@pytest.mark.parametrize(('text', 'line'), [
    ('', 'holds no labelled images to train on; expected a table'),
    ('path,size\na.png,3\n', 'no column is called label, class'),
    ('path,size\na.png,1\n', r"a\.csv: has no column of labels, .* \(size\); config\.task='multilabel' takes"),
    ('path,label\na.png\n', r'line 2: has 1 cell, expected 2'),
    ('path,label,split\na.png,ant,tset\n', "line 2: unknown split 'tset'"),
    ('0.png,ant\n\n1.png\n', r'line 3: has 1 cell, expected 2'),
    ('path,label\na\0b.png,ant\nother.png,bee\n', r'embedded null byte'),
    ('path,label\nmissing.png,ant\nother.png,bee\n', r'missing\.png: No such file'),
])
def test_the_error_for_a_wrong_table_is_one_line(tmp_path, text, line):
    (tmp_path / 'a.csv').write_text(text)
    with pytest.raises(UserError, match=line) as error:
        load(tmp_path, 'csv', tmp_path / 'a.csv')
    assert '\n' not in str(error.value)


def test_a_table_may_have_any_columns(tmp_path):
    root = write_folder(tmp_path / 'set', train=3)
    rows = [f'{i},{name},train/{name}/{i}.png' for name in COLOURS for i in range(3)]
    (root / 'data.csv').write_text('\n'.join(['label,species,photo', *rows]))
    columns = ColumnsConfig(image='photo', label='species')
    dataset = load(tmp_path, 'csv', root / 'data.csv', val_fraction=1 / 3, columns=columns)
    assert_holds(dataset, train=6, val=3)
    assert dataset.class_names == ['ant', 'bee', 'cow']
    message = r"^config\.data\.columns\.label: .* has no column 'specis'; nearest: species; also: label, photo$"
    with pytest.raises(UserError, match=message):
        load(tmp_path, 'csv', root / 'data.csv', columns=ColumnsConfig(image='photo', label='specis'))
    with pytest.raises(UserError, match=r"^config\.data\.columns: 'folder' does not use it; these do: csv"):
        load(tmp_path, 'folder', root, columns=columns)


@pytest.mark.parametrize('text', [
    'cow\n\nelk \nant\nbee\n', '["cow", "elk", "ant", "bee"]', '{"bee": 3, "ant": 2, "cow": 0, "elk": 1}',
    '{"0": "cow", "2": "ant", "1": "elk", "3": "bee"}'])
def test_a_file_gives_the_order_of_the_classes(tmp_path, text):
    root = write_folder(tmp_path / 'set', train=2, test=1)
    sorted_key = sources.find(DataConfig(name='folder', dir=str(root))).key
    (tmp_path / 'classes').write_text(text)
    dataset = load(tmp_path, 'folder', root, val_fraction=0.5, class_file=str(tmp_path / 'classes'))
    assert_holds(dataset, train=3, val=3, test=3)
    assert dataset.class_names == ['cow', 'elk', 'ant', 'bee']
    assert dataset.splits['test'].targets['label'].tolist() == [2, 3, 0]
    assert sources.find(DataConfig(name='folder', dir=str(root), class_file=str(tmp_path / 'classes'))).key != sorted_key


@pytest.mark.parametrize(('text', 'line'), [
    ('ant\ncow', r"classes lacks the class 'bee' of .*set/train/bee/0\.png; add it to the file"),
    ('ant\nbees\ncow', r"classes lacks the class 'bee' of .*0\.png; nearest: bees"),
    ('ant\nbee\n\nant\ncow', r"classes: holds the class 'ant' twice: line 1 and line 4; remove one of them"),
    ('{"ant": 0, "ant": 1}', r"classes: holds the class 'ant' twice: number 0 and number 1; .*"),
    ('{"ant": 1, "bee": 2}', 'classes: gives no class the number 0; number the 2 classes from 0 to 1'),
    ('{"ant": 0, "bee": 0}', 'classes: gives the number 0 twice; .*'), ('{"ant": "x"}', 'classes: is JSON, but neither .*'),
    ('["ant"', 'classes: is not valid JSON: .*'), ('\n', 'classes: holds no names of classes'),
    (None, 'cannot be read: No such file or directory')])
def test_the_error_for_a_wrong_file_of_classes_is_one_line(tmp_path, text, line):
    root = write_folder(tmp_path / 'set', train=1)
    if text is not None:
        (tmp_path / 'classes').write_text(text)
    with pytest.raises(UserError, match=rf'^config\.data\.class_file: (.*/classes: )?(.*/)?{line}$'):
        sources.find(DataConfig(name='folder', dir=str(root), class_file=str(tmp_path / 'classes')))


@pytest.mark.parametrize(('head', 'row'), [('path,label,category', '{path},{name},animal'),
                                           ('id,path,target,label', '7,{path},animal,{name}')])
def test_columns_called_path_and_label_take_precedence(tmp_path, head, row):
    root = write_folder(tmp_path / 'set', train=4)
    (root / 'all.csv').write_text('\n'.join([head, *(row.format(path=f'train/{name}/{i}.png', name=name)
                                                    for name in COLOURS for i in range(4))]))
    assert_holds(load(tmp_path, 'csv', root / 'all.csv', val_fraction=0.25), train=9, val=3)


def test_two_folders_tables_or_arrays_of_one_split_are_refused(tmp_path):
    root = write_folder(tmp_path / 'set', train=4, val=2, validation=2)
    with pytest.raises(UserError, match='holds several val splits: val, validation; rename'):
        load(tmp_path, 'folder', root)
    for name in ('train', 'test', 'testing'):
        (root / f'{name}.csv').write_text('train/ant/0.png,ant\ntrain/bee/0.png,bee\n')
    with pytest.raises(UserError, match='holds several test splits: test, testing; rename'):
        load(tmp_path, 'csv', root)
    arrays = {}
    for name in ('train', 'valid', 'dev'):
        arrays |= {f'{name}_images': np.zeros((4, 4, 4), np.uint8), f'{name}_labels': np.arange(4)}
    np.savez(tmp_path / 'a.npz', **arrays)
    with pytest.raises(UserError, match='holds two val splits: dev_images is the second'):
        load(tmp_path, 'arrays', tmp_path / 'a.npz')


def test_the_order_of_the_classes_is_the_same_in_every_process(tmp_path):
    for name in ('1', '01', '001', '2'):
        save(tmp_path / 'set' / name / 'a.png', (1, 2, 3))
    code = ('import sys; from jaxcnn.config import DataConfig; from jaxcnn.data import layouts; '
            'print(layouts.folder(DataConfig(name="folder", dir=sys.argv[1])).class_names())')
    printed = {subprocess.run([sys.executable, '-c', code, str(tmp_path / 'set')], capture_output=True, text=True,
                              check=True, env={**os.environ, 'PYTHONHASHSEED': seed}).stdout for seed in '01'}
    assert printed == {"['001', '01', '1', '2']\n"}


def write_tiny_imagenet(root):
    wnids = {'n02': 'bee', 'n01': 'ant', 'n03': 'cow'}
    for wnid, name in wnids.items():
        for i in range(5):
            save(root / 'train' / wnid / 'images' / f'{wnid}_{i}.JPEG', COLOURS[name], quality=95)
        (root / 'train' / wnid / f'{wnid}_boxes.txt').write_text('0 0 1 1')
        save(root / 'val' / 'images' / f'val_{wnid}.JPEG', COLOURS[name], quality=95)
    (root / 'wnids.txt').write_text('\n'.join(wnids) + '\n')
    (root / 'words.txt').write_text('n09\tdragon\n' + ''.join(f'{w}\t{n}, animal\n' for w, n in wnids.items()))
    (root / 'val' / 'val_annotations.txt').write_text(''.join(f'val_{w}.JPEG\t{w}\t0\t0\t62\t62\n' for w in wnids))
    return root


@pytest.mark.parametrize('is_parent', [True, False])
def test_tiny_imagenet(tmp_path, is_parent):
    root = write_tiny_imagenet(tmp_path / 'tiny-imagenet-200')
    dataset = load(tmp_path, 'tiny_imagenet', tmp_path if is_parent else root)
    assert_holds(dataset, train=12, val=3, test=3)
    assert dataset.class_names == ['bee', 'ant', 'cow']


def test_a_changed_class_name_is_noticed(tmp_path):
    root = write_tiny_imagenet(tmp_path / 'set')
    assert load(tmp_path, 'tiny_imagenet', root).class_names == ['bee', 'ant', 'cow']
    (root / 'words.txt').write_text((root / 'words.txt').read_text().replace('ant', 'aunt'))
    assert load(tmp_path, 'tiny_imagenet', root).class_names == ['bee', 'aunt', 'cow']


def test_classes_with_the_same_name_are_shown_with_their_identifier(tmp_path):
    root = write_tiny_imagenet(tmp_path / 'set')
    (root / 'words.txt').write_text('n01\tcrane\nn02\tcrane, bird\nn03\tcow\n')
    assert load(tmp_path, 'tiny_imagenet', root).class_names == ['crane (n02)', 'crane (n01)', 'cow']


def test_a_class_that_is_listed_twice_is_refused(tmp_path):
    root = write_tiny_imagenet(tmp_path / 'set')
    (root / 'wnids.txt').write_text('n01\nn02\nn01\n')
    with pytest.raises(UserError, match=r'wnids\.txt: lists n01 more than once'):
        load(tmp_path, 'tiny_imagenet', root)


def write_idx(path, array, compress=True):
    raw = struct.pack('>HBB', 0, 8, array.ndim) + struct.pack(f'>{array.ndim}I', *array.shape) + array.tobytes()
    (gzip.open if compress else open)(path, 'wb').write(raw)


@pytest.mark.parametrize(('separator', 'ending'), [('-', '.gz'), ('-', ''), ('.', '')])
def test_idx_files_of_mnist(tmp_path, separator, ending):
    rng = np.random.default_rng(0)
    arrays_by_prefix = {prefix: (rng.integers(0, 256, (n, 7, 7), np.uint8), np.arange(n, dtype=np.uint8) % 4)
                        for prefix, n in (('train', 12), ('t10k', 8))}
    for prefix, (images, labels) in arrays_by_prefix.items():
        write_idx(tmp_path / f'{prefix}{separator}images-idx3-ubyte{ending}', images, bool(ending))
        write_idx(tmp_path / f'{prefix}{separator}labels-idx1-ubyte{ending}', labels, bool(ending))
    dataset = load(tmp_path, 'idx', tmp_path, image_size=0, val_fraction=0.0)
    for name, prefix in (('train', 'train'), ('test', 't10k')):
        split = dataset.splits[name]
        np.testing.assert_array_equal(split.take(np.arange(len(split)))[..., 0], arrays_by_prefix[prefix][0])
        np.testing.assert_array_equal(split.targets['label'], arrays_by_prefix[prefix][1])
    path = tmp_path / f'train{separator}labels-idx1-ubyte{ending}'
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(UserError, match=r'train.labels-idx1-ubyte.*: (cannot be read|is not a complete IDX file)'):
        load(tmp_path, 'idx', tmp_path, image_size=0)


def test_arrays(tmp_path, caplog):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 5, 5, 3), np.uint8)
    labels = np.arange(20) % 2
    np.savez(tmp_path / 'a.npz', x_train=images, y_train=labels[:, None], x_test=images[:4], y_test=labels[:4],
             class_names=np.array([b'even', 'uneven é'.encode()]), x_val=images)
    dataset = load(tmp_path, 'arrays', tmp_path / 'a.npz', image_size=0, val_fraction=0.0)
    np.testing.assert_array_equal(dataset.splits['train'].take(np.arange(20)), images)
    assert dataset.class_names == ['even', 'uneven é']
    assert 'ignored arrays, which are not the images and labels of a split: x_val' in caplog.text
    assert len(dataset.splits['test']) == 4
    np.savez(tmp_path / 'b.npz', training_images=images, training_labels=labels, valid_images=images[:6],
             valid_labels=labels[:6])
    assert {name: len(part) for name, part in load(tmp_path, 'arrays', tmp_path / 'b.npz', image_size=0).splits.items()} == {
        'train': 20, 'val': 6}


def swap(root):
    for old, new in (('ant', 'x'), ('bee', 'ant'), ('x', 'bee')):
        (root / 'train' / old).rename(root / 'train' / new)


def rename(root):
    for split in ('train', 'test'):
        (root / split / 'bee').rename(root / split / 'buzz')


@pytest.mark.parametrize(('change', 'line'), [
    (lambda root: None, ''),
    (swap, r'Changed: the train images or their order; the val images or their order$'),
    (rename, r"Changed: class 1: 'bee' -> 'buzz'$"),
    (lambda root: (root / 'train/ant/9.png').rename(root / 'train/bee/x.png'), 'Changed: the train label; '),
    (lambda root: (root / 'train/ant/9.png').unlink(), r"Changed: sizes: {'train': 27, .*} -> {'train': 26, ")])
def test_a_run_notices_changed_labels_and_images(tmp_path, change, line):
    root = write_folder(tmp_path / 'set', train=10, test=2)
    info = json.loads(json.dumps(load(tmp_path / 'before', 'folder', root).info()))
    root = root.rename(tmp_path / 'moved')  # the location does not count
    change(root)
    dataset = load(tmp_path / 'after', 'folder', root)
    if line:
        with pytest.raises(UserError, match=rf"^config\.data\.dir: the data is not what 'run' was .*{line}"):
            dataset.check_same(info, 'run')
    else:
        dataset.check_same(info, 'run')


def test_the_data_of_a_run_without_digests_is_compared_by_its_other_fields(tmp_path):
    dataset = load(tmp_path, 'folder', write_folder(tmp_path / 'set', train=10, test=2))
    info = dataset.info()
    old = {field: value for field, value in info.items() if field != 'digest'}
    dataset.check_same(old, 'run')
    for changed in ({'mean': [0.5] * 3}, {'sizes': {}}, {'class_names': ['ant', 'bee']}, {'image_shape': [4, 4, 1]}):
        field, = changed
        with pytest.raises(UserError, match=rf'Changed: {field}: '):
            dataset.check_same({**old, **changed}, 'run')


@pytest.mark.parametrize(('test', 'line', 'size'), [
    ((4, 7, 6, 3), r'test images are 7 x 6 x 3 and train images 5 x 5 x 3 .*config\.data\.image_size brings all', 4),
    ((4, 5, 5), r'test images are 5 x 5 x 1 and train images 5 x 5 x 3 .*repeat\(3, -1\) makes grey', 0)])
def test_splits_with_images_of_different_shapes_are_refused(tmp_path, test, line, size):
    labels = np.arange(20) % 2
    np.savez(tmp_path / 'a.npz', x_train=np.zeros((20, 5, 5, 3), np.uint8), y_train=labels,
             x_test=np.zeros(test, np.uint8), y_test=labels[:4])
    with pytest.raises(UserError, match=line):
        load(tmp_path, 'arrays', tmp_path / 'a.npz', image_size=0)
    if size:
        assert load(tmp_path, 'arrays', tmp_path / 'a.npz', image_size=size).image_shape == (4, 4, 3)


def test_classes_without_training_images_are_logged(tmp_path, caplog):
    images = np.random.default_rng(0).integers(0, 256, (20, 5, 5, 3), np.uint8)
    np.savez(tmp_path / 'a.npz', x_train=images, y_train=np.arange(20) % 2 * 9)
    load(tmp_path, 'arrays', tmp_path / 'a.npz', image_size=0)
    assert '8 of 10 classes have no training image: 1, 2, 3, 4, 5, ...' in caplog.text
    assert '9 of 10 classes' not in caplog.text
    root = write_folder(tmp_path / 'set', train=4)
    (root / 'train' / 'grape').mkdir()
    assert load(tmp_path, 'folder', root).class_names == ['ant', 'bee', 'cow']
    assert 'train/grape: holds no images, so it is not a class' in caplog.text


def test_classes_that_another_split_lacks_are_logged(tmp_path, caplog):
    root = write_folder(tmp_path / 'set', train=8)
    for i in range(1, 8):
        (root / 'train' / 'ant' / f'{i}.png').unlink()
    save(root / 'test' / 'bee' / '0.png', COLOURS['bee'])
    load(tmp_path, 'folder', root, val_fraction=0.2)
    lines = [record.getMessage().partition(': ')[2] for record in caplog.records]
    assert [line for line in lines if 'classes' in line] == [
        '1 of 3 classes have no val image, so that the val figures say nothing about them: ant',
        '2 of 3 classes have no test image, so that the test figures say nothing about them: ant, cow']


GREY = np.zeros((4, 5, 5), np.uint8)


@pytest.mark.parametrize(('fields', 'line'), [
    ({'x': np.zeros(3)}, 'holds no train_images and train_labels; its arrays are: x'),
    ({'x_train': GREY / 255, 'y_train': np.zeros(4, int)},
     r'a\.npz: x_train must be uint8 .*, got float64 \(4, 5, 5\) .*; convert with \(255 \* x_train\)\.round'),
    ({'train_images': np.zeros((4, 3, 5, 6), np.uint8), 'train_labels': np.zeros(4, int)},
     r'train_images must be .*; convert with train_images\.transpose\(0, 2, 3, 1\)'),
    ({'x_train': GREY, 'y_train': np.zeros(3, int)}, r'y_train must be 4 integers, .* got int64 \(3,\)'),
    ({'x_train': GREY, 'y_train': np.array([0, 1, 5, 2**40])}, r'the largest label is 1099511627776, with 4 .*np\.unique'),
    ({'x_train': GREY, 'y_train': np.array([0, 1, 5, 2**40]), 'class_names': list('abcdef')},
     'train image 3: label 1099511627776 is not one of the 6'),
    ({'x_train': GREY, 'y_train': np.arange(4) % 2, 'class_names': ['caf\u00e9', 'cafe\u0301']},
     'class_names: classes 0 and 1 are both called'),
    ({'x_train': GREY, 'y_train': np.zeros(4, int)}, 'only one class'),
    ({'x_train': GREY, 'y_train': np.array([0, 1, 5, -2])}, 'train image 3: label -2 is not one of the 6'),
    ({'x_train': np.array([None, {}])}, r'cannot be read as \.npz without pickles'),
])
def test_the_error_for_wrong_arrays_is_one_line(tmp_path, fields, line):
    np.savez(tmp_path / 'a.npz', **fields)
    with pytest.raises(UserError, match=line) as error:
        load(tmp_path, 'arrays', tmp_path / 'a.npz', image_size=0)
    assert '\n' not in str(error.value)


# ---- Unicode


COMPOSED, DECOMPOSED = 'caf\N{LATIN SMALL LETTER E WITH ACUTE}', 'cafe\N{COMBINING ACUTE ACCENT}'


@pytest.mark.parametrize(('train', 'test'), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_a_class_is_the_same_in_every_unicode_form(tmp_path, train, test):
    root = tmp_path / DECOMPOSED
    for split, name, count in (('train', train, 3), ('train', test, 2), ('test', test, 2)):
        for i in range(count):
            save(root / split / name / f'{name}_{i}.png', COLOURS['ant'])
            save(root / split / 'bee' / f'bee_{i}.png', COLOURS['bee'])
    for layout in ('folder', 'flat'):
        dataset = load(tmp_path, layout, tmp_path / COMPOSED, val_fraction=0.0)
        assert dataset.class_names == ['bee', COMPOSED]
        assert {split: dataset.class_counts(split) for split in dataset.splits} == {'train': [3, 5], 'test': [2, 2]}


@pytest.mark.parametrize(('in_table', 'on_disk'), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_a_path_in_a_table_may_differ_from_the_file_in_its_unicode_form(tmp_path, in_table, on_disk):
    rows = []
    for name, colour in COLOURS.items():
        for i in range(4):
            save(tmp_path / on_disk / name / f'{on_disk}{i}.png', colour)
            rows.append(f'{in_table}/{name}/{in_table}{i}.png,{name}')
    save(tmp_path / on_disk / 'ant' / f'{in_table}0.png', COLOURS['bee'])  # a file with exactly this name takes precedence
    rows[0] = rows[0].replace(',ant', ',bee')
    (tmp_path / 'a.csv').write_text('\n'.join(['path,label', *rows]))
    assert_holds(load(tmp_path, 'csv', tmp_path / 'a.csv', val_fraction=0.25), train=9, val=3)


# ---- tables as programs write them


def write_images_for_table(root, count=4, **labels):
    """Write images of each colour, and return rows of a path and a label; `labels` gives other names of classes."""
    rows = []
    for name, colour in COLOURS.items():
        for i in range(count):
            save(root / name / f'{i}.png', colour)
            rows.append((f'{name}/{i}.png', labels.get(name, name)))
    return rows


@pytest.mark.parametrize(('encoding', 'delimiter', 'end'), [
    ('utf-8', '\t', '\n'), ('utf-8-sig', ';', '\r\n'), ('utf-16', ',', '\r'), ('utf-16-le', '\t', '\r\n'),
    ('utf-16-be', ';', '\n'), ('utf-32', ',', '\n')])
def test_tables_with_each_separator_and_encoding(tmp_path, encoding, delimiter, end):
    rows = [('path', 'label'), *write_images_for_table(tmp_path, ant='caf\N{LATIN SMALL LETTER E WITH ACUTE}, brown')]
    text = ''.join(delimiter.join(f'"{cell}"' if delimiter in cell else cell for cell in row) + end for row in rows)
    (tmp_path / 'a.csv').write_bytes(text.encode(encoding))
    dataset = load(tmp_path, 'csv', tmp_path / 'a.csv', val_fraction=0.25)
    assert dataset.class_names == ['bee', 'caf\N{LATIN SMALL LETTER E WITH ACUTE}, brown', 'cow']
    assert dataset.class_counts('train') == [3, 3, 3]


@pytest.mark.parametrize(('text', 'rows'), [
    ('a.png\tcat;dog\n', [['a.png', 'cat;dog']]),
    ('a.png\tcat;dog\nb.png\towl;cat\n', [['a.png', 'cat;dog'], ['b.png', 'owl;cat']]),
    ('a.png\thot dog, cold\n', [['a.png', 'hot dog, cold']]),
    ('a.png,cat;dog\n', [['a.png', 'cat;dog']]),
    ('a.png;cat\nb, c.png;dog\n', [['a.png', 'cat'], ['b, c.png', 'dog']])])
def test_cells_may_hold_characters_that_are_separators_in_other_tables(tmp_path, text, rows):
    (tmp_path / 'a.csv').write_text(text)
    assert [cells for _, cells in tables.read_rows(str(tmp_path / 'a.csv'))] == rows


@pytest.mark.parametrize(('content', 'line'), [
    (b'path,label\na.png,ant\nb.png,caf\xe9\n', r'a\.csv: line 3 is not UTF-8 \(byte 0xe9: .*save it as UTF-8'),
    ('path,label\na.png,ant\n'.encode('utf-16')[:-1], r'a\.csv: line 2 is not UTF-16'),
    (b'path label\na.png ant\n', 'line 1: has 1 cell, expected 2 or more; separate cells by a comma, a semicolon or a tab'),
])
def test_the_error_for_an_unreadable_table_names_the_line(tmp_path, content, line):
    (tmp_path / 'a.csv').write_bytes(content)
    with pytest.raises(UserError, match=line) as error:
        load(tmp_path, 'csv', tmp_path / 'a.csv')
    assert '\n' not in str(error.value)


def test_numbers_as_labels(tmp_path):
    rows = write_images_for_table(tmp_path, ant='0.0', bee='10.0', cow='2.5')
    rows += [('missing.png', label) for label in ('-1', '-1.0', 'nan', 'NaN', '')]
    test = write_images_for_table(tmp_path / 'test', count=2, ant='0', bee='10', cow='2.5')
    for split, split_rows in (('train', rows), ('test', [(f'test/{path}', name) for path, name in test])):
        (tmp_path / f'{split}.csv').write_text('path,label\n' + ''.join(f'{path},{name}\n' for path, name in split_rows))
    dataset = load(tmp_path, 'csv', tmp_path, val_fraction=0.0)
    assert dataset.class_names == ['0', '2.5', '10']
    assert {split: dataset.class_counts(split) for split in dataset.splits} == {'train': [4, 4, 4], 'test': [2, 2, 2]}


def test_classes_that_are_numbers_are_sorted_by_value_before_other_names(tmp_path):
    numbers = ['-10', '-2.5', '0', '0.5', '2', '10', '10.5', '10000000000000000000001', '10000000000000000000002']
    for name in [*numbers, 'a', '-', '1.']:
        save(tmp_path / 'set' / name / '0.png', (1, 2, 3))
    source = layouts.folder(DataConfig(name='folder', dir=str(tmp_path / 'set')))
    assert source.class_names() == [*numbers, '-', '1.', 'a']


# ---- duplicates


def test_an_image_that_is_listed_twice_is_logged_and_must_have_one_label(tmp_path, caplog):
    rows = write_images_for_table(tmp_path)
    table = tmp_path / 'a.csv'
    table.write_text('path,label\n' + ''.join(f'{path},{name}\n' for path, name in [*rows, ('./ant//0.png', 'ant')]))
    load(tmp_path, 'csv', table)
    assert f'1 repeated row, for example {table}: line 2 and {table}: line 14' in caplog.text
    table.write_text('path,label\n' + ''.join(f'{path},{name}\n' for path, name in [*rows, ('./ant/0.png', 'bee')]))
    with pytest.raises(UserError, match=r"ant/0\.png has two labels: 'ant' in .*a\.csv: line 2, 'bee' in .*: line 14$"):
        load(tmp_path, 'csv', table)


def test_equal_images_in_two_splits_are_counted_and_logged(tmp_path, caplog):
    root = write_folder(tmp_path / 'set', train=8, test=4)
    load(tmp_path, 'folder', root, val_fraction=0.5)
    assert not caplog.text
    shutil.copy(root / 'train' / 'bee' / '1.png', root / 'test' / 'bee' / 'copy.png')
    with Image.open(root / 'train' / 'bee' / '2.png') as image:
        image.save(root / 'test' / 'bee' / 'copy.bmp')
        image.save(root / 'test' / 'ant' / 'copy.bmp')
    expected = '3 of 15 test images are also training images; 3 images with equal pixels but different labels'
    for _ in range(2):  # the second time from stored digests
        caplog.clear()
        load(tmp_path, 'folder', root, val_fraction=0.0)
        assert [record.getMessage() for record in caplog.records] == [f'{root}: {expected}']
    caplog.clear()
    for name in COLOURS:
        for i in range(8):
            shutil.copy(root / 'train' / name / f'{i}.png', root / 'train' / name / f'copy_{i}.png')
    splits = load(tmp_path, 'folder', root, val_fraction=0.5).splits
    train, val = ({image.tobytes() for image in splits[name].take(np.arange(24))} for name in ('train', 'val'))
    count = sum(image.tobytes() in train for image in splits['val'].take(np.arange(24)))
    assert 0 < len(train & val) <= count
    assert f'{count} of 24 val images are also training images' in caplog.text


# ---- which files are read


def test_images_are_recognised_by_content_and_other_files_are_counted(tmp_path, caplog):
    root = write_folder(tmp_path / 'set', train=4, test=2)
    for name, kind in (('a.avif', 'AVIF'), ('b.jp2', 'JPEG2000'), ('c', 'PNG'), ('d.001', 'GIF'), ('e.jpg_large', 'BMP')):
        Image.new('RGB', (8, 6), COLOURS['bee']).save(root / 'train' / 'bee' / name, kind)
    for i in range(3):
        (root / 'train' / 'bee' / f'{i}.HEIC').write_bytes(b'\0\0\0\x18ftypheic')
        save(root / 'train' / f'loose_{i}.png', COLOURS['bee'])
        save(root / f'loose_{i}.png', COLOURS['bee'])
    (root / 'train' / 'bee' / 'LICENSE').write_text('P5 is not meant as a picture')
    os.mkfifo(root / 'train' / 'bee' / 'pipe')
    (root / 'notes.txt').write_text('')
    (root / 'train' / 'bee' / '.DS_Store').write_text('')
    assert_holds(load(tmp_path, 'folder', root, val_fraction=0.0), train=17, test=6)
    lines = [record.getMessage() for record in caplog.records if 'skipped files' in record.getMessage()]
    assert lines == [f'{root}: skipped files: images beside the class folders (6), .heic (3), without an ending (2), '
                     '.txt (1); the package pillow-heif reads HEIC']


def test_text_files_beside_images_cause_no_warning(tmp_path, caplog):
    root = write_folder(tmp_path / 'set', train=4)
    (root / 'train' / 'bee' / 'notes.txt').write_text('')
    with caplog.at_level('INFO', 'jaxcnn'):
        load(tmp_path, 'folder', root)
    assert [record.levelname for record in caplog.records if 'skipped files: .txt (1)' in record.getMessage()] == ['INFO']


# ---- errors


def damage_file(kind, path):
    content = path.read_bytes()
    huge = struct.pack('<I2H4I2H6I', 54, 0, 0, 54, 40, 20000, 20000, 1, 24, *[0] * 6)
    path.write_bytes({'zero bytes': b'', 'truncated': content[:len(content) // 2], 'text': b'this is not a picture',
                      'huge': b'BM' + huge}[kind])


@pytest.mark.parametrize(('kind', 'reason'), [('zero bytes', 'empty file'), ('truncated', 'truncated'),
                                              ('text', 'not a picture'), ('huge', '400000000 pixels')])
def test_a_broken_image_is_an_error_or_is_skipped_and_counted(tmp_path, kind, reason, caplog):
    root = tmp_path / 'set'
    rng = np.random.default_rng(0)
    for name in COLOURS:
        for i in range(4):
            path = root / 'train' / name / f'{i}.jpg'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    damage_file(kind, root / 'train' / 'bee' / '0.jpg')
    with pytest.raises(UserError, match=rf'train/bee/0\.jpg: .*{reason}.*config\.data\.skip_broken') as error:
        load(tmp_path, 'folder', root)
    assert '\n' not in str(error.value)
    dataset = load(tmp_path, 'folder', root, skip_broken=True, val_fraction=0.25)
    assert dataset.broken == {'train': 1}
    assert sum(map(len, dataset.splits.values())) == 11
    assert caplog.text.count('skipped: ') == 1
    assert 'train/bee/0.jpg' in caplog.text
    names = {name: [dataset.image_name(name, i) for i in range(len(split))] for name, split in dataset.splits.items()}
    assert len({*names['train'], *names['val']} - {'train/bee/0.jpg'}) == 11
    for split, split_names in names.items():
        for label, name in zip(dataset.splits[split].targets['label'], split_names, strict=True):
            assert dataset.class_names[label] in name


def empty(root):
    root.mkdir()


def one_class(root):
    save(root / 'train' / 'ant' / '0.png', (1, 1, 1))


def class_only_in_test(root):
    write_folder(root, train=2, test=1)
    save(root / 'test' / 'dog' / '0.png', (1, 1, 1))


def misspelt(root):
    write_folder(root, trainn=2, test=1)


def loop(root):
    write_folder(root, train=2, test=1)
    os.symlink(root / 'train' / 'ant', root / 'train' / 'ant' / 'again')


def broken_link(root):
    write_folder(root, train=2, test=1)
    os.symlink('missing.png', root / 'train' / 'ant' / 'link.png')


@pytest.mark.parametrize(('write', 'line'), [
    (empty, r'holds no labelled images to train on; expected <split>/<class>/<image>'),
    (one_class, "holds only the class 'ant'; a classifier needs two or more"),
    (class_only_in_test, r"test/dog/0\.png: its class 'dog' is not one of the 3 classes"),
    (misspelt, 'has a split test, but none to train on; expected a folder called train .*; its folders are: test, trainn'),
    (loop, 'ant/again: is a link to a folder above it'), (broken_link, 'link.png: is a broken link'),
])
def test_the_error_for_a_wrong_folder_is_one_line(tmp_path, write, line):
    write(tmp_path / 'set')
    with pytest.raises(UserError, match=line) as error:
        load(tmp_path, 'folder', tmp_path / 'set')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', ['folder', 'flat', 'csv', 'tiny_imagenet', 'idx', 'arrays', 'webdataset', 'huggingface'])
def test_a_layout_needs_an_existing_path(tmp_path, name):
    with pytest.raises(UserError, match=f"config.data.dir: the layout '{name}' needs"):
        load(tmp_path, name, '')
    with pytest.raises(UserError, match=r"config.data.dir: .*nowhere' does not exist"):
        load(tmp_path, name, tmp_path / 'nowhere')


def test_a_path_to_something_else_is_refused(tmp_path):
    (tmp_path / 'a.npz').write_text('text')
    with pytest.raises(UserError, match=r'a\.npz: cannot be read as \.npz without pickles: it is not an \.npz file'):
        load(tmp_path, 'arrays', tmp_path / 'a.npz')
    with pytest.raises(UserError, match=r'config\.data\.dir: .* is not tiny-imagenet-200, and does not hold it'):
        load(tmp_path, 'tiny_imagenet', tmp_path)


def test_links_to_folders_are_followed(tmp_path):
    root = write_folder(tmp_path / 'set', train=4)
    os.rename(root / 'train' / 'bee', tmp_path / 'elsewhere')
    os.symlink(tmp_path / 'elsewhere', root / 'train' / 'bee')
    assert_holds(load(tmp_path, 'folder', root, val_fraction=0.25), train=9, val=3)


def test_file_names_that_are_not_utf_8_can_be_read_and_printed(tmp_path):
    root = write_folder(tmp_path / 'set', train=4)
    os.rename(os.fsencode(root / 'train' / 'cow'), os.fsencode(root / 'train') + b'/caf\xe9')
    os.rename(os.fsencode(root / 'train' / 'bee' / '0.png'), os.fsencode(root / 'train' / 'bee') + b'/\xff.png')
    dataset = load(tmp_path, 'folder', root)
    assert set(dataset.class_names) == {'ant', 'bee', 'caf\N{REPLACEMENT CHARACTER}'}
    (root / 'train' / 'bee' / '1.png').write_bytes(b'')
    with pytest.raises(UserError, match='empty file') as error:
        load(tmp_path, 'folder', root)
    str(error.value).encode('utf-8')


def test_control_characters_in_names_are_escaped(tmp_path, caplog):
    assert printable('日本 ö\n\x1b[31m\x9b\u202e\u2028\udc80') == r'日本 ö\n\x1b[31m\x9b\u202e\u2028\udc80'
    root = write_folder(tmp_path / 'set', train=4)
    os.rename(root / 'train' / 'cow', root / 'train' / 'c\now\x1b[31m')
    os.mkdir(root / 'train' / '\x1b]0;empty\a')
    assert set(load(tmp_path, 'folder', root).class_names) == {'ant', 'bee', r'c\now\x1b[31m'}
    assert all(record.getMessage().isprintable() for record in caplog.records)
    assert r'\x1b]0;empty\x07' in caplog.text


def test_added_and_renamed_files_are_noticed(tmp_path):
    root = write_folder(tmp_path / 'set', train=4)
    assert_holds(load(tmp_path, 'folder', root), train=11, val=1)
    save(root / 'train' / 'ant' / 'new.png', COLOURS['ant'])
    assert_holds(load(tmp_path, 'folder', root), train=12, val=1)
    os.rename(root / 'train' / 'cow' / '0.png', root / 'train' / 'ant' / 'moved.png')
    with pytest.raises(AssertionError):
        assert_holds(load(tmp_path, 'folder', root), train=12, val=1)


def test_files_of_the_same_size_and_time_in_different_folders_are_not_confused(tmp_path):
    for value in (0, 1):
        root = tmp_path / str(value)
        root.mkdir()
        for name, count in (('train', 6), ('t10k', 4)):
            write_idx(root / f'{name}-images-idx3-ubyte', np.full((count, 4, 4), value, np.uint8), compress=False)
            write_idx(root / f'{name}-labels-idx1-ubyte', np.arange(count, dtype=np.uint8) % 2, compress=False)
        for name, colour in (('ant', (value, 0, 0)), ('bee', (0, value, 0))):
            for i in range(4):
                save(root / 'set' / name / f'{i}.bmp', colour)
        for path in [p for p in root.rglob('*') if p.is_file()]:
            os.utime(path, (1, 1))
        for layout, where in (('idx', root), ('folder', root / 'set')):
            train = load(tmp_path, layout, where, val_fraction=0.25).splits['train']
            assert train.take(np.arange(len(train))).max() == value


def test_each_damaged_byte_of_a_compressed_file_gives_a_user_error(tmp_path):
    for name, count in (('train', 600), ('t10k', 4)):
        write_idx(tmp_path / f'{name}-images-idx3-ubyte.gz', np.zeros((count, 4, 4), np.uint8))
        write_idx(tmp_path / f'{name}-labels-idx1-ubyte.gz', np.random.default_rng(0).integers(0, 3, count).astype(np.uint8))
    path = tmp_path / 'train-labels-idx1-ubyte.gz'
    content, results = path.read_bytes(), set()
    for position in range(10, len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1:])
        try:
            arrays.idx(DataConfig(name='idx', dir=str(tmp_path)))
            results.add('undamaged')  # the byte belongs to the file name in the header of the compressed file
        except UserError as e:
            results.add('cannot be decompressed' if 'Error -3' in str(e) else 'wrong checksum or length')
    assert results == {'undamaged', 'cannot be decompressed', 'wrong checksum or length'}


def test_the_error_for_a_file_that_was_removed_meanwhile_names_it(tmp_path):
    root = write_folder(tmp_path / 'set', train=4)
    source = layouts.folder(DataConfig(name='folder', dir=str(root)))
    files = source.splits['train']()
    os.remove(root / 'train' / 'ant' / '0.png')
    with pytest.raises(UserError, match=r'train/ant/0\.png: no such file'):
        files[0]


# ---- image formats


PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


def blend_with_white(rgba):
    """Return RGB pixels on a white background."""
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize('kind', ['png', 'webp', 'bmp', 'gif', 'tiff', 'grey', '16 bit', '16 bit grey png', 'palette',
                                  'cmyk', 'alpha', 'palette alpha', 'exif', 'bits'])
def test_images_are_read_as_a_viewer_shows_them(tmp_path, kind):
    image, tolerance = Image.fromarray(PIXELS), 1.0
    grey = PIXELS[..., 0]
    expected = PIXELS.astype(float)
    path, options = tmp_path / 'a.png', {}
    if kind == 'webp':
        path, options = tmp_path / 'a.webp', {'lossless': True}
    elif kind in ('bmp', 'tiff'):
        path = tmp_path / f'a.{kind}'
    elif kind == 'gif':
        path = tmp_path / 'a.gif'
        first = image.quantize(32)
        expected = np.asarray(first.convert('RGB'), float)
        image, options = first, {'save_all': True, 'append_images': [Image.new('P', image.size)]}
    elif kind == 'grey':
        image, expected = Image.fromarray(grey), np.stack([grey] * 3, -1).astype(float)
    elif kind in ('16 bit', '16 bit grey png'):
        path = tmp_path / ('a.tiff' if kind == '16 bit' else 'a.png')
        image, expected = Image.fromarray(grey.astype(np.uint16) * 257), np.stack([grey] * 3, -1).astype(float)
    elif kind == 'palette':
        image = image.quantize(64)
        expected = np.asarray(image.convert('RGB'), float)
    elif kind == 'cmyk':
        path, options, tolerance = tmp_path / 'a.tiff', {}, 2.0
        image = image.convert('CMYK')
    elif kind == 'alpha':
        rgba = np.random.default_rng(1).integers(0, 256, (6, 8, 4), np.uint8)
        image, expected = Image.fromarray(rgba), blend_with_white(rgba)
    elif kind == 'palette alpha':
        image = image.quantize(16)
        options = {'transparency': 3}
        expected = np.where((np.asarray(image) == 3)[..., None], 255.0, np.asarray(image.convert('RGB')))
    elif kind == 'exif':
        path, tolerance = tmp_path / 'a.jpg', 12.0
        smooth = np.uint8(np.add.outer(np.arange(6) * 20, np.arange(8) * 10))[..., None] * np.ones(3, np.uint8)
        image, expected = Image.fromarray(smooth), np.rot90(smooth, -1).astype(float)
        exif = Image.Exif()
        exif[0x0112] = 6  # to be rotated clockwise
        options = {'exif': exif, 'quality': 100}
    elif kind == 'bits':
        image = Image.fromarray(grey > 128)
        expected = np.stack([255.0 * (grey > 128)] * 3, -1)
    image.save(path, **options)
    pixels = picture.read(path, 'RGB')
    assert pixels.dtype == np.uint8
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).max() <= tolerance


# ---- sizes and subsets


@pytest.mark.parametrize('how', ['crop', 'squash', 'pad'])
def test_predict_resizes_images_as_a_layout_does(tmp_path, how):
    rng = np.random.default_rng(0)
    for name in ('a', 'b'):
        (tmp_path / 'all' / name).mkdir(parents=True)
        for i, shape in enumerate(((20, 31), (40, 16), (16, 16))):
            Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).save(tmp_path / 'all' / name / f'{i}.png')
    splits = load(tmp_path, 'folder', tmp_path / 'all', image_size=16, resize=how, val_fraction=0.34).splits
    loaded = np.concatenate([split.take(np.arange(len(split))) for split in splits.values()])
    for_predict = [picture.load(tmp_path / 'all' / name / f'{i}.png', {'image_shape': (16, 16, 3), 'ink': None}, how)
                   for name in 'ab' for i in range(3)]
    assert sorted(x.tobytes() for x in loaded) == sorted(x.tobytes() for x in for_predict)


def test_per_class_takes_a_subset_of_the_training_images(tmp_path):
    root = write_folder(tmp_path / 'set', train=8, test=2)
    complete, subset, same_seed, other_seed = (load(tmp_path, 'folder', root, val_fraction=0.25, **fields) for fields in (
        {}, {'per_class': 3}, {'per_class': 3}, {'per_class': 3, 'split_seed': 1}))
    assert_holds(subset, train=9, val=6, test=6)
    assert subset.class_counts('train') == [3, 3, 3]
    index = subset.splits['train'].index
    np.testing.assert_array_equal(index, same_seed.splits['train'].index)
    assert not np.array_equal(index, other_seed.splits['train'].index)
    assert set(index) <= set(complete.splits['train'].index)
