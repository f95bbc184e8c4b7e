"""Files of weights: safetensors, and state dicts through PyTorch."""

import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxcnn import models
from jaxcnn.errors import UserError
from jaxcnn.interop import weights


def one_line(error):
    assert '\n' not in str(error.value)
    return str(error.value)


# ---- safetensors


@pytest.fixture
def safetensors_file(tmp_path):
    path = str(tmp_path / 'weights.safetensors')
    save_file({'a': np.arange(6, dtype=np.float32).reshape(2, 3), 'b': np.ones(2, np.float16)}, path)
    return path


def test_safetensors_are_read_by_name_also_in_bfloat16(safetensors_file, tmp_path):
    arrays = weights.read_safetensors(safetensors_file)
    np.testing.assert_array_equal(arrays['a'], np.arange(6).reshape(2, 3))
    assert arrays['b'].dtype == np.float16
    save_file({'c': np.asarray(jax.numpy.array([1.5, -2], 'bfloat16'))}, str(tmp_path / 'c.safetensors'))
    np.testing.assert_array_equal(weights.read_safetensors(str(tmp_path / 'c.safetensors'))['c'].astype(float), [1.5, -2])


def test_a_safetensors_file_that_cannot_be_read_gives_one_line(safetensors_file, tmp_path, monkeypatch):
    with open(safetensors_file, 'rb') as file:
        content = file.read()
    for size in (0, 5, 40, len(content) - 3):
        path = tmp_path / f'{size}.safetensors'
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=rf'{size}\.safetensors: is truncated, damaged, or no \.safetensors file: ') as e:
            weights.read_safetensors(str(path))
        one_line(e)
    with pytest.raises(UserError, match=r'missing\.safetensors: No such file or directory'):
        weights.read_safetensors(str(tmp_path / 'missing.safetensors'))
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    with pytest.raises(UserError, match=r'needs the package safetensors, which is not installed; pip install '
                       r"'jaxcnn\[safetensors\]'$"):
        weights.read_safetensors(safetensors_file)


def test_a_torch_file_without_pytorch_gives_one_line(monkeypatch, tmp_path):
    (tmp_path / 'a.pth').write_bytes(b'')
    monkeypatch.setitem(sys.modules, 'torch', None)
    with pytest.raises(UserError, match=r'a\.pth: reading a PyTorch file needs PyTorch, which is not installed; pip install '
                       r'torch, or convert the file to \.safetensors') as e:
        weights.read_torch(str(tmp_path / 'a.pth'))
    one_line(e)


# ---- PyTorch


def resnet_of_torchvision(torch, widths=(4, 8), classes=5):
    """A ResNet of basic blocks with torchvision's names."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, channels, features, stride):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(channels, features, 3, stride, 1, bias=False), nn.BatchNorm2d(features)
            self.conv2, self.bn2 = nn.Conv2d(features, features, 3, 1, 1, bias=False), nn.BatchNorm2d(features)
            self.downsample = None
            if stride > 1:
                self.downsample = nn.Sequential(nn.Conv2d(channels, features, 1, stride, bias=False),
                                                nn.BatchNorm2d(features))

        def forward(self, x):
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            return torch.relu(y + (self.downsample(x) if self.downsample else x))

    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 4, 7, 2, 3, bias=False), nn.BatchNorm2d(4)
            self.layer1 = nn.Sequential(Block(4, 4, 1))
            self.layer2 = nn.Sequential(Block(4, 8, 2))
            self.fc = nn.Linear(8, classes)

        def forward(self, x):
            x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
            return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))
    return ResNet()


def vgg_of_torchvision(torch):
    nn = torch.nn
    module = nn.Module()
    module.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
                                    nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2))
    module.classifier = nn.Sequential(nn.Linear(6 * 4 * 5, 7), nn.ReLU(), nn.Dropout(), nn.Linear(7, 7), nn.ReLU(),
                                      nn.Dropout(), nn.Linear(7, 5))
    module.forward = lambda x: module.classifier(module.features(x).flatten(1))
    return module


@pytest.fixture
def torch():
    return pytest.importorskip('torch')


@pytest.mark.torch
@pytest.mark.parametrize(('build', 'name', 'fields'), [
    (resnet_of_torchvision, 'resnet18', {'blocks': (1, 1), 'width': 4}),
    (vgg_of_torchvision, 'vgg11_bn', {'stages': ((4,), (6,)), 'hidden': 7})], ids=['resnet', 'vgg'])
def test_logits_are_those_of_the_pytorch_network_whose_state_dict_was_saved(torch, tmp_path, build, name, fields):
    torch.manual_seed(0)
    module = build(torch).eval()
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 1.5)
            part.weight.data.uniform_(0.5, 1.5)
            part.bias.data.normal_()
    torch.save({'epoch': 3, 'state_dict': {f'module.{key}': value for key, value in module.state_dict().items()}},
               tmp_path / 'a.pth')
    network = models.create(name, 5, **fields)
    variables = weights.load_variables(network, weights.read_torch(str(tmp_path / 'a.pth')), (16, 20, 3))
    images = np.random.default_rng(0).normal(size=(2, 16, 20, 3)).astype(np.float32)
    with torch.no_grad():
        expected = module.forward(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    actual = jax.jit(network.apply)(variables, images)
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.torch
def test_averaged_parameters_are_read_unless_they_are_not_wanted(torch, tmp_path):
    path = str(tmp_path / 'checkpoint.pth')
    torch.save({'state_dict': {'a': torch.zeros(2)}, 'state_dict_ema': {'a': torch.ones(2, dtype=torch.bfloat16)},
                'optimizer': {'lr': 0.1}}, path)
    for ema, value in ((None, 1), (True, 1), (False, 0)):
        np.testing.assert_array_equal(weights.read_torch(path, ema)['a'], np.full(2, value, np.float32))
    torch.save({'model': {'a': torch.zeros(2)}}, path)
    with pytest.raises(UserError, match=r'checkpoint\.pth: has no averaged parameters \(its keys are model\)'):
        weights.read_torch(path, ema=True)


@pytest.mark.torch
def test_a_pytorch_file_that_holds_no_state_dict_gives_one_line(torch, tmp_path):
    path = str(tmp_path / 'a.pth')
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), path)
    with pytest.raises(UserError, match=r'a\.pth: holds Python objects, such as a whole pickled module') as e:
        weights.read_torch(path)
    one_line(e)
    torch.save({'epoch': 3, 'loss': 0.1}, path)
    with pytest.raises(UserError, match=r'a\.pth: holds no state dict, but the keys epoch, loss; write torch\.save'):
        weights.read_torch(path)
    for options in ({}, {'_use_new_zipfile_serialization': False}):
        torch.save({'a': torch.zeros(1000)}, path, **options)
        with open(path, 'rb') as file:
            content = file.read()
        for size in (0, 10, 100, len(content) - 500):
            with open(path, 'wb') as file:
                file.write(content[:size])
            with pytest.raises(UserError, match=r'a\.pth: is truncated, damaged, or no PyTorch file: ') as e:
                weights.read_torch(path)
            one_line(e)
