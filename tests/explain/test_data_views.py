"""The views of a split: its mistakes, its calibration and its images in feature space."""

import csv
import json
import os

import numpy as np
import pytest
from PIL import Image
from threadpoolctl import threadpool_limits

from jaxcnn.errors import UserError
from jaxcnn.explain import data_views, split_predictions, views
from jaxcnn.explain.request import Request
from jaxcnn.run import load_run
from jaxcnn.training import train

pytestmark = pytest.mark.usefixtures('no_pictures')


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    return str(tmp_path_factory.mktemp('run'))


@pytest.fixture
def make_request(small, workdir):
    """Return a function that makes a request for the run, which is trained once."""
    if not os.path.exists(os.path.join(workdir, 'summary.json')):
        fields = dict(duration=dict(steps=40), model=dict(name='lenet5'), data=dict(image_size=28, augment='pad_crop(2)'))
        train(small(**fields), workdir)
    os.makedirs(os.path.join(workdir, 'explain'), exist_ok=True)
    return lambda **fields: Request(load_run(workdir), **fields)


def test_errors_confusion_and_calibration_agree_with_the_evaluation(make_request, workdir, monkeypatch):
    request, sheets = make_request(), {}
    with open(os.path.join(workdir, 'summary.json')) as file:
        accuracy = json.load(file)['test_accuracy']
    monkeypatch.setattr(data_views.mistakes, 'draw_sheet', lambda images, titles, path: sheets.update(
        {os.path.basename(path): (images, titles)}))
    text = '\n'.join(data_views.errors(request, count=5).lines)
    num_wrong = round((1 - accuracy) * 359)
    assert f'359 images of the test split: {num_wrong} wrong predictions' in text
    images, titles = sheets['confident_mistakes.png']
    assert len(images) == len(titles) == min(5, num_wrong)
    np.testing.assert_array_equal(make_request(count=5, only_mistakes=True).examples.images, images)
    predictions = request.predictions('test')
    monkeypatch.setattr(split_predictions, 'compute_in_batches', None)  # the views share the predictions
    assert [title.split(' ')[0] for title in titles] == [str(c) for c in request.run.predict(images).argmax(1)]
    with open(os.path.join(workdir, 'explain', 'label_errors.csv'), newline='') as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert str(predictions.labels[int(row['image'].split(' ')[-1])]) == row['label'] != row['suggested']
    text = '\n'.join(data_views.calibration(request).lines)
    assert f'| accuracy | {100 * accuracy:.2f} % |' in text
    confusion = '\n'.join(data_views.confusion(request).lines)
    recall = [line.split(' | ') for line in confusion.split('\n') if line.startswith('| ') and '%' in line]
    assert sum(float(row[2][:-2]) / 100 * int(row[4]) for row in recall) == pytest.approx(359 * accuracy, abs=0.1)


def test_embed_writes_a_figure_a_page_and_the_features_of_plain_and_augmented_images(make_request, workdir):
    request = make_request()
    with threadpool_limits(1):  # see test_embedding.py
        section = data_views.embed(request, layer='conv2', images=40, augmented=True)
    assert '40 images of the test split, by 16 features of the layer conv2, plain (circles)' in section.lines[0]
    arrays = np.load(os.path.join(workdir, 'explain', 'embed.npz'))
    assert arrays['features'].shape == (80, 16)
    assert arrays['is_augmented'].sum() == 40
    predictions = request.predictions('test', 40)
    maps = request.run.features(predictions.images(), 'conv2')
    np.testing.assert_allclose(arrays['features'][:40], maps.mean((1, 2)), atol=1e-4)
    assert np.abs(arrays['features'][40:] - arrays['features'][:40]).max() > 0.01
    with open(os.path.join(workdir, 'explain', 'embed.html')) as file:
        assert predictions.name(3) in file.read()
    with Image.open(os.path.join(workdir, 'explain', 'embed.png')) as figure:
        assert figure.size[0] > 1000


def test_the_nearest_neighbor_of_a_training_image_is_itself(make_request, workdir):
    data_views.neighbors(make_request(split='train', count=3), k=2)
    with open(os.path.join(workdir, 'explain', 'neighbors.json')) as file:
        table = json.load(file)
    for row in table:
        assert row['neighbors'][0] == row['image']
        assert row['distances'][0] == 0
        assert row['distances'][1] > 0


@pytest.mark.parametrize(('view', 'fields', 'message'), [
    ('errors', dict(paths=['a.png']), 'the view errors takes no picture files'),
    ('filters', dict(paths=['a.png']), 'the view filters takes no picture files'),
    ('confusion', dict(split='tset'), "no split 'tset'; there are: train, val, test"),
    ('neighbors(among="valid")', {}, r"split 'valid'.*val"),
    ('embed(layer="conv3")', {}, r"layer 'conv3'.*conv2"),
    ('calibration(bins=0)', {}, 'bins: expected a whole number of at least 1, got 0'),
    ('embed(images=-1)', {}, 'images: expected a whole number of at least 1, got -1')])
def test_errors_name_what_is_there(make_request, view, fields, message):
    sections, _ = views.parse(view)
    with pytest.raises(UserError, match=message):
        next(iter(sections.values()))(make_request(**fields))
