"""Plugins: code outside the package that configs name, that runs record, and that is refused if it changes."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from jaxcnn import plugins
from jaxcnn.config import Plugin
from jaxcnn.errors import UserError
from jaxcnn.run import load_run
from jaxcnn.training import train

pytestmark = pytest.mark.usefixtures('no_pictures', 'new_registrations')
NETWORK = '''
import own_layers
import jaxcnn, numpy as np, optax
from jaxcnn import losses

@jaxcnn.register_model(name='own_wide', width=6)
@jaxcnn.register_model
class OwnNet(jaxcnn.Network):
    width: int = 4

    def forward(self, x, train, maps):
        maps['conv'] = own_layers.double(self.norm(self.conv(self.width, 3)(x), train))
        return self.dense(self.num_classes)(maps['conv'].mean((1, 2)))

@jaxcnn.register_loss
def own_loss(logits, targets, factor=1.0):
    return factor * losses.cross_entropy(logits, targets)

@jaxcnn.register_augmentation
def darken(factor):
    return lambda key, image: image * factor

@jaxcnn.register_optimizer
def own_sgd(learning_rate):
    return optax.sgd(learning_rate)

@jaxcnn.register_dataset
def own_data(config):
    images = np.random.default_rng(0).integers(0, 255, (90, 8, 8, 1)).astype(np.uint8)
    return jaxcnn.Dataset.from_arrays(train=(images[:60], np.arange(60) % 3), test=(images[60:], np.arange(30) % 3))
'''


@pytest.fixture
def plugin(tmp_path):
    """The path of a plugin that imports a file beside it."""
    (tmp_path / 'own_layers.py').write_text('def double(x):\n    return 2 * x\n')
    path = tmp_path / 'own_things.py'
    path.write_text(NETWORK)
    return path


def test_what_a_plugin_registers_trains_resumes_and_predicts_until_it_changes(small, plugin, tmp_path, caplog):
    folder = str(tmp_path / 'run')
    settings = small(plugins=[str(plugin)], model=dict(name='own_wide'), loss=dict(name='own_loss', factor=2.0),
                     data=dict(name='own_data', image_size=0, augment='darken(0.5)|flip_lr'), batch_size=20,
                     optim=dict(optimizer='own_sgd', learning_rate=0.01), duration=dict(steps=2))
    summary = train(settings, folder)
    run = load_run(folder)
    recorded, = run.config.plugins
    assert (recorded.source, len(recorded.sha256)) == (str(plugin), 16)
    assert run.evaluate('test')['test_loss'] == pytest.approx(summary['test_loss'])
    assert run.features(np.zeros((2, 8, 8, 1), np.uint8), 'conv').shape == (2, 8, 8, 6)
    assert train(settings, folder)['test_loss'] == summary['test_loss']

    (tmp_path / 'own_layers.py').write_text('def double(x):\n    return 3 * x\n')
    with pytest.raises(UserError, match=r'config\.plugins: the plugin .*own_things\.py.* has changed since the run in'):
        train(settings, folder)
    assert load_run(folder).evaluate('test')['test_loss'] == pytest.approx(summary['test_loss'])  # by its copy
    assert 'has changed; the copy in' in caplog.text
    plugin.unlink()
    assert load_run(folder).evaluate('test')['test_loss'] == pytest.approx(summary['test_loss'])
    shutil.rmtree(tmp_path / 'run' / 'plugins')
    with pytest.raises(UserError, match=r"config\.plugins\[0\]: unknown plugin file '.*own_things\.py'"):
        load_run(folder)
    with pytest.raises(UserError, match=r'the plugin .* is missing since the run in'):
        plugins.check_unchanged([recorded], [], folder)


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


def test_installed_plugins_are_loaded_for_an_unknown_name_and_recorded(tmp_path):
    package = tmp_path / 'zoo_of_mine'
    package.mkdir()
    (package / '__init__.py').write_text('')
    (package / 'networks.py').write_text('from jaxcnn import models\n@models.register\nclass ZooNet(models.Network): ...\n')
    metadata = tmp_path / 'zoo_of_mine-1.2.dist-info'
    metadata.mkdir()
    (metadata / 'METADATA').write_text('Metadata-Version: 2.1\nName: zoo-of-mine\nVersion: 1.2\n')
    (metadata / 'top_level.txt').write_text('zoo_of_mine\n')
    (metadata / 'entry_points.txt').write_text('[jaxcnn.plugins]\nzoo = zoo_of_mine.networks\n')
    script = ('from jaxcnn import config, experiment\n'
              'for model in ("lenet5", "ZooNet"):\n'
              '    print(*experiment.check(config.parse({"model": model})).plugins)\n')
    done = subprocess.run([sys.executable, '-c', script], env={'PYTHONPATH': f'{tmp_path}:{":".join(sys.path)}'},
                          capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == ''
    assert lines[1].startswith("Plugin(source='zoo_of_mine.networks', version='1.2', sha256='")
