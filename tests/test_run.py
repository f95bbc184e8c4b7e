"""Loading a finished run, predicting with it and evaluating it."""

import numpy as np
import pytest

from jaxcnn import data
from jaxcnn.errors import UserError
from jaxcnn.run import load_run
from jaxcnn.training import train


@pytest.mark.usefixtures('no_pictures')
def test_run_predicts_and_evaluates_as_the_training_did(small, tmp_path):
    summary = train(small(), str(tmp_path))
    run = load_run(str(tmp_path))
    expected = {name: summary[name] for name in ('test_loss', 'test_accuracy', 'test_top5')}
    assert run.evaluate('test') == pytest.approx(expected, rel=1e-6)

    test = data.load(run.config.data).splits['test']
    images = test.take(np.arange(len(test)))
    probabilities = run.predict(images)
    assert (probabilities.argmax(1) == test.targets['label']).mean() == pytest.approx(summary['test_accuracy'])
    np.testing.assert_allclose(run.predict(images[..., 0]), probabilities)
    no_predictions = run.predict(images[:0])
    assert (no_predictions.shape, no_predictions.dtype) == ((0, 10), probabilities.dtype)

    first = run.steps()[0]
    first_run = load_run(str(tmp_path), checkpoint=first)
    np.testing.assert_array_equal(first_run.variables['params']['Dense_0']['kernel'],
                                  run.load_weights(first).params['Dense_0']['kernel'])
    assert np.abs(first_run.predict(images) - load_run(str(tmp_path), 'latest').predict(images)).max() > 1e-3


def test_load_run_rejects_a_folder_without_a_run(tmp_path):
    with pytest.raises(UserError, match='nowhere'):
        load_run(str(tmp_path / 'nowhere'))
    with pytest.raises(UserError, match='no run'):
        load_run(str(tmp_path))
