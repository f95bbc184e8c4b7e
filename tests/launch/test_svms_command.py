"""The SVMs of R-CNN through the commands: fitted, evaluated, and used to detect objects."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxcnn.detection_metrics import DetectionScores, map50
from jaxcnn.errors import UserError
from jaxcnn.region_svms import second_stage
from jaxcnn.region_svms.detector import with_svms
from jaxcnn.region_svms.features import region_features
from jaxcnn.run import load_run

pytestmark = [pytest.mark.launch, pytest.mark.slow]

CONFIG = '''
from jaxcnn.config import make

def get_config():
    return make(task='detection', loss='detection', duration=dict(steps=2), batch_size=2,
                model=dict(name='rcnn', backbone='alexnet(widths=(8, 12, 16, 16), hidden=32)', roi_batch=8,
                           region_size=63, context=4),
                data=dict(name='voc', dir='{folder}', max_boxes=3,
                          proposals='sliding_windows((24, 32), ratios=(1,), stride=0.25, max_proposals=150)'),
                optim=dict(optimizer='sgd', learning_rate=1e-9),
                eval=dict(every=dict(steps=2), batch_size=2), checkpoint=dict(every=dict(steps=1), keep=2),
                parallel=dict(devices=1))
'''
COLOURS = {'blue': (20, 20, 250), 'red': (250, 20, 20)}


def write_voc(folder):
    """Write images of noise with a blue and a red rectangle each, in the layout of Pascal VOC; return the test boxes."""
    rng, boxes = np.random.default_rng(0), {}
    for name in ('ImageSets/Main', 'JPEGImages', 'Annotations'):
        (folder / name).mkdir(parents=True)
    for split, count in (('train', 10), ('val', 1), ('test', 4)):
        names = [f'{split}{i}' for i in range(count)]
        (folder / 'ImageSets' / 'Main' / f'{split}.txt').write_text('\n'.join(names))
        for name in names:
            image, objects = rng.integers(100, 140, (64, 64, 3), np.uint8), []
            for class_name, left in zip(rng.permutation([*COLOURS]), (0, 32), strict=True):
                width, height = rng.integers(20, 31, 2)
                x, y = left + rng.integers(32 - width), rng.integers(64 - height)
                image[y:y + height, x:x + width] = COLOURS[class_name]
                objects.append(f'<object><name>{class_name}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>'
                               f'<xmax>{x + width}</xmax><ymax>{y + height}</ymax></bndbox></object>')
                boxes[name, class_name] = x, y, x + width, y + height
            Image.fromarray(image).save(folder / 'JPEGImages' / f'{name}.png')
            (folder / 'Annotations' / f'{name}.xml').write_text(
                f'<annotation><size><width>64</width><height>64</height></size>{"".join(objects)}</annotation>')
    return boxes


@pytest.fixture(scope='module')
def fitted(tmp_path_factory, command):
    """The folder with the data and with the fitted run `run` of R-CNN, whose weights are random; the boxes; the table."""
    folder = tmp_path_factory.mktemp('svms')
    boxes = write_voc(folder / 'voc')
    (folder / 'config.py').write_text(CONFIG.format(folder=folder / 'voc'))
    for arguments in (('train', f'--config={folder / "config.py"}'), ('fit_svms', '--features=pool5,fc7')):
        code, out, err = command(*arguments, f'--workdir={folder / "run"}')
        assert code == 0, err
    return folder, boxes, out


def test_svms_detect_planted_objects(fitted, command, tmp_path):
    """The softmax of random weights detects nothing; the detections of `predict` have the precision that is measured."""
    folder, boxes, table = fitted
    precisions = {line.split('  ')[0]: line.split()[-2:-1] for line in table}
    assert float(precisions['SVM on pool5'][0]) > 85
    assert float(precisions['softmax'][0]) < 30
    svms = json.loads((folder / 'run' / 'svms.json').read_text())
    assert f'{100 * svms["svm_test_map50"]:.2f}' == precisions['SVM on fc7'][0]
    code, out, err = command('evaluate', f'--workdir={folder / "run"}', '--svms=pool5', '--json')
    assert code == 0, err
    values = json.loads(out[0])
    assert f'{100 * values["map50"]:.2f}' == precisions['SVM on pool5'][0]

    names = [f'test{i}' for i in range(4)]
    code, out, err = command(
        'predict', f'--workdir={folder / "run"}', '--svms=pool5', '--threshold=0.2', f'--csv={tmp_path / "a.csv"}',
        f'--coco={tmp_path / "a.json"}', f'--draw={tmp_path / "drawn"}',
        *(folder / 'voc' / 'JPEGImages' / f'{name}.png' for name in names))
    assert code == 0, err
    assert {path.stem for path in (tmp_path / 'drawn').iterdir()} == {*names}
    with open(tmp_path / 'a.csv') as file:
        rows = list(csv.DictReader(file))
    results = json.loads((tmp_path / 'a.json').read_text())
    assert 0 < len(rows) < len(results)
    detections = {name: np.zeros((4, len(results), *shape)) for name, shape in {
        'boxes': (4,), 'scores': (), 'classes': (), 'valid': ()}.items()}
    for i, result in enumerate(results):
        x, y, width, height = result['bbox']
        for name, value in {'boxes': (x, y, x + width, y + height), 'scores': result['score'],
                            'classes': result['category_id'] - 1, 'valid': 1}.items():
            detections[name][result['image_id'] - 1, i] = value
    truth = {'boxes': np.array([[boxes[name, color] for color in COLOURS] for name in names]),
             'classes': np.tile([0, 1], (4, 1)), 'valid': np.ones((4, 2), bool), 'difficult': np.zeros((4, 2), bool)}
    assert map50(DetectionScores(detections, truth, 2)) == pytest.approx(values['map50'], abs=1e-6)


def test_a_run_with_svms_compiles_once_and_mistakes_are_one_line(fitted, tmp_path, monkeypatch):
    folder, _, _ = fitted
    workdir = str(folder / 'run')
    run = with_svms(load_run(workdir), 'fc7')
    traces, images = [], np.zeros((2, 64, 64, 3), np.uint8)
    monkeypatch.setattr(second_stage, 'region_features', lambda *args: traces.append(1) or region_features(*args))
    for batch in (images, images[:1], images[:0]):
        assert len(run.predict(batch)['boxes']) == len(batch)
    assert len(traces) == 1
    with pytest.raises(UserError, match="unknown feature 'fc8'; nearest: fc7"):
        with_svms(load_run(workdir), 'fc8')
    with pytest.raises(UserError, match=r'svms.npz: the SVMs were fitted for checkpoint 2, and not for the present '
                                        r'checkpoint 1; jaxcnn fit_svms --workdir=\S+ --checkpoint=1 fits them again'):
        with_svms(load_run(workdir, 1), 'pool5')
    copy = shutil.copytree(workdir, tmp_path / 'copy')
    path = copy / 'svms.npz'
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r'svms.npz: is damaged, or another version of jaxcnn wrote it: .*; jaxcnn fit_svms'):
        with_svms(load_run(str(copy)), 'pool5')
    path.unlink()
    with pytest.raises(UserError, match=r'holds no SVMs \(no svms.npz\); jaxcnn fit_svms --workdir=\S+ fits them'):
        with_svms(load_run(str(copy)), 'pool5')
