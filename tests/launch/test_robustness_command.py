"""Tests of the command `jaxcnn robustness`."""

import json

import pytest

pytestmark = pytest.mark.launch


def test_the_command_measures_a_run(command, tiny_run, tmp_path):
    folder = tmp_path / 'report'
    code, out, err = command('robustness', f'--workdir={tiny_run}', '--attacks=fgsm', '--eps', '8/255', '0.1', '--images=30',
                             f'--output={folder}')
    assert code == 0, err
    assert out[0].split()[:2] == ['robust', 'accuracy']
    assert out[-1] == f'page: {folder / "robustness.html"}'
    outcomes = json.loads((folder / 'robustness.json').read_text())['attacks']['outcomes']
    assert [o['eps'] for o in outcomes] == [8 / 255, 0.1]


@pytest.mark.parametrize(('arguments', 'line'), [
    (['--target=seven'], "--target: unknown class 'seven'; known: 0, 1, "),
    (['--eps', '-0.1'], '--eps: expected a number of at least 0 or a fraction, such as 8/255'),
    (['--eps', '1/255', '8'], '--eps: expected at most 1 in the norm linf, for values in [0, 1], got 8; write 8/255'),
    (['--attacks=pgd(iter=3)'], "--attacks: unknown argument of the attack pgd 'iter'; nearest: iterations"),
    (['--norm=l1', '--attacks=fgsm'], "--norm: unknown norm 'l1'; nearest: l2; also: linf"),
    (['--target=3', '--checks'], '--target: needs --attacks'),
    (['--ood_name=digits', '--output=.'], "--output: '.' exists and is not empty; name another folder, or delete it"),
])
def test_a_mistake_is_reported_in_one_line(command, tiny_run, arguments, line):
    code, _, err = command('robustness', f'--workdir={tiny_run}', *arguments)
    assert code == 2
    assert len(err) == 1
    assert line in err[0]
