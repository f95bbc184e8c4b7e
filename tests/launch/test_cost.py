"""Tests of the command `jaxcnn models`."""

import json

import pytest

pytestmark = pytest.mark.launch


def test_named_networks_are_shown_layer_by_layer(command):
    code, out, err = command('models', 'lenet5', 'alexnet', '--image_size=227', '--num_classes=10', fresh=True)
    assert (code, err) == (0, [])
    row, = [line.split() for line in out if line.startswith('alexnet ') and '227x227x3' in line]
    assert row[2:4] == ['10', '58,322,314']
    assert ['max_pool_2', '6x6x256', '0', '0', '195', '32', '0', '33.5'] in [line.split() for line in out]


def test_a_network_described_by_a_string_is_shown(command):
    layers = 'conv(8)|norm|relu|max_pool(2)|conv(8, 5, padding=0)|flatten|dense'
    code, out, err = command('models', layers, '--image_size=16', '--num_classes=3')
    assert (code, err) == (0, [])
    rows = [line.split() for line in out]
    assert ['Conv_1', '4x4x8', '1,608', str(f'{16 * 25 * 64:,}'), '12', '2', '0', '5'] in rows
    assert ['Dense_0', '3', '387', '384', '18', '2', '8'] in rows


def test_the_network_of_a_config_is_shown_with_its_batch_and_images(command):
    code, out, err = command('models', '--config=digits_lenet5')
    assert (code, err) == (0, [])
    rows = [line.split() for line in out]
    assert ['Conv_0', '28x28x6', '156', f'{28 * 28 * 6 * 25:,}', '5', '1', '0', '2.5'] in rows
    assert 'with a batch of 64:' in ' '.join(out)


def test_costs_are_written_as_json_and_as_a_figure(command, tmp_path):
    code, out, err = command('models', 'lenet5', '--json', '--batch_size=4', '--optimizer=adamw',
                             f'--figure={tmp_path / "a.png"}')
    assert (code, err, len(out)) == (0, [], 1)
    cost = json.loads(out[0])['lenet5']
    assert (cost['parameters'], cost['image_shape'], cost['batch_size']) == (61_706, [32, 32, 1], 4)
    assert list(cost['training_memory']) == ['sgd', 'momentum', 'adam', 'adamw']
    assert cost['layers'][0]['field'] == [5, 5]
    assert (tmp_path / 'a.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(('arguments', 'fragments'), [
    (['resnet19'], ["'resnet19'", 'resnet18']), (['conv(8)|dense'], ['layer 2, dense', 'flatten']),
    (['max_pool(4)|max_pool(4)|flatten|dense', '--image_size=8'], ['16 x 16', '8 x 8', 'layer 2, max_pool']),
    (['shallow_cnn', '--image_size=8'], ['shallow_cnn', '16', '8']),
    (['lenet5', '--image_size=-3'], ['--image_size', '-3']), (['lenet5', '--batch_size=0'], ['--batch_size', '0']),
    (['lenet5', '--optimizer=adm'], ["'adm'", 'adam']),
    (['lenet5', '--config=digits_lenet5'], ['--config', '--workdir']),
    (['--config=cifar10_shallow', '--image_size=8'], ['16', '8']), (['--workdir=/nowhere'], ['/nowhere']),
    (['lenet5', '--figure=/proc/no/a.png'], ['--figure', '/proc/no/a.png']),
])
def test_an_invalid_argument_is_reported_in_one_line(command, arguments, fragments):
    code, out, err = command('models', *arguments)
    assert (code, out, len(err)) == (2, [], 1)
    assert all(fragment in err[0] for fragment in fragments)


def test_a_workdir_in_place_of_a_name_is_explained(command, tmp_path):
    (tmp_path / 'config.json').write_text('{}')
    code, out, err = command('models', tmp_path)
    assert (code, out, len(err)) == (2, [], 1)
    assert f'--workdir={tmp_path} shows' in err[0]
