"""A detection run through the commands: killed and resumed, evaluated and used, with proposals."""

import argparse
import functools
import operator
import os
import signal
import time

import jax
import numpy as np
import pytest
import test_resume
from PIL import Image
from test_resume import exit_code, metric_rows

from jaxcnn.cli import predict
from jaxcnn.run import load_run
from jaxcnn.training import workdir

pytestmark = pytest.mark.launch

CONFIG = '''
from jaxcnn.config import make

def get_config():
    return make(task='detection', loss='detection', duration=dict(steps=40), batch_size=4,
                model=dict(backbone='vgg11(stages=((4,), (4,), (4,), (4,)), hidden=8)', roi_batch=8, roi_low=0.0,
                           max_detections=4, {model}),
                data=dict(name='csv', dir='{folder}', val_fraction=0.25, max_boxes=2, {data}
                          augment='flip_lr|large_scale_jitter((0.8, 1.25))'),
                optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.01, ema_decay=0.9),
                eval=dict(every=dict(steps=10), batch_size=4), checkpoint=dict(every=dict(steps=4)),
                log_every=dict(steps=1), parallel=dict(devices=1))
'''
# the fields of the network and of the data that differ
DETECTORS = {
    'fast_rcnn': dict(model="name='fast_rcnn'",
                      data="proposals='sliding_windows((16, 32), stride=1.0, max_proposals=20)',"),
    'faster_rcnn': dict(model="name='faster_rcnn', fpn=False, anchor_sizes=(16, 32), rpn_features=8, rpn_batch=16, "
                              "pre_nms=(32, 16), post_nms=(16, 8)", data='')}


def write_images(folder):
    """Write images of noise with up to two squares, and the table of their boxes."""
    rng, rows = np.random.default_rng(0), ['split,filename,class,x0,y0,x1,y1']
    for i in range(28):
        image = rng.integers(100, 140, (64, 64, 3), np.uint8)
        boxes = []
        for _ in range(i % 3):  # none in every third image
            side, color = rng.integers(16, 33), rng.integers(2)
            x, y = rng.integers(0, 64 - side, 2)
            image[y:y + side, x:x + side] = (250, 20, 20) if color else (20, 20, 250)
            boxes.append(f'{["blue", "red"][color]},{x},{y},{x + side},{y + side}')
        Image.fromarray(image).save(folder / f'{i}.png')
        split = 'test' if i >= 24 else 'train'
        rows += [f'{split},{i}.png,{box}' for box in boxes or [',,,,']]
    (folder / 'boxes.csv').write_text('\n'.join(rows))


@pytest.fixture(scope='module', params=['fast_rcnn', pytest.param('faster_rcnn', marks=pytest.mark.slow)])
def finished_run(request, tmp_path_factory, fork):
    """The folder of the finished run `whole`, and a function that starts or resumes a run by its name."""
    folder = tmp_path_factory.mktemp('detection')
    write_images(folder)
    config = folder / 'config.py'
    config.write_text(CONFIG.format(folder=folder / 'boxes.csv', **DETECTORS[request.param]))
    start = functools.partial(test_resume.start, fork, False, config)
    assert exit_code(start('whole')) == 0, (folder / 'whole.log').read_text()
    return folder, start


def test_a_detection_run_that_is_killed_and_resumed_has_the_same_bits(finished_run):
    folder, start = finished_run
    process = start('killed')
    checkpoints = folder / 'killed' / 'checkpoints'
    while process.is_alive() and not any(path.name.isdigit() for path in checkpoints.glob('*')):  # a complete one
        time.sleep(0.005)
    process.kill()
    assert exit_code(process) == -signal.SIGKILL, 'the run ended before it was killed'
    assert len(metric_rows(folder / 'killed')) < len(metric_rows(folder / 'whole'))
    assert exit_code(start('killed')) == 0, (folder / 'killed.log').read_text()
    assert 'resuming' in (folder / 'killed.log').read_text()
    assert metric_rows(folder / 'killed') == metric_rows(folder / 'whole')
    test_resume.assert_same_state(folder / 'whole', folder / 'killed')
    summaries = [workdir.read_json(os.path.join(folder / name, 'summary.json')) for name in ('whole', 'killed')]
    assert summaries[0]['test_map50'] == summaries[1]['test_map50']


@pytest.mark.parametrize('finished_run', ['fast_rcnn'], indirect=True, scope='module')
def test_a_detection_run_is_evaluated_and_predicts_with_proposals_of_new_images(finished_run, command):
    folder, _ = finished_run
    summary = workdir.read_json(os.path.join(folder / 'whole', 'summary.json'))
    code, lines, errors = command('evaluate', f'--workdir={folder / "whole"}')
    assert code == 0, errors
    assert f'mAP@0.5 {100 * summary["test_map50"]:.2f} %' in '\n'.join([*lines, *errors])
    run = load_run(str(folder / 'whole'))
    split = run.load_dataset().splits['test']
    images = split.take(np.arange(4))
    predicted = run.predict(images)
    targets = {name: values for name, values in split.take_targets(np.arange(4)).items() if name.startswith('proposal')}
    detect = jax.jit(lambda variables, images, proposals: run.experiment.network.apply(
        variables, run.experiment.preprocessor(images), proposals=proposals))
    outputs = detect(run.variables, images, targets)
    np.testing.assert_array_equal(predicted['valid'], outputs['valid'])
    np.testing.assert_allclose(predicted['boxes'], outputs['boxes'], atol=0.01)
    assert predicted['valid'].any()
    check_predictions_of_files(run, folder)
    code, _, errors = command('explain', 'gradcam', f'--workdir={folder / "whole"}')
    assert code == 2
    assert errors[-1] == ('error: VIEW: attribution needs a network that returns logits, and that of this run returns '
                          'detections; possible: filters, features, invert, receptive_field; report.md of the run shows '
                          'mistakes')


def check_predictions_of_files(run, folder):
    """Check that `predict` finds in files of several sizes, the last batch of which is not full, what it finds in each."""
    sizes, paths = [(64, 64), (100, 80), (40, 120), (64, 96), (200, 150)], []
    for i, size in enumerate(sizes):
        paths.append(str(folder / f'resized{i}.png'))
        Image.open(folder / f'{i + 1}.png').resize(size).save(paths[-1])
    results = dict(predict.predict(run, argparse.Namespace(ink='auto', tta=''), paths))
    assert [*results] == paths
    for path, (width, height) in zip(paths, sizes, strict=True):
        image, resizing = run.load_picture(path, 'auto')
        alone = jax.tree.map(operator.itemgetter(0), run.predict(np.stack([image] * 4)))  # as many as in a batch
        expected = run.experiment.task.map_back(alone, resizing.map_boxes_back)
        for name, values in expected.items():
            np.testing.assert_allclose(results[path][name], values, rtol=1e-5, atol=1e-3, err_msg=name)
        boxes = expected['boxes'][expected['valid']]
        assert len(boxes)
        assert (boxes >= 0).all()
        assert (boxes <= [width, height, width, height]).all()
