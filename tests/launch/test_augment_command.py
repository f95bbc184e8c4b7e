"""Tests of the command `jaxcnn augment`."""

import numpy as np
import pytest
from PIL import Image

from jaxcnn import config
from jaxcnn.cli import augment as augment_command
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


def test_images_that_keep_their_sizes_are_cropped_from_their_files():
    rng = np.random.default_rng(0)
    originals = [rng.integers(0, 256, (20 + i, 31, 3), np.uint8) for i in range(2)]
    inputs = augment_command.Inputs([image[4:12, 4:12] for image in originals], {}, None, None, originals)
    rows = augment_command.rows_of_files('random_crop(8)|flip_lr(1.0)', config.DataConfig(image_size='original'))
    assert [row.heading for row in rows] == ['random_crop(8)', 'flip_lr(1.0)', 'random_crop(8)|flip_lr(1.0)']
    crops, flips, both = (augment_command.augment_images(row, inputs, 3, 5).images for row in rows)
    np.testing.assert_array_equal(crops[0], np.float32(originals[0]) / 255)
    windows = np.lib.stride_tricks.sliding_window_view(originals[0], (8, 8), (0, 1)).transpose(0, 1, 3, 4, 2)
    positions = [np.argwhere((windows == np.rint(crop * 255)).all((2, 3, 4))) for crop in crops[1:]]
    assert [len(position) for position in positions] == [1, 1, 1]
    assert len({tuple(position[0]) for position in positions}) > 1
    np.testing.assert_allclose(flips[1], inputs.images[0][:, ::-1] / 255, rtol=1e-6)
    np.testing.assert_array_equal(both[1:], np.array(crops[1:])[:, :, ::-1])


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
