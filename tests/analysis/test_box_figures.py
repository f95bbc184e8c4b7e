"""Boxes are drawn where they are, in the colour of their class."""

import numpy as np
from PIL import Image

from jaxcnn.analysis.box_figures import COLOURS, draw_boxes

GREY = 200


def positions(pixels, colour, image):
    """Return the bounding box of the pixels of a colour, as fractions of the bounding box `image`."""
    rgb = [int(colour[i:i + 2], 16) for i in (1, 3, 5)]
    rows, columns = np.nonzero(np.abs(pixels.astype(int) - rgb).max(-1) <= 2)
    left, top, right, bottom = image
    return [(columns.min() - left) / (right - left), (rows.min() - top) / (bottom - top),
            (columns.max() + 1 - left) / (right - left), (rows.max() + 1 - top) / (bottom - top)]


def test_boxes_are_drawn_at_their_positions(tmp_path):
    boxes = np.array([[[4, 2, 32, 18], [20, 4, 36, 17], [0, 0, 40, 20]]], np.float32)
    targets = {'boxes': boxes, 'classes': np.array([[0, 8, 2]]), 'valid': np.array([[True, True, False]]),
               'difficult': np.array([[False, True, False]])}
    names = [f'class {i} with a long name and $' for i in range(9)]
    draw_boxes(str(tmp_path / 'boxes.png'), np.full((1, 20, 40, 3), GREY, np.uint8), targets, names, ['one'])
    pixels = np.asarray(Image.open(tmp_path / 'boxes.png').convert('RGB'))
    is_grey = (pixels == GREY).all(-1)  # so are some pixels of texts
    rows, columns = np.flatnonzero(is_grey.mean(1) > 0.1), np.flatnonzero(is_grey.mean(0) > 0.1)
    image = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    below_legend = pixels.copy()
    below_legend[:image[1]] = 255
    for i, (box, label) in enumerate(zip(boxes[0], targets['classes'][0], strict=True)):
        colour = COLOURS[label % len(COLOURS)]
        if targets['valid'][0, i]:
            np.testing.assert_allclose(positions(below_legend, colour, image), box / [40, 20, 40, 20], atol=0.012)
        else:
            assert not (np.abs(pixels.astype(int) - [int(colour[i:i + 2], 16) for i in (1, 3, 5)]).max(-1) <= 2).any()


def test_images_without_boxes_and_detections_with_scores(tmp_path):
    targets = {'boxes': np.array([[[4, 2, 32, 18]], [[0, 0, 0, 0]]], np.float32), 'classes': np.array([[1], [0]]),
               'valid': np.array([[True], [False]]), 'scores': np.array([[0.5], [0]])}
    draw_boxes(str(tmp_path / 'a.png'), np.zeros((2, 20, 40, 1), np.uint8), targets, ['ant', 'bee'], columns=1)
    tall = Image.open(tmp_path / 'a.png').size
    draw_boxes(str(tmp_path / 'a.png'), np.zeros((2, 20, 40, 1), np.uint8), targets, ['ant', 'bee'])
    wide = Image.open(tmp_path / 'a.png').size
    assert wide[0] == 2 * tall[0]
    assert wide[1] < tall[1]
    none = {name: values[1:] for name, values in targets.items()}
    draw_boxes(str(tmp_path / 'b.png'), np.zeros((1, 20, 40, 1), np.uint8), none, ['ant', 'bee'])
    assert (tmp_path / 'b.png').stat().st_size > 0
