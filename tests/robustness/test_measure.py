"""Corruption errors, scores of outliers, checks for masked gradients, and the report of all."""

import json
import types

import numpy as np
import pytest

from jaxcnn.data.targets import BOXES
from jaxcnn.errors import UserError
from jaxcnn.files import make_output
from jaxcnn.robustness import attacks, evaluate_corruptions, masking, outliers, report
from jaxcnn.robustness.evaluate_attacks import Attacker
from jaxcnn.robustness.evaluate_corruptions import CorruptionErrors, Reference
from jaxcnn.robustness.measure import Measuring, Options
from jaxcnn.robustness.result import CorruptionResults
from jaxcnn.robustness.threat import Threat
from jaxcnn.robustness.victim import Victim, draw_images
from jaxcnn.run import load_run


@pytest.fixture
def run(digits_run):
    return load_run(digits_run)


def test_the_mean_corruption_error_is_a_mean_of_ratios():
    errors = CorruptionErrors(0.1, {'fog': [0.2, 0.4], 'snow': [0.5, 0.7]}, (1, 5), 'cifar')
    reference = Reference('other', 0.2, {'fog': 0.6, 'snow': 0.8})
    assert errors.corruption_errors(reference) == pytest.approx({'fog': 0.3 / 0.6, 'snow': 0.6 / 0.8})
    assert errors.relative_errors(reference) == pytest.approx({'fog': (0.3 - 0.1) / 0.4, 'snow': (0.6 - 0.1) / 0.6})
    assert errors.mean == pytest.approx(0.45)
    alexnet = evaluate_corruptions.read_reference('alexnet')
    assert alexnet.errors['snow'] == 0.866816
    alexnet.check(['fog'], (1, 2, 3, 4, 5), 'imagenet')
    for kinds, severities, constants, line in [
            (['mist'], (1, 2, 3, 4, 5), 'imagenet', 'AlexNet has no error on mist'),
            (['fog'], (1, 3), 'imagenet', 'AlexNet has errors for the severities 1 2 3 4 5, not for 1 3'),
            (['fog'], (1, 2, 3, 4, 5), 'cifar', "AlexNet has errors with the constants of 'imagenet', not of 'cifar'")]:
        with pytest.raises(UserError, match=line):
            alexnet.check(kinds, severities, constants)


def test_a_single_severity_has_no_column_of_means():
    def table(severities, errors):
        results = CorruptionResults(CorruptionErrors(0.1, {'fog': errors}, severities, 'cifar'), None, np.zeros(0), {})
        return report.corruption_table(results)
    assert table((3,), [0.25]) == [['error', 'severity 3'], ['fog', '25.00 %'], ['mean', '25.00 %']]
    assert table((1, 3), [0.25, 0.75])[1] == ['fog', '25.00 %', '75.00 %', '50.00 %']


def test_kinds_are_named_by_category():
    assert evaluate_corruptions.parse_kinds(['fog', 'noise']) == ['gaussian_noise', 'shot_noise', 'impulse_noise', 'fog']
    assert len(evaluate_corruptions.parse_kinds(['all'])) == 15
    with pytest.raises(UserError, match="--corruptions: unknown corruption 'fogg'; nearest: fog"):
        evaluate_corruptions.parse_kinds(['fogg'])


def test_corrupted_images_are_bytes_that_depend_on_the_position():
    pixels = np.tile(np.float32(0.5), (7, 8, 8, 1))
    positions = np.array([3, 1, 4, 1, 5, 9, 2])
    arguments = 'gaussian_noise', 2, 'auto', 0
    images = evaluate_corruptions.corrupt(pixels, positions, *arguments, batch_size=7)
    np.testing.assert_array_equal(images, evaluate_corruptions.corrupt(pixels, positions, *arguments, batch_size=3))
    np.testing.assert_array_equal(images[1], images[3])
    assert (images[0] != images[1]).any()
    np.testing.assert_allclose(images * 255, np.round(images * 255), atol=1e-4)


