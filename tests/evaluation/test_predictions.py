"""Predictions of a run for a split."""

import numpy as np
import pytest

from jaxcnn.evaluation.predictions import Predictions, predict_split
from jaxcnn.run import load_run
from jaxcnn.training import train

pytestmark = pytest.mark.usefixtures('no_pictures')


def test_predictions_have_the_accuracy_and_the_loss_of_the_evaluation(small, tmp_path):
    train(small(model=dict(name='lenet5'), data=dict(image_size=28, augment=''),
                eval=dict(every=dict(steps=20), batch_size=100, tta='flip_shift(1)')), str(tmp_path))
    run = load_run(str(tmp_path))
    figures = run.evaluate('val')
    for tta, prefix in ((False, 'val'), (True, 'val_tta')):
        predictions = predict_split(run, 'val', tta=tta)
        loss = -predictions.log_probabilities[np.arange(len(predictions.labels)), predictions.labels].mean()
        assert predictions.correct.mean() == pytest.approx(figures[f'{prefix}_accuracy'])
        assert loss == pytest.approx(figures[f'{prefix}_loss'], abs=1e-5)
    assert predictions.names[3] == 'val image 3'
    np.testing.assert_allclose(predictions.probabilities.sum(1), 1, atol=1e-5)


def test_an_image_with_a_probability_of_nan_has_no_predicted_class():
    predictions = Predictions(['a', 'b'], np.array([0, 1]), np.log([[np.nan, 0.5], [0.25, 0.75]]), ['x', 'y'])
    assert predictions.predicted.tolist() == [-1, 1]
    assert predictions.correct.tolist() == [False, True]
