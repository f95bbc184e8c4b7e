"""The report of a detector, on two images whose detections are known."""

import numpy as np
from PIL import Image

from jaxcnn.analysis import box_figures
from jaxcnn.data.split import Split
from jaxcnn.detection_metrics import DetectionScores
from jaxcnn.tasks import detection_report

CLASS_NAMES = ['ant|bee', 'cat', 'dog']
BOXES = np.array([[[0, 0, 20, 20], [30, 30, 60, 60]]] * 2, np.float32)
TRUTH = {'boxes': BOXES, 'classes': np.array([[0, 1]] * 2), 'valid': np.ones((2, 2), bool),
         'difficult': np.zeros((2, 2), bool)}
DETECTIONS = {'boxes': BOXES, 'classes': np.array([[0, 1], [0, 0]]), 'scores': np.array([[0.9, 0.8], [0.95, 0.85]]),
              'valid': np.array([[True, True], [False, True]])}


def cells(lines, start):
    line, = (line for line in lines if line.startswith(f'| {start} |'))
    return [cell.strip() for cell in line.split(' | ')[1:]]


def test_report_has_classes_errors_and_the_worst_images(tmp_path, monkeypatch):
    scores = DetectionScores(DETECTIONS, TRUTH, 3)
    classes, errors = detection_report.report_sections(scores, CLASS_NAMES, [7, 5, 0], 'test', str(tmp_path))
    assert cells(classes.lines, r'ant\|bee') == ['50.00 %', '50.00 %', '50.00 %', '50.00 %', '0.5000', '2', '7 |']
    assert cells(classes.lines, 'cat') == ['50.00 %', '50.00 %', '100.00 %', '50.00 %', '0.6667', '2', '5 |']
    assert cells(classes.lines, 'dog')[0] == 'no boxes'
    assert cells(errors.lines, 'class')[1:] == ['1', r'ant\|bee 1', '25.00 |']
    assert cells(errors.lines, 'missed')[1:] == ['1', r'ant\|bee 1', '25.00 |']
    for name in ('precision_recall', 'confusion_matrix', 'detection_errors'):
        assert (tmp_path / f'{name}.png').exists()

    drawn = {}
    monkeypatch.setattr(box_figures, 'draw_detections', lambda *arguments: drawn.update(enumerate(arguments)))
    images = np.arange(2, dtype=np.uint8)[:, None, None, None] * np.ones((1, 64, 64, 3), np.uint8)
    examples = Split(images, np.arange(2), TRUTH)
    section, = detection_report.mistakes_sections(scores, CLASS_NAMES, examples, 'folder/{}.jpg'.format, 'test',
                                                  str(tmp_path), lambda images: images + 1)
    assert cells(section.lines, 'folder/1.jpg') == ['2', '1', '2 |']
    _, pictures, detections, truth, _, titles = drawn.values()
    assert (pictures == 2).all(), 'the second image is drawn as the network gets it'
    assert detections['errors'].tolist() == [['', 'class']]
    assert truth['undetected'].tolist() == [[True, True]]
    assert titles == ['1.jpg: 2 missed, 1 false']
    assert detections['valid'].tolist() == [[False, True]]
    monkeypatch.setattr(detection_report, '_MAX_FALSE', 0)
    detection_report.mistakes_sections(scores, CLASS_NAMES, examples, str, 'test', str(tmp_path), np.copy)
    assert drawn[2]['valid'].tolist() == [[False, False]]
    perfect = DetectionScores({**TRUTH, 'scores': np.ones((2, 2))}, TRUTH, 3)
    assert detection_report.mistakes_sections(perfect, CLASS_NAMES, examples, str, 'test', '', np.copy) == []


def test_wrong_detections_and_undetected_boxes_are_drawn_with_their_names(tmp_path):
    def colours(errors, undetected):
        detections = {**DETECTIONS, 'errors': np.array([['', ''], ['', errors]])}
        box_figures.draw_detections(str(tmp_path / 'a.png'), np.full((2, 64, 64, 3), 90, np.uint8), detections,
                                    {**TRUTH, 'undetected': np.full((2, 2), undetected)}, CLASS_NAMES)
        pixels = np.asarray(Image.open(tmp_path / 'a.png').convert('RGB')).astype(int)[60:]  # below the legend
        wrong = np.array([int(box_figures.COLOURS[0][i:i + 2], 16) for i in (1, 3, 5)])
        return (np.abs(pixels - wrong).max(-1) < 30).sum(), (pixels > 225).all(-1).sum()
    orange, white = colours('', False)
    assert colours('class', False)[0] > orange + 600  # a label and thicker lines
    assert colours('', True)[1] > white + 600
