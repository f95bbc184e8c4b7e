"""Mistakes, doubtful images and label errors are found where they were planted."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from jaxcnn.analysis import figures, mistakes


def test_confident_mistakes_are_the_wrong_predictions_by_confidence():
    predictions, confidences = np.array([0, 1, 2, 2, -1, 0]), np.array([0.9, 0.6, 0.8, 0.99, np.nan, 0.7])
    labels = np.array([1, 1, 0, 2, 1, 2])
    indices, scores = mistakes.confident_mistakes(predictions, confidences, labels)
    assert indices.tolist() == [0, 2, 5]
    assert scores.tolist() == [0.9, 0.8, 0.7]
    assert mistakes.confident_mistakes(predictions, confidences, labels, 1).indices.tolist() == [0]


def test_confident_mistakes_of_several_labels_are_wrong_decisions_about_a_class():
    probabilities = np.array([[0.9, 0.2], [0.1, 0.6], [0.05, 0.7], [0.8, 0.01], [np.nan, 0.9]])
    labels = np.array([[1, 0], [1, 0], [0, 0], [1, 1], [0, 0]])
    ranking, classes = mistakes.confident_label_mistakes(probabilities, labels)
    assert ranking.indices.tolist() == [3, 1, 4, 2]
    np.testing.assert_allclose(ranking.scores, [0.99, 0.9, 0.9, 0.7])
    assert classes.tolist() == [1, 0, 1, 1]


def test_doubtful_images_have_a_large_entropy():
    probabilities = np.array([[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0], [np.nan, 0, 1]])
    indices, scores = mistakes.doubtful_images(probabilities)
    assert indices.tolist() == [1, 2, 0]
    np.testing.assert_allclose(scores, [1, np.log(2) / np.log(3), 0], atol=1e-12)


def test_label_errors_of_a_table_that_is_computed_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.2, 0.8], [0.4, 0.6], [0.85, 0.15]])
    labels = np.array([0, 0, 0, 1, 1, 1])  # thresholds: 0.6, and (0.8 + 0.6 + 0.15) / 3 = 0.5167
    errors = mistakes.label_errors(probabilities, labels)
    assert errors.indices.tolist() == [5, 2]
    np.testing.assert_allclose(errors.scores, [0.7, 0.4])
    assert errors.suggested.tolist() == [0, 1]
    assert errors.joint.tolist() == [[2, 1], [1, 2]]


def test_equal_probabilities_reach_their_mean():
    probabilities, labels = np.full((997, 10), 0.1, np.float32), np.zeros(997, int)
    assert probabilities[:, 0].mean() > probabilities[0, 0]  # by rounding
    assert mistakes.label_errors(probabilities, labels).joint[0, 0] == 997


def test_label_errors_of_several_labels_name_the_class():
    labels = np.tile([[1, 0], [0, 1], [1, 1], [0, 0]], (10, 1))
    probabilities = np.where(labels, 0.9, 0.1)
    labels[6, 1], labels[9, 0] = 0, 1  # both were different
    ranking, classes = mistakes.label_set_errors(probabilities, labels)
    assert sorted(zip(ranking.indices.tolist(), classes.tolist(), strict=True)) == [(6, 1), (9, 0)]
    np.testing.assert_allclose(ranking.scores, 0.8)


def test_planted_label_errors_are_found():
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    planted = rng.choice(len(labels), 90, replace=False)
    wrong = labels.copy()
    wrong[planted] = (labels[planted] + rng.integers(1, 10, 90)) % 10
    folds = StratifiedKFold(4, shuffle=True, random_state=0)
    probabilities = cross_val_predict(KNeighborsClassifier(10), images, wrong, cv=folds, method='predict_proba')
    errors = mistakes.label_errors(probabilities, wrong)
    assert np.isin(planted, errors.indices).mean() > 0.8  # 0.84 with cleanlab 2.9.0
    assert np.isin(errors.indices[:60], planted).mean() > 0.95
    is_planted = np.isin(errors.indices, planted)
    assert (errors.suggested == labels[errors.indices])[is_planted].mean() > 0.95


@pytest.mark.parametrize('shape', [(100, 300, 3), (20, 10, 1)])
def test_thumbnails_keep_the_aspect_ratio_and_small_images(shape):
    images = np.full((2, *shape), 70, np.uint8)
    reduced = figures.thumbnails(images, 60)
    assert reduced.shape == ((2, 20, 60, 3) if shape[0] == 100 else (2, *shape))
    assert (reduced == 70).all()
