"""`predict` writes and draws detections in the coordinates of the image files."""

import argparse
import csv
import json
import types

import numpy as np
import pytest
from PIL import Image

from jaxcnn import config, run, tasks
from jaxcnn.analysis.box_figures import COLOURS
from jaxcnn.cli import predict
from jaxcnn.compression import quantized_run
from jaxcnn.errors import UserError

CONFIG = config.parse({'task': 'detection', 'loss': 'detection', 'data': {'resize': 'pad'}})
# of an image of 20 x 20 pixels with padding above and below; the last but one lies in the padding
BOXES = np.array([[5, 7, 15, 14], [0, 0, 4, 10], [2, 0, 9, 4], [3, 3, 4, 8]], np.float32)
DETECTIONS = {'boxes': BOXES[None].repeat(2, 0), 'scores': np.float32([[0.9, 0.7, 0.6, 0.1], [0.4, 0.3, 0.2, 0.1]]),
              'classes': np.int32([[1, 0, 0, 0]] * 2), 'valid': np.array([[True] * 4, [True, False, False, False]])}


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """The flags of the command, for a run whose network detects `DETECTIONS` in two images."""
    paths = []
    for name, size in (('wide.jpg', (80, 40)), ('square.bmp', (20, 20))):
        paths.append(str(tmp_path / name))
        Image.new('RGB', size, (90, 90, 90)).save(paths[-1])
    task = tasks.create(CONFIG, ['ant', 'bee'], [1, 1], 2)
    loaded = types.SimpleNamespace(
        info={'image_shape': [20, 20, 3], 'ink': None, 'name': 'voc'}, config=CONFIG, weights=None,
        experiment=types.SimpleNamespace(task=task), predict=lambda images: DETECTIONS)
    loaded.load_picture = types.MethodType(run.Run.load_picture, loaded)
    monkeypatch.setattr(quantized_run, 'load_any_run', lambda *_: loaded)
    return argparse.Namespace(workdir='run', ensemble=[], tta='', samples=None, checkpoint='best',
                              csv=str(tmp_path / 'a.csv'), coco=str(tmp_path / 'a.json'),
                              draw=str(tmp_path / 'pictures'), submission='', threshold=None, svms='', ink='auto',
                              images=paths)


def test_predictions_are_in_the_coordinates_of_the_files(arguments, tmp_path, capsys):
    assert predict.run(arguments) == 0
    with open(arguments.csv) as f:
        rows = list(csv.reader(f))
    assert rows == [['image', 'class', 'score', 'x0', 'y0', 'x1', 'y1'],
                    [arguments.images[0], 'bee', '0.900000', '20.00', '8.00', '60.00', '36.00'],
                    [arguments.images[0], 'ant', '0.700000', '0.00', '0.00', '16.00', '20.00']]  # clipped
    with open(arguments.coco) as f:
        results = json.load(f)
    assert [(r['image_id'], r['category_id'], r['bbox']) for r in results] == [
        (1, 2, [20, 8, 40, 28]), (1, 1, [0, 0, 16, 20]), (1, 1, [12, 0, 4, 12]), (2, 2, [5, 7, 10, 7])]
    assert [r['score'] for r in results] == pytest.approx([0.9, 0.7, 0.1, 0.4])
    with open(tmp_path / 'a_ids.json') as f:
        ids = json.load(f)
    assert ids['images'] == [{'id': 1, 'file_name': arguments.images[0]}, {'id': 2, 'file_name': arguments.images[1]}]
    assert ids['categories'] == [{'id': 1, 'name': 'ant'}, {'id': 2, 'name': 'bee'}]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f'{arguments.images[0]}: 1 bee, 1 ant  (bee 90.00 % at 20, 8, 60, 36; ')
    assert lines[1] == f'{arguments.images[1]}: no object with a score of at least 0.5; the best score is 0.400'

    assert sorted(path.name for path in (tmp_path / 'pictures').iterdir()) == ['square.png', 'wide.jpg']
    picture = np.asarray(Image.open(tmp_path / 'pictures' / 'wide.jpg')).astype(int)
    assert picture.shape == (320, 640, 3)
    colour = [int(COLOURS[1][i:i + 2], 16) for i in (1, 3, 5)]
    row_positions, columns = np.nonzero(np.abs(picture - colour).max(-1) < 40)
    np.testing.assert_allclose([columns.min(), row_positions.min(), columns.max(), row_positions.max()],
                               np.array([20, 8, 60, 36]) * 8, atol=4)
    assert np.ptp(np.asarray(Image.open(tmp_path / 'pictures' / 'square.png').convert('RGB'))) == 0  # nothing is detected


def test_a_threshold_shows_more_detections_and_tasks_without_boxes_write_no_coco(arguments):
    arguments.threshold, arguments.coco, arguments.draw = 0.35, '', ''
    predict.run(arguments)
    with open(arguments.csv) as f:
        assert [row['class'] for row in csv.DictReader(f)] == ['bee', 'ant', 'bee']
    quantized_run.load_any_run('').experiment.task = tasks.create(config.parse({}), ['ant', 'bee'], [1, 1], 2)
    arguments.threshold, arguments.coco = None, arguments.csv
    with pytest.raises(UserError, match=r"--coco: the task 'classification' of this run predicts no boxes"):
        predict.run(arguments)


def test_classes_are_drawn_above_the_image(tmp_path):
    task = tasks.create(config.parse({}), ['ant', 'bee'], [1, 1], 2)
    task.draw(np.full((40, 80, 1), 90, np.uint8), np.array([0.25, 0.75]), str(tmp_path / 'a.png'))
    picture = np.asarray(Image.open(tmp_path / 'a.png').convert('RGB'))
    assert picture.shape[1] == 640
    height = picture.shape[0] - 320
    assert 15 < height < 40
    assert (picture[height + 1:] == 90).all()
    assert picture[:height].min() < 60  # the text
    assert (task.columns, task.rows(np.array([0.25, 0.75]))) == (
        ['class_1', 'probability_1', 'class_2', 'probability_2'], [['bee', '0.750000', 'ant', '0.250000']])
