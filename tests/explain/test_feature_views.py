"""The views of features and receptive fields, of one short run."""

import dataclasses
import os
import re

import jax
import numpy as np
import pytest

from jaxcnn import config as cfg
from jaxcnn import models
from jaxcnn.analysis import figures
from jaxcnn.errors import UserError
from jaxcnn.explain import deconvnet_views, feature_views, layers, page, response_views, sheets, views
from jaxcnn.explain.initial_weights import initial_variables
from jaxcnn.explain.request import Request
from jaxcnn.run import load_run
from jaxcnn.training import train

pytestmark = pytest.mark.usefixtures('no_pictures')


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    return str(tmp_path_factory.mktemp('run'))


@pytest.fixture
def make_request(small, workdir):
    """Return a function that makes a request for the run, which is trained once and does not change its first kernel."""
    if not os.path.exists(os.path.join(workdir, 'summary.json')):
        fields = dict(duration=dict(steps=12), checkpoint=dict(at=[dict(steps=3), dict(steps=7)], keep=1),
                      optim=dict(groups=[dict(match='Conv_0', rate=0.0)]), whiten=dict(match='Conv_0/kernel', images=40))
        train(small(**fields), workdir)
    os.makedirs(os.path.join(workdir, 'explain'), exist_ok=True)
    return lambda **fields: Request(load_run(workdir, 'latest'), **fields)


@pytest.fixture
def grids(monkeypatch):
    """The images and the titles of each grid that is drawn, by the name of the figure."""
    drawn = {}
    monkeypatch.setattr(figures, 'image_grid', lambda images, titles, path, **_: drawn.update(
        {os.path.basename(path): (images, titles)}))
    monkeypatch.setattr(sheets, 'panels', lambda images, titles, path: drawn.update(
        {os.path.basename(path): (images, titles)}))
    return drawn


def test_the_filters_before_training_are_those_that_the_run_started_from(make_request, grids):
    text = '\n'.join(feature_views.filters(make_request()).lines)
    assert 'Training has changed the filters by 0% of their initial norm' in text
    (before, after), titles = grids['filters.png']
    np.testing.assert_allclose(before, after, atol=1e-5)
    assert titles == ['before training', 'after training']


@pytest.mark.parametrize(('source', 'note'), [('run', 'The run started from .*, checkpoint 12'), (
    'missing', 'The run started from other weights, which cannot be read any more: .*missing')])
def test_a_run_that_started_from_other_weights_says_so(make_request, workdir, source, note):
    request = make_request()
    path = workdir if source == 'run' else os.path.join(workdir, source)
    init = cfg.InitConfig(run=path, checkpoint='12', exclude='^Conv_0/')
    config = dataclasses.replace(request.run.config, init=init)
    initial, text = initial_variables(dataclasses.replace(request, run=dataclasses.replace(request.run, config=config)))
    assert re.match(note, text)
    if source == 'missing':
        assert initial is None
    else:
        kernels = [variables['params']['Dense_0']['kernel'] for variables in (initial, request.run.variables)]
        np.testing.assert_array_equal(*kernels)


def test_deconvnet_finds_the_strongest_patches_of_a_split(make_request, grids, workdir):
    request = make_request()
    text = '\n'.join(deconvnet_views.deconvnet(request, 'conv2:1,3', count=4).lines)
    with np.load(os.path.join(workdir, 'explain', 'deconvnet.npz')) as arrays:
        images, activations, elements = arrays['images'], arrays['activations'], arrays['elements']
    split = request.dataset.splits['val']
    maps = request.run.features(split.take(np.arange(len(split))), 'conv2')[..., [1, 3]]
    np.testing.assert_allclose(activations, -np.sort(-maps.max((1, 2)), 0)[:4].T, rtol=1e-4)
    for channel, (rows, positions) in enumerate(zip(images, elements, strict=True)):
        np.testing.assert_allclose(maps[rows, positions[:, 0], positions[:, 1], channel], activations[channel], rtol=1e-4)
    assert f'({len(split)} images)' in text
    assert 'field of 12 x 12 pixels' in text
    assert [title.partition(':')[2].partition(':')[0] for title in grids['deconvnet.png'][1]] == ['1', '3']


def test_evolution_has_a_column_for_each_kept_checkpoint(make_request, grids):
    request = make_request()
    assert request.run.steps()[:2] == [3, 7]
    deconvnet_views.evolution(request, 'conv1:0,2', max_images=50)
    images, titles = grids['evolution.png']
    assert len(images) == len(titles) == 2 * len(request.run.steps())
    assert [title.partition('\n')[0] for title in titles[:2]] == [
        f'epoch {request.run.experiment.timeline.epoch(step):.3g}' for step in (3, 7)]


