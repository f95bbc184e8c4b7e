"""Pruning: masks of weights that are zero, and how they change during a run (`config.pruning`).

The state of a run holds a dict: `masks`, a tree of Booleans with the pruned parameters alone, which are True for weights
that remain, and `sparsity`, the fraction of the others. With the method movement it also holds `scores`, and in `dormant`
the values that pruned weights had.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import config as cfg
from jaxcnn.optim import path_name
from jaxcnn.timeline import Timeline
from jaxcnn.training.state import TrainState

Tree = dict[str, Any]


# ---- masks


def select(tree: Mapping[str, Any], names: Mapping[str, Any]) -> Tree:
    """Return the leaves of a tree that another tree has, too."""
    return {name: select(tree[name], entry) if isinstance(entry, Mapping) else tree[name] for name, entry in names.items()}


def apply_masks(tree: Mapping[str, Any], masks: Mapping[str, Any]) -> Tree:
    """Return a tree of parameters with zeros where a mask is False; parameters without a mask stay as they are."""
    def apply(x: Any, mask: Any) -> Any:
        return apply_masks(x, mask) if isinstance(x, Mapping) else jnp.where(mask, x, 0)
    return {name: apply(x, masks[name]) if name in masks else x for name, x in tree.items()}


def smallest(scores: jax.Array, count: Any) -> jax.Array:
    """Return which scores are the `count` smallest, (N,) Booleans; of equal scores, the first ones.

    The threshold is found by bisection of its bits, because XLA sorts millions of numbers slowly on a CPU.

    Args:
      scores: (N,) float32.
      count: how many, an integer scalar from 0 to N.
    """
    bits = jax.lax.bitcast_convert_type(jnp.where(scores == 0, 0, scores).astype(jnp.float32), jnp.int32)
    keys = jnp.where(bits < 0, bits ^ 0x7fffffff, bits)  # integers in the order of the numbers

    def bisect(_: Any, limits: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = limits
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, without overflow
        is_enough = (keys <= middle).sum() >= count
        return jnp.where(is_enough, low, middle + 1), jnp.where(is_enough, middle, high)

    limits = jnp.int32(-2**31), jnp.int32(2**31 - 1)
    threshold, _ = jax.lax.fori_loop(0, 32, bisect, limits)
    is_below, is_equal = keys < threshold, keys == threshold
    return is_below | (is_equal & (jnp.cumsum(is_equal) <= count - is_below.sum()))


def remaining(scores: Tree, counts: Sequence[Any] | jax.Array) -> Tree:
    """Return the masks that prune the weights with the smallest scores.

    Args:
      scores: tree of scores.
      counts: the number of pruned weights over all leaves, (1,), or of each leaf, (leaves,).
    """
    leaves, structure = jax.tree.flatten(scores)
    if len(counts) == len(leaves):
        masks = [~smallest(x.ravel(), count).reshape(x.shape) for x, count in zip(leaves, counts, strict=True)]
    else:
        pruned = smallest(jnp.concatenate([x.ravel() for x in leaves]), counts[0])
        ends = np.cumsum([x.size for x in leaves])
        masks = [~x.reshape(leaf.shape) for x, leaf in zip(jnp.split(pruned, ends[:-1]), leaves, strict=True)]
    return jax.tree.unflatten(structure, masks)


def pruned_counts(tree: Tree, sparsity: float, scope: str) -> list[int]:
    """Return how many weights a sparsity prunes: in all leaves of a tree, or with the scope `layer` in each."""
    sizes = [x.size for x in jax.tree.leaves(tree)]
    return [round(sparsity * size) for size in (sizes if scope == 'layer' else [sum(sizes)])]


def magnitude_masks(params: Tree, names: Mapping[str, Any], sparsity: float, scope: str) -> Tree:
    """Return the masks, as host arrays, that prune the smallest weights.

    Args:
      params: parameters of a network.
      names: tree with the parameters that are pruned.
      sparsity: fraction of the weights that are pruned.
      scope: see `PruningConfig`.
    """
    scores = jax.tree.map(lambda x: jnp.abs(jnp.asarray(x, jnp.float32)), select(params, names))
    masks: Tree = jax.device_get(jax.jit(remaining)(scores, jnp.array(pruned_counts(scores, sparsity, scope), jnp.int32)))
    return masks


# ---- the run


@dataclasses.dataclass(frozen=True)
class Pruning:
    """How the masks of a run change.

    Attributes:
      method: see `PruningConfig`.
      steps: the steps after which masks are computed, in order; empty if they stay as they are.
      counts: the number of weights that are pruned after each of these steps: (1,) over all layers, or (layers,).
      size: number of weights that may be pruned.
    """

    method: str
    steps: tuple[int, ...]
    counts: tuple[tuple[int, ...], ...]
    size: int

    @classmethod
    def from_config(cls, config: cfg.PruningConfig, timeline: Timeline, names: Tree) -> 'Pruning':
        """Return the pruning of a run.

        Args:
          config: fields of the config.
          timeline: steps of the run.
          names: tree of the parameters that are pruned; see `initial_masks.prunable`.
        """
        steps = timeline.pruning_steps
        counts = [tuple(pruned_counts(names, sparsity_at(step, steps[0], steps[-1], config.sparsity or 0.0), config.scope))
                  for step in steps]
        return cls(config.method, tuple(steps), tuple(counts), sum(x.size for x in jax.tree.leaves(names)))

    def begin(self, state: TrainState, masks: Tree, key: jax.Array) -> TrainState:
        """Return the state before the first step, with its masks.

        Args:
          state: the state without pruning.
          masks: the first masks, for methods all True.
          key: key of the run.
        """
        pruning = {'masks': masks, 'sparsity': self._sparsity(masks)}
        if self.method == 'movement':
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), masks)
            pruning |= {'scores': zeros, 'dormant': jax.tree.map(jnp.zeros_like, select(state.params, masks))}
        return self.apply(dataclasses.replace(state, pruning=pruning), key)

    def _sparsity(self, masks: Tree) -> jax.Array:
        return 1 - sum(x.sum() for x in jax.tree.leaves(masks)).astype(jnp.float32) / self.size

    def mask_gradients(self, grads: Tree, params: Tree, pruning: Tree) -> tuple[Tree, Tree]:
        """Return the gradients of the weights that remain, and the state of pruning.

        Movement adds -weight * gradient to the score of each weight. The gradient is that of the pruned network, and of a
        pruned weight the value before it was pruned counts: masks are passed straight through, so that it can come back.
        """
        if self.method == 'movement':
            dense = jax.tree.map(jnp.where, pruning['masks'], select(params, pruning['masks']), pruning['dormant'])
            scores = jax.tree.map(lambda s, w, g: s - w.astype(s.dtype) * g, pruning['scores'], dense,
                                  select(grads, pruning['masks']))
            pruning = {**pruning, 'scores': scores}
        return apply_masks(grads, pruning['masks']), pruning

    def apply(self, state: TrainState, key: jax.Array) -> TrainState:
        """Return the state after a step with the masks that are due, and with zeros for all pruned weights.

        Args:
          state: the state, whose step counts this one.
          key: key of the run.
        """
        old, pruning = state.pruning, state.pruning
        if self.steps:
            is_due = state.step == jnp.array(self.steps)
            pruning = jax.lax.cond(is_due.any(), lambda: self._compute(state, key, is_due.argmax()), lambda: old)
        masks, params, ema, slow = pruning['masks'], state.params, state.ema, state.slow
        if self.method == 'movement':  # weights that come back have their values again
            dense = jax.tree.map(jnp.where, old['masks'], select(params, masks), old['dormant'])
            pruning = {**pruning, 'dormant': jax.tree.map(lambda m, x: jnp.where(m, 0, x), masks, dense)}
            revived = jax.tree.map(lambda before, after: after & ~before, old['masks'], masks)
            params, ema, slow = (_restore(tree, revived, dense) for tree in (params, ema, slow))
        params, ema, slow = (_map_params(tree, masks) for tree in (params, ema, slow))
        return dataclasses.replace(state, params=params, ema=ema, slow=slow, pruning=pruning)

    def _compute(self, state: TrainState, key: jax.Array, index: jax.Array) -> Tree:
        """Return the state of pruning with new masks, those of `steps[index]`."""
        masks = state.pruning['masks']
        if self.method == 'movement':
            scores = state.pruning['scores']
        elif self.method == 'magnitude':  # what is pruned already stays so
            scores = jax.tree.map(lambda m, w: jnp.where(m, jnp.abs(w).astype(jnp.float32), -1),
                                  masks, select(state.params, masks))
        else:
            scores = random_scores(masks, key)
        masks = remaining(scores, jnp.array(self.counts, jnp.int32)[index])
        return {**state.pruning, 'masks': masks, 'sparsity': self._sparsity(masks)}


def sparsity_at(step: int, begin: int, end: int, final: float) -> float:
    """Return the sparsity after a step from `begin` to `end` (Zhu & Gupta 2017)."""
    progress = (step - begin) / (end - begin) if end > begin else 1.0
    return final * (1 - (1 - progress) ** 3)


def random_scores(masks: Tree, key: jax.Array) -> Tree:
    """Return scores (uniform) in the shapes of masks, which are the same in each step, so that what is pruned stays so."""
    number = np.uint32(2**32 - 1)  # neither a step nor an image has it
    key = jax.random.fold_in(jax.random.fold_in(key, number), number)
    leaves, structure = jax.tree.flatten(masks)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, [jax.random.uniform(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


def _map_params(tree: Any, masks: Tree) -> Any:
    """Return parameters, or a pair of averages of parameters and statistics, with zeros for pruned weights; or None."""
    if tree is None:
        return None
    return (apply_masks(tree[0], masks), *tree[1:]) if isinstance(tree, tuple) else apply_masks(tree, masks)


def _restore(tree: Any, revived: Tree, values: Tree) -> Any:
    """Return parameters, or a pair as for `_map_params`, with the values of weights that come back; or None."""
    def restore(params: Mapping[str, Any], revived: Mapping[str, Any], values: Mapping[str, Any]) -> Tree:
        return {name: x if name not in revived else restore(x, revived[name], values[name]) if isinstance(x, Mapping)
                else jnp.where(revived[name], values[name], x).astype(x.dtype) for name, x in params.items()}
    if tree is None:
        return None
    return (restore(tree[0], revived, values), *tree[1:]) if isinstance(tree, tuple) else restore(tree, revived, values)


# ---- the table of a run


def layer_table(masks: Tree) -> list[dict[str, Any]]:
    """Return a row for each pruned parameter: `name`, `shape`, and the number of weights that remain, `nonzero`."""
    return [{'name': path_name(path), 'shape': list(mask.shape), 'nonzero': int(np.count_nonzero(mask))}
            for path, mask in jax.tree.leaves_with_path(masks)]