def test_scores_separate_as_their_definitions_say():
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(size=(40, 5)), 0.7 * rng.normal(size=(30, 5))
    inside[:, 0] += 1
    probabilities = [np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (inside, outside)]
    scores = {'max softmax': [p.max(1) for p in probabilities], 'max logit': [inside.max(1), outside.max(1)],
              'energy': [np.log(np.exp(z).sum(1)) for z in (inside, outside)]}
    separations = outliers.separate(inside.astype(np.float32), outside.astype(np.float32))
    assert {s.score for s in separations} == set(scores)
    for separation in separations:
        a, b = scores[separation.score]
        assert separation.auroc == pytest.approx((a[:, None] > b).mean(), abs=1e-3)
        threshold = max(t for t in a if (a >= t).mean() >= 0.95)
        assert separation.fpr95 == pytest.approx((b >= threshold).mean(), abs=1e-6)
        ranked = np.argsort(-np.concatenate([a, b]))
        precision = np.cumsum(ranked < 40) / np.arange(1, 71)
        assert separation.aupr_in == pytest.approx(precision[ranked < 40].mean(), abs=1e-3)


@pytest.mark.slow
def test_checks_find_masked_gradients(run, monkeypatch):
    victim = Victim(run.experiment, run.variables)
    images = draw_images(victim, run.load_dataset(), 'test', 100, 0, 100)

    def verdicts():
        attacker = Attacker(victim, Threat(), images, images.labels, 0, 100)
        result = masking.check(attacker, 0.1, queries=200)
        assert len(result.losses) == masking.ITERATIONS + 1
        return [check.passed for check in result.checks]
    assert all(verdicts())
    logits = victim.logits
    monkeypatch.setattr(victim, 'logits', lambda variables, x: 1e4 * logits(variables, x))
    assert verdicts()[1:3] == [False, False]  # unbounded changes, and the random search


def test_the_report_holds_what_was_measured(run, tmp_path):
    folder = tmp_path / 'new' / 'report'
    options = Options(attacks='fgsm, pgd(3)', eps=(0.1, 0.02), corruptions=['contrast'], severities=(1, 5), images=50,
                      ood_name='digits', ood_split='train', batch_size=25)
    result = Measuring(run, run.load_dataset(), options).run()
    make_output(str(folder))
    page = report.write_report(result, str(folder), run.info['class_names'])
    values = json.loads((folder / 'robustness.json').read_text())
    outcomes = {(o['attack'], o['eps']): o for o in values['attacks']['outcomes']}
    assert set(outcomes) == {('fgsm', 0.02), ('fgsm', 0.1), ('pgd(3)', 0.02), ('pgd(3)', 0.1)}
    assert values['accuracy'] >= outcomes['fgsm', 0.02]['robust_accuracy'] > outcomes['pgd(3)', 0.1]['robust_accuracy']
    assert values['corruptions']['clean_error'] == pytest.approx(1 - values['accuracy'])
    assert 0.3 < values['outliers']['scores']['energy']['auroc'] < 0.7  # the same kind of images
    rows = (folder / 'robustness.csv').read_text().splitlines()
    assert len(rows) == 1 + 1 + 4 + 2 + 12
    assert page == str(folder / 'robustness.html')
    assert 'src="data:image/png' in (folder / 'robustness.html').read_text()
    reference = evaluate_corruptions.read_reference(str(folder))
    reference.check(['contrast'], (1, 5), 'cifar')
    assert reference.errors['contrast'] == pytest.approx(np.mean(values['corruptions']['errors']['contrast']))
    with pytest.raises(UserError, match='exists and is not empty; name another folder'):
        make_output(str(folder))


def test_a_detector_and_other_mistakes_are_refused(run, tmp_path, monkeypatch):
    task = types.SimpleNamespace(kind=BOXES, name='detection')
    detector = types.SimpleNamespace(workdir='runs/boxes', experiment=types.SimpleNamespace(task=task))
    with pytest.raises(UserError, match="the task of 'runs/boxes' is 'detection'"):
        Measuring(detector, None, Options())
    dataset = run.load_dataset()
    for options, line in [
            (Options(attacks='fgsm', eps=(0.1,), target='ten', images=4), "--target: unknown class 'ten'"),
            (Options(split='dev'), "--split: no split 'dev'"),
            (Options(ood_name='digitz'), "--ood_name: .*unknown data set 'digitz'"),
            (Options(corruptions=['fog'], reference=str(tmp_path)), '--reference: .* holds no robustness.json')]:
        with pytest.raises(UserError, match=line):
            Measuring(run, dataset, options).run()
    monkeypatch.setattr(Victim, 'image_shape', property(lambda self: (8, 8, 4), lambda self, shape: None), raising=False)
    with pytest.raises(UserError, match='--corruptions: expected images of 1 or 3 channels, got 4'):
        Measuring(run, dataset, Options(corruptions=['snow']))
    assert attacks.parse('auto', Threat(), 2)[0].stages[0].name == 'apgd_ce'  # without those that need more classes
