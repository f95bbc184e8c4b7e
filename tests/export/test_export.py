"""Exported runs: the files in an empty process, the example script, and mistakes of users."""


import json
import os
import types

import jax
import numpy as np
import pytest
from PIL import Image

from jaxcnn import config, export, models
from jaxcnn.config import DataConfig
from jaxcnn.data import augment, resizing
from jaxcnn.errors import UserError
from jaxcnn.export import folder, script
from jaxcnn.export.program import Program
from jaxcnn.interop import weights
from jaxcnn.run import load_run
from jaxcnn.tasks.detection import Detection
from jaxcnn.training import train
from jaxcnn.training.initialize import load_initial_weights
from jaxcnn.training.weight_sources import leaves_by_path

RNG = np.random.default_rng(0)


@pytest.fixture
def digits_workdir(tmp_path_factory, no_pictures):
    """The workdir of a small run on digits with moving averages and test-time augmentation, which is trained once."""
    workdir = str(tmp_path_factory.getbasetemp() / 'exported_run')
    if os.path.exists(os.path.join(workdir, 'summary.json')):
        return workdir
    train(config.make(duration=dict(steps=6), batch_size=32,
                      model=dict(name='sequential', layers='conv(4)|norm|relu|max_pool(2)|flatten|dense'),
                      data=dict(name='digits', image_size=18, eval_augment='center_crop(16)', augment='random_crop(16)'),
                      eval=dict(tta='flip'), optim=dict(optimizer='adam', ema_decay=0.5),
                      checkpoint=dict(metric='val_ema_accuracy'), parallel=dict(devices=1)), workdir)
    return workdir


def load_script(path, text=None):
    """Return the functions of an example script."""
    names = {'__file__': str(path), '__name__': 'predict'}
    exec(compile(text or path.read_text(encoding='utf-8'), str(path), 'exec'), names)
    return names


@pytest.mark.launch
@pytest.mark.parametrize('format_name', ['onnx', 'stablehlo'])
def test_exported_files_compute_in_an_empty_process_what_the_run_does(digits_workdir, tmp_path, format_name, monkeypatch,
                                                                       capsys):
    run, output = load_run(digits_workdir), tmp_path / 'export'
    lines = folder.export_run(run, format_name, f'{output}/', 'float32')
    assert '32 images of the test split in an empty process' in lines[-1]
    assert 'same class for 32 of 32' in lines[-1]
    assert sorted(os.listdir(output)) == ['README.md', 'classes.json', f'model.{format_name}', 'predict.py']
    assert json.loads((output / 'classes.json').read_text())['class_names'] == [*map(str, range(10))]
    images = RNG.integers(0, 256, (5, 18, 18, 1)).astype(np.uint8)
    example = load_script(output / 'predict.py')
    predicted = example['predict'](images)
    np.testing.assert_allclose(predicted, run.predict(images), atol=1e-5)
    assert np.abs(predicted - run_without_average(run, images)).max() > 1e-3  # it has the moving averages
    broken, picture = tmp_path / 'broken.png', tmp_path / 'picture.png'
    broken.write_text('no picture')
    Image.fromarray(images[0, ..., 0]).save(picture)
    monkeypatch.setattr('sys.argv', ['predict.py', 'missing.png', str(broken), str(picture)])
    assert example['main']() == 1
    out, err = capsys.readouterr()
    assert err.splitlines() == ['error: missing.png: No such file or directory',
                                f"error: {broken}: cannot identify image file '{broken}'"]
    assert out.startswith(f'{picture}: ')
    monkeypatch.setattr('sys.argv', ['predict.py'])
    with pytest.raises(SystemExit, match=r'usage: python predict\.py PICTURE'):
        example['main']()
    card = (output / 'README.md').read_text(encoding='utf-8')
    assert 'moving averages' in card
    assert 'images 1,294 in train' in card
    assert f'test_accuracy: {run.evaluate("test")["test_ema_accuracy"]:.4f}' in card


def run_without_average(run, images):
    """Return the probabilities without the moving averages of a run."""
    preprocessor, network = run.experiment.preprocessor, run.experiment.network
    variables = {'params': run.weights.params, 'batch_stats': run.weights.batch_stats}
    return np.asarray(jax.nn.softmax(preprocessor.outputs(lambda x: network.apply(variables, x), images)))


def test_a_check_that_fails_leaves_no_folder(digits_workdir, tmp_path, monkeypatch):
    monkeypatch.setitem(script._RUNTIMES, 'onnx', ('', 'import jax\n', ''))
    with pytest.raises(UserError, match='fails in an empty process'):
        folder.export_run(load_run(digits_workdir), 'onnx', str(tmp_path / 'export'))
    assert os.listdir(tmp_path) == []


