"""Networks, jaxcnn's and PyTorch's, as graphs of layers: convolutions, dense layers and normalisation.

A network is computed once, in JAX without any values. A layer's inputs are the layers whose outputs reach it with no other
layer between; whatever has no parameters is passed through.
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

Form = tuple[Any, ...]


@dataclasses.dataclass(eq=False)
class Layer:
    """A layer of a network. Two layers are equal only if they are the same object.

    Attributes:
      name: the path of our module, with slashes, or PyTorch's name of theirs.
      form: all that must be the same in both networks: kind, sizes, strides, groups, whether there is a bias. A convolution
        of a whole map has the form of a dense layer.
      kernel: the shape of our kernel; () for normalisation and for PyTorch's layers.
      channels: of the map that it takes flattened, for PyTorch's dense layers.
      inputs: the layers whose outputs reach it with no other layer between.
      outputs: the layers that it is an input of.
      shared: other layers take the same array.
    """

    name: str
    form: Form
    kernel: tuple[int, ...] = ()
    channels: int | None = None
    inputs: 'frozenset[Layer]' = frozenset()
    outputs: 'list[Layer]' = dataclasses.field(default_factory=list)
    shared: bool = False

    def __str__(self) -> str:
        kind, *rest = self.form
        return f'{self.name} ({kind} {", ".join(f"{what} {value}" for what, value in rest)})'


def layers_of_ours(network: Network, image_shape: tuple[int, int, int], train: bool) -> list[Layer]:
    """The layers of a network of ours, in the order in which they are computed.

    Args:
      network: of ours.
      image_shape: (H, W, C).
      train: in training, with auxiliary classifiers, or in evaluation.

    Raises:
      UserError: it has parameters that are in none of the known kinds of layers.
    """
    layers: list[Layer] = []
    inputs: list[tuple[Any, Layer]] = []  # these are kept, so that no other array has their identity
    network = network.clone(remat=False, conv_implementation='xla')  # blocks hand on other arrays; traced sooner

    def met(module: nn.Module, x: Any, output: Any) -> Any:
        name = '/'.join(module.path)
        parameters = module.variables.get('params', {})
        sizes = {name: value.shape for name, value in parameters.items() if hasattr(value, 'shape')}
        if not name or not sizes or name in {layer.name for layer in layers}:
            return output
        bias, kernel = 'bias' in sizes, sizes.get('kernel', ())
        if isinstance(module, nn.Conv):
            form = _conv(kernel, height_width(module.strides), height_width(module.kernel_dilation),
                         module.feature_group_count, bias, x.shape[1:3], output.shape[1:3])
        elif isinstance(module, nn.Dense):
            form = _dense(kernel, bias)
        elif isinstance(module, nn.BatchNorm | nn.LayerNorm):
            form = _norm(type(module).__name__, x.shape[-1], 'scale' in sizes, bias, x.shape[1:3] if x.ndim == 4 else ())
        else:
            raise UserError(f'{name} ({type(module).__name__}) is no convolution, dense layer or normalisation, and has '
                            f'parameters: {", ".join(sizes)}')
        layers.append(Layer(name, form, kernel))
        inputs.append((x, layers[-1]))
        return checkpoint_name(output, name)

    def walk(x: jax.Array) -> Any:
        with intercepted(met):
            return network.init_with_output({'params': jax.random.key(0), 'dropout': jax.random.key(0)}, x, train=train)
    traced, (_, variables) = jax.make_jaxpr(walk, return_shape=True)(
        jax.ShapeDtypeStruct((2, *image_shape), jnp.float32))
    named = {layer.name: layer for layer in layers}
    reaching: dict[Any, frozenset[Layer]] = {}  # the layers whose outputs reach a variable with no other between
    for equation in traced.eqns:
        before = frozenset().union(*(reaching.get(v, ()) for v in equation.invars if isinstance(v, Var)))
        if equation.primitive.name == 'name' and equation.params['name'] in named:
            layer = named[equation.params['name']]
            _connect(layer, before)
            before = frozenset({layer})
        reaching.update(dict.fromkeys(equation.outvars, before))
    for path, _ in jax.tree.leaves_with_path(variables['params']):
        if '/'.join(part.key for part in path[:-1]) not in named:
            raise UserError(f'{type(network).__name__} has the parameter {path[-1].key!r} in no layer that could be paired')
    _mark_shared(inputs)
    return layers


def layers_of_theirs(module: 'torch.nn.Module', image_shape: tuple[int, int, int], train: bool) -> list[Layer]:
    """The layers of a PyTorch module, in the order in which they are computed. Nothing of the module is changed.

    The graph is autograd's; a layer that is computed without gradients has no inputs.

    Args:
      module: of PyTorch.
      image_shape: (H, W, C).
      train: see `layers_of_ours`.

    Raises:
      UserError: see `layers_of_ours`; the module does not take such images.
    """
    import torch
    layers: list[Layer] = []
    inputs: list[tuple[Any, Layer]] = []
    nodes: dict[Any, Layer] = {}  # of autograd's graph: those that made the outputs

    def met(name: str, module: Any, x: Any, output: Any) -> None:
        if name in {layer.name for layer in layers}:
            return
        bias = getattr(module, 'bias', None) is not None
        channels = None
        if isinstance(module, torch.nn.Conv2d):
            out, per_group, *size = module.weight.shape
            form = _conv((*size, per_group, out), module.stride, module.dilation, module.groups, bias, x.shape[2:],
                         output.shape[2:])
        elif isinstance(module, torch.nn.Linear):
            form, channels = _dense(tuple(module.weight.shape)[::-1], bias), _flattened(x)
        elif isinstance(module, torch.nn.modules.batchnorm._BatchNorm | torch.nn.LayerNorm):
            map_shape = x.shape[2:] if x.ndim == 4 else ()
            kind = 'LayerNorm' if isinstance(module, torch.nn.LayerNorm) else 'BatchNorm'
            features = x.shape[-1] if kind == 'LayerNorm' else x.shape[1]
            form = _norm(kind, features, module.weight is not None, bias, map_shape)
        else:
            raise UserError(f'{name} ({type(module).__name__}) is no convolution, dense layer or normalisation, and has '
                            f'parameters: {", ".join(n for n, _ in module.named_parameters(recurse=False))}')
        layers.append(Layer(name, form, channels=channels))
        inputs.append((x, layers[-1]))
        if output.grad_fn is not None:
            _connect(layers[-1], _reaching(output.grad_fn, nodes))
            nodes[output.grad_fn] = layers[-1]
    with hooked(module, train, met), torch.enable_grad():
        try:
            module(images_for(module, image_shape).requires_grad_())
        except RuntimeError as e:
            raise UserError(f'{type(module).__name__} does not take images {image_shape}: {" ".join(str(e).split())}') from e
    _mark_shared(inputs)
    return layers


def _connect(layer: Layer, inputs: frozenset[Layer]) -> None:
    layer.inputs = inputs
    for before in inputs:
        before.outputs.append(layer)


def _mark_shared(inputs: list[tuple[Any, Layer]]) -> None:
    for array, layer in inputs:
        layer.shared = any(other is array and another is not layer for other, another in inputs)


def _reaching(node: Any, nodes: Mapping[Any, Layer]) -> frozenset[Layer]:
    """The layers whose outputs reach a node of autograd's graph with no other layer between."""
    seen, left, result = {None, node}, [node], set()
    while left:
        for before, _ in left.pop().next_functions:
            if before in nodes:
                result.add(nodes[before])
            elif before not in seen:
                seen.add(before)
                left.append(before)
    return frozenset(result)


