"""The views of attributions of a run, and how they are asked for."""

import os
import re

import numpy as np
import pytest

from jaxcnn import config
from jaxcnn.errors import UserError
from jaxcnn.explain import attribution_checks, attributions, views
from jaxcnn.explain.attributions import METHODS, Method, filled
from jaxcnn.explain.request import Request
from jaxcnn.run import load_run
from jaxcnn.training import train


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    path = str(tmp_path_factory.mktemp('runs') / 'run')
    layers = 'conv(4)|norm|relu|max_pool(2)|conv(6)|relu|flatten|dense'
    train(config.make(duration=dict(steps=2), batch_size=32, model=dict(name='sequential', layers=layers), parallel=dict(
        devices=1), data=dict(name='digits', image_size=8), optim=dict(optimizer='sgd', learning_rate=0.05)), path)
    os.makedirs(os.path.join(path, 'explain'))
    return path


@pytest.fixture
def request_for(workdir):
    """`request_for(**fields)` returns a request for views of the run."""
    return lambda **fields: Request(load_run(workdir), **fields)


def test_methods_are_drawn_beside_each_other_with_numbers(request_for, monkeypatch):
    monkeypatch.setattr(attributions, 'IMAGES_IN_FIGURE', 2)
    monkeypatch.setattr(attributions, 'METHODS_IN_FIGURE', 2)
    request = request_for(count=3)
    sections, paths = views.parse('gradcam++|smoothgrad(samples=2)|integrated_gradients', ['a.png'])
    assert (list(sections), paths) == (['attribution'], ['a.png'])
    lines = '\n'.join(sections['attribution'](request).lines)
    figures = re.findall(r'\]\((.*?)\)', lines)  # 2 images and 1, of 2 methods and 1
    assert figures == [f'attribution_{i}.png' for i in (1, 2, 3, 4)]
    assert all(os.path.getsize(os.path.join(request.folder, name)) > 1000 for name in figures)
    maps = np.load(os.path.join(request.folder, 'attribution.npz'))
    assert {name: maps[name].shape for name in maps} == dict.fromkeys(
        ['gradcam_plus_plus', 'smoothgrad', 'integrated_gradients'], (3, 8, 8))
    assert maps['gradcam_plus_plus'].min() >= 0
    sums = [[float(cell) for cell in row] for row in re.findall(r'\| (\S+) \| (\S+) \| \S+ \|\n', lines)
            if row[0] != '---|---|---']
    np.testing.assert_allclose([row[0] for row in sums], maps['integrated_gradients'].sum((1, 2)), rtol=1e-3)


def test_the_methods_of_the_command_are_scored_and_checked(request_for):
    request = request_for(count=2, class_name='3')
    sections, _ = views.parse('gradcam|occlusion(size=2, stride=2)|scores(steps=4)|sanity_check(stages=2)|'
                              'occlusion_maps("conv1", size=3, stride=3)')
    scores, check = (sections[name](request).lines for name in ('scores', 'sanity_check'))
    assert {line.split(' | ')[0] for line in scores[-3:]} == {'| Grad-CAM', '| occlusion', '| random order'}
    assert [line.split(' | ')[0] for line in check[-2:]] == ['| Grad-CAM', '| occlusion']
    occlusion = '\n'.join(sections['occlusion_maps'](request).lines)
    assert "steps of 3" in occlusion
    assert "'conv1'" in occlusion
    for name in ('scores', 'sanity_check', 'sanity_check_maps', 'occlusion_maps_1'):
        assert os.path.getsize(request.figure_path(name)) > 1000


def test_all_methods_that_a_network_can_have_are_scored_by_default(request_for, monkeypatch):
    def raise_error(*_):
        raise UserError('the network has none')
    broken = {'gradcam': METHODS['gradcam'], 'guided_backprop': Method('guided backprop', raise_error)}
    monkeypatch.setattr(attribution_checks, 'METHODS', broken)
    section = attribution_checks.score_attributions(request_for(count=1), steps=2, methods=broken)
    assert section.lines[-1] == 'Without guided backprop: the network has none.'
    with pytest.raises(UserError, match='the network has none'):
        attribution_checks.score_attributions(request_for(count=1), steps=2, methods=dict(broken))


def test_fills_are_normalised_pixels(request_for):
    request = request_for(count=1)
    preprocessor = request.run.experiment.preprocessor
    for fill, value in [('black', 0), ('grey', 0.5), (0.25, 0.25), ('mean', request.run.info['mean'][0])]:
        pixels = preprocessor.normalize(np.full(request.inputs.shape, value, np.float32))
        np.testing.assert_allclose(filled(request, fill, 'fill'), pixels, rtol=1e-6)


@pytest.mark.parametrize(('text', 'message'), [
    ('gradcan', "unknown view 'gradcan'; nearest: gradcam"),
    ('gradcam(layer="conv9")', "unknown feature map 'conv9'; nearest: conv"),
    ('smoothgrad(steps=3)', "unknown argument of SmoothGrad 'steps'"),
    ('integrated_gradients(steps="many")', "steps: expected a value of type int, got 'many'"),
    ('integrated_gradients(baseline="blak")', "unknown fill 'blak'; nearest: black"),
    ('occlusion(fill=2)', 'expected black, grey, white, mean or a brightness from 0 to 1, got 2'),
    ('scores(methods="gradcam")', "the methods are views beside it, as in 'gradcam|saliency|scores'")])
def test_wrong_views_and_options_are_named(request_for, text, message):
    def make_section():
        section, = views.parse(text)[0].values()
        return section(request_for(count=1))
    with pytest.raises(UserError, match=re.escape(message)):
        make_section()


@pytest.mark.parametrize(('text', 'message'), [
    ('errors(count=2.5)', 'errors: count: expected a value of type int, got 2.5'),
    ('calibration("x")', "calibration: bins: expected a value of type int, got 'x'"),
    ('embed(augmented=1)', 'embed: augmented: expected a value of type bool, got 1'),
    ('embed(perplexity=True)', 'embed: perplexity: expected a value of type float, got True'),
    ('maximize("conv1")|filters|maximize("conv2")', "VIEW: expected each view once, got 'maximize' 2 times"),
    ('gradcam++|gradcam_plus_plus', "expected each view once, got 'gradcam_plus_plus' 2 times"),
    ('maximize(layer=3)', 'maximize: layer: expected a value of type str, got 3')])
def test_repeated_views_and_options_of_a_wrong_type_are_named(text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        views.parse(text)


def test_options_of_any_type_and_whole_numbers_for_floats_are_accepted():
    views.parse('occlusion(fill=0.5)|scores(fill=1)|embed(perplexity=5)')


def test_a_wrong_class_is_named(request_for):
    with pytest.raises(UserError, match="--class: unknown class '10'"):
        request_for(count=1, class_name='10').classes  # noqa: B018
