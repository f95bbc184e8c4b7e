"""Parameters from a PyTorch module of the same architecture, and back.

Each network is computed once, which gives its graph of layers (convolutions, dense layers, normalisation): a layer's inputs
are the layers whose outputs reach it with no other layer between. A layer is paired with one of the same form whose inputs
are the partners of its own. Of several, the one whose output goes on through layers of the same forms is taken, then one
whose input array other layers take, too, if its own is so, then the first. Names and the order of parallel branches do not
matter. A convolution of a whole map counts as a dense layer. Then both networks are evaluated, and have to give the same
logits. Auxiliary classifiers, which are computed in training only, are paired by the graph alone.
"""

import contextlib
import copy
import dataclasses
import functools
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
from jaxcnn.models.layers import two
from jaxcnn.train.state import run_once

if TYPE_CHECKING:
    import torch

Path = tuple[str, ...]
Form = tuple[Any, ...]

AHEAD = 32  # layers that an output is followed through, to choose between several of the same form and inputs
TOLERANCE = 1e-4  # of the largest logit


@dataclasses.dataclass(eq=False)
class _Layer:
    """A layer as it was met in a walk.

    Attributes:
      name: the path of our module, with slashes, or PyTorch's name of theirs.
      form: all that must be the same in both networks: kind, sizes, strides, groups, whether there is a bias.
      kernel: the shape of its kernel; () for normalisation.
      channels: of the map that it takes flattened, for PyTorch's dense layers.
      inputs: the layers whose outputs reach it with no other layer between.
      outputs: the layers that it is an input of.
      shared: other layers take the same array.
    """

    name: str
    form: Form
    kernel: tuple[int, ...] = ()
    channels: int | None = None
    inputs: 'frozenset[_Layer]' = frozenset()
    outputs: 'list[_Layer]' = dataclasses.field(default_factory=list)
    shared: bool = False

    def __str__(self) -> str:
        kind, *rest = self.form
        return f'{self.name} ({kind} {", ".join(f"{what} {value}" for what, value in rest)})'


@dataclasses.dataclass(frozen=True)
class Pair:
    """A layer of ours and the same layer of a PyTorch module.

    Attributes:
      ours: the path of our module.
      theirs: PyTorch's name of theirs.
      channels: of the map (H, W, channels) that a dense layer takes flattened, in another order in PyTorch; None of others.
      kernel: the shape of our kernel, (H, W, C / groups, features) or (C, features); () for normalisation.
    """

    ours: Path
    theirs: str
    channels: int | None
    kernel: tuple[int, ...]


def pair(network: Network, module: 'torch.nn.Module', image_shape: tuple[int, int, int]) -> list[Pair]:
    """The layers of both networks, in the order in which ours are computed; auxiliary classifiers, where ours has them, too.

    Args:
      network: of ours.
      module: of the same architecture. Nothing of it is changed.
      image_shape: (H, W, C) that both can work on; dense layers may have to be of one size.

    Raises:
      UserError: the first layer that has no partner, or a layer that is none of those that can be paired; no (H, W, C).
    """
    if len(image_shape) != 3:
        raise UserError(f'image_shape must be (H, W, C), got {image_shape}')
    train = getattr(network, 'aux_weight', 0) > 0
    hint = '; without auxiliary classifiers it is of aux_weight=0' if train else ''
    ours, left = _ours(network, image_shape, train), _theirs(module, image_shape, train)
    partners: dict[_Layer, _Layer] = {}
    difference = ''
    for layer in ours:
        inputs = {partners[before] for before in layer.inputs}
        same = [candidate for candidate in left if candidate.form == layer.form]
        candidates = [candidate for candidate in same if candidate.inputs == inputs]
        if not candidates and not difference:  # the first; a later layer of the same form may be taken all the same
            met = next((candidate for candidate in left if candidate.inputs == inputs), left[0] if left else None)
            difference = (f'the networks differ: {_placed(layer)} of {type(network).__name__} meets '
                          f'{_placed(met) if met else "nothing"} of {type(module).__name__}{"" if met else hint}')
        if not same:
            raise UserError(difference)
        partners[layer] = _likest(layer, candidates or same)
        left.remove(partners[layer])
    if left:
        raise UserError(difference or f'the networks differ: {left[0]} of {type(module).__name__} has no partner in '
                        f'{type(network).__name__}')
    return [Pair(tuple(a.name.split('/')), b.name, b.channels, a.kernel) for a, b in partners.items()]