def test_the_other_views_draw_their_figures(make_request, grids, workdir):
    request = make_request(count=2)
    sections, paths = views.parse('features(channels=4)|invert(steps=2)|invariance(points=2)', ['conv3'])
    assert not paths
    lines = {name: '\n'.join(make_section(request).lines) for name, make_section in sections.items()}
    assert re.findall(r'\((features_conv\d\.png)\)', lines['features']) == [f'features_conv{i}.png' for i in (1, 2, 3, 4)]
    first, second = request.examples.names
    assert [title.split('\n')[0] for title in grids['invert.png'][1]] == [first, 'conv3', second, 'conv3']
    with np.load(os.path.join(workdir, 'explain', 'invariance.npz')) as arrays:
        assert arrays['rotation_distances'].shape == (2, 2, 2)
        np.testing.assert_allclose(arrays['rotation_distances'][0], 0, atol=1e-4)  # without a rotation


def test_the_page_shows_a_section_with_its_checkpoint_and_its_figure(make_request):
    request = make_request(count=1)
    page.write_section(request, 'receptive_field', response_views.receptive_field(request, 'conv3'))
    with open(page.write_page(request)) as file:
        text = file.read()
    assert re.search(r'<h2>Receptive field</h2>\s*<p>Checkpoint: latest, step 12\.</p>', text)
    assert text.count('data:image/png') == 1


def test_channels_without_a_response_to_the_data_have_no_ratio(make_request, grids, monkeypatch):
    request, factors = make_request(count=1), np.array([0, 1, -1])
    split = request.dataset.splits['val']
    responses = request.run.features(split.take(np.arange(len(split))), 'conv2').mean((1, 2))[:, :3]
    assert (responses.max(0) > 0).all()
    monkeypatch.setattr(feature_views, 'map_split', lambda *args: layers.map_split(*args) * factors)
    lines = feature_views.maximize(request, 'conv2:0-2', steps=2).lines
    titles = grids['maximize.png'][1]
    assert [' x)' in title for title in titles] == [False, True, False]
    value, ratio = re.findall(r'[\d.]+', titles[1].split('\n')[1])
    assert float(ratio) == pytest.approx(float(value) / responses[:, 1].max(), abs=0.051)
    assert any('2 channels without a response above 0' in line for line in lines)


@pytest.mark.parametrize(('text', 'message'), [
    ('conv9', "unknown layer 'conv9'; nearest: conv4, conv3, conv2"), ('conv4:8', "'conv4' has no channel 8; nearest: 7"),
    ('conv4:x', 'expected channels as in conv4:3'), ('conv1:3-1', "conv1:0-8, got 'conv1:3-1'"),
    ('logits:dog', "unknown class 'dog'")])
def test_wrong_layers_and_channels_name_the_nearest(make_request, text, message):
    with pytest.raises(UserError, match=message):
        layers.parse_layer(make_request(), text, 4, logits=True)


@pytest.mark.parametrize(('view', 'message'), [
    ('maximize(steps=0)', 'steps: expected a whole number of at least 1, got 0'),
    ('maximize(blur=-1)', 'blur: expected a number of at least 0, got -1'),
    ('deconvnet(count=0)', 'count: expected a whole number of at least 1, got 0'),
    ('invariance(points=1)', 'points: expected a whole number of at least 2, got 1')])
def test_wrong_options_name_the_field_and_the_value(make_request, view, message):
    (make_section,) = views.parse(view)[0].values()
    with pytest.raises(UserError, match=message):
        make_section(make_request())


def test_layers_channels_and_elements(make_request):
    request = make_request()
    assert layers.parse_layer(request, '', 3) == layers.Layer('conv4', (2, 2, 8), (0, 1, 2))
    assert layers.parse_layer(request, 'conv1:3,0-1', 9).channels == (3, 0, 1)
    assert layers.parse_layer(request, 'logits:7', 9, logits=True) == layers.Layer('logits', (10,), (7,))
    assert layers.parse_element(request, 'conv2') == ('conv2', 4, 4)
    with pytest.raises(UserError, match=r'no element 8,1 of .*; nearest: 7,1'):
        layers.parse_element(request, 'conv2:8,1')


def test_a_network_without_first_filters_or_deconvnet_says_why(make_request, monkeypatch):
    request = make_request()
    network = models.create('resnet20_cifar', 10, width=4, blocks=(1, 1, 1))
    monkeypatch.setattr(layers, 'network_of', lambda _: (network, variables, (16, 16, 1)))
    monkeypatch.setattr(deconvnet_views, 'network_of', layers.network_of)
    variables = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, 16, 16, 1), np.float32))
    with pytest.raises(UserError, match=r"from 'stage3': it adds arrays .* skip connection.*; these layers have one: stem"):
        deconvnet_views.deconvnet(request)
