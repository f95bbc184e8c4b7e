"""Boxes are drawn where they are, in the colour of their class."""

import numpy as np
from PIL import Image

from jaxcnn.analysis.box_figures import COLOURS, draw_augmented, draw_boxes

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


def runs(mask):
    """Return the start and the end of each run of true values, (n, 2)."""
    return np.flatnonzero(np.diff(np.pad(mask, 1).astype(int))).reshape(-1, 2)


def test_augmented_images_of_different_sizes_are_drawn_in_rows(tmp_path):
    """Each row is as high as its tallest image, and the box is at the same fraction of each image."""
    def example(height, width):
        box = np.array([[0.25 * width, 0.5 * height, 0.75 * width, 0.9 * height], [0, 0, 0, 0]], np.float32)
        return np.full((height, width, 3), GREY / 255), {
            'boxes': box, 'classes': np.array([0, 0]), 'valid': np.array([True, False]), 'difficult': np.zeros(2, bool)}
    images, targets = zip(*map(example, (20, 40, 30, 20), (40, 40, 40, 40)), strict=True)
    draw_augmented(str(tmp_path / 'a.png'), images * 4, targets * 4, ['cell'], [''] * 16, 8, ['first', 'a second row'])
    pixels = np.asarray(Image.open(tmp_path / 'a.png').convert('RGB'))
    is_drawn = (pixels < 250).any(-1)
    columns = runs(is_drawn.mean(0) > 0.3)
    assert len(columns) == 8
    rows = runs(is_drawn[:, columns[1, 0]:columns[1, 1]].mean(1) > 0.9)
    assert len(rows) == 2
    for top, bottom in rows:
        for (left, right), fraction in zip(columns[:4], (0.5, 1, 0.75, 0.5), strict=True):
            image = left, top, right, top + fraction * (bottom - top)
            tile = np.full_like(pixels, 255)
            tile[top:bottom, left:right] = pixels[top:bottom, left:right]
            np.testing.assert_allclose(positions(tile, COLOURS[0], image), [0.25, 0.5, 0.75, 0.9], atol=0.03)
            assert runs(is_drawn[top:bottom, left + 5:right - 5].all(1))[-1, 1] - round(image[3] - top) in (-1, 0, 1)