def _placed(layer: _Layer) -> str:
    names = sorted(before.name for before in layer.inputs)
    return f'{layer} after {" and ".join(names) if 0 < len(names) < 4 else f"{len(names)} layers" if names else "the image"}'


def _likest(layer: _Layer, candidates: list[_Layer]) -> _Layer:
    """The candidate whose output goes on as that of `layer` does, for the most layers."""
    @functools.cache
    def onward(layer: _Layer, depth: int) -> int:
        return hash((layer.form, *(sorted(onward(following, depth - 1) for following in layer.outputs) if depth else ())))

    for depth in range(1, AHEAD):
        if len(candidates) == 1:
            break
        candidates = [one for one in candidates if onward(one, depth) == onward(layer, depth)] or candidates
    return min(candidates, key=lambda one: one.shared != layer.shared)


def from_torch(network: Network, module: 'torch.nn.Module', image_shape: tuple[int, int, int],
               state_dict: 'Mapping[str, torch.Tensor] | None' = None) -> dict[str, Any]:
    """Our variables, `{'params': ..., 'batch_stats': ...}`, with the values of a PyTorch module of the same architecture.

    Args:
      network: of ours; the result has its types.
      module: see `pair`.
      image_shape: see `pair`; both networks are computed once on two images of it.
      state_dict: taken instead of the module's own values, and loaded into it.

    Raises:
      UserError: see `pair`; the state dict is of another module; the logits differ by more than 1e-4 of the largest, with
        the first layer whose output does.
    """
    if state_dict is not None:
        try:
            module.load_state_dict(state_dict)
        except RuntimeError as e:
            raise UserError(f'state_dict: {" ".join(str(e).split())}') from e
    pairs = pair(network, module, image_shape)
    variables = {'batch_stats': {}, **to_jax(pairs, module.state_dict())}
    _check(network, variables, module, pairs, image_shape)
    if network.param_dtype == 'float32':
        return variables
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    kinds = {'batch_stats': {}, **jax.eval_shape(network.init, jax.random.key(0), images)}
    return jax.tree.map(lambda values, kind: values.astype(kind.dtype), variables, kinds)


def to_torch(network: Network, variables: Mapping[str, Any], module: 'torch.nn.Module',
             image_shape: tuple[int, int, int]) -> None:
    """Gives a PyTorch module of the same architecture our values. See `from_torch`, of which it is the inverse.

    Raises:
      UserError: see `from_torch`; then the module is as it was.
    """
    import torch
    pairs = pair(network, module, image_shape)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    after = dict(before)
    for p in pairs:
        for collection, leaf, theirs, forth, back in _leaves(p, before):
            values, wanted = variables, forth(_numpy(before[theirs])).shape
            for part in (collection, *p.ours, leaf):
                if part not in values:
                    raise UserError(f'variables have no {"/".join((collection, *p.ours, leaf))}, of {wanted}')
                values = values[part]
            array = np.asarray(values, np.float32)
            if array.shape != wanted:
                raise UserError(f'{collection} of {"/".join(p.ours)}: {leaf} is {array.shape}, its network has {wanted}')
            after[theirs] = torch.from_numpy(np.array(back(array))).to(before[theirs].dtype)
    module.load_state_dict(after)
    try:
        _check(network, {'batch_stats': {}, **to_jax(pairs, module.state_dict())}, module, pairs, image_shape)
    except BaseException:
        module.load_state_dict(before)
        raise


def to_jax(pairs: list[Pair], tensors: 'Mapping[str, torch.Tensor]') -> dict[str, Any]:
    """PyTorch's tensors in the tree of our variables: those of a state dict, or gradients by the name of their parameter;
    float32.

    Args:
      pairs: from `pair`.
      tensors: `{'features.0.weight': ...}`; what is not there is left out.
    """
    result: dict[str, Any] = {}
    for p in pairs:
        for collection, leaf, theirs, forth, _ in _leaves(p, tensors):
            into = result.setdefault(collection, {})
            for part in p.ours:
                into = into.setdefault(part, {})
            into[leaf] = jnp.array(forth(_numpy(tensors[theirs])))
    return result


