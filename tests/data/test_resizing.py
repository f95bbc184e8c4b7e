"""Boxes follow the pixels of an image that is cropped, squashed or padded."""

import numpy as np
import pytest

from jaxcnn.data.resizing import PADDING, Resizing, resize


def bounding_box(mask):
    """Return the box of the pixels that are true."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.mark.parametrize(('mode', 'shape', 'box', 'expected'), [
    ('crop', (40, 80), (36, 8, 44, 32), (8, 4, 12, 16)), ('crop', (80, 40), (24, 8, 32, 32), (12, -6, 16, 6)),
    ('squash', (40, 80), (36, 8, 44, 32), (9, 4, 11, 16)), ('squash', (80, 40), (24, 8, 32, 32), (12, 2, 16, 8)),
    ('pad', (40, 80), (36, 8, 44, 32), (9, 7, 11, 13)), ('pad', (80, 40), (24, 8, 32, 32), (11, 2, 13, 8))])
def test_boxes_follow_the_pixels(mode, shape, box, expected):
    """The edges of the box are edges of pixels after resizing, too."""
    image = np.zeros((*shape, 1), np.uint8)
    image[box[1]:box[3], box[0]:box[2]] = 255
    resizing = Resizing.between(shape, (20, 20), mode)
    margin = np.where(mode == 'crop', np.maximum(np.array(shape[::-1]) - min(shape), 0) / 2, 0)
    shown = np.tile(margin, 2), np.tile(shape[::-1] - margin, 2)  # the limits of the part that is not cropped
    np.testing.assert_allclose(resizing.map_boxes(np.array([box], float)), [expected])
    np.testing.assert_allclose(resizing.map_boxes_back(np.clip([expected], 0, 20)), [np.clip(box, *shown)])
    resized = resizing.apply(image)[..., 0]
    assert resized.shape == (20, 20)
    assert bounding_box((resized > 127) & (resized != PADDING)) == np.clip(expected, 0, 20).tolist()


def test_boxes_in_the_padding_are_clipped_to_the_image():
    resizing = Resizing.between((40, 80), (20, 20), 'pad')
    np.testing.assert_allclose(resizing.map_boxes_back(np.array([[[0, 0, 10, 20], [3, 0, 5, 4]]], np.float32)),
                               [[[0, 0, 40, 40], [12, 0, 20, 0]]])


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize(('shape', 'rows', 'columns'), [((30, 61), slice(5, 15), slice(0, 20)),
                                                        ((61, 30), slice(0, 20), slice(5, 15)),
                                                        ((1, 61), slice(9, 10), slice(0, 20)),
                                                        ((7, 7), slice(0, 20), slice(0, 20))])
def test_padding_keeps_the_aspect_ratio(shape, rows, columns, channels):
    image = np.random.default_rng(0).integers(0, 256, (*shape, channels), np.uint8)
    padded = resize(image, (20, 20), 'pad').copy()
    assert padded.shape == (20, 20, channels)
    content = padded[rows, columns]
    np.testing.assert_array_equal(content, resize(image, content.shape[:2], 'squash'))
    padded[rows, columns] = PADDING
    assert (padded == PADDING).all()
