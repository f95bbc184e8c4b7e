"""Graphs of the layers of Flax and PyTorch networks: convolutions, dense layers and normalisation.

A network is evaluated once, in JAX without any values. A layer's inputs are the layers whose outputs reach it with no other
layer in between; operations without parameters are passed through.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Var

from jaxcnn.errors import UserError
from jaxcnn.models import Network
from jaxcnn.models.layers import height_width

if TYPE_CHECKING:
    import torch

Signature = tuple[Any, ...]


@dataclasses.dataclass(eq=False)
class Layer:
    """A layer of a network. Two layers are equal only if they are the same object.

    Attributes:
      name: path of the Flax module, with slashes, or name of the PyTorch module.
      signature: everything that must be equal in both networks: kind, sizes, strides, groups, and whether there is a bias. A
        convolution whose kernel covers its map has the signature of a dense layer.
      kernel: shape of the Flax kernel; () for normalisation and for PyTorch's layers.
      channels: channels of the map that a PyTorch dense layer takes flattened; None for other layers.
      inputs: the layers whose outputs reach it with no other layer in between.
      outputs: the layers that it is an input of.
      shared_input: other layers take the same array.
    """

    name: str
    signature: Signature
    kernel: tuple[int, ...] = ()
    channels: int | None = None
    inputs: 'frozenset[Layer]' = frozenset()
    outputs: 'list[Layer]' = dataclasses.field(default_factory=list)
    shared_input: bool = False

    def __str__(self) -> str:
        kind, *settings = self.signature
        return f'{self.name} ({kind} {", ".join(f"{setting} {value}" for setting, value in settings)})'


def flax_layers(network: Network, image_shape: tuple[int, int, int], train: bool) -> list[Layer]:
    """Return the layers of a jaxcnn network, in the order of computation.

    Args:
      network: the network.
      image_shape: (H, W, C).
      train: training mode, in which auxiliary classifiers are computed, instead of evaluation.

    Raises:
      UserError: The network has parameters outside of convolutions, dense layers and normalisation.
    """
    layers: list[Layer] = []
    inputs: list[tuple[Any, Layer]] = []  # holds the arrays, so that no other array takes their identity
    # rematerialised blocks would pass other arrays on; 'xla' is faster to trace
    network = network.clone(remat=False, conv_implementation='xla')

    def visit(module: nn.Module, x: Any, output: Any) -> Any:
        name = '/'.join(module.path)
        parameters = module.variables.get('params', {})
        sizes = {name: value.shape for name, value in parameters.items() if hasattr(value, 'shape')}
        if not name or not sizes or name in {layer.name for layer in layers}:
            return output
        bias, kernel = 'bias' in sizes, sizes.get('kernel', ())
        if isinstance(module, nn.Conv):
            signature = _conv(kernel, height_width(module.strides), height_width(module.kernel_dilation),
                              module.feature_group_count, bias, x.shape[1:3], output.shape[1:3])
        elif isinstance(module, nn.Dense):
            signature = _dense(kernel, bias)
        elif isinstance(module, nn.BatchNorm | nn.LayerNorm):
            map_size = x.shape[1:3] if x.ndim == 4 else ()
            signature = _norm(type(module).__name__, x.shape[-1], 'scale' in sizes, bias, map_size)
        else:
            raise _unsupported(name, module, sizes)
        layers.append(Layer(name, signature, kernel))
        inputs.append((x, layers[-1]))
        return checkpoint_name(output, name)

    def init(x: jax.Array) -> Any:
        with intercept_outputs(visit):
            return network.init_with_output({'params': jax.random.key(0), 'dropout': jax.random.key(0)}, x, train=train)
    jaxpr, (_, variables) = jax.make_jaxpr(init, return_shape=True)(jax.ShapeDtypeStruct((2, *image_shape), jnp.float32))
    layer_by_name = {layer.name: layer for layer in layers}
    reaching: dict[Any, frozenset[Layer]] = {}  # layers whose outputs reach a variable with no other layer in between
    for equation in jaxpr.eqns:
        before = frozenset().union(*(reaching.get(v, ()) for v in equation.invars if isinstance(v, Var)))
        if equation.primitive.name == 'name' and equation.params['name'] in layer_by_name:
            layer = layer_by_name[equation.params['name']]
            _connect(layer, before)
            before = frozenset({layer})
        reaching.update(dict.fromkeys(equation.outvars, before))
    for path, _ in jax.tree.leaves_with_path(variables['params']):
        if '/'.join(key.key for key in path[:-1]) not in layer_by_name:
            raise UserError(f'{type(network).__name__} has the parameter {path[-1].key!r} outside of convolutions, dense '
                            'layers and normalisation, which cannot be paired')
    _mark_shared_inputs(inputs)
    return layers


def torch_layers(module: 'torch.nn.Module', image_shape: tuple[int, int, int], train: bool) -> list[Layer]:
    """Return the layers of a PyTorch module, in the order of computation. The module is not changed.

    The graph is autograd's, so that a layer that is computed without gradients has no inputs.

    Args:
      module: the PyTorch module.
      image_shape: (H, W, C).
      train: see `flax_layers`.

    Raises:
      UserError: See `flax_layers`; or the module does not take such images.
    """
    import torch
    layers: list[Layer] = []
    inputs: list[tuple[Any, Layer]] = []
    layer_by_node: dict[Any, Layer] = {}  # the node of autograd's graph that made a layer's output

    def visit(name: str, module: Any, x: Any, output: Any) -> None:
        if name in {layer.name for layer in layers}:
            return
        bias = getattr(module, 'bias', None) is not None
        channels = None
        if isinstance(module, torch.nn.Conv2d):
            out_channels, channels_per_group, *size = module.weight.shape
            signature = _conv((*size, channels_per_group, out_channels), module.stride, module.dilation, module.groups, bias,
                              x.shape[2:], output.shape[2:])
        elif isinstance(module, torch.nn.Linear):
            signature, channels = _dense(tuple(module.weight.shape)[::-1], bias), _flattened_channels(x)
        elif isinstance(module, torch.nn.modules.batchnorm._BatchNorm | torch.nn.LayerNorm):
            map_size = x.shape[2:] if x.ndim == 4 else ()
            kind = 'LayerNorm' if isinstance(module, torch.nn.LayerNorm) else 'BatchNorm'
            features = x.shape[-1] if kind == 'LayerNorm' else x.shape[1]
            signature = _norm(kind, features, module.weight is not None, bias, map_size)
        else:
            raise _unsupported(name, module, (n for n, _ in module.named_parameters(recurse=False)))
        layers.append(Layer(name, signature, channels=channels))
        inputs.append((x, layers[-1]))
        if output.grad_fn is not None:
            _connect(layers[-1], _reaching(output.grad_fn, layer_by_node))
            layer_by_node[output.grad_fn] = layers[-1]
    with forward_hooks(module, train, visit), torch.enable_grad():
        try:
            module(random_images(module, image_shape).requires_grad_())
        except RuntimeError as e:
            raise UserError(f'{type(module).__name__} does not take images {image_shape}: {" ".join(str(e).split())}') from e
    _mark_shared_inputs(inputs)
    return layers


def _unsupported(name: str, module: Any, parameters: Any) -> UserError:
    return UserError(f'{name} ({type(module).__name__}) has parameters ({", ".join(parameters)}), but is no convolution, '
                     'dense layer or normalisation, which alone can be paired')


def _connect(layer: Layer, inputs: frozenset[Layer]) -> None:
    layer.inputs = inputs
    for before in inputs:
        before.outputs.append(layer)


def _mark_shared_inputs(inputs: list[tuple[Any, Layer]]) -> None:
    for array, layer in inputs:
        layer.shared_input = any(other is array and other_layer is not layer for other, other_layer in inputs)


def _reaching(node: Any, layer_by_node: Mapping[Any, Layer]) -> frozenset[Layer]:
    """Return the layers whose outputs reach a node of autograd's graph with no other layer in between."""
    visited, pending, layers = {None, node}, [node], set()
    while pending:
        for before, _ in pending.pop().next_functions:
            if before in layer_by_node:
                layers.add(layer_by_node[before])
            elif before not in visited:
                visited.add(before)
                pending.append(before)
    return frozenset(layers)