def _numpy(tensor: 'torch.Tensor') -> np.ndarray:
    return tensor.detach().cpu().float().numpy()


Change = Callable[[np.ndarray], np.ndarray]


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _leaves(p: Pair, tensors: 'Mapping[str, torch.Tensor]') -> Iterator[tuple[str, str, str, Change, Change]]:
    """Of the arrays of a pair that `tensors` has: our collection and name, their name, and what makes each of the other."""
    prefix = f'{p.theirs}.' if p.theirs else ''
    weight = f'{prefix}weight'
    if weight in tensors and p.kernel:
        shape = tensors[weight].shape  # (features, C / groups, H, W) or (features, C)
        channels = p.channels or shape[1]

        def forth(w: np.ndarray) -> np.ndarray:
            return w.reshape(len(w), channels, -1).transpose(2, 1, 0).reshape(p.kernel)

        def back(k: np.ndarray) -> np.ndarray:
            return k.reshape(-1, channels, k.shape[-1]).transpose(2, 1, 0).reshape(shape)
        yield 'params', 'kernel', weight, forth, back
    elif weight in tensors:
        yield 'params', 'scale', weight, _same, _same
    for collection, leaf, name in (('params', 'bias', 'bias'), ('batch_stats', 'mean', 'running_mean'),
                                   ('batch_stats', 'var', 'running_var')):
        if prefix + name in tensors:
            yield collection, leaf, prefix + name, _same, _same


# ---- walks


def _ours(network: Network, image_shape: tuple[int, int, int], train: bool) -> list[_Layer]:
    layers: list[_Layer] = []
    inputs: list[tuple[Any, _Layer]] = []  # these are kept, so that no other array has their identity
    network = network.clone(remat=False, conv_implementation='xla')  # blocks hand on other arrays; traced sooner

    def met(module: nn.Module, x: Any, output: Any) -> Any:
        name = '/'.join(module.path)
        own = module.variables.get('params', {})
        sizes = {name: value.shape for name, value in own.items() if hasattr(value, 'shape')}
        if not name or not sizes or name in {layer.name for layer in layers}:
            return output
        bias, kernel = 'bias' in sizes, sizes.get('kernel', ())
        if isinstance(module, nn.Conv):
            form = _conv(kernel, two(module.strides), two(module.kernel_dilation), module.feature_group_count, bias,
                         x.shape[1:3], output.shape[1:3])
        elif isinstance(module, nn.Dense):
            form = _dense(kernel, bias)
        elif isinstance(module, nn.BatchNorm | nn.LayerNorm):
            form = _norm(type(module).__name__, x.shape[-1], 'scale' in sizes, bias, x.shape[1:3] if x.ndim == 4 else ())
        else:
            raise UserError(f'{name} ({type(module).__name__}) is no convolution, dense layer or normalisation, and has '
                            f'parameters: {", ".join(sizes)}')
        layers.append(_Layer(name, form, kernel))
        inputs.append((x, layers[-1]))
        return checkpoint_name(output, name)

    def walk(x: jax.Array) -> Any:
        with _intercepted(met):
            return network.init_with_output({'params': jax.random.key(0), 'dropout': jax.random.key(0)}, x, train=train)
    traced, (_, variables) = jax.make_jaxpr(walk, return_shape=True)(
        jax.ShapeDtypeStruct((2, *image_shape), jnp.float32))
    named = {layer.name: layer for layer in layers}
    reaching: dict[Any, frozenset[_Layer]] = {}  # the layers whose outputs reach a variable with no other between
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


def _connect(layer: _Layer, inputs: frozenset[_Layer]) -> None:
    layer.inputs = inputs
    for before in inputs:
        before.outputs.append(layer)


def _mark_shared(inputs: list[tuple[Any, _Layer]]) -> None:
    for array, layer in inputs:
        layer.shared = any(other is array and another is not layer for other, another in inputs)


