"""Object proposals: their order, which no machine and no run changes, the methods, and the targets in the cache."""

import json
import struct
import sys
import types

import numpy as np
import pytest

from jaxcnn import config, data, experiment
from jaxcnn.config import DataConfig
from jaxcnn.data import proposals
from jaxcnn.data.resizing import resize
from jaxcnn.data.sources import InMemoryExamples, Source
from jaxcnn.data.targets import BOXES, LABEL
from jaxcnn.errors import UserError


def random_boxes(count, side, seed=0):
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, side - 1, (count, 2))
    return np.concatenate([corners, corners + 1 + rng.integers(0, side - corners)], 1).astype(np.float32)


def test_the_order_is_a_function_of_the_boxes():
    boxes = random_boxes(500, 60)
    rng = np.random.default_rng(1)
    expected = proposals.sort_proposals(boxes)
    assert {*map(tuple, expected)} == {*map(tuple, boxes)}
    for _ in range(3):  # in another order, with some boxes twice
        shuffled = rng.permutation(np.concatenate([boxes, boxes[rng.integers(0, 500, 50)]]))
        np.testing.assert_array_equal(proposals.sort_proposals(shuffled), expected)


def random_number(box):
    """Return the pseudo-random number of a box by Python's integers, which do not depend on the machine."""
    state = 0
    for coordinate in box:
        bits, = struct.unpack('<I', struct.pack('<f', coordinate))
        state = (state ^ bits) + 0x9E3779B97F4A7C15 & MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & MASK
        state ^= state >> 31
    return state


MASK = 2 ** 64 - 1


def test_the_order_is_the_documented_one():
    boxes = [(0, 0, 4, 4), (0, 0, 2, 2), (-0.0, 0, 8, 4), (1.5, 0, 3, 2), (1, 1, 3, 7.25)]
    boxes += [(i, 0, i + 1, 1) for i in range(100)]
    expected = sorted([(x0 + 0.0, y0, x1, y1) for x0, y0, x1, y1 in boxes], key=random_number)  # 0 instead of -0
    np.testing.assert_array_equal(proposals.sort_proposals(boxes), expected)


def test_every_part_of_the_order_holds_all_sizes_in_proportion():
    sides = np.repeat([4, 16, 64], [1000, 400, 100])
    corners = np.random.default_rng(0).uniform(0, 100, (len(sides), 2)).astype(np.float32)
    boxes = proposals.sort_proposals(np.concatenate([corners, corners + sides[:, None]], 1))
    sorted_sides = np.round(boxes[:, 2] - boxes[:, 0])
    for start in range(0, 1500, 300):
        counts = [np.sum(sorted_sides[start:start + 300] == side) for side in (4, 16, 64)]
        np.testing.assert_allclose(counts, [200, 80, 20], rtol=0.4)


def test_small_boxes_and_empty_ones_are_left_out():
    boxes = [[0, 0, 5, 4], [0, 0, 3, 9], [2, 2, 2, 9], [3, 9, 9, 3], [0, 0, 4, 4]]
    assert {*map(tuple, proposals.sort_proposals(boxes, min_side=4))} == {(0, 0, 5, 4), (0, 0, 4, 4)}
    assert len(proposals.sort_proposals(boxes)) == 3
    assert proposals.sort_proposals(np.zeros((0, 4))).shape == (0, 4)


def test_boxes_are_clipped_padded_and_cut_to_the_maximum():
    boxes = np.array([[-3, 0, 5, 30], [1, 1, 4, 4], [1, 1, 4, 4]])
    image = np.zeros((8, 6, 3), np.uint8)
    arrays = proposals.ProposalMethod(lambda image: boxes, max_proposals=4).encode(image)
    assert arrays['proposals'].dtype == np.float32
    assert arrays['proposals'].shape == (4, 4)
    assert arrays['proposal_valid'].tolist() == [True, True, False, False]
    assert {*map(tuple, arrays['proposals'].tolist())} == {(0, 0, 5, 8), (1, 1, 4, 4), (0, 0, 0, 0)}
    arrays = proposals.ProposalMethod(lambda image: boxes, max_proposals=1).encode(image)
    assert arrays['proposals'].shape == (1, 4)
    assert arrays['proposal_valid'].tolist() == [True]


def test_sliding_windows_are_those_counted_by_hand():
    """Windows of 4x4 in an image of 8x10: tops 0, 2, 4 and lefts 0, 2, 4, 6; of 8x2 (ratio 4): top 0, lefts 0, ..., 8."""
    method = proposals.find('sliding_windows(scales=(4,), ratios=(1, 4), stride=0.5)')
    boxes = method.propose(np.zeros((8, 10, 3), np.uint8))
    expected = {(left, top, left + 4, top + 4) for top in (0, 2, 4) for left in (0, 2, 4, 6)}
    expected |= {(left, 0, left + 2, 8) for left in range(9)}
    assert len(boxes) == 12 + 9
    assert {*map(tuple, boxes.tolist())} == expected
    # 9 pixels leave 5 beside the window: the distances are at most 2, and the last window ends at the edge
    boxes = proposals.find('sliding_windows((4,), (1,), 0.5)').propose(np.zeros((4, 9, 1), np.uint8))
    assert sorted(boxes[:, 0].tolist()) == [0, 2, 3, 5]
    assert len(proposals.find('sliding_windows(scales=(16, 40))').propose(np.zeros((4, 9, 1), np.uint8))) == 0


