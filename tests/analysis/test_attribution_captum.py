"""Attributions against captum's on the same weights in PyTorch."""

import importlib

import jax
import numpy as np
import pytest

from jaxcnn import models
from jaxcnn.analysis import attribution, class_activation, occlusion

torch = pytest.importorskip('torch')
captum = pytest.importorskip('captum.attr')
pytest.importorskip('pytorchcv')
bridge = importlib.import_module('jaxcnn.interop.torch')

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings('ignore::UserWarning:captum')]

CLASSES = np.array([1, 4, 0])


class Pair:
    """A network, the same network in PyTorch, and images.

    Attributes:
      layer: the feature map for Grad-CAM.
      module_layer: the module in PyTorch whose output is this map.
    """

    def __init__(self, network, module, layer, module_layer, shape):
        torch.manual_seed(0)
        for submodule in module.modules():
            if isinstance(submodule, torch.nn.BatchNorm2d):
                submodule.running_mean.normal_(0, 0.2)
                submodule.running_var.uniform_(0.5, 1.5)
                submodule.weight.data.uniform_(0.5, 1.5)
                submodule.bias.data.normal_(0, 0.2)
            elif isinstance(submodule, torch.nn.Conv2d | torch.nn.Linear):
                torch.nn.init.kaiming_normal_(submodule.weight)
            elif isinstance(submodule, torch.nn.ReLU):
                submodule.inplace = False
        self.network, self.module, self.layer, self.module_layer = network, module.eval(), layer, module_layer
        self.variables = bridge.from_torch(network, self.module, shape)
        self.images = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
        self.arguments = network, self.variables, self.images, CLASSES
        self.inputs = torch.from_numpy(self.images.transpose(0, 3, 1, 2).copy())
        self.target = torch.from_numpy(CLASSES)


@pytest.fixture(scope='module', params=['sequential', 'resnet'])
def pair(request):
    nn = torch.nn
    if request.param == 'resnet':
        pytorchcv = importlib.import_module('pytorchcv.models.resnet')
        module = pytorchcv.ResNet(channels=[[8, 8], [16]], init_block_channels=8, bottleneck=False, conv1_stride=True,
                                  num_classes=5)
        module.features.final_pool = nn.AdaptiveAvgPool2d(1)
        network = models.create('resnet18', 5, blocks=(2, 1), width=8)
        return Pair(network, module, 'stage1', module.features.stage1, (64, 64, 3))
    module = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
                           nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(200, 16),
                           nn.ReLU(), nn.Linear(16, 5))
    network = models.create('sequential', 5, layers='conv(6)|norm|relu|max_pool(2)|conv(8)|relu|max_pool(2)|flatten|'
                            'dense(16)|relu|dense')
    return Pair(network, module, 'conv2', module[5], (20, 20, 3))


def assert_close(actual, expected):
    """Compare attributions (N, H, W, C) or (N, H, W) with captum's."""
    expected = expected.detach().numpy()
    expected = expected.transpose(0, 2, 3, 1) if np.ndim(actual) == 4 else expected[:, 0]
    assert np.abs(np.asarray(actual) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_saliency(pair):
    assert_close(attribution.saliency(*pair.arguments), captum.Saliency(pair.module).attribute(pair.inputs, pair.target))


def test_gradient_x_input(pair):
    assert_close(attribution.gradient_x_input(*pair.arguments),
                 captum.InputXGradient(pair.module).attribute(pair.inputs, pair.target))


@pytest.mark.parametrize(('rule', 'method'), [('gauss_legendre', 'gausslegendre'), ('middle', 'riemann_middle')])
def test_integrated_gradients(pair, rule, method):
    expected = captum.IntegratedGradients(pair.module).attribute(pair.inputs, 0.25, pair.target, n_steps=7, method=method)
    assert_close(attribution.integrated_gradients(*pair.arguments, steps=7, baseline=0.25, rule=rule), expected)


def test_guided_backpropagation(pair):
    assert_close(attribution.guided_backprop(*pair.arguments),
                 captum.GuidedBackprop(pair.module).attribute(pair.inputs, pair.target))


def test_deconvolution(pair):
    assert_close(attribution.deconvolution(*pair.arguments),
                 captum.Deconvolution(pair.module).attribute(pair.inputs, pair.target))


def test_gradcam(pair):
    expected = captum.LayerGradCam(pair.module, pair.module_layer).attribute(
        pair.inputs, pair.target, relu_attributions=True)
    resized = jax.image.resize(expected.detach().numpy(), (3, 1, *pair.images.shape[1:3]), 'bilinear')
    actual = class_activation.gradcam(*pair.arguments, layer=pair.layer)
    assert_close(actual, torch.from_numpy(np.array(resized)))


def test_occlusion(pair):
    size, stride = pair.images.shape[1] // 3, pair.images.shape[1] // 4  # the last square reaches over the edge
    expected = captum.Occlusion(pair.module).attribute(pair.inputs, (3, size, size), (3, stride, stride), 0.5, pair.target)
    assert_close(occlusion.occlusion(*pair.arguments, size=size, stride=stride, fill=0.5), expected)
