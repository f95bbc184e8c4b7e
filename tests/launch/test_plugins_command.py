"""A network and a loss of one's own, in a file outside the clone, through the commands."""

import json

import pytest
from PIL import Image

pytestmark = pytest.mark.launch
PLUGIN = '''
import jax.numpy as jnp
import jaxcnn
from jaxcnn import losses

@jaxcnn.register_model
class MyNet(jaxcnn.Network):
    features: int = 2

    def forward(self, x, train, maps):
        x = maps['conv'] = self.conv(self.features, 3)(x)
        return self.dense(self.num_classes)(x.mean((1, 2)))

@jaxcnn.register_loss
def my_loss(logits, targets, scale=1.0):
    return scale * losses.cross_entropy(logits, targets)
'''


def test_a_plugin_file_trains_evaluates_and_predicts_from_any_folder(command, tiny_config, tmp_path, monkeypatch):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'mine' / 'my_parts.py').write_text(PLUGIN)
    Image.linear_gradient('L').save(tmp_path / 'picture.png')
    flags = [f'--config={tiny_config}', f'--workdir={tmp_path / "run"}', '--config.plugins=my_parts.py']
    flags += ['--config.model=MyNet', '--config.model.features=3', '--config.loss=my_loss', '--config.loss.scale=1000.0']
    code, _, err = command('train', *flags, folder=tmp_path / 'mine')
    assert code == 0, '\n'.join(err)
    summary = json.loads((tmp_path / 'run' / 'summary.json').read_text())
    assert summary['test_loss'] > 1000

    code, out, err = command('evaluate', f'--workdir={tmp_path / "run"}', '--json', folder=tmp_path / 'elsewhere')
    assert (code, err) == (0, [])
    assert json.loads(out[0])['loss'] == pytest.approx(summary['test_loss'])
    (tmp_path / 'mine' / 'my_parts.py').unlink()
    code, out, err = command('predict', f'--workdir={tmp_path / "run"}', tmp_path / 'picture.png',
                             folder=tmp_path / 'elsewhere')
    assert (code, len(out), len(err)) == (0, 1, 1)
    assert 'my_parts.py is missing; the copy in ' in err[0]