class FakeOpenCV:
    """An OpenCV whose selective search returns given boxes (x, y, width, height) in random order, and records its calls."""

    __version__ = '0.fake'

    def __init__(self, boxes):
        self.boxes, self.calls, self.rng = boxes, [], np.random.default_rng()
        self.ximgproc = types.SimpleNamespace(segmentation=self)

    def __getattr__(self, name):
        if name == 'createSelectiveSearchSegmentation':
            return lambda: self
        return lambda *args: self.calls.append((name, *args)) or name

    def process(self):
        return self.rng.permutation(np.concatenate([self.boxes, self.boxes[:3]]))


def test_selective_search_passes_its_arguments_and_sorts_the_boxes(monkeypatch):
    boxes = random_boxes(40, 30)
    opencv = FakeOpenCV(np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).astype(np.int32))
    monkeypatch.setattr(proposals, '_import_opencv', lambda: opencv)
    image = np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8)
    method = proposals.find('selective_search(max_proposals=30, min_side=3)')
    assert method.versions() == {'opencv': '0.fake'}
    expected = proposals.sort_proposals(boxes, min_side=3)[:30]
    for _ in range(3):
        np.testing.assert_array_equal(method.propose(image), expected)
    (name, base_image), *calls = opencv.calls[:2]
    assert name == 'setBaseImage'
    np.testing.assert_array_equal(base_image, image[..., ::-1])
    assert calls == [('switchToSelectiveSearchFast', 150, 150, 0.8)]
    # the image is searched at a width of 60, so that the boxes are half as large in the image
    opencv.calls.clear()
    halved = proposals.find('selective_search("single", strategy="texture", k=100, width=60)').propose(image)
    np.testing.assert_array_equal(halved, proposals.sort_proposals(boxes / 2, min_side=2))
    assert opencv.calls[0][1].shape == (60, 60, 3)
    assert opencv.calls[1:] == [('switchToSingleStrategy', 100, 0.8), ('clearStrategies',),
                                ('createSelectiveSearchSegmentationStrategyTexture',),
                                ('addStrategy', 'createSelectiveSearchSegmentationStrategyTexture')]


def test_opencv_finds_a_rectangle_in_each_way_and_always_the_same():
    pytest.importorskip('cv2.ximgproc')
    image = np.full((48, 64, 3), 60, np.uint8)
    image[10:30, 20:50] = [200, 40, 40]
    settings = ['mode="fast"', 'mode="quality"', *(f'mode="single", strategy="{s}"' for s in proposals.STRATEGIES)]
    for text in settings:
        method = proposals.find(f'selective_search({text})')
        for pixels in (image, image[..., 1:2]):
            boxes = method.propose(pixels)
            assert np.abs(boxes - [20, 10, 50, 30]).max(1).min() <= 2, text
            np.testing.assert_array_equal(method.propose(pixels), boxes)


def tiny_source(shape):
    images = np.random.default_rng(0).integers(0, 256, (6, *shape, 3), np.uint8)
    examples = InMemoryExamples(images, {'boxes': np.tile([[1.0, 1, 5, 5]], (6, 1, 1)), 'classes': np.zeros((6, 1), int)})
    return images, Source.from_examples('tiny', 'tiny', {'train': examples}, ['disc', 'ring'], BOXES)


@pytest.mark.parametrize('fields', [{}, {'image_size': 20, 'resize': 'pad'}])
def test_proposals_are_computed_on_stored_images_and_cached(tmp_path, monkeypatch, fields):
    def search(image):  # one box that depends on the pixels of the image
        height, width = image.shape[:2]
        return np.array([[image.mean() / 64, 0, width, height], [1, 1, 3, 3]])

    def load(text):
        return data.load(DataConfig(cache_dir=str(tmp_path), val_fraction=0.5, proposals=text, **fields), BOXES, source)
    monkeypatch.setattr(proposals._SlidingWindows, '__call__', lambda self, image: search(image))
    images, source = tiny_source((12, 16))
    dataset = load('sliding_windows(max_proposals=5)')
    for split in dataset.splits.values():
        stored = split.take(np.arange(len(split)))
        original = images[split.index]
        expected = np.stack([resize(image, (20, 20), 'pad') for image in original]) if fields else original
        np.testing.assert_array_equal(stored, expected)
        assert split.targets['proposals'].shape == (3, 5, 4)
        assert split.targets['proposal_valid'].tolist() == [[True, True, False, False, False]] * 3
        for image, boxes in zip(stored, split.targets['proposals'], strict=True):
            assert {*map(tuple, boxes[:2])} == {*map(tuple, search(image).astype(np.float32))}
        computed = proposals.proposals_for(stored, DataConfig(proposals='sliding_windows(max_proposals=5)'))
        for name, values in computed.items():
            assert values.dtype == split.targets[name].dtype
            np.testing.assert_array_equal(values, split.targets[name])
    monkeypatch.undo()
    again = load('sliding_windows(max_proposals = 5, stride=0.5)')  # the same method, written in another way
    assert again.digest == dataset.digest
    assert len(list(tmp_path.glob('*/meta.json'))) == 1
    assert load('').splits['train'].targets.keys() == {'boxes', 'classes', 'valid', 'difficult', 'original_size'}
    load('sliding_windows(max_proposals=6)')
    assert len(list(tmp_path.glob('*/meta.json'))) == 3


