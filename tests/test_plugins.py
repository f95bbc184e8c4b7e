"""Plugins: code outside the package that configs name, that runs record, and that is refused if it changes."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from jaxcnn import data, models, plugins, tasks
from jaxcnn.config import DataConfig, Plugin, parse
from jaxcnn.data import decode
from jaxcnn.errors import UserError
from jaxcnn.run import load_run
from jaxcnn.training import train

pytestmark = pytest.mark.usefixtures('no_pictures', 'new_registrations')
NETWORK = '''
import my_layers
import jaxcnn, numpy as np, optax
from jaxcnn import losses

@jaxcnn.register_model(name='my_wide', width=6)
@jaxcnn.register_model
class MyNet(jaxcnn.Network):
    width: int = 4

    def forward(self, x, train, maps):
        maps['conv'] = my_layers.double(self.norm(self.conv(self.width, 3)(x), train))
        return self.dense(self.num_classes)(maps['conv'].mean((1, 2)))

@jaxcnn.register_loss
def my_loss(logits, targets, factor=1.0):
    return factor * losses.cross_entropy(logits, targets)

@jaxcnn.register_augmentation
def darken(factor):
    return lambda key, image: image * factor

@jaxcnn.register_optimizer
def my_sgd(learning_rate):
    return optax.sgd(learning_rate)

@jaxcnn.register_dataset
def my_data(config):
    images = np.random.default_rng(0).integers(0, 255, (90, 8, 8, 1)).astype(np.uint8)
    return jaxcnn.Dataset.from_arrays(train=(images[:60], np.arange(60) % 3), test=(images[60:], np.arange(30) % 3))
'''


@pytest.fixture
def plugin(tmp_path):
    """The path of a plugin that imports a file beside it."""
    (tmp_path / 'my_layers.py').write_text('def double(x):\n    return 2 * x\n')
    path = tmp_path / 'my_things.py'
    path.write_text(NETWORK)
    return path


def test_what_a_plugin_registers_trains_resumes_and_predicts_until_it_changes(small, plugin, tmp_path, caplog):
    folder = str(tmp_path / 'run')
    settings = small(plugins=[str(plugin)], model=dict(name='my_wide'), loss=dict(name='my_loss', factor=2.0),
                     data=dict(name='my_data', image_size=0, augment='darken(0.5)|flip_lr'), batch_size=20,
                     optim=dict(optimizer='my_sgd', learning_rate=0.01), duration=dict(steps=2))
    summary = train(settings, folder)
    run = load_run(folder)
    recorded, = run.config.plugins
    assert (recorded.source, len(recorded.sha256)) == (str(plugin), 16)
    assert run.evaluate('test')['test_loss'] == pytest.approx(summary['test_loss'])
    assert run.features(np.zeros((2, 8, 8, 1), np.uint8), 'conv').shape == (2, 8, 8, 6)
    assert train(settings, folder)['test_loss'] == summary['test_loss']

    (tmp_path / 'my_layers.py').write_text('def double(x):\n    return 3 * x\n')
    with pytest.raises(UserError, match=r'config\.plugins: the plugin .*my_things\.py.* has changed since the run in'):
        train(settings, folder)
    assert load_run(folder).evaluate('test')['test_loss'] == pytest.approx(summary['test_loss'])  # by its copy
    assert 'has changed; the copy in' in caplog.text
    plugin.unlink()
    assert load_run(folder).evaluate('test')['test_loss'] == pytest.approx(summary['test_loss'])
    shutil.rmtree(tmp_path / 'run' / 'plugins')
    with pytest.raises(UserError, match=r"\.plugins\[0\]: '.*my_things\.py' is missing, and so is its copy in '.*/plugins"):
        load_run(folder)
    with pytest.raises(UserError, match=r'the plugin .* is missing since the run in'):
        plugins.check_unchanged([recorded], [], folder)


def test_a_plugin_may_be_of_several_files_and_each_of_them_counts(tmp_path):
    loaded = []
    for name in ('a', 'b'):  # their helpers have the same names
        (tmp_path / name / 'layers').mkdir(parents=True)
        (tmp_path / name / 'helper.py').write_text(f'value = {name!r}\n')
        (tmp_path / name / 'layers' / '__init__.py').write_text('')
        (tmp_path / name / 'layers' / 'deep.py').write_text(f'value = {name!r}\n')
        path = tmp_path / name / f'{name}_plugin.py'
        path.write_text('import helper\nfrom layers.deep import value\n\n'
                        'def late():\n    import other\n    return other.value\n')
        (tmp_path / name / 'other.py').write_text(f'value = {name!r}\n')
        loaded.append(plugins.load([Plugin(str(path))])[0])
        module = sys.modules[f'jaxcnn_plugin_{name}_plugin']
        assert (module.helper.value, module.value, module.late()) == (name,) * 3
    plugins.save_copies(loaded, str(tmp_path / 'run'))
    shutil.move(tmp_path / 'a', tmp_path / 'elsewhere')
    assert plugins.load(loaded[:1], str(tmp_path / 'run')) == tuple(loaded[:1])
    (tmp_path / 'b' / 'layers' / 'deep.py').write_text('value = 1\n')
    with pytest.raises(UserError, match=r'has changed since the run was trained'):
        plugins.load(loaded[1:])


def test_a_plugin_of_another_config_is_forgotten_and_one_that_failed_is_loaded_anew(tmp_path):
    text = 'import jaxcnn\n@jaxcnn.register_model\nclass Net(jaxcnn.Network):\n    version: int = {}\n'
    for name in ('first.py', 'second.py'):  # two runs in one process, whose networks have the same name
        (tmp_path / name).write_text(text.format(1))
        plugins.load([Plugin(str(tmp_path / name))])
        assert models.create('Net').version == 1
    (tmp_path / 'second.py').write_text(text.format(2) + 'raise ValueError\n')
    with pytest.raises(UserError, match='ValueError'):
        plugins.load([Plugin(str(tmp_path / 'second.py'))])
    (tmp_path / 'second.py').write_text(text.format(1))
    plugins.load([Plugin(str(tmp_path / 'second.py'))])
    assert models.create('Net').version == 1
    plugins.load([])
    assert 'Net' not in models.names()


def test_worker_processes_decode_the_examples_of_a_plugin(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, 'PROCESS_THRESHOLD', 20)
    (tmp_path / 'large.py').write_text('''
import jaxcnn, numpy as np

class Examples:
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return {'image': np.full((4, 4, 1), index, np.uint8), 'label': index % 2}

@jaxcnn.register_dataset
def large(config):
    return jaxcnn.Dataset('here', key={'source': 'large'}, splits={'train': Examples, 'test': Examples},
                          class_names=lambda: ['even', 'odd'])
''')
    plugins.load([Plugin(str(tmp_path / 'large.py'))])
    test = data.load(DataConfig(name='large', cache_dir=str(tmp_path))).splits['test']
    np.testing.assert_array_equal(test.take(np.arange(40))[:, 0, 0, 0], np.arange(40))


@pytest.mark.parametrize(('body', 'line'), [
    ("open('/nowhere/data')", r"FileNotFoundError: \[Errno 2\] .*'/nowhere/data' \(.*broken\.py, line 7\)$"),
    ("return jaxcnn.Dataset('here', {}, {'train': read}, lambda: ['a', 'b'])",
     r'OSError: disk gone \(.*broken\.py, line 5\)$')], ids=['the function', 'a split'])
def test_an_exception_of_a_data_set_gives_one_line_with_its_name_and_type(tmp_path, body, line):
    (tmp_path / 'broken.py').write_text(
        'import jaxcnn\n\n\ndef read():\n    raise OSError("disk\\ngone")\n'
        f'@jaxcnn.register_dataset\ndef broken(config): {body}\n')
    plugins.load([Plugin(str(tmp_path / 'broken.py'))])
    with pytest.raises(UserError, match=rf"^config\.data\.name: the data set 'broken' raised {line}") as error:
        data.load(DataConfig(name='broken', cache_dir=str(tmp_path)))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(('text', 'line'), [
    ('x = 1\nraise ValueError("no\\nway")', r'config\.plugins\[0\]: .*bad\.py, line 2: ValueError: no way$'),
    ('x = = 1', r'bad\.py, line 1: SyntaxError'),
    ('from jaxcnn import models\n@models.register(name="resnet18")\nclass A(models.Network): ...',
     r"the model 'resnet18' is registered twice: by ResNet in .*resnet\.py and by A in "),
    ('from jaxcnn import models\n@models.register\nclass A: ...', r'expected a subclass of jaxcnn\.Network, got'),
    ('from jaxcnn import models\n@models.register(widht=1)\nclass A(models.Network):\n    width: int = 2',
     r"unknown field of model A 'widht'; nearest: width")], ids=['raises', 'syntax', 'twice', 'no network', 'field'])
def test_an_error_in_a_plugin_is_one_line(tmp_path, text, line):
    path = tmp_path / 'bad.py'
    path.write_text(text)
    with pytest.raises(UserError, match=line) as error:
        plugins.load([Plugin(str(path))])
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(('sources', 'line'), [
    (['no_such_module'], r"config\.plugins\[0\]: there is no module 'no_such_module'; install its package; a file is named"),
    (['math', 'own.py'], r"config\.plugins\[1\]: unknown plugin file 'own\.py'"),
    (['a/own.py', 'b/own.py'], r"config\.plugins\[1\]: 'b/own\.py' has the same name as another plugin")])
def test_a_missing_plugin_is_an_error(sources, line):
    with pytest.raises(UserError, match=line):
        plugins.load([Plugin(source) for source in sources])


@pytest.mark.parametrize(('version', 'described'), [('1.2', ', version 1.2,'), ('', ',')])
def test_a_missing_module_of_a_run_is_an_error_with_its_version(version, described):
    with pytest.raises(UserError, match=r"^config\.plugins\[0\]: the run was trained with the module 'gone\.networks'"
                       rf'{described} which cannot be imported here; install its package, or set PYTHONPATH to the folder'):
        plugins.load([Plugin('gone.networks', version, '0123')], 'run')


def test_installed_plugins_are_loaded_for_an_unknown_name_and_recorded(tmp_path):
    package = tmp_path / 'zoo_of_mine'
    package.mkdir()
    (package / '__init__.py').write_text('')
    (package / 'networks.py').write_text('import jaxcnn\n\n@jaxcnn.register_model\nclass ZooNet(jaxcnn.Network): ...\n\n'
                                         '@jaxcnn.register_dataset\ndef zoo_data(config):\n    raise AssertionError\n')
    metadata = tmp_path / 'zoo_of_mine-1.2.dist-info'
    metadata.mkdir()
    (metadata / 'METADATA').write_text('Metadata-Version: 2.1\nName: zoo-of-mine\nVersion: 1.2\n')
    (metadata / 'top_level.txt').write_text('zoo_of_mine\n')
    (metadata / 'entry_points.txt').write_text('[jaxcnn.plugins]\nzoo = zoo_of_mine.networks\n')
    script = ('from jaxcnn import config, experiment\n'
              'for fields in ({}, {"model": "ZooNet"}, {"data": {"name": "zoo_data"}}, {"data": {"name": "zoo_data"}}):\n'
              '    print(*experiment.check(config.parse(fields)).plugins)\n')
    done = subprocess.run([sys.executable, '-c', script], env={'PYTHONPATH': f'{tmp_path}:{":".join(sys.path)}'},
                          capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == ''
    assert all(line.startswith("Plugin(source='zoo_of_mine.networks', version='1.2', sha256='") for line in lines[1:])
    assert len(lines) == 4


def test_a_task_keeps_the_metrics_of_its_plugin_when_another_config_is_loaded(tmp_path):
    (tmp_path / 'my_metric.py').write_text(
        'import jaxcnn\n\n@jaxcnn.example_metric("label")\ndef my_metric(logits, labels):\n    return logits[:, 0]\n')
    plugins.load([Plugin(str(tmp_path / 'my_metric.py'))])
    task = tasks.create(parse({}), ['a', 'b'], [1, 1], 2)
    plugins.load([])  # as load_run does for a run without it, for example that of config.init.run
    assert 'my_metric' in task.metrics
    assert 'my_metric' not in tasks.create(parse({}), ['a', 'b'], [1, 1], 2).metrics
