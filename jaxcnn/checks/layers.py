"""The inputs and outputs of a network's layers, recorded while it is applied, and its training loss."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.models import Network
from jaxcnn.tasks import Task
from jaxcnn.training.step import row_keys

Recorder = Callable[[str, jax.Array, jax.Array], jax.Array]


def layer_paths(params: Any) -> set[tuple[str, ...]]:
    """Return the paths of the modules that hold parameters themselves, without the network."""
    paths = {tuple(entry.key for entry in path[:-1]) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    return paths - {()}


def training_arguments(task: Task, targets: Mapping[str, jax.Array]) -> dict[str, Any]:
    """Return what a task's network takes besides images in training, for the targets of some examples."""
    count = len(next(iter(targets.values())))
    return task.network_arguments({**targets, 'key': row_keys(jax.random.key(0), jnp.arange(count))}, train=True)


def apply_with_layers(network: Network, variables: Any, images: jax.Array, record: Recorder, key: jax.Array | None = None,
                      train: bool = True, **arguments: Any) -> Any:
    """Apply a network, and call `record(name, input, output)` for each of its layers with parameters.

    Args:
      network: the network.
      variables: its variables.
      images: normalised images (N, H, W, C).
      record: returns the output with which the network goes on. The name of a layer that is called again ends in its
        number, as in `Dense_0 (2)`.
      key: key of dropout.
      train: whether the network is in training mode.
      **arguments: what it takes besides; see `training_arguments`.
    """
    paths, num_calls = layer_paths(variables['params']), dict[str, int]()

    def intercept(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        output = call(*args, **kwargs)
        if context.method_name != '__call__' or not isinstance(output, jax.Array) or not args:
            return output
        path = context.module.path
        if path not in paths:
            return output
        name = '/'.join(path)
        num_calls[name] = num_calls.get(name, 0) + 1
        if num_calls[name] > 1:
            name = f'{name} ({num_calls[name]})'
        return record(name, args[0], output)

    network = network.clone(remat=False)  # whose blocks hide what is inside them
    with nn.intercept_methods(intercept):
        outputs, _ = network.apply(variables, images, train=train, mutable=['batch_stats'],
                                   rngs={'dropout': jax.random.key(0) if key is None else key}, **arguments)
    return outputs


def training_loss(network: Network, task: Task, outputs: Any, targets: Mapping[str, jax.Array]) -> jax.Array:
    """Return the loss of the first training step, including the weighted losses of auxiliary classifiers.

    Args:
      network: the network.
      task: gives the loss.
      outputs: the outputs of the network in training mode.
      targets: the targets.
    """
    if not isinstance(outputs, tuple):
        return task.loss(outputs, targets)
    loss, *aux_losses = [task.loss(logits, targets) for logits in outputs]
    return loss + getattr(network, 'aux_weight', 0) * sum(aux_losses)


def first_layer_input(network: Network, variables: Any, images: jax.typing.ArrayLike) -> jax.Array | None:
    """Return what the first layer with parameters is fed, or None if the network has no such layer."""
    inputs: list[jax.Array] = []

    @jax.jit
    def apply(variables: Any, images: jax.Array) -> list[jax.Array]:
        def record(name: str, x: jax.Array, output: jax.Array) -> jax.Array:
            inputs.append(x)
            return output
        inputs.clear()
        apply_with_layers(network, variables, images, record, train=False)
        return [x.astype(jnp.float32) for x in inputs[:1]]
    first = apply(variables, images)
    return first[0] if first else None
