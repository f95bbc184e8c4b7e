"""Intervals and tests of accuracies, by hand and by scipy."""

import numpy as np
import pytest
from scipy import stats

from jaxcnn.evaluation.comparison import compare, interval_of_mean
from jaxcnn.evaluation.predictions import Predictions


def test_the_bootstrap_interval_is_deterministic_contains_the_accuracy_and_agrees_with_scipy():
    correct = np.arange(200) < 150
    lower, upper = interval_of_mean(correct)
    assert (lower, upper) == interval_of_mean(correct[::-1])
    assert lower < 0.75 < upper
    expected = stats.bootstrap((correct,), np.mean, n_resamples=4000, method='percentile', rng=1).confidence_interval
    np.testing.assert_allclose([lower, upper], expected, atol=0.01)
    assert interval_of_mean(np.ones(50, bool)) == (1, 1)


def test_mcnemars_exact_test_by_hand():
    first = np.array([True] * 9 + [False] * 1 + [True] * 80 + [False] * 10)
    second = np.array([False] * 9 + [True] * 1 + [True] * 80 + [False] * 10)
    result = compare(first, second)
    assert (result.only_first, result.only_second) == (9, 1)
    assert result.p_value == pytest.approx(2 * (1 + 10) / 2 ** 10)  # at most 1 of 10 fair coins
    assert result.difference == pytest.approx(0.08)
    assert result.interval[0] < 0.08 < result.interval[1]
    mirrored = compare(second, first)
    assert (mirrored.p_value, mirrored.difference) == (result.p_value, -result.difference)
    assert compare(first, first).p_value == 1
    assert compare(first, first).interval == (0, 0)


def test_versions_of_an_image_are_not_counted_as_further_images():
    first, second = np.arange(200) % 5 > 0, np.arange(200) % 7 > 0
    predictions = [Predictions([], np.ones(600, int), np.log(np.eye(2)[np.tile(correct, 3).astype(int)] + 1e-9), ['x', 'y'],
                               ['fog', 'snow', 'frost']) for correct in (first, second)]
    assert predictions[0].num_images == 200
    assert interval_of_mean(predictions[0].correct_by_image) == interval_of_mean(first)
    assert compare(*(p.correct_by_image for p in predictions)) == compare(first, second)
