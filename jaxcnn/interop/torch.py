"""Copy parameters from a PyTorch module of the same architecture, and back.

A layer is paired with a PyTorch layer of the same signature (kind, sizes, strides) whose inputs are paired with its own
inputs; `graph.py` defines the inputs. Among several candidates the one is taken whose output continues through layers of the
same signatures, then one that shares its input array with other layers if its partner does, then the first. Names and the
order of parallel branches do not matter. Finally both networks are evaluated and must give the same logits. Auxiliary
classifiers, which are computed in training only, are paired by the graph alone.
"""

import copy
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.errors import UserError
from jaxcnn.interop.graph import Layer, flax_layers, forward_hooks, intercept_outputs, random_images, torch_layers
from jaxcnn.interop.layout import Pair, leaves
from jaxcnn.models import Network
from jaxcnn.training.state import run_once

if TYPE_CHECKING:
    import torch

MAX_LOOKAHEAD = 32  # layers that an output is followed through, to choose among candidates
TOLERANCE = 1e-4  # relative to the largest logit


def pair_layers(network: Network, module: 'torch.nn.Module', image_shape: tuple[int, int, int]) -> list[Pair]:
    """Pair the layers of both networks, in the order in which the jaxcnn network computes them.

    Auxiliary classifiers are included where the jaxcnn network has them.

    Args:
      network: the jaxcnn network.
      module: a PyTorch module of the same architecture, which is not changed.
      image_shape: (H, W, C) that both networks accept; dense layers may require one size.

    Raises:
      UserError: A layer has no partner (the message names the first one), a layer is of a kind that cannot be paired, or
        `image_shape` is not (H, W, C).
    """
    if len(image_shape) != 3:
        raise UserError(f'image_shape must be (H, W, C), got {image_shape}')
    train = getattr(network, 'aux_weight', 0) > 0
    hint = '; create the network with aux_weight=0 if the module has no auxiliary classifiers' if train else ''
    layers, unpaired = flax_layers(network, image_shape, train), torch_layers(module, image_shape, train)
    partners: dict[Layer, Layer] = {}
    difference = ''
    for layer in layers:
        inputs = {partners[before] for before in layer.inputs}
        same_signature = [candidate for candidate in unpaired if candidate.signature == layer.signature]
        candidates = [candidate for candidate in same_signature if candidate.inputs == inputs]
        if not candidates and not difference:  # report the first one, although later layers may still be paired
            other = next((candidate for candidate in unpaired if candidate.inputs == inputs), next(iter(unpaired), None))
            difference = (f'the networks differ: {type(network).__name__} has {_describe(layer)} where '
                          f'{type(module).__name__} has {_describe(other) if other else "nothing" + hint}')
        if not same_signature:
            raise UserError(difference)
        partners[layer] = _most_similar(layer, candidates or same_signature)
        unpaired.remove(partners[layer])
    if unpaired:
        raise UserError(difference or f'the networks differ: {unpaired[0]} of {type(module).__name__} has no partner in '
                        f'{type(network).__name__}')
    return [Pair(tuple(layer.name.split('/')), partner.name, partner.channels, layer.kernel)
            for layer, partner in partners.items()]


def _describe(layer: Layer) -> str:
    names = sorted(before.name for before in layer.inputs)
    if not names:
        return f'{layer} after the image'
    return f'{layer} after {" and ".join(names) if len(names) < 4 else f"{len(names)} layers"}'


def _most_similar(layer: Layer, candidates: list[Layer]) -> Layer:
    """Return the candidate whose output continues through the same signatures as that of `layer` for the most layers."""
    @functools.cache
    def continuation(layer: Layer, depth: int) -> int:
        """Return a hash of the layer's signature and of those that follow it, to a depth."""
        following = sorted(continuation(output, depth - 1) for output in layer.outputs) if depth else ()
        return hash((layer.signature, *following))

    for depth in range(1, MAX_LOOKAHEAD):
        if len(candidates) == 1:
            break
        similar = [candidate for candidate in candidates if continuation(candidate, depth) == continuation(layer, depth)]
        candidates = similar or candidates
    return min(candidates, key=lambda candidate: candidate.shared_input != layer.shared_input)


def from_torch(network: Network, module: 'torch.nn.Module', image_shape: tuple[int, int, int],
               state_dict: 'Mapping[str, torch.Tensor] | None' = None) -> dict[str, Any]:
    """Return Flax variables, `{'params': ..., 'batch_stats': ...}`, with the values of a PyTorch module.

    Args:
      network: the jaxcnn network; the variables have its types.
      module: a PyTorch module of the same architecture.
      image_shape: see `pair_layers`; both networks are evaluated on two images of this shape.
      state_dict: loaded into the module before its values are copied.

    Raises:
      UserError: See `pair_layers`; the state dict belongs to another module; or the logits differ by more than 1e-4 of the
        largest one, in which case the message names the first layer whose output differs.
    """
    if state_dict is not None:
        try:
            module.load_state_dict(state_dict)
        except RuntimeError as e:
            raise UserError(f'state_dict: {" ".join(str(e).split())}') from e
    pairs = pair_layers(network, module, image_shape)
    variables = {'batch_stats': {}, **to_jax(pairs, module.state_dict())}
    _check_logits(network, variables, module, pairs, image_shape)
    if network.param_dtype == 'float32':
        return variables
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = {'batch_stats': {}, **jax.eval_shape(network.init, jax.random.key(0), images)}
    return jax.tree.map(lambda values, shape: values.astype(shape.dtype), variables, shapes)