def _theirs(module: 'torch.nn.Module', image_shape: tuple[int, int, int], train: bool) -> list[_Layer]:
    import torch
    layers: list[_Layer] = []
    inputs: list[tuple[Any, _Layer]] = []
    nodes: dict[Any, _Layer] = {}  # of autograd's graph: those that made the outputs

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
        layers.append(_Layer(name, form, channels=channels))
        inputs.append((x, layers[-1]))
        if output.grad_fn is not None:  # computed without gradients: a layer of no known inputs
            _connect(layers[-1], _reaching(output.grad_fn, nodes))
            nodes[output.grad_fn] = layers[-1]
    with _hooked(module, train, met), torch.enable_grad():
        try:
            module(_images(module, image_shape).requires_grad_())
        except RuntimeError as e:
            raise UserError(f'{type(module).__name__} does not take images {image_shape}: {" ".join(str(e).split())}') from e
    _mark_shared(inputs)
    return layers


def _reaching(node: Any, nodes: Mapping[Any, _Layer]) -> frozenset[_Layer]:
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


def _intercepted(met: Callable[[nn.Module, Any, Any], Any]) -> contextlib.AbstractContextManager[None]:
    """Within, the output of each module of ours is what `met` gives for the module, its input and its output."""
    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = call(*args, **kwargs)
        return met(context.module, args[0], output) if context.method_name == '__call__' and args else output
    return nn.intercept_methods(watch)


@contextlib.contextmanager
def _hooked(module: 'torch.nn.Module', train: bool, met: Callable[[str, Any, Any, Any], None]) -> Iterator[None]:
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


def _images(module: 'torch.nn.Module', image_shape: tuple[int, int, int]) -> 'torch.Tensor':
    """Two images (2, C, H, W), where the module is."""
    import torch
    height, width, channels = image_shape
    images = np.random.default_rng(0).normal(size=(2, height, width, channels)).astype(np.float32)
    like = next(module.parameters())
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(like.device, like.dtype)


# ---- the proof


def _check(network: Network, variables: Mapping[str, Any], module: 'torch.nn.Module', pairs: list[Pair],
           image_shape: tuple[int, int, int]) -> None:
    """Raises a UserError where the logits of both differ, in evaluation."""
    import torch
    network = network.clone(dtype='float32', remat=False)
    if next(module.parameters()).dtype in (torch.float16, torch.bfloat16):
        module = copy.deepcopy(module).float()
    images = _images(module, image_shape)
    ours: dict[str, jax.Array] = {}
    theirs: dict[str, np.ndarray] = {}

    def keep_ours(part: nn.Module, x: Any, output: Any) -> Any:
        if isinstance(part, nn.Conv | nn.Dense):
            ours.setdefault('/'.join(part.path), output)
        return output

    def keep_theirs(name: str, part: Any, x: Any, output: Any) -> None:
        if isinstance(part, torch.nn.Conv2d | torch.nn.Linear):
            values = _numpy(output).copy()  # a rectifier may be applied in place
            theirs.setdefault(name, values.transpose(0, 2, 3, 1) if values.ndim == 4 else values)
    with _hooked(module, False, keep_theirs), torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        expected = module(images)
    expected = _numpy(expected[0] if isinstance(expected, tuple) else expected)

    @functools.partial(jax.jit, compiler_options=run_once())
    def apply(variables: Any, x: jax.Array) -> Any:
        with _intercepted(keep_ours):
            return network.apply(variables, x), dict(ours)
    with jax.default_matmul_precision('float32'):
        logits, outputs = apply(variables, _numpy(images.permute(0, 2, 3, 1)))
    if _near(logits, expected):
        return
    for p in pairs:
        name = '/'.join(p.ours)
        if name in outputs and not _near(outputs[name], theirs[p.theirs]):
            raise UserError(f'the networks differ before or in {name} of {type(network).__name__}, {p.theirs} of '
                            f'{type(module).__name__}: its output is another for the same images. All layers before '
                            'have the same; look at padding, pooling, activations, epsilon of BatchNorm')
    raise UserError(f'the networks differ after their last layer: all layers of {type(network).__name__} and '
                    f'{type(module).__name__} have the same output, the logits have not')


def _near(ours: jax.Array, theirs: np.ndarray) -> bool:
    """Of arrays (N, ...); those of a dense layer and of a convolution differ in axes of length 1."""
    array, expected = (np.asarray(x).reshape(len(x), -1) for x in (ours, theirs))
    return array.shape == expected.shape and bool(np.abs(array - expected).max() <= TOLERANCE * np.abs(expected).max())
