"""Tests of the command `jaxcnn check`."""

import pytest

pytestmark = pytest.mark.launch


def test_checks_print_a_line_each_and_fail_the_command(command, tiny_config, tmp_path):
    folder = tmp_path / 'checks'
    code, out, err = command('check', f'--config={tiny_config}', 'data', 'batch', f'--out={folder}',
                             '--config.data.normalize=standardize(0.3, 0.37)|standardize(0.3, 0.37)')
    assert code == 1, err
    assert [line.split()[:2] for line in out[:2]] == [['batch', 'failed'], ['data', 'ok']]
    assert out[2:] == [f'2 checks: 1 failed, 1 ok; page: {folder}/check.html']
    assert '<img src="data:image/png;base64,' in (folder / 'check.html').read_text()


def test_the_config_of_a_run_is_checked(command, tiny_run, tmp_path):
    code, out, err = command('check', f'--config={tiny_run}/config.json', 'data', folder=tmp_path)
    assert code == 0, err
    assert out[-1] == '1 check: 1 ok; page: checks/tiny/check.html'
    assert (tmp_path / 'checks' / 'tiny' / 'check.html').exists()


@pytest.mark.parametrize(('arguments', 'line'), [
    (['overfitt'], "error: unknown check 'overfitt'; nearest: overfit"),
    (['--steps=1'], 'error: --steps: expected at least 10, got 1'),
    (['--config.optim.learning_rat=1'], 'learning_rate'),
    (['--config.data.normalize=standardise'], "config.data.normalize: unknown normalisation 'standardise'; nearest"),
])
def test_a_wrong_argument_is_reported_in_one_line(command, tiny_config, tmp_path, arguments, line):
    code, out, err = command('check', f'--config={tiny_config}', f'--out={tmp_path / "x"}', *arguments)
    assert (code, out, len(err)) == (2, [], 1)
    assert line in err[0]
