"""Parameters from a PyTorch module of the same architecture, and back.

A layer is paired with one of the same form (kind, sizes, strides) whose inputs are the partners of its own; `graph.py` says
what its inputs are. Of several, the one whose output goes on through layers of the same forms is taken, then one whose input
array other layers take, too, if its own is so, then the first. Names and the order of parallel branches do not matter. Then
both networks are evaluated, and have to give the same logits. Auxiliary classifiers, which are computed in training only,
are paired by the graph alone.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.errors import UserError
from jaxcnn.interop.graph import Layer, hooked, images_for, intercepted, layers_of_ours, layers_of_theirs
from jaxcnn.models import Network
from jaxcnn.train.state import run_once

if TYPE_CHECKING:
    import torch

Path = tuple[str, ...]

AHEAD = 32  # layers that an output is followed through, to choose between several of the same form and inputs
TOLERANCE = 1e-4  # of the largest logit


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
    ours, left = layers_of_ours(network, image_shape, train), layers_of_theirs(module, image_shape, train)
    partners: dict[Layer, Layer] = {}
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


def _placed(layer: Layer) -> str:
    names = sorted(before.name for before in layer.inputs)
    return f'{layer} after {" and ".join(names) if 0 < len(names) < 4 else f"{len(names)} layers" if names else "the image"}'


def _likest(layer: Layer, candidates: list[Layer]) -> Layer:
    """The candidate whose output goes on as that of `layer` does, for the most layers."""
    @functools.cache
    def onward(layer: Layer, depth: int) -> int:
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


def _check(network: Network, variables: Mapping[str, Any], module: 'torch.nn.Module', pairs: list[Pair],
           image_shape: tuple[int, int, int]) -> None:
    """Raises a UserError where the logits of both differ, in evaluation."""
    import torch
    network = network.clone(dtype='float32', remat=False)
    if next(module.parameters()).dtype in (torch.float16, torch.bfloat16):
        module = copy.deepcopy(module).float()
    images = images_for(module, image_shape)
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
    with hooked(module, False, keep_theirs), torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        expected = module(images)
    expected = _numpy(expected[0] if isinstance(expected, tuple) else expected)

    @functools.partial(jax.jit, compiler_options=run_once())
    def apply(variables: Any, x: jax.Array) -> Any:
        with intercepted(keep_ours):
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
