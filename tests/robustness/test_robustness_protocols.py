import numpy as np
import pytest

from jaxcnn.errors import UserError
from jaxcnn.evaluation.protocols import ProtocolEvaluator
from jaxcnn.robustness import attacks, protocols
from jaxcnn.robustness.evaluate_attacks import Attacker
from jaxcnn.robustness.evaluate_corruptions import evaluate
from jaxcnn.robustness.threat import Threat
from jaxcnn.robustness.victim import Victim, draw_images
from jaxcnn.run import load_run


def test_accuracies_are_those_of_the_robustness_command(digits_run):
    run = load_run(digits_run)
    dataset, victim = run.load_dataset(), Victim(run.experiment, run.variables)
    images = draw_images(victim, dataset, 'test', 40, 1, 20)

    def accuracy(text):
        count, values = ProtocolEvaluator(run.experiment, dataset, 'test', protocols.parse(text))(run.load_weights(
            run.find_step('best')))
        return count, next(value for m, value in values.items() if m.metric.name == 'accuracy')

    attack, = attacks.parse('pgd(iterations=3)', Threat(), 10)
    reached = Attacker(victim, Threat(), images, images.labels, 1, 20).run(attack, 16 / 255).reached
    assert 0 < reached.sum() < 40
    assert accuracy("attacked('pgd(iterations=3)', '16/255', images=40, seed=1)") == (40, pytest.approx(1 - reached.mean()))
    errors, _ = evaluate(victim, images, ['fog', 'contrast'], [2, 5], 'auto', 1, 20)
    mean = np.mean([*errors.errors.values()])
    assert mean > 0
    expected = (40, pytest.approx(1 - mean))  # not 160, the number of versions of them
    assert accuracy("corrupted(('fog', 'contrast'), (2, 5), images=40, seed=1)") == expected


def test_sizes_of_changes_are_printed_as_they_are_given():
    for eps in ('0', '0.05', '0.5/255', '2/255', '1'):
        assert protocols.parse(f"attacked('fgsm', '{eps}')").describe(None) == f'fgsm, linf eps {eps}'
    with pytest.raises(UserError, match='got 300/255'):
        protocols.parse("attacked('fgsm', '300/255')")


@pytest.mark.parametrize(('text', 'message'), [
    ("attacked('pdg', 0.1)", "--protocol: attacked.attack: unknown attack 'pdg'; nearest: pgd"),
    ("attacked('pgd', '8 255')", 'attacked.eps: expected a number of at least 0 or a fraction'),
    ("attacked('pgd, fgsm', 0.1)", 'attacked.attack: expected one attack'),
    ("attacked('pgd')", 'eps'),
    ("corrupted('fogg')", "unknown corruption 'fogg'"),
    ("corrupted(severities=6)", 'corrupted.severities: expected 1 to 5, got 6'),
    ("corrupted(severities=True)", 'corrupted.severities: expected 1 to 5, got True'),
    ("corrupted(())", 'corrupted.kinds: expected at least one'),
    ("corrupted() + dense", 'corrupted cannot be combined'),
    ('atacked()', "--protocol: unknown protocol 'atacked'; nearest: attacked")])
def test_mistakes_are_one_line(text, message):
    with pytest.raises(UserError, match=message):
        protocols.parse(text)