def to_torch(network: Network, variables: Mapping[str, Any], module: 'torch.nn.Module',
             image_shape: tuple[int, int, int]) -> None:
    """Copy Flax variables into a PyTorch module of the same architecture; the inverse of `from_torch`.

    Raises:
      UserError: See `from_torch`; the module keeps its values then.
    """
    import torch
    pairs = pair_layers(network, module, image_shape)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    after = dict(before)
    for pair in pairs:
        for leaf in leaves(pair, before):
            path = (leaf.collection, *leaf.path)
            shape = leaf.to_flax(_numpy(before[leaf.torch_name])).shape
            values: Any = variables
            for key in path:
                if key not in values:
                    raise UserError(f'the variables have no {"/".join(path)}, whose shape is {shape}')
                values = values[key]
            array = np.asarray(values, np.float32)
            if array.shape != shape:
                raise UserError(f'the shape of {"/".join(path)} must be {shape}, got {array.shape}')
            after[leaf.torch_name] = torch.from_numpy(np.array(leaf.to_torch(array))).to(before[leaf.torch_name].dtype)
    module.load_state_dict(after)
    try:
        copied = {'batch_stats': {}, **to_jax(pairs, module.state_dict())}
        _check_logits(network, copied, module, pairs, image_shape)
    except BaseException:
        module.load_state_dict(before)
        raise


def to_jax(pairs: list[Pair], tensors: 'Mapping[str, torch.Tensor]') -> dict[str, Any]:
    """Arrange PyTorch tensors in the tree of Flax variables, in float32.

    Args:
      pairs: from `pair_layers`.
      tensors: a state dict, or gradients by the name of their parameter. Missing tensors are missing in the tree, too.
    """
    result: dict[str, Any] = {}
    for pair in pairs:
        for leaf in leaves(pair, tensors):
            subtree = result.setdefault(leaf.collection, {})
            for key in leaf.path[:-1]:
                subtree = subtree.setdefault(key, {})
            subtree[leaf.path[-1]] = jnp.array(leaf.to_flax(_numpy(tensors[leaf.torch_name])))
    return result


def _numpy(tensor: 'torch.Tensor') -> np.ndarray:
    return tensor.detach().cpu().float().numpy()


def _check_logits(network: Network, variables: Mapping[str, Any], module: 'torch.nn.Module', pairs: list[Pair],
                  image_shape: tuple[int, int, int]) -> None:
    """Evaluate both networks and raise a UserError where their logits differ."""
    import torch
    network = network.clone(dtype='float32', remat=False)
    if next(module.parameters()).dtype in (torch.float16, torch.bfloat16):
        module = copy.deepcopy(module).float()
    images = random_images(module, image_shape)
    traced_outputs: dict[str, jax.Array] = {}
    torch_outputs: dict[str, np.ndarray] = {}

    def record_flax(submodule: nn.Module, x: Any, output: Any) -> Any:
        if isinstance(submodule, nn.Conv | nn.Dense):
            traced_outputs.setdefault('/'.join(submodule.path), output)
        return output

    def record_torch(name: str, submodule: Any, x: Any, output: Any) -> None:
        if isinstance(submodule, torch.nn.Conv2d | torch.nn.Linear):
            values = _numpy(output).copy()  # a rectifier may be applied in place
            torch_outputs.setdefault(name, values.transpose(0, 2, 3, 1) if values.ndim == 4 else values)
    with forward_hooks(module, False, record_torch), torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        expected = module(images)
    expected = _numpy(expected[0] if isinstance(expected, tuple) else expected)

    @functools.partial(jax.jit, compiler_options=run_once())
    def apply(variables: Any, x: jax.Array) -> Any:
        with intercept_outputs(record_flax):
            return network.apply(variables, x), dict(traced_outputs)
    with jax.default_matmul_precision('float32'):
        logits, flax_outputs = apply(variables, _numpy(images.permute(0, 2, 3, 1)))
    if _close(logits, expected):
        return
    for pair in pairs:
        name = '/'.join(pair.flax_path)
        if name in flax_outputs and not _close(flax_outputs[name], torch_outputs[pair.torch_name]):
            raise UserError(f'the networks differ in or before {name} of {type(network).__name__}, {pair.torch_name} of '
                            f'{type(module).__name__}, whose outputs for the same images differ while those of all earlier '
                            "layers agree; compare padding, pooling, activations and BatchNorm's epsilon")
    raise UserError(f'the networks differ after their last layer: all layers of {type(network).__name__} and '
                    f'{type(module).__name__} have equal outputs, but the logits differ')


def _close(actual: jax.Array, expected: np.ndarray) -> bool:
    """Compare arrays (N, ...), of which a dense layer's and a convolution's may differ in axes of length 1."""
    a, b = (np.asarray(x).reshape(len(x), -1) for x in (actual, expected))
    return a.shape == b.shape and bool(np.abs(a - b).max() <= TOLERANCE * np.abs(b).max())