def _conv(kernel: Any, stride: Any, dilation: Any, groups: int, bias: bool, input_size: Any, output_size: Any) -> Signature:
    """Return the signature of a convolution; that of a dense layer, if the kernel covers the whole map."""
    *size, channels, features = kernel
    if (*size, 1, 1) == (*input_size, *output_size) and groups == 1:
        return _dense((math.prod(size) * channels, features), bias)
    return ('convolution', ('kernel', 'x'.join(map(str, kernel))), ('stride', tuple(stride)), ('dilation', tuple(dilation)),
            ('groups', groups), ('bias', bias), ('map', 'x'.join(map(str, output_size))))


def _dense(kernel: Any, bias: bool) -> Signature:
    return 'dense', ('kernel', 'x'.join(map(str, kernel))), ('bias', bias)


def _norm(kind: str, features: int, scale: bool, bias: bool, map_size: Any) -> Signature:
    return (kind, ('features', features), ('scale', scale), ('bias', bias),
            ('map', 'x'.join(map(str, map_size)) if math.prod(map_size) > 1 else '1'))


def _flattened_channels(x: Any) -> int | None:
    """Return the channels of the map (N, C, H, W) that `x` is, flattened, or None if it is no flattened map."""
    node = x.grad_fn
    while node is not None and 'mm' not in node.name().lower():  # 'mm' is another dense layer
        sizes: Any = getattr(node, '_saved_self_sym_sizes', ())
        if len(sizes) == 4:
            return int(sizes[1])
        node = next((before for before, _ in node.next_functions if before is not None), None)
    return None


