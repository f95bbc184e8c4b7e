"""Reading parameters from `.safetensors` files and from PyTorch's `.pth` files as NumPy arrays, and as Flax variables.

    network = jaxcnn.models.create('resnet50', num_classes=1000)
    variables = load_variables(network, read_safetensors('resnet50.safetensors'), (224, 224, 3))
"""

import dataclasses
import logging
import pickle
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.errors import UserError
from jaxcnn.interop.layout import Pair, leaves
from jaxcnn.interop.matching import check_required, describe_file, find_network, match_names, pair_by_name
from jaxcnn.interop.names import Naming, namings
from jaxcnn.models import Network
from jaxcnn.optim import path_name

log = logging.getLogger('jaxcnn')

STATE_DICT_KEYS = ('state_dict', 'model', 'model_state_dict', 'net', 'network', 'weights', 'params', 'module')
EMA_KEYS = ('state_dict_ema', 'model_ema', 'ema_state_dict', 'model_ema_state_dict', 'ema', 'ema_model', 'params_ema')
_AUXILIARY = re.compile(r'(.*\.)?(aux\d|AuxLogits)\.')  # auxiliary classifiers, which a network need not have
_TORCH_NAMES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean', 'var': 'running_var'}
IGNORED = ('num_batches_tracked', 'n_averaged')  # counters of PyTorch's layers and averages


# ---- files


def read_safetensors(path: str) -> dict[str, np.ndarray]:
    """Return the arrays of a `.safetensors` file by name.

    Raises:
      UserError: The package safetensors is not installed; the file is missing, damaged, or has a type that NumPy lacks.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise UserError('reading .safetensors needs the package safetensors, which is not installed', field=path,
                        hint="pip install 'jaxcnn[safetensors]'") from None
    import ml_dtypes  # noqa: F401 (gives NumPy the type bfloat16)
    _check_file(path)
    try:
        with safe_open(path, framework='numpy') as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except (SafetensorError, OSError, ValueError) as e:
        raise UserError(f'is truncated, damaged, or no .safetensors file: {_one_line(e)}', field=path) from e
    except (TypeError, KeyError, AttributeError) as e:
        raise UserError(f'holds a type of number that NumPy lacks: {_one_line(e)}', field=path,
                        hint='convert the file to float32') from e


def read_torch(path: str, ema: bool | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of a PyTorch state dict by name.

    Nothing but tensors and plain containers is unpickled (`weights_only=True`). Training checkpoints are searched for the
    state dict under the keys `state_dict`, `model` and others, and for averaged parameters under `state_dict_ema`,
    `model_ema` and others.

    Args:
      path: file that `torch.save` wrote.
      ema: whether to read averaged parameters; None: if the file has them.

    Raises:
      UserError: PyTorch is not installed; the file is missing or damaged, or holds something else than a state dict.
    """
    _check_file(path)
    try:
        import torch
    except ImportError:
        raise UserError('reading a PyTorch file needs PyTorch, which is not installed', field=path,
                        hint='pip install torch, or convert the file to .safetensors, which needs no PyTorch') from None
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as e:
        if 'Unsupported' in str(e) or 'allowed global' in str(e):
            raise UserError('holds Python objects, such as a whole pickled module, beside tensors', field=path,
                            hint='write torch.save(module.state_dict(), path) where the module can be loaded') from e
        raise UserError(f'is truncated, damaged, or no PyTorch file: {_one_line(e)}', field=path) from e
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as e:
        raise UserError(f'is truncated, damaged, or no PyTorch file: {_one_line(e)}', field=path) from e
    state_dict = _find_state_dict(content, path, ema)
    return {name: _to_numpy(tensor) for name, tensor in state_dict.items() if hasattr(tensor, 'detach')}


def _check_file(path: str) -> None:
    try:
        with open(path, 'rb'):
            pass
    except OSError as e:
        raise UserError(e.strerror or str(e), field=path) from e


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split()).partition('. ')[0][:150] or type(error).__name__


