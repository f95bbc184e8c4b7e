"""`jaxcnn COMMAND`, the installed command."""

import os
import pkgutil
import subprocess
import sys

import pytest

from jaxcnn import cli
from jaxcnn.cli.__main__ import COMMANDS

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
pytestmark = pytest.mark.launch


def jaxcnn(*arguments):
    return subprocess.run([sys.executable, '-m', 'jaxcnn.cli', *arguments], capture_output=True, text=True, cwd='/',
                          env={**os.environ, 'PYTHONPATH': ROOT})


def test_every_module_of_a_command_is_a_subcommand():
    assert {module.name for module in pkgutil.iter_modules(cli.__path__)} - {'__main__'} == set(COMMANDS)


def test_a_subcommand_runs_with_its_own_flags_and_configs_are_listed_with_their_results():
    done = jaxcnn('train', '--help')
    assert (done.returncode, done.stdout.split('[')[0]) == (0, 'usage: jaxcnn train ')
    lines = jaxcnn('configs').stdout.splitlines()
    position = next(i for i, line in enumerate(lines) if line.startswith('digits_lenet5'))
    assert lines[position + 1].strip().startswith('Result: 98.89 %')


@pytest.mark.parametrize(('arguments', 'line'), [
    (['trian'], "error: unknown command 'trian'; nearest: train"),
    (['configs', 'digits_lenet'], "error: unknown config or study 'digits_lenet'; nearest: digits_lenet5"),
    (['configs', '--name=x'], 'error: unrecognized arguments: --name=x')])
def test_a_wrong_command_gives_one_line(arguments, line):
    done = jaxcnn(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(line)
    assert done.stderr.count('\n') == 1
