"""Tests of the command `jaxcnn augment`."""

import numpy as np
import pytest
from PIL import Image

from jaxcnn.data import augment

pytestmark = pytest.mark.launch


@pytest.mark.slow
def test_every_op_that_needs_no_network_is_drawn(command, tmp_path):
    path = tmp_path / 'new' / 'all.png'
    code, out, err = command('augment', f'--out={path}', '--size=128', '--draws=1')
    assert code == 0, err
    assert out == [f'{len(augment.names()) + 1 - 2} rows: {path}']  # two policies of auto_augment, no fgsm, no pgd
    assert any('skipped' in line and 'fgsm' in line and 'pgd' in line for line in err)
    assert np.asarray(Image.open(path)).std() > 30


def test_ops_are_listed_with_their_arguments(command):
    code, out, err = command('augment', '--ops', fresh=True)
    assert code == 0, err
    assert [line.partition('(')[0] for line in out if line and not line.startswith(' ')] == augment.names()
    assert 'random_resized_crop(size, scale=(0.08, 1.0), ratio=(0.75, 1.3333333333333333), width=None)' in out


def test_adversarial_ops_attack_the_network_of_a_run(command, tmp_path, tiny_run):
    path = tmp_path / 'a.png'
    code, out, err = command('augment', 'fgsm(0.3)|mixup(1)', f'--workdir={tiny_run}', f'--out={path}', '--draws=2')
    assert code == 0, err
    assert out == [f'3 rows: {path}']
    sheet = np.asarray(Image.open(path).convert('L'), float)
    tile = 96  # of 16 pixels, enlarged
    rows = sheet[6 + 12 + 14 + 12:][:tile]
    original, attacked = rows[:, 6:6 + tile], rows[:, 6 + tile + 6:6 + 2 * tile + 6]
    assert 20 < np.abs(original - attacked).mean() < 90


@pytest.mark.parametrize(('arguments', 'line'), [
    (['flip_rl'], "unknown augmentation 'flip_rl'; nearest: flip_lr"),
    (['fgsm(0.1)'], 'fgsm(0.1) attacks a network; name a run with --workdir, whose network is attacked'),
    (['flip_lr', '--images', 'no_such.png'], 'no_such.png: no such file'),
    (['random_crop(500)'], 'random_crop(500): images of 128 x 128 are smaller than 500 x 500'),
    (['flip_lr', '--images', 'a', 'b', 'c'], '--images: expected one or two, got 3'),
    (['flip_lr', '--draws=0'], '--draws: expected at least 1, got 0'),
    (['flip_lr', '--workdir=/no/such'], "workdir '/no/such' does not exist"),
    (['flip_lr', '--out=/proc/a.png'], '/proc/a.png: cannot be written'),
])
def test_an_invalid_argument_is_reported_in_one_line(command, arguments, line):
    code, _, err = command('augment', *arguments)
    assert code == 2
    assert len(err) == 1
    assert line in err[0]
