"""The page of a data set: what was planted in a folder of images is counted, and everything else is not."""

import argparse
import csv
import json

import numpy as np
import pytest
from PIL import Image

from jaxcnn.cli import data
from jaxcnn.config import DataConfig
from jaxcnn.data import Source
from jaxcnn.data.targets import BOXES, LABEL
from jaxcnn.data_report import page
from jaxcnn.data_report.findings import numbers
from jaxcnn.data_report.near_duplicates import close_pairs, near_pairs
from jaxcnn.errors import UserError


def picture(seed, height=66, width=80):
    """An RGB picture with structure at several scales; pictures of other seeds do not look like it."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    return Image.fromarray(np.clip(np.asarray(coarse) + rng.normal(0, 4, (height, width, 3)), 0, 255).astype(np.uint8))


ODD = {'EXIF orientation other than 1': 1, 'CMYK': 1, '16 bits per channel': 1, 'transparency': 1, 'palette': 2,
       'several frames': 1, 'extension of another format': 1, 'grey among colour': 2,
       'longer side over 3 times the shorter': 1, 'tiny': 1}  # the animation has a palette, and the 16 bits are grey


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """12 plain pictures of ants and of bees, a cow, and one odd file of each kind among the ants; four test pictures."""
    root = tmp_path_factory.mktemp('photos')
    for name in ('train/ant', 'train/bee', 'train/cow', 'test/ant', 'test/bee'):
        (root / name).mkdir(parents=True)
    for seed in range(24):
        picture(seed).save(root / f'train/{("ant", "bee")[seed % 2]}/{seed}.png')
    picture(24).save(root / 'train/cow/24.png')
    ant = root / 'train/ant'
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(30).save(ant / 'rotated.jpg', exif=exif)
    picture(31).convert('CMYK').save(ant / 'cmyk.jpg')
    Image.fromarray(np.asarray(picture(32).convert('L')).astype(np.uint16) * 257).save(ant / 'deep.png')
    transparent = picture(33)
    transparent.putalpha(Image.fromarray(np.tile(np.arange(80, dtype=np.uint8), (66, 1))))
    transparent.save(ant / 'transparent.png')
    picture(34).quantize(64).save(ant / 'palette.png')
    picture(35).quantize(64).save(ant / 'film.gif', save_all=True, append_images=[picture(36).quantize(64)])
    picture(37).convert('L').save(ant / 'grey.jpg')
    picture(38, 40, 200).save(ant / 'wide.png')
    picture(39, 8, 9).save(ant / 'tiny.png')
    picture(40).save(ant / 'named.jpg', format='PNG')
    picture(41).save(ant / 'cut.jpg')
    content = (ant / 'cut.jpg').read_bytes()
    (ant / 'cut.jpg').write_bytes(content[:len(content) * 3 // 4])
    (ant / 'empty.png').write_bytes(b'')
    (ant / 'text.jpg').write_text('no picture')
    picture(0).save(root / 'test/ant/copy.bmp')  # equal pixels
    picture(1).resize((72, 60), Image.Resampling.BICUBIC).save(root / 'test/bee/again.jpg', quality=70)  # looks alike
    picture(2).save(root / 'test/bee/conflict.png')  # an ant of the training split
    picture(50).save(root / 'test/bee/new.png')
    return root


@pytest.fixture(scope='module')
def report(folder):
    return page.make_report(DataConfig(name='folder', dir=str(folder), val_fraction=0.0), LABEL)


def test_each_odd_file_is_counted(report):
    odd = report.odd_images()
    assert {kind: sum(map(len, rows.values())) for kind, rows in odd.items()} == ODD
    assert report.image_name('train', odd['CMYK']['train'][0]) == 'train/ant/cmyk.jpg'
    assert {kind: [name for name, _ in images] for kind, images in report.failures().items()} == {
        'truncated': ['train/ant/cut.jpg'], 'empty': ['train/ant/empty.png'], 'not an image': ['train/ant/text.jpg']}
    assert numbers(report)['splits']['train']['height'] == {'min': 8, 'median': 66, 'max': 80}, 'the upright height is 80'


def test_copies_and_conflicting_labels_are_counted(report):
    exact = [count for count in report.duplicates.counts() if count.kind == 'exact']
    assert exact == [('exact', 'train', 'test', 2, 2, 1)]
    first, second = (report.duplicates.image(positions[report.duplicates.order('exact')[0]])
                     for positions in report.duplicates.pairs['exact'][:2])
    assert (report.image_name(*first), report.label(*first)) == ('train/ant/2.png', 'ant')
    assert (report.image_name(*second), report.label(*second)) == ('test/bee/conflict.png', 'bee')


def test_a_picture_that_was_resized_and_encoded_again_is_a_near_duplicate(report):
    pytest.importorskip('imagehash')
    pairs = report.duplicates.pairs['near']
    assert [report.image_name(*report.duplicates.image(rows[0])) for rows in pairs[:2]] == [
        'train/bee/1.png', 'test/bee/again.jpg']
    assert len(pairs.first) == 1


def test_the_command_prints_the_warnings_first(folder, tmp_path, capsys):
    fields = [f'data.dir={folder}', 'data.name=folder', 'data.image_size=32']
    arguments = dict(config='food_shallow', overrides=fields, images=0, out=str(tmp_path), json=True)
    assert data.run(argparse.Namespace(**arguments)) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == 'warning: leak: 2 of 4 test images (50 %) are also train images'
    kinds = [line.split(': ')[1] for line in out if line.startswith('warning')]
    assert [kind for kind in dict.fromkeys(kinds) if kind != 'duplicates'] == ['leak', 'labels', 'unreadable', 'classes',
                                                                               'imbalance']
    written = json.loads((tmp_path / 'data.json').read_text())
    assert written['splits']['train']['class_counts'] == [25, 12, 1], 'broken files have a class, too'
    assert written['normalize'] in (tmp_path / 'data.html').read_text()
    table = [*csv.DictReader((tmp_path / 'duplicates.csv').read_text().splitlines())]
    assert (table[0]['labels'], table[0]['image 2']) == ('differ', 'test/bee/conflict.png')
    assert {path.stem for path in (tmp_path / 'figures').iterdir()} >= {'sizes', 'classes', 'exact_duplicates',
                                                                       'random_images'}


def test_boxes_are_counted(tmp_path):
    picture(0).save(tmp_path / 'a.png')
    picture(1).save(tmp_path / 'b.png')
    rows = ['split,image,x0,y0,x1,y1,class,difficult', *('train,a.png,1,2,30,40,bee,0',) * 11, 'train,a.png,3,3,9,9,ant,1',
            'train,a.png,5,5,5,9,ant,0', 'val,b.png,,,,,,']
    (tmp_path / 'boxes.csv').write_text('\n'.join(rows))
    config = DataConfig(name='csv', dir=str(tmp_path / 'boxes.csv'), max_boxes=10)
    report = page.make_report(config, BOXES)
    result = numbers(report)
    assert result['splits']['train']['boxes'] == {
        'boxes': 13, 'difficult': 1, 'wrong': 1, 'by_class': [2, 11], 'in_an_image': {'min': 13, 'median': 13, 'max': 13},
        'width': {'min': 0, 'median': 29, 'max': 29}, 'height': {'min': 4, 'median': 38, 'max': 38}}
    text = '\n'.join(result['warnings'])
    assert 'boxes: 1 wrong; training stops at the first of them' in text
    assert 'a.png: the box x0=5, y0=5, x1=5, y1=9 has no area' in text
    assert 'an image has 13, but config.data.max_boxes=10' in text
    assert page.write_report(report, str(tmp_path / 'out'), 'bees') == str(tmp_path / 'out' / 'data.html')


def test_arrays_have_statistics_and_random_subsets():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 9, 7, 3), np.uint8), np.arange(40) % 2
    source = Source.from_arrays((images, labels), val=(images[:4], labels[:4]))
    report = page.make_report(DataConfig(), LABEL, source=source)
    mean, std = report.statistics()
    np.testing.assert_allclose(mean, images.mean((0, 1, 2)) / 255, rtol=1e-12)
    np.testing.assert_allclose(std, images.std((0, 1, 2)) / 255, rtol=1e-12)
    assert [tuple(count) for count in report.duplicates.counts()] == [('exact', 'train', 'val', 4, 4, 0)]
    subset = page.make_report(DataConfig(), LABEL, max_images=10, source=source)
    assert numbers(subset)['splits']['train']['examined'] == 10
    assert subset.train.class_counts.tolist() == [20, 20]


@pytest.mark.parametrize('max_distance', [0, 3, 6])
def test_all_close_pairs_are_found_once(max_distance):
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 64, 40, np.uint64)
    flips = np.array([sum(1 << int(bit) for bit in rng.choice(64, rng.integers(0, 9), replace=False)) for _ in range(160)],
                     np.uint64)
    hashes = np.concatenate([hashes, np.tile(hashes, 4) ^ flips])
    pairs = [tuple(pair) for block in close_pairs(hashes, max_distance) for pair in np.stack(block, 1).tolist()]
    distance = np.bitwise_count(hashes[:, None] ^ hashes)
    expected = [(int(i), int(j), int(distance[i, j])) for i, j in np.argwhere(distance <= max_distance) if i < j]
    assert len(expected) > 10
    assert sorted(pairs) == expected


def test_pairs_with_equal_hashes_are_confirmed_by_their_thumbnails():
    thumbnails = np.stack([np.asarray(picture(seed, 16, 16)) for seed in (0, 0, 1)])
    assert [rows.tolist() for rows in near_pairs(np.zeros(3, np.uint64), thumbnails)] == [[0], [1], [0]]


def test_mistakes_are_one_line(tmp_path):
    for class_name in ('ant', 'bee'):
        (tmp_path / class_name).mkdir()
        (tmp_path / class_name / 'a.png').write_bytes(b'')
    config = DataConfig(name='folder', dir=str(tmp_path))
    with pytest.raises(UserError, match=r'none of the 2 images can be read; the first: .*a.png: empty file'):
        page.make_report(config, LABEL)
    arguments = dict(config='digits_lenet5', overrides=[], images=-1, out='', json=False)
    with pytest.raises(UserError, match='--images: expected 0 or more, got -1'):
        data.run(argparse.Namespace(**arguments))
    with pytest.raises(UserError, match='/proc/x'):
        data.run(argparse.Namespace(**{**arguments, 'images': 5, 'out': '/proc/x'}))