def _to_numpy(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().cpu()
    array: np.ndarray = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return array


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and any(hasattr(item, 'detach') and item.ndim for item in value.values())


def _find_state_dict(content: Any, path: str, ema: bool | None) -> Mapping[str, Any]:
    """Return the state dict in the content of a file; see `read_torch`."""
    if _is_state_dict(content):
        if ema:
            raise UserError('is a plain state dict without averaged parameters', field=path,
                            hint='leave out config.init.ema')
        return content
    keys = list(content) if isinstance(content, Mapping) else []
    averaged, trained = ([key for key in known if key in keys and _is_state_dict(content[key])]
                         for known in (EMA_KEYS, STATE_DICT_KEYS))
    if ema and not averaged:
        raise UserError(f'has no averaged parameters (its keys are {", ".join(map(str, keys))})', field=path,
                        hint='leave out config.init.ema')
    others = [key for key in keys if _is_state_dict(content[key])]
    candidates = (averaged if ema is not False else []) + trained + (others if len(others) == 1 else [])
    if not candidates:
        listed = f', but the keys {", ".join(map(str, keys[:8]))}' if keys else f', but a {type(content).__name__}'
        raise UserError(f'holds no state dict{listed}', field=path,
                        hint='write torch.save(module.state_dict(), path)')
    log.info('%s: reading the state dict under the key %r', path, candidates[0])
    return content[candidates[0]]


# ---- Flax variables


@dataclasses.dataclass(frozen=True)
class NamedArrays:
    """Arrays of a file in the layout of a network.

    Attributes:
      arrays: the arrays by the path of the network's variable, such as `params/Conv_0/kernel`.
      origins: the name of each of them in the file.
      unused: the shapes of the file's other arrays, by name.
      surplus: names of those that belong to another network of the zoo, which fits the file better.
      optional: paths of variables that a file may lack, those of auxiliary classifiers.
      expected: the name that each variable of the network would have in the file.
    """

    arrays: dict[str, np.ndarray]
    origins: dict[str, str]
    unused: dict[str, tuple[int, ...]]
    surplus: list[str]
    optional: frozenset[str]
    expected: dict[str, str]


def arrange(network: Network, tensors: Mapping[str, np.ndarray], shapes: Mapping[str, Any]) -> NamedArrays:
    """Arrange arrays with torchvision's or timm's names, or with those of the variables, as the variables of a network.

    Arrays whose shape differs from the network's are returned in Flax's layout, too.

    Args:
      network: a network of the zoo.
      tensors: arrays in PyTorch's layouts, by name.
      shapes: the network's variables, or their shapes.

    Raises:
      UserError: The names are not those of such a network; its fields let it compute another function; or a layer has an
        array, such as a bias, that the network's layer lacks.
    """
    if tensors and all(name.partition('/')[0] in ('params', 'batch_stats') for name in tensors):
        return NamedArrays(dict(tensors), {name: name for name in tensors}, {}, [], frozenset(), {})
    match = match_names(network, tensors)
    check_required(network, match.naming)
    arrays, origins, expected, optional = {}, {}, {}, set()
    pairs = pair_by_name(match.naming, shapes['params'], match.prefix)
    for pair in pairs:
        variables = {collection: shapes.get(collection, {}).get(pair.flax_path[0], {}) for collection in shapes}
        for leaf in leaves(pair, tensors):
            path = '/'.join((leaf.collection, *leaf.path))
            if leaf.path[-1] not in variables.get(leaf.collection, {}):
                raise UserError(f'the file has {leaf.torch_name}, and {pair.flax_path[0]} of {type(network).__name__} has '
                                f'no {leaf.path[-1]}', hint=describe_file(tensors))
            arrays[path], origins[path] = leaf.to_flax(tensors[leaf.torch_name]), leaf.torch_name
        for collection, layer in variables.items():
            for name in layer:
                path = f'{collection}/{pair.flax_path[0]}/{name}'
                expected[path] = f'{pair.torch_name}.{_TORCH_NAMES[name]}'
                if pair.torch_name.removeprefix(match.prefix) in match.naming.auxiliary:
                    optional.add(path)
    used = set(origins.values())
    unused = {name: tuple(tensor.shape) for name, tensor in tensors.items()
              if name not in used and name.rpartition('.')[2] not in IGNORED}
    surplus = _find_surplus(unused, tensors, {pair.torch_name for pair in pairs})
    return NamedArrays(arrays, origins, unused, surplus, frozenset(optional), expected)


def to_named_arrays(network: Network, variables: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], str]:
    """Return the variables of a network as arrays that `arrange` reads.

    Args:
      network: a network.
      variables: its variables, `{'params': ..., 'batch_stats': ...}`.

    Returns:
      The arrays by torchvision's or timm's names in PyTorch's layouts, and whose names they are, such as "torchvision's and
      timm's ResNets". For a network for which no names are known, the arrays as they are, by their paths such as
      `params/Conv_0/kernel`, and an empty string.
    """
    for naming in namings(network):
        try:
            check_required(network, naming)
            pairs = pair_by_name(naming, variables['params'])
        except UserError:  # it computes another function than the networks with these names
            continue
        tensors: dict[str, np.ndarray] = {}
        for pair in pairs:
            arrays = {(collection, name): np.asarray(array) for collection in variables
                      for name, array in variables[collection].get(pair.flax_path[0], {}).items()}
            templates = {f'{pair.torch_name}.{_TORCH_NAMES[name]}': np.empty(_torch_shape(array, naming, pair), np.bool_)
                         for (_, name), array in arrays.items()}
            tensors.update({leaf.torch_name: leaf.to_torch(arrays[leaf.collection, leaf.path[-1]])
                            for leaf in leaves(pair, templates)})
        if sum(array.size for array in tensors.values()) == sum(np.size(x) for x in jax.tree.leaves(variables)):
            return tensors, naming.source
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(dict(variables))}, ''