def _conv(kernel: Any, stride: Any, dilation: Any, groups: int, bias: bool, taken: Any, sides: Any) -> Form:
    """The form of a convolution from a map of sides `taken` to one of `sides`; a dense layer's, where it takes the whole."""
    *size, channels, features = kernel
    if (*size, 1, 1) == (*taken, *sides) and groups == 1:
        return _dense((math.prod(size) * channels, features), bias)
    return ('convolution', ('kernel', 'x'.join(map(str, kernel))), ('stride', tuple(stride)), ('dilation', tuple(dilation)),
            ('groups', groups), ('bias', bias), ('map', 'x'.join(map(str, sides))))


def _dense(kernel: Any, bias: bool) -> Form:
    return 'dense', ('kernel', 'x'.join(map(str, kernel))), ('bias', bias)


def _norm(kind: str, features: int, scale: bool, bias: bool, sides: Any) -> Form:
    return (kind, ('features', features), ('scale', scale), ('bias', bias),
            ('map', 'x'.join(map(str, sides)) if math.prod(sides) > 1 else '1'))


def _flattened(x: Any) -> int | None:
    """Channels of the map (N, C, H, W) that `x` is, flattened; None where it is none."""
    node = x.grad_fn
    while node is not None and 'mm' not in node.name().lower():  # not past another dense layer
        sizes: Any = getattr(node, '_saved_self_sym_sizes', ())
        if len(sizes) == 4:
            return int(sizes[1])
        node = next((following for following, _ in node.next_functions if following is not None), None)
    return None


def intercepted(met: Callable[[nn.Module, Any, Any], Any]) -> contextlib.AbstractContextManager[None]:
    """Within, the output of each module of ours is what `met` gives for the module, its input and its output."""
    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = call(*args, **kwargs)
        return met(context.module, args[0], output) if context.method_name == '__call__' and args else output
    return nn.intercept_methods(watch)


@contextlib.contextmanager
def hooked(module: 'torch.nn.Module', train: bool, met: Callable[[str, Any, Any, Any], None]) -> Iterator[None]:
    """In training or evaluation mode, `met` is called with the name, the module, its input and its output for each part that
    has parameters or statistics; afterwards hooks, modes and statistics are what they were."""
    import torch
    modes = {part: part.training for part in module.modules()}
    buffers = {name: value.clone() for name, value in module.named_buffers()}
    hooks = [part.register_forward_hook(lambda part, args, output, name=name: met(name, part, args[0], output))
             for name, part in module.named_modules()
             if any(True for _ in part.parameters(recurse=False)) or isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
    module.train(train)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for name, value in module.named_buffers():
            value.data.copy_(buffers[name])
        for part, mode in modes.items():
            part.training = mode


def images_for(module: 'torch.nn.Module', image_shape: tuple[int, int, int]) -> 'torch.Tensor':
    """Two images (2, C, H, W), where the module is."""
    import torch
    height, width, channels = image_shape
    images = np.random.default_rng(0).normal(size=(2, height, width, channels)).astype(np.float32)
    like = next(module.parameters())
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(like.device, like.dtype)
