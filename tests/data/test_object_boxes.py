"""The targets of the kind `boxes`: padding, checks, and the map of boxes that belongs to the resizing of the image."""

import logging

import numpy as np
import pytest

from jaxcnn import data
from jaxcnn.config import DataConfig
from jaxcnn.data.sources import InMemoryExamples, Source
from jaxcnn.data.targets import BOXES
from jaxcnn.errors import UserError

# a wide image with a box at the left edge, one in the centre, and one at the right edge
WIDE = {'image': np.zeros((20, 40, 3), np.uint8), 'boxes': [[0, 0, 12, 10], [16, 4, 24, 16], [31, 10, 40, 20]],
        'classes': [2, 0, 1], 'difficult': [False, False, True]}


def encode(example, **fields):
    return BOXES.encode(example, 3, DataConfig(**{'max_boxes': 4, **fields}))


def test_boxes_are_padded():
    arrays, problems = encode(WIDE)
    assert problems == []
    np.testing.assert_array_equal(arrays['boxes'], [*WIDE['boxes'], [0, 0, 0, 0]])
    assert arrays['boxes'].dtype == np.float32
    assert arrays['classes'].tolist() == [2, 0, 1, 0]
    assert arrays['valid'].tolist() == [True, True, True, False]
    assert arrays['difficult'].tolist() == [False, False, True, False]
    assert arrays['original_size'].tolist() == [20, 40]


@pytest.mark.parametrize(('mode', 'boxes', 'difficult'), [
    ('squash', [[0, 0, 3, 5], [4, 2, 6, 8], [7.75, 5, 10, 10]], [False, False, True]),
    ('pad', [[0, 2, 3, 4.5], [4, 3, 6, 6], [7.75, 4.5, 10, 7]], [False, False, True]),
    ('crop', [[0, 0, 1, 5], [3, 2, 7, 8]], [True, False])])  # a sixth of the first box remains, and nothing of the last
def test_boxes_are_resized_with_the_image(mode, boxes, difficult):
    arrays, _ = encode(WIDE, image_size=10, resize=mode)
    np.testing.assert_allclose(arrays['boxes'][arrays['valid']], boxes)
    assert arrays['difficult'][arrays['valid']].tolist() == difficult
    assert arrays['classes'][arrays['valid']].tolist() == [2, 0, 1][:len(boxes)]


def test_an_image_without_boxes():
    arrays, problems = encode({'image': WIDE['image'], 'boxes': np.zeros((0, 4)), 'classes': []}, image_size=10)
    assert problems == []
    assert not any(arrays[name].any() for name in ('boxes', 'classes', 'valid', 'difficult'))


@pytest.mark.parametrize(('box', 'problem', 'remaining'), [
    ([5, 5, 5, 9], 'x0=5, y0=5, x1=5, y1=9 has no area', []), ([9, 5, 5, 9], 'has no area', []),
    ([50, 5, 60, 9], 'is outside the image, which is 40 x 20 pixels', []), ([-9, 5, 0, 9], 'is outside the image', []),
    ([30, 5, 42, 9], 'reaches beyond the image', [[30, 5, 40, 9]]), ([3, -2, 9, 30], 'reaches beyond', [[3, 0, 9, 20]]),
    ([5, 5, float('nan'), 9], 'is not finite', []), ([0, 5, float('inf'), 9], 'is not finite', [])])
def test_a_wrong_box_is_an_error_or_corrected_and_counted(box, problem, remaining):
    example = {**WIDE, 'boxes': [*WIDE['boxes'], box], 'classes': [2, 0, 1, 1], 'difficult': [False] * 4}
    with pytest.raises(UserError, match=problem) as raised:
        encode(example)
    assert 'skip_broken' in raised.value.hint
    arrays, problems = encode(example, skip_broken=True)
    assert len(problems) == 1
    assert problem in problems[0]
    np.testing.assert_array_equal(arrays['boxes'][arrays['valid']], [*WIDE['boxes'], *remaining])


def test_a_box_may_exceed_the_image_by_one_pixel():
    arrays, problems = encode({**WIDE, 'boxes': [[-1, 0, 12, 10], [16, -0.5, 24, 16], [31, 10, 41, 21]]})
    assert problems == []
    np.testing.assert_array_equal(arrays['boxes'][:3], [[0, 0, 12, 10], [16, 0, 24, 16], [31, 10, 40, 20]])


@pytest.mark.parametrize(('change', 'message'), [
    ({'classes': [2, 0, 3]}, 'classes 3 is not'), ({'classes': [2, 0]}, '3 boxes, but 2 classes'),
    ({'classes': [2, 0, -1]}, 'classes -1 is not')])
def test_wrong_classes(change, message):
    with pytest.raises(UserError, match=message):
        encode({**WIDE, **change})


def test_more_boxes_than_max_boxes():
    with pytest.raises(UserError, match=r'has 3 boxes, but config.data.max_boxes=2; set config.data.max_boxes=3'):
        encode(WIDE, max_boxes=2, skip_broken=True)


def test_a_data_set_with_boxes_is_cached_and_stratified(tmp_path, caplog):
    """Of ten images, six show class 0 alone, as one box of class 1 has no area; three show both classes, one shows none."""
    boxes = np.tile(np.array([[1, 1, 5, 5], [2, 2, 8, 8]], float), (10, 1, 1))
    classes, valid = np.tile([0, 1], (10, 1)), np.ones((10, 2), bool)
    valid[:5, 1], valid[9] = False, False
    boxes[8, 1, 2] = 2
    images = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), np.uint8)
    examples = InMemoryExamples(images, {'boxes': boxes, 'classes': classes, 'valid': valid})
    source = Source.from_examples('tiny', 'tiny', {'train': examples}, ['disc', 'ring'], BOXES)
    config = DataConfig(cache_dir=str(tmp_path), val_fraction=0.4, skip_broken=True, max_boxes=3)
    with caplog.at_level(logging.WARNING):
        dataset = data.load(config, BOXES, source)
    assert any('left out or clipped 1 box of the train split, for example: tiny: train image 8: the box x0=2' in line
               for line in caplog.messages)
    train, val = dataset.splits['train'], dataset.splits['val']
    assert len(train) == 6
    assert dataset.class_counts('train') == [5, 2]
    assert dataset.class_counts('val') == [4, 1]
    assert train.targets['boxes'].shape == (6, 3, 4)
    assert val.targets['valid'].sum() == 5
    assert len(list(tmp_path.glob('*/meta.json'))) == 1
    data.load(DataConfig(cache_dir=str(tmp_path), val_fraction=0.4, skip_broken=True, max_boxes=5), BOXES, source)
    assert len(list(tmp_path.glob('*/meta.json'))) == 2, 'max_boxes is part of the key of the cache'
