"""Calibration of predictors whose errors are known."""

import math

import numpy as np
import pytest
from matplotlib.axes import Axes

from jaxcnn.analysis.calibration import (
    brier_score,
    calibration,
    fit_temperature,
    negative_log_likelihood,
    reliability_diagram,
    scale_by_temperature,
)


def test_a_calibrated_predictor_has_no_error_and_an_over_confident_one_the_planted_one(tmp_path, monkeypatch):
    confidences = np.repeat([0.55, 0.75, 0.95], 100)
    right = np.concatenate([np.arange(100) < n for n in (55, 75, 95)])
    result = calibration(confidences, right, bins=10)
    assert result.ece == pytest.approx(0, abs=1e-12)
    assert result.counts.tolist() == [0, 0, 0, 0, 0, 100, 0, 100, 0, 100]
    sure = calibration(np.full(300, 0.99), right, bins=10)  # 225 of 300 are right
    assert sure.ece == pytest.approx(0.24)
    assert sure.overconfidence == pytest.approx(0.24)
    mixed = calibration(np.repeat([0.65, 0.75, 0.95], 100), right, bins=10)
    assert mixed.ece == pytest.approx(0.1 / 3)
    assert mixed.max_error == pytest.approx(0.1)
    heights = []
    monkeypatch.setattr(Axes, 'bar', lambda self, x, height, *args, **kwargs: heights.append(height.tolist()))
    reliability_diagram(mixed, str(tmp_path / 'reliability.png'))
    assert heights == [[0.55, 0.75, 0.95], mixed.counts.tolist()]


def test_edges_belong_to_the_lower_bin_and_values_that_are_not_finite_are_left_out():
    result = calibration(np.array([0, 0.5, 0.500001, 1, np.nan]), np.ones(5, bool), bins=2)
    assert result.counts.tolist() == [2, 2]
    assert result.accuracy.tolist() == [1, 1]


def test_the_brier_score_of_known_predictions():
    assert brier_score(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1])) == 0
    assert brier_score(np.array([[0.0, 1.0]]), np.array([0])) == 2
    assert brier_score(np.array([[0.5, 0.25, 0.25]]), np.array([0])) == pytest.approx(0.25 + 2 / 16)


def test_the_likelihood_and_the_temperature_of_known_predictions():
    logits = np.tile([[3.0, 0.0]], (10, 1))
    labels = np.repeat([0, 1], [8, 2])  # the best probability of class 0 is 0.8, whose logit is log(4)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(3 / math.log(4), rel=1e-5)
    scaled = scale_by_temperature(logits, temperature)
    np.testing.assert_allclose(np.exp(scaled), np.tile([0.8, 0.2], (10, 1)), rtol=1e-5)
    assert negative_log_likelihood(scaled, labels) == pytest.approx(-0.8 * math.log(0.8) - 0.2 * math.log(0.2))
    assert fit_temperature(logits, np.zeros(10, int)) < 0.1  # the best one is 0
    assert fit_temperature(logits, np.ones(10, int)) == pytest.approx(20, rel=1e-4)
