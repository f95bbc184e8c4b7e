"""Predictions of a run for a split of its own or of other data."""

import shutil

import numpy as np
import pytest
from PIL import Image

from jaxcnn.errors import UserError
from jaxcnn.evaluation.data import ImagesWithChannels, load_data
from jaxcnn.evaluation.predictions import Predictions, predict_split
from jaxcnn.run import load_run


def test_predictions_have_the_accuracy_and_the_loss_of_the_evaluation(digits_runs):
    run = load_run(digits_runs[0])
    figures = run.evaluate('val')
    for tta, prefix in ((False, 'val'), (True, 'val_tta')):
        predictions = predict_split(run, 'val', tta=tta)
        loss = -predictions.log_probabilities[np.arange(45), predictions.labels].mean()
        assert predictions.correct.mean() == pytest.approx(figures[f'{prefix}_accuracy'])
        assert loss == pytest.approx(figures[f'{prefix}_loss'], abs=1e-5)
    assert predictions.names[0] == 'val/one/30.png'
    np.testing.assert_allclose(predictions.probabilities.sum(1), 1, atol=1e-5)


def test_an_image_with_a_probability_of_nan_has_no_predicted_class():
    predictions = Predictions(['a', 'b'], np.array([0, 1]), np.log([[np.nan, 0.5], [0.25, 0.75]]), ['x', 'y'])
    assert predictions.predicted.tolist() == [-1, 1]
    assert predictions.correct.tolist() == [False, True]


def test_classes_of_other_data_are_matched_by_their_names(digits_runs, digits_folder, tmp_path, caplog):
    run = load_run(digits_runs[0])
    on_run_data = predict_split(run, 'test')
    assert on_run_data.class_names == ['one', 'two', 'zero']
    for name in ('two', 'zero'):  # in this folder they have the numbers 0 and 1
        shutil.copytree(digits_folder / 'test' / name, tmp_path / name)
    with caplog.at_level('INFO', 'jaxcnn'):
        other = predict_split(run, 'train', str(tmp_path))
    assert 'train 30 images; 2 of its 3 classes' in caplog.text
    assert load_data(run, str(tmp_path)).splits.keys() == {'train'}  # no validation split is split off
    rows = [on_run_data.names.index(f'test/{name}') for name in other.names]
    np.testing.assert_array_equal(other.labels, on_run_data.labels[rows])
    np.testing.assert_allclose(other.log_probabilities, on_run_data.log_probabilities[rows], rtol=1e-5, atol=1e-6)
    (tmp_path / 'two').rename(tmp_path / 'too')
    with pytest.raises(UserError, match="unknown class 'too'; nearest: two"):
        load_data(run, str(tmp_path))


def test_a_copy_of_the_own_data_has_the_splits_of_the_training(digits_runs, digits_folder, tmp_path, caplog):
    run, copy = load_run(digits_runs[0]), tmp_path / 'copy'
    shutil.copytree(digits_folder, copy)
    with caplog.at_level('INFO', 'jaxcnn'):
        assert load_data(run, str(copy)).digest == run.info['digest']
    assert 'not the data' not in caplog.text
    (copy / 'train' / 'two' / '0.png').unlink()
    with caplog.at_level('INFO', 'jaxcnn'):
        load_data(run, str(copy))
    assert 'is not the data that' in caplog.text
    with pytest.raises(UserError, match=r'--data_name: .*set --data_dir'):
        load_data(run, data_name='folder')


def test_other_data_has_the_channels_of_the_run():
    rng = np.random.default_rng(0)
    color = rng.integers(0, 256, (2, 5, 4, 3), np.uint8)
    grey = ImagesWithChannels(color, 1)
    assert grey.shape == (2, 5, 4, 1)
    np.testing.assert_array_equal(grey[1], np.asarray(Image.fromarray(color[1]).convert('L'))[..., None])
    np.testing.assert_array_equal(ImagesWithChannels(grey[:], 3)[0], grey[0].repeat(3, -1))