def test_weights_of_a_safetensors_file_start_another_run(digits_workdir, tmp_path):
    run, output = load_run(digits_workdir), tmp_path / 'export'
    folder.export_run(run, 'safetensors', str(output))
    path = str(output / 'model.safetensors')
    assert 'params/Conv_0/kernel' in weights.read_safetensors(path)
    changed = config.parse(config.override(config.to_dict(run.config), [f'init.safetensors={path}']))
    initial = load_initial_weights(changed, run.experiment.network, run.variables, run.experiment.image_shape)
    assert set(initial.arrays) == set(leaves_by_path(run.variables))
    for name, value in leaves_by_path(run.variables).items():
        np.testing.assert_array_equal(initial.arrays[name], value)


NAMED = [('resnet18', dict(width=8), "torchvision's and timm's ResNets", 'layer1.0.conv1.weight'),
         ('vgg11', dict(hidden=32), "torchvision's VGGs", 'classifier.0.weight'),
         ('nin_cifar', {}, '', 'params/Conv_0/kernel')]


@pytest.mark.parametrize(('name', 'fields', 'source', 'array'), NAMED, ids=[row[0] for row in NAMED])
def test_arrays_with_the_names_of_pytorch_are_read_back(name, fields, source, array):
    network = models.create(name, 7, **fields)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32))
    variables = jax.tree.map(lambda x: RNG.random(x.shape, np.float32), shapes)
    arrays, names = weights.to_named_arrays(network, variables)
    assert names == source
    assert array in arrays
    if name == 'vgg11':
        assert arrays[array].shape == (32, 512)
    restored = weights.load_variables(network, arrays, (32, 32, 3))
    for path, value in jax.tree.leaves_with_path(variables):
        np.testing.assert_array_equal(dict(jax.tree.leaves_with_path(restored))[path], value)


SIZES = [(40, 31), (7, 90), (16, 20), (12, 12)]


@pytest.mark.parametrize('mode', ['crop', 'squash', 'pad'])
@pytest.mark.parametrize('channels', [1, 3])
def test_the_example_script_resizes_pictures_as_the_run_does(mode, channels):
    names = {'HEIGHT': 16, 'WIDTH': 20, 'CHANNELS': channels, 'np': np, 'Image': Image}
    exec(script._RESIZING + script._RESIZE[mode], names)
    for size in SIZES:
        image = RNG.integers(0, 256, (*size, channels)).astype(np.uint8)
        np.testing.assert_array_equal(names['prepare'](image), resizing.resize(image, (16, 20), mode))


@pytest.mark.parametrize(('image_size', 'pipeline'), [
    (dict(shorter=18), 'center_crop(16)'), ('original', 'resize(24, width=20)|center_crop(16, 12)'),
    ('original', 'shorter_side(20)|center_crop(size=16)'), ('original', 'center_crop(7)')])
def test_the_example_script_crops_pictures_as_the_run_does(image_size, pipeline):
    data = DataConfig(image_size=image_size, eval_augment=pipeline)
    crops, _ = augment.split_pipeline(data, train=False)
    names = {'CHANNELS': 3, 'np': np, 'Image': Image}
    exec(script._CROPS.format(crops=script._crop_operations(crops.text, data.shorter_side)), names)
    for size in SIZES:
        image = RNG.integers(0, 256, (*size, 3)).astype(np.uint8)
        expected = crops.draw(RNG, *size).apply(image, *size)
        np.testing.assert_array_equal(names['prepare'](image), expected)


def test_mistakes_are_one_line(tmp_path, monkeypatch):
    def message(*arguments):
        with pytest.raises(UserError) as error:
            folder.check_request(*arguments)
        return str(error.value)
    new = str(tmp_path / 'new')
    assert "unknown format 'onx'" in message('onx', new, 'float32')
    assert 'onnx' in message('onx', new, 'float32')
    assert '--dtype' in message('onnx', new, 'int8')
    (tmp_path / 'file').touch()
    assert f'--output: {str(tmp_path)!r} exists and is not empty' in message('onnx', str(tmp_path), 'float32')
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    assert message('tensorflow', new, 'float32').endswith('pip install tensorflow-cpu')
    detector = types.SimpleNamespace(experiment=types.SimpleNamespace(task=Detection))
    with pytest.raises(UserError, match=r"--workdir: runs of config.task='detection' cannot be exported"):
        Program.of_run(detector)
    assert export.FORMATS == ('stablehlo', 'onnx', 'safetensors', 'tensorflow')