def test_the_cache_records_the_version_of_opencv(tmp_path, monkeypatch):
    monkeypatch.setattr(proposals, '_import_opencv', lambda: FakeOpenCV(np.array([[0, 0, 4, 4]] * 3)))
    data.load(DataConfig(cache_dir=str(tmp_path), val_fraction=0.5, proposals='selective_search'), BOXES,
              tiny_source((12, 16))[1])
    meta, = tmp_path.glob('*/meta.json')
    assert json.loads(meta.read_text())['content']['package_versions'] == {'opencv': '0.fake'}


@pytest.mark.parametrize(('text', 'message'), [
    ('selectve_search', "unknown proposal method 'selectve_search'; nearest: selective_search"),
    ('edge_boxes', "unknown proposal method 'edge_boxes'; known: saved, selective_search, sliding_windows"),
    ('selective_search(', 'is not a name, or name\\(value'),
    ('selective_search(modes="fast")', "unknown argument of proposal method selective_search 'modes'; nearest: mode"),
    ('selective_search(mode="slow")', "unknown mode of selective_search 'slow'; known: fast, quality, single"),
    ('selective_search(strategy="color")', "unknown strategy of selective_search 'color'; nearest: colour"),
    ('selective_search(max_proposals=0)', 'selective_search.max_proposals: expected a whole number of at least 1, got 0'),
    ('selective_search(k=1.5)', 'selective_search.k: expected a whole number of at least 1, got 1.5'),
    ('sliding_windows(scales=64)', r'sliding_windows.scales: expected several numbers as in \(0.5, 1, 2\), got 64'),
    ('sliding_windows(ratios=(1, 0))', 'sliding_windows.ratios: expected a number of at least 0.001, got 0'),
    ('sliding_windows(stride=0)', 'sliding_windows.stride: expected a number of at least 0.01, got 0')])
def test_a_wrong_method_is_an_error_before_data_is_read(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as raised:
        data.load(DataConfig(name='voc', dir='/no/such', cache_dir=str(tmp_path), proposals=text), BOXES)
    assert str(raised.value).startswith('config.data.proposals: ')


def test_proposals_without_boxes_are_an_error(tmp_path):
    expected = r"config.data.proposals: 'sliding_windows' needs boxes around objects, but config.task has one class for each"
    with pytest.raises(UserError, match=expected):
        data.load(DataConfig(cache_dir=str(tmp_path), proposals='sliding_windows'), LABEL)
    with pytest.raises(UserError, match=expected):
        experiment.check(config.parse({'data': {'proposals': 'sliding_windows'}}))


def test_opencv_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'cv2', None)
    with pytest.raises(UserError, match=r'config.data.proposals: selective_search needs OpenCV .*; pip install'):
        data.load(DataConfig(cache_dir=str(tmp_path), val_fraction=0.5, proposals='selective_search'), BOXES,
                  tiny_source((8, 8))[1])
    assert not list(tmp_path.glob('*/'))


def test_saved_proposals_keep_their_order_and_belong_to_their_image(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 10, 3), np.uint8)
    boxes = np.array([[[4, 4, 8, 8], [0, 0, 2, 2], [0, 0, 0, 0]], [[1, 1, 9, 7], [2, 2, 5, 5], [0, 0, 3, 3]]], np.float32)
    valid = np.array([[True, True, False], [True, True, True]])
    path = str(tmp_path / 'proposals.npz')
    keys = [proposals.image_key(image) for image in images]
    proposals.save(path, keys, boxes, valid)
    config = DataConfig(proposals=f'saved("{path}", max_proposals=2)')
    arrays = proposals.proposals_for(images[::-1], config)
    np.testing.assert_array_equal(arrays['proposals'], boxes[::-1, :2])
    assert arrays['proposal_valid'].all()
    with pytest.raises(UserError, match='has no proposals for this image'):
        proposals.proposals_for(images[:1] + 1, config)
    first_key = BOXES.cache_settings(config)
    proposals.save(path, keys, boxes + 1, valid)
    assert BOXES.cache_settings(config) != first_key
