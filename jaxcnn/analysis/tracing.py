"""Evaluate a traced computation with changes: an intermediate value replaced, or another rule for the gradient of ReLUs.

Both work for any network, because they act on the primitives of its trace and need no knowledge of its layers.
"""

import types
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxcnn.errors import UserError, unknown
from jaxcnn.models import Network

# gets an equation and its operands, and returns its results, or None to evaluate it as it is
Rule = Callable[[Any, Sequence[Any]], Sequence[Any] | None]


def map_shapes(network: Network, variables: Any, image_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return the shape (H, W, C) of each feature map of a network by name, in the order of computation.

    Args:
      network: the network.
      variables: its variables, or their shapes.
      image_shape: (H, W, C) of the network's input.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def apply(variables: Any, images: jax.Array) -> None:
        _, maps = network.apply(variables, images, train=False, features=True)
        shapes.update({name: x.shape[1:] for name, x in maps.items()})  # JAX would sort the names
    jax.eval_shape(apply, variables, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    return shapes


def find_map(network: Network, variables: Any, image_shape: Sequence[int], name: str = '') -> str:
    """Return the name of a feature map: `name`, or by default the last one of more than one pixel.

    Raises:
      UserError: The network has no such feature map.
    """
    shapes = map_shapes(network, variables, image_shape)
    if name:
        if name not in shapes:
            raise unknown('feature map', name, shapes)
        return name
    candidates = [key for key, (height, width, _) in shapes.items() if height * width > 1] or list(shapes)
    if not candidates:
        raise UserError(f'the network {type(network).__name__} has no feature maps')
    return candidates[-1]


def split_at(network: Network, variables: Any, images: jax.Array,
             name: str) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array, jax.Array], jax.Array]]:
    """Return the two parts of a network before and after a feature map, in evaluation.

    Args:
      network: the network.
      variables: its variables.
      images: (N, H, W, C), or their shape and type; both functions take images of this shape.
      name: name of the feature map.

    Returns:
      A function from images to the feature map, and one from images and a feature map to the logits. The second uses the
      images where the logits depend on them in other ways than through the map.

    Raises:
      UserError: The network has no such feature map, or it does not compute the logits from it.
    """
    def apply(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, maps = network.apply(variables, x, train=False, features=True)
        if name not in maps:
            raise unknown('feature map', name, maps)
        return logits, maps[name]

    trace = jax.make_jaxpr(apply)(images)
    _, feature_map = trace.jaxpr.outvars
    if not any(feature_map in eqn.invars for eqn in trace.jaxpr.eqns):
        raise UserError(f'{type(network).__name__} does not compute its logits from the feature map {name!r}, which is a '
                        'copy', hint='choose another map')

    def after(x: jax.Array, value: jax.Array) -> jax.Array:
        logits: jax.Array = interpret(trace, (x,), replacements={feature_map: value})[0]
        return logits
    return lambda x: apply(x)[1], after


def interpret(trace: core.ClosedJaxpr, inputs: Sequence[Any], rule: Rule = lambda *_: None,
              replacements: Mapping[Any, Any] = types.MappingProxyType({})) -> list[Any]:
    """Evaluate a traced function with changes.

    Args:
      trace: the trace.
      inputs: its inputs.
      rule: see `Rule`.
      replacements: values of variables of the trace that replace the computed ones.
    """
    jaxpr = trace.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*trace.consts, *inputs], strict=True))
    values.update({v: x for v, x in replacements.items() if v in values})

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else values[variable]
    for eqn in jaxpr.eqns:
        operands = [read(v) for v in eqn.invars]
        results = rule(eqn, operands)
        if results is None:
            results = _evaluate(jaxpr, eqn, operands)
        values.update({v: replacements.get(v, x) for v, x in zip(eqn.outvars, results, strict=True)})
    return [read(v) for v in jaxpr.outvars]


