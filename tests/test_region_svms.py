"""SVMs with hard negatives and box regression on features whose answer is known."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import config, models, tasks
from jaxcnn.detection_metrics import pairwise_iou
from jaxcnn.errors import UserError
from jaxcnn.ops import boxes as box_ops
from jaxcnn.region_svms import second_stage
from jaxcnn.region_svms.detector import with_svms
from jaxcnn.region_svms.features import region_features
from jaxcnn.region_svms.linear import SVMTrainer, fit_box_regression
from jaxcnn.training.state import run_once

encode = jax.jit(box_ops.encode)


def test_an_svm_is_trained_on_hard_negatives_and_separates_planted_classes():
    """Feature 0 shows class 0, and feature 1 class 1. Hard negatives, with feature 2, come after the first image."""
    rng = np.random.default_rng(0)

    def regions(count, *pattern):
        return rng.normal(0, 0.05, (count, 8)) + np.pad(np.array(pattern, float), (0, 8 - len(pattern)))
    trainer = SVMTrainer([regions(40, 1), regions(40, 0, 1), np.zeros((0, 8))], scale=20.0, retrain_after=70)
    easy, hard = regions(50, -2, -2), regions(30, 1, 0, 1)
    of_classes = np.repeat([[False, True, True], [True, False, True], [True, True, True]], [20, 20, 50], 0)
    trainer.add(np.concatenate([regions(20, 1), regions(20, 0, 1), regions(50, -1, -1)]), of_classes)
    first = trainer.weights.copy()
    assert (hard @ (first[0] * 20) + trainer.biases[0] > 0).all()  # not yet known
    negatives = np.ones((80, 3), bool)
    negatives[:30, 1] = False
    for count in (30, 60):
        trainer.add(np.concatenate([hard, easy]), negatives)
        assert trainer.added[:2] == [count, 0]  # only the hard ones of class 0, too few to train again
    np.testing.assert_array_equal(trainer.weights, first)
    trainer.add(hard, negatives[:30])
    assert trainer.added[0] == 0
    assert (trainer.weights[0] != first[0]).any()
    assert 0 < len(trainer.negatives[0]) < 140  # easy ones are forgotten
    assert (trainer.negatives[0] @ trainer.weights[0] + trainer.biases[0] >= -1.2).all()
    svms = trainer.finish()
    scores = svms(np.concatenate([regions(5, 1), regions(5, 0, 1), regions(5, 1, 0, 1), regions(5, -1, -1)]))
    assert scores.shape == (20, 3)
    expected = np.repeat([[1, 0], [0, 1], [0, 0], [0, 0]], 5, 0) > 0
    np.testing.assert_array_equal(scores[:, :2] > 0, expected)
    np.testing.assert_array_equal(scores[:, 2], -np.inf)  # a class without examples


def test_box_regression_is_the_closed_form_of_ridge_regression():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 5)) + 3, rng.normal(size=(30, 4))
    regression = fit_box_regression([x, np.zeros((0, 5))], [y, np.zeros((0, 4))], strength=7.0, scale=2.0)
    scaled, centred = 2 * (x - x.mean(0)), y - y.mean(0)
    weights = np.linalg.solve(scaled.T @ scaled + 7 * np.eye(5), scaled.T @ centred)
    values = regression(x[:4])
    np.testing.assert_allclose(values[:, 0], scaled[:4] @ weights + y.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(values[:, 1], 0)


def test_features_of_regions_are_those_of_the_classifier():
    network = models.create('rcnn', num_classes=2, backbone='alexnet(widths=(4, 6, 8, 6), hidden=8)', region_size=63,
                            context=4, region_part=2, conv_implementation='xla')
    image = jnp.asarray(np.random.default_rng(0).normal(size=(70, 80, 3)), jnp.float32)
    boxes = jnp.asarray([[0, 0, 40, 60], [10, 5, 70, 60], [3, 30, 80, 70]], jnp.float32)
    variables = jax.jit(network.init, compiler_options=run_once())(jax.random.key(0), image[None])
    features = jax.jit(lambda v: region_features(network, v, image, boxes), compiler_options=run_once())(variables)
    assert {name: x.shape for name, x in features.items()} == {'pool5': (3, 6), 'fc6': (3, 8), 'fc7': (3, 8),
                                                               'logits': (3, 3)}
    layers = variables['params']['backbone']
    x = features['pool5']
    for i, name in enumerate(('fc6', 'fc7', 'logits')):
        x = x @ layers[f'Dense_{i}']['kernel'] + layers[f'Dense_{i}']['bias']
        x = x if name == 'logits' else jax.nn.relu(x)
        np.testing.assert_allclose(features[name], x, rtol=1e-4, atol=1e-5)


class PlantedFeatures(second_stage.FeatureExtractor):
    """Features that are the class and the regression targets of regions near an object, and zeros for the others."""

    def __init__(self):
        self.network = models.create('rcnn', num_classes=2, backbone='alexnet(widths=(4, 6, 8, 6), hidden=8)')
        self.num_classes, self.height, self.width = 2, 200, 200
        self.task = tasks.create(config.parse({'task': 'detection', 'loss': 'detection'}), ['ant', 'bee'], [1, 1], 2)

    def of_split(self, split, positions=None, with_proposals=True, title=''):
        for seed in positions or split:
            rng = np.random.default_rng(seed)
            corners = np.array([[10, 10], [110, 20], [30, 110], [0, 0]])
            boxes = np.concatenate([corners, corners + rng.uniform(50, 80, (4, 2))], 1) * [[1], [1], [1], [0]]
            truth = {'boxes': boxes, 'classes': np.array([0, 1, 0, 0]), 'valid': np.arange(4) < 3,
                     'difficult': np.zeros(4, bool)}
            near = np.repeat(boxes[:3], 12, 0) + rng.uniform(-25, 25, (36, 4))
            far = rng.uniform(0, 180, (10, 2))
            regions = np.concatenate([boxes, near, np.concatenate([far, far + 20], 1)])
            overlaps = pairwise_iou(regions, boxes)
            nearest, is_near = overlaps.argmax(1), overlaps.max(1) >= 0.3
            targets = np.asarray(encode(boxes[nearest], regions))
            features = np.concatenate([np.eye(2)[truth['classes'][nearest]], 5 * targets], 1) * is_near[:, None]
            yield second_stage.Regions(regions, {'pool5': features, 'logits': 9 * np.pad(features[:, :2], [(0, 0), (0, 1)])},
                                       np.arange(len(regions)) >= 4, truth)


def test_boxes_are_regressed_from_regions_that_overlap_a_box_enough():
    """A region is an example of the class of the box that it overlaps most; difficult boxes have no examples."""
    truth = {'boxes': np.float32([[0, 0, 10, 10], [2, 0, 12, 10], [40, 0, 50, 10], [0, 0, 0, 0]]),
             'classes': np.array([1, 0, 0, 0]), 'valid': np.arange(4) < 3, 'difficult': np.arange(4) == 2}
    proposals = np.float32([[1.5, 0, 11.5, 10], [0, 0, 10, 5], [0, 0, 10, 6.5], [40, 0, 50, 9]])
    regions = second_stage.Regions(np.concatenate([truth['boxes'], proposals]), {}, np.arange(8) >= 4, truth)
    indices, classes, targets = regions.regression_examples(0.5)
    assert indices.tolist() == [0, 1, 4, 6]
    assert classes.tolist() == [1, 0, 0, 1]
    np.testing.assert_allclose(targets, [[0] * 4, [0] * 4, [0.05, 0, 0, 0], [0, 1.75 / 6.5, 0, np.log(10 / 6.5)]], atol=1e-6)


def test_second_stage_classifies_regions_and_refines_their_boxes(tmp_path):
    extractor = PlantedFeatures()
    stage = second_stage.fit(extractor, range(12), ['pool5'])
    path = str(tmp_path / 'svms.npz')
    stage.save(path)
    detections = second_stage.detect_split(extractor, range(20, 25), second_stage.SecondStage.load(path))
    values = {key: extractor.task.compute(accumulated)['map50'] for key, accumulated in detections.items()}
    assert values['pool5', 'svm_boxes'] == 1
    assert values['logits', 'softmax_boxes'] == 1
    assert values['pool5', 'svm'] < 0.95


def test_other_networks_have_no_svms():
    network = models.create('fast_rcnn', num_classes=2, backbone='vgg16')
    run = types.SimpleNamespace(workdir='runs/fast', config=config.parse({'model': 'fast_rcnn'}),
                                experiment=types.SimpleNamespace(network=network))
    with pytest.raises(UserError, match="'fast_rcnn' of the run in 'runs/fast' has no SVMs; choose a run of rcnn"):
        with_svms(run, 'fc7')