def _torch_shape(array: np.ndarray, naming: Naming, pair: Pair) -> tuple[int, ...]:
    """Return the shape in PyTorch of an array of a layer."""
    if array.ndim < 2:
        return array.shape
    if array.ndim == 2 or pair.torch_name in naming.denses:
        return array.shape[-1], array.size // array.shape[-1]
    height, width, channels, features = array.shape
    return features, channels, height, width


def _find_surplus(unused: Mapping[str, tuple[int, ...]], names: Iterable[str], layers: set[str]) -> list[str]:
    kernels = [name for name, shape in unused.items() if len(shape) > 1 and name.endswith('.weight')]
    network = find_network(names) if kernels else None
    if network is None or network[1] <= layers:
        return []
    return [name for name in kernels if name.removesuffix('.weight') in network[1] and not _AUXILIARY.match(name)]


def surplus_error(named: NamedArrays, names: Iterable[str]) -> UserError:
    """Return the error for a file with the layers of a larger network."""
    return UserError(f'{len(named.surplus)} layers of the file, such as {named.surplus[0]}, are not in this network',
                     hint=describe_file(names))


def load_variables(network: Network, tensors: Mapping[str, np.ndarray],
                   image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Return the variables of a network, `{'params': ..., 'batch_stats': ...}`, from arrays with torchvision's or timm's
    names, which `read_safetensors` and `read_torch` return.

    Args:
      network: a network of the zoo, whose variables must all be among the arrays.
      tensors: arrays in PyTorch's layouts, by name.
      image_shape: (H, W, C) of the images.

    Raises:
      UserError: See `arrange`; or an array is missing or has another shape.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = {'batch_stats': {}, **jax.eval_shape(network.init, jax.random.key(0), images)}
    named = arrange(network, tensors, shapes)
    if named.surplus:
        raise surplus_error(named, tensors)

    def value(path: Any, shape: Any) -> jax.Array:
        name = '/'.join(key.key for key in path)
        if name not in named.arrays:
            expected = named.expected.get(name, 'an array')
            raise UserError(f'the arrays lack {expected}, for {name}', hint=describe_file(tensors))
        array = named.arrays[name]
        if array.shape != shape.shape:
            raise UserError(f'the shape of {name} must be {shape.shape}, got {array.shape} from {named.origins[name]}')
        return jnp.asarray(array, shape.dtype)
    return jax.tree_util.tree_map_with_path(value, shapes)