def intercept_outputs(
        callback: Callable[[nn.Module, Any, Any], Any]) -> contextlib.AbstractContextManager[None]:
    """Replace the output of every Flax module called within the context by `callback(module, input, output)`."""
    def interceptor(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = call(*args, **kwargs)
        return callback(context.module, args[0], output) if context.method_name == '__call__' and args else output
    return nn.intercept_methods(interceptor)


@contextlib.contextmanager
def forward_hooks(module: 'torch.nn.Module', train: bool, callback: Callable[[str, Any, Any, Any], None]) -> Iterator[None]:
    """Put a PyTorch module into training or evaluation mode and watch the calls of its submodules.

    `callback(name, submodule, input, output)` is called for every submodule that has parameters or statistics of its own. On
    exit the hooks are removed, and modes and statistics are restored.
    """
    import torch
    modes = {submodule: submodule.training for submodule in module.modules()}
    buffers = {name: value.clone() for name, value in module.named_buffers()}
    hooks = []
    for name, submodule in module.named_modules():
        has_parameters = any(True for _ in submodule.parameters(recurse=False))
        if has_parameters or isinstance(submodule, torch.nn.modules.batchnorm._BatchNorm):
            hooks.append(submodule.register_forward_hook(
                lambda submodule, args, output, name=name: callback(name, submodule, args[0], output)))
    module.train(train)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for name, value in module.named_buffers():
            value.data.copy_(buffers[name])
        for submodule, mode in modes.items():
            submodule.training = mode


def random_images(module: 'torch.nn.Module', image_shape: tuple[int, int, int]) -> 'torch.Tensor':
    """Return two fixed random images (2, C, H, W) with the type and on the device of a module's parameters."""
    import torch
    height, width, channels = image_shape
    images = np.random.default_rng(0).normal(size=(2, height, width, channels)).astype(np.float32)
    parameter = next(module.parameters())
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(parameter.device, parameter.dtype)