def _evaluate(jaxpr: core.Jaxpr, eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """Evaluate one equation of a jaxpr, through JAX's public function for jaxprs."""
    arguments = {v: x for v, x in zip(eqn.invars, operands, strict=True) if not isinstance(v, core.Literal)}
    new_variable = core.gensym()
    results = [new_variable(v.aval) for v in eqn.outvars]
    single = jaxpr.replace(constvars=[], invars=list(arguments), outvars=results, eqns=[eqn.replace(outvars=results)],
                           debug_info=jaxpr.debug_info.with_unknown_names())
    return list(core.jaxpr_as_fun(core.ClosedJaxpr(single, []))(*arguments.values()))


# ---- ReLUs with another gradient


@jax.custom_vjp
def _guided_relu(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, 0)


_guided_relu.defvjp(lambda x: (jnp.maximum(x, 0), x), lambda x, g: (jnp.where(x > 0, jnp.maximum(g, 0), 0),))


@jax.custom_vjp
def _deconvnet_relu(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, 0)


_deconvnet_relu.defvjp(lambda x: (jnp.maximum(x, 0), None), lambda _, g: (jnp.maximum(g, 0),))


@jax.custom_vjp
def _first_maximum(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the maximum of each pair; the first of equal ones gets the gradient, as a switch of max pooling does."""
    return jnp.maximum(x, y)


_first_maximum.defvjp(lambda x, y: (jnp.maximum(x, y), x >= y),
                      lambda is_first, g: (jnp.where(is_first, g, 0), jnp.where(is_first, 0, g)))

@jax.custom_vjp
def _redirected_relu(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, 0)


def _redirected_backward(x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    gradient = jnp.where(x > 0, g, 0)
    is_dead = (gradient == 0).all(range(1, g.ndim), keepdims=True)
    return (jnp.where(is_dead, jnp.maximum(g, 0), gradient),)


_redirected_relu.defvjp(lambda x: (jnp.maximum(x, 0), x), _redirected_backward)

_LOOPS = 'scan', 'while', 'cond'
_RELUS = {'guided': _guided_relu, 'deconvnet': _deconvnet_relu, 'redirected': _redirected_relu}


def with_relu_gradient(function: Callable[[jax.Array], Any], images: jax.Array, gradient: str, *,
                       fixed: Collection[str] = (), required: bool = True) -> Callable[[jax.Array], Any]:
    """Return a function with the same results and another gradient of its ReLUs.

    Of the positions that tie in a window of max pooling, only one gets the gradient.

    Args:
      function: maps images to an array or a tree of arrays.
      images: (N, H, W, C), or their shape and type.
      gradient: `guided`, which passes positive gradients where the ReLU is active (Springenberg et al. 2014, "Striving for
        simplicity: the all convolutional net"); `deconvnet`, which passes positive gradients everywhere (Zeiler & Fergus
        2013, "Visualizing and understanding convolutional networks"); or `redirected`, the true gradient, but for an image
        whose gradient vanishes at a ReLU its positive part, so that gradient ascent leaves a region where all units are off
        (Olah et al. 2017, "Feature visualization").
      fixed: names of primitives whose results count as constants.
      required: whether the function must have a ReLU.

    Raises:
      UserError: The function has no ReLU, and `required` is True.
    """
    trace, shapes = jax.make_jaxpr(function, return_shape=True)(images)
    num_relus = 0

    def rule(eqn: Any, operands: Sequence[Any]) -> Sequence[Any] | None:
        nonlocal num_relus
        if eqn.primitive.name == 'max':
            constants = [v.val if isinstance(v, core.Literal) else None for v in eqn.invars]
            if constants == [None, None]:
                return [_first_maximum(*operands)]
            if 0 not in constants:  # such as a clipped value
                return None
            num_relus += 1
            return [_RELUS[gradient](operands[constants.index(None)])]
        if eqn.primitive.name in fixed:
            return [eqn.primitive.bind(*map(jax.lax.stop_gradient, operands), **eqn.params)]
        if not any(_contains(inner, {'max', *fixed}) for inner in core.jaxprs_in_params(eqn.params)):
            return None
        if eqn.primitive.name in _LOOPS:
            raise UserError(f'the gradient rule {gradient!r} does not reach a ReLU or a pooling in a loop or a condition '
                            f'({eqn.primitive.name})')
        inner = next(eqn.params[key] for key in ('jaxpr', 'call_jaxpr', 'fun_jaxpr') if key in eqn.params)
        closed = inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, [])
        return interpret(closed, operands, rule)

    def modified(x: jax.Array) -> Any:
        return jax.tree.unflatten(jax.tree.structure(shapes), interpret(trace, (x,), rule))
    jax.eval_shape(modified, images)
    if required and not num_relus:
        raise UserError(f'the gradient rule {gradient!r} is that of ReLUs, and the network has none')
    return modified


def _contains(jaxpr: Any, primitives: Collection[str]) -> bool:
    """Return whether a jaxpr, or one within it, has one of these primitives."""
    jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
    return any(eqn.primitive.name in primitives or any(
        _contains(inner, primitives) for inner in core.jaxprs_in_params(eqn.params)) for eqn in jaxpr.eqns)
