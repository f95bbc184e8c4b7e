"""Means of known predictions, and runs that do not fit together."""

import types

import numpy as np
import pytest

from jaxcnn.data.targets import LABELS
from jaxcnn.errors import UserError
from jaxcnn.evaluation.ensemble import average, check_same_images, normalize_weights
from jaxcnn.evaluation.predictions import Predictions, check_is_classifier


def predictions(probabilities, names=('a.png', 'b.png'), labels=(0, 1), class_names=('cat', 'dog')):
    return Predictions(list(names), np.array(labels), np.log(probabilities, dtype=np.float32), list(class_names))


def test_the_means_of_two_known_tables():
    first, second = predictions([[0.8, 0.2], [0.5, 0.5]]), predictions([[0.5, 0.5], [0.1, 0.9]])
    np.testing.assert_allclose(average([first, second]).probabilities, [[0.65, 0.35], [0.3, 0.7]], rtol=1e-6)
    weighted = average([first, second], [1, 3])
    np.testing.assert_allclose(weighted.probabilities, [[0.575, 0.425], [0.2, 0.8]], rtol=1e-6)
    geometric = average([first, second], mean='logits').probabilities
    # sqrt(0.8 * 0.5) : sqrt(0.2 * 0.5) = 2 : 1, and sqrt(0.5 * 0.1) : sqrt(0.5 * 0.9) = 1 : 3
    np.testing.assert_allclose(geometric, [[2 / 3, 1 / 3], [1 / 4, 3 / 4]], rtol=1e-6)
    np.testing.assert_allclose(average([first, second], [1, 0]).probabilities, first.probabilities, rtol=1e-6)


@pytest.mark.parametrize(('fields', 'message'), [
    ({'class_names': ('cat', 'fox')}, "the classes of 'x' and 'y' differ: class 1 is 'dog' and 'fox'"),
    ({'class_names': ('cat', 'dog', 'fox')}, "'x' and 'y' have 2 and 3 classes"),
    ({'names': ('a.png',)}, "'x' and 'y' predict 2 images and 1 image"),
    ({'names': ('a.png', 'c.png')}, "image 1 is 'b.png' and 'c.png'"),
    ({'labels': (0, 0)}, "that of 'b.png' is 'dog' and 'cat'"),
])
def test_predictions_for_other_images_or_classes_are_refused(fields, message):
    table = [[0.5, 0.5], [0.5, 0.5]]
    with pytest.raises(UserError, match=message):
        check_same_images(predictions(table), predictions(table, **fields), 'x', 'y')
    check_same_images(predictions(table), predictions([[1, 1e-9], [0.1, 0.9]]), 'x', 'y')


@pytest.mark.parametrize(('weights', 'message'), [
    ([1, 2, 3], 'one weight for each of 2 runs, got 3 weights'), ([1, -1], 'at least 0, .* got 1 -1'), ([0, 0], 'got 0 0'),
    ([1, float('nan')], 'got 1 nan')])
def test_wrong_weights_are_refused(weights, message):
    with pytest.raises(UserError, match=message):
        normalize_weights(weights, 2)


def test_a_multilabel_run_is_refused():
    task = types.SimpleNamespace(kind=LABELS, name='multilabel')
    with pytest.raises(UserError, match="one class for each image, but the task of 'x' is 'multilabel'"):
        check_is_classifier(types.SimpleNamespace(workdir='x', experiment=types.SimpleNamespace(task=task)))
