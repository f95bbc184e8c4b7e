"""Find which channels of a network must be removed together, and what its layers cost, from a trace.

A residual sum needs the same channels from all of its operands, a depthwise convolution has its input's channels, and the
rows of a dense layer after a flattened map belong to the channels of that map. `couple(network, variables, image_shape)`
derives this from the primitives of a network, as `complexity.py` does for the cost, and depends on no particular layers.

Each axis of each array has a label for every element. Primitives relate the labels of their operands and results; labels
that are related in any way form a unit, which is removed as one.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.analysis.receptive_field import ELEMENTWISE, called_jaxpr
from jaxcnn.models import Network
from jaxcnn.optim import path_name

Labels = np.ndarray | None  # of the elements along an axis; None if they are all the same, as after broadcasting
FIXED = 0  # the label of elements that cannot be removed, such as those along the height of a map
ZERO = -1  # the label of padded zeros, which go with anything


@dataclasses.dataclass(frozen=True)
class Product:
    """A convolution or a matrix product.

    Attributes:
      factor: multiply-adds for one image, divided by the sizes of `axes`.
      axes: the unit of each element of the axes that removing channels shortens, or -1 for elements that stay.
    """

    factor: float
    axes: tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class Coupling:
    """The channels of a network, as units that are removed as one.

    Attributes:
      axes: by the path of a variable, such as `params/Conv_0/kernel`, and its axis: the unit of each element, or -1 for
        elements that stay. Axes of which nothing can be removed are left out.
      features: by the path of a variable: the unit of each element of its last axis, as in `axes`.
      num_units: number of units.
      products: the products that the logits need.
      reasons: why layers keep all of their features, by the name of the layer.
      layers: names of the layers with features that can be removed, in the order of their parameters.
      evaluated: paths of the variables that the logits need; auxiliary classifiers have others.
    """

    axes: dict[tuple[str, int], np.ndarray]
    features: dict[str, np.ndarray]
    num_units: int
    products: tuple[Product, ...]
    reasons: dict[str, str]
    layers: tuple[str, ...]
    evaluated: frozenset[str]

    def multiply_adds(self, removed: np.ndarray) -> float:
        """Return the multiply-adds for one image without the units for which `removed` (num_units,) is True."""
        stays = np.append(~removed, True)  # the last entry is that of -1
        return sum(product.factor * math.prod(int(stays[units].sum()) for units in product.axes)
                   for product in self.products)

    def narrow(self, variables: Mapping[str, Any], removed: np.ndarray) -> dict[str, Any]:
        """Return the variables without the removed units."""
        stays = np.append(~removed, True)

        def remove(path: Any, array: Any) -> Any:
            name = path_name(path)
            for axis in range(array.ndim):
                if (name, axis) in self.axes:
                    array = np.compress(stays[self.axes[name, axis]], array, axis)
            return array
        return jax.tree_util.tree_map_with_path(remove, dict(variables))

    def widths(self, removed: np.ndarray) -> dict[str, int]:
        """Return the features of each layer without the removed units, for `Network.layer_widths`."""
        stays = np.append(~removed, True)
        return {layer: int(stays[self.features[f'params/{layer}/kernel']].sum()) for layer in self.layers}


def couple(network: Network, variables: Mapping[str, Any], image_shape: Sequence[int]) -> Coupling:
    """Return the units of channels of a network.

    In a grouped convolution, the channels at the same position of all groups are one unit, so that the groups stay equal.
    Channels that only auxiliary classifiers have stay: without them, evaluation costs as much as before.

    Args:
      network: the network.
      variables: its variables, or their shapes.
      image_shape: (H, W, C) of its input.
    """
    # convolutions as single primitives; BatchNorm and dropout as in evaluation, also where training adds classifiers
    network = network.clone(conv_implementation='xla', bn_frozen=True, remat=False)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(variables))
    walk = _Walk()
    paths: list[str] = []
    parameter_labels: list[list[Labels]] = []
    for path, leaf in jax.tree.leaves_with_path(shapes):
        paths.append(path_name(path))
        is_direct = len(path) == 2  # a parameter of the network itself, whose shape no layer's features determine
        parameter_labels.append([walk.new_labels(size, fixed=is_direct) for size in leaf.shape])
    for train in (False, True):
        def apply(variables: Any, images: jax.Array, train: bool = train) -> Any:
            return network.apply(variables, images, train=train, rngs={'dropout': jax.random.key(0)})
        trace = jax.make_jaxpr(apply)(shapes, images)
        walk.products_count = not train
        if not train:
            read = {v for eqn in trace.jaxpr.eqns for v in eqn.invars if not hasattr(v, 'val')}
            evaluated = frozenset(path for path, v in zip(paths, trace.jaxpr.invars, strict=False) if v in read)
        outputs = walk.walk(trace.jaxpr, [*parameter_labels, [np.full(n, FIXED) for n in images.shape]])
        for labels in outputs:
            walk.fix(labels, 'its features are the outputs of the network')
    return walk.coupling(paths, parameter_labels, evaluated)


def _array(labels: Labels, size: int, label: int = FIXED) -> np.ndarray:
    """Return the labels of an axis, which are `label` if they are all the same."""
    return np.full(size, label) if labels is None else labels


class _Walk:
    """A walk over the primitives of a network, which collects the relations of labels.

    Attributes:
      products_count: whether products are added to `products`.
    """

    def __init__(self) -> None:
        self.products_count = True
        self._num_labels = 1
        self._pairs: list[np.ndarray] = []  # (2, n) labels that are related
        self._fixed: list[tuple[np.ndarray, str]] = []  # labels that cannot be removed, and the reason
        self._products: list[tuple[float, list[np.ndarray]]] = []

    def new_labels(self, size: int, fixed: bool = False) -> np.ndarray:
        """Return labels of an axis that no other axis has."""
        if fixed or size == 1:
            return np.zeros(size, int)
        labels = np.arange(self._num_labels, self._num_labels + size)
        self._num_labels += size
        return labels

    def fix(self, labels: Sequence[Labels], reason: str) -> None:
        """Say that the elements of some axes cannot be removed."""
        for axis_labels in labels:
            if axis_labels is not None and (axis_labels > FIXED).any():
                self._fixed.append((axis_labels[axis_labels > FIXED], reason))

    def relate(self, left: Labels, right: Labels) -> Labels:
        """Say that the elements at the same index of two axes are removed as one, and return the labels of the result."""
        if left is None or right is None:
            return right if left is None else left
        self._pairs.append(np.stack([left, right])[:, (left > FIXED) & (right > FIXED)])
        reason = 'it is combined with an array whose channels cannot be removed'
        self.fix([left[right == FIXED], right[left == FIXED]], reason)
        return np.where((left == ZERO) | (right == FIXED), right, left)

    def walk(self, jaxpr: Any, inputs: Sequence[list[Labels]]) -> list[list[Labels]]:
        """Visit the primitives of a jaxpr, and return the labels of its outputs."""
        labels: dict[Any, list[Labels]] = dict(zip(jaxpr.invars, inputs, strict=True))

        def constant(shape: Sequence[int]) -> list[Labels]:
            return [None if size == 1 else np.zeros(size, int) for size in shape]
        labels.update({v: constant(v.aval.shape) for v in jaxpr.constvars})

        def read(v: Any) -> list[Labels]:
            return constant(v.aval.shape) if hasattr(v, 'val') else labels[v]
        for eqn in jaxpr.eqns:
            operands = [read(v) for v in eqn.invars]
            if call := called_jaxpr(eqn, operands):
                results = self.walk(*call)
            elif all(axis is None for operand in operands for axis in operand):
                results = [[None] * len(v.aval.shape) for v in eqn.outvars]
            else:
                results = self._visit(eqn, operands)
            labels.update(zip(eqn.outvars, results, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _visit(self, eqn: Any, operands: list[list[Labels]]) -> list[list[Labels]]:
        """Visit a primitive, and return the labels of its outputs."""
        name, params = eqn.primitive.name, eqn.params
        reason = f'{name} does not treat each channel by itself'
        shapes = [v.aval.shape for v in eqn.invars]
        results: list[list[Labels]] = [[np.zeros(n, int) for n in v.aval.shape] for v in eqn.outvars]
        result, labels = results[0], operands[0]
        if name == 'optimization_barrier':
            return operands
        if name in ELEMENTWISE:  # an operand of fewer dimensions is a scalar
            arrays = [pair for pair in zip(operands, shapes, strict=True) if len(pair[0]) == len(result)]
            for axis, size in enumerate(eqn.outvars[0].aval.shape):
                axis_labels: Labels = None
                for array, shape in arrays:
                    if shape[axis] == size:  # others are broadcast
                        axis_labels = self.relate(axis_labels, array[axis])
                result[axis] = axis_labels
        elif name == 'reshape' and params.get('dimensions') is None:
            return [self._reshape(labels, shapes[0], eqn.outvars[0].aval.shape)]
        elif name == 'transpose':
            return [[labels[axis] for axis in params['permutation']]]
        elif name == 'squeeze':
            dropped = {axis % len(labels) for axis in params['dimensions']}
            return [[axis_labels for axis, axis_labels in enumerate(labels) if axis not in dropped]]
        elif name == 'broadcast_in_dim':
            result[:] = [None] * len(result)
            for axis, output_axis in enumerate(params['broadcast_dimensions']):
                if shapes[0][axis] == eqn.outvars[0].aval.shape[output_axis]:
                    result[output_axis] = labels[axis]
        elif name == 'tile':
            result[:] = [None if axis is None else np.tile(axis, count)
                         for axis, count in zip(labels, params['reps'], strict=True)]
        elif name == 'concatenate':
            for axis in range(len(result)):
                if axis == params['dimension']:
                    result[axis] = np.concatenate([_array(array[axis], shape[axis], ZERO)
                                                   for array, shape in zip(operands, shapes, strict=True)])
                else:
                    axis_labels = None
                    for array in operands:
                        axis_labels = self.relate(axis_labels, array[axis])
                    result[axis] = axis_labels
        elif name == 'pad':
            for axis, (low, high, inner) in enumerate(params['padding_config']):
                axis_labels = labels[axis]
                if (low, high, inner) == (0, 0, 0):
                    result[axis] = axis_labels
                elif axis_labels is not None and (axis_labels != FIXED).any():
                    if min(low, high) < 0 or inner:
                        self.fix([axis_labels], reason)
                    else:
                        result[axis] = np.pad(axis_labels, (low, high), constant_values=ZERO)
        elif name in ('slice', 'split'):
            for output, v in zip(results, eqn.outvars, strict=True):
                for axis, size in enumerate(v.aval.shape):
                    if size == shapes[0][axis]:
                        output[axis] = labels[axis]
                    else:
                        self.fix([labels[axis]], 'its features are sliced by their index, as in attention or LRN')
        elif name.startswith('reduce_window'):
            for axis, size in enumerate(params['window_dimensions']):
                if size == 1 and shapes[0][axis] == eqn.outvars[0].aval.shape[axis]:
                    result[axis] = labels[axis]
                else:
                    self.fix([labels[axis]], 'a window reaches over neighbouring channels')
        elif name.startswith('reduce_') or name in ('argmax', 'argmin'):
            self.fix([labels[axis] for axis in params['axes']], 'its channels are normalised or reduced to a value')
            remaining = [axis_labels for axis, axis_labels in enumerate(labels) if axis not in params['axes']]
            return [remaining] * len(results)
        elif name == 'conv_general_dilated':
            return [self._convolution(params, operands, shapes, eqn.outvars[0].aval.shape)]
        elif name == 'dot_general':
            return [self._dot(params['dimension_numbers'], operands, shapes)]
        else:
            for operand in operands:
                self.fix(operand, reason)
        return results

    def _reshape(self, labels: list[Labels], shape: Sequence[int], new_shape: Sequence[int]) -> list[Labels]:
        """Return the labels after a reshape. It may merge axes, or divide them, of which one at most has channels."""
        result: list[Labels] = []
        start = new_start = 0
        while start < len(shape) and new_start < len(new_shape):
            stop, new_stop = start + 1, new_start + 1
            while (size := math.prod(shape[start:stop])) != (new_size := math.prod(new_shape[new_start:new_stop])):
                if size < new_size:
                    stop += 1
                else:
                    new_stop += 1
            result += self._regroup(labels[start:stop], shape[start:stop], new_shape[new_start:new_stop])
            start, new_start = stop, new_stop
        return result + [np.zeros(1, int)] * (len(new_shape) - new_start)

    def _regroup(self, labels: Sequence[Labels], shape: Sequence[int], new_shape: Sequence[int]) -> list[Labels]:
        """Return the labels of axes that are reshaped as one."""
        if all(axis is None for axis in labels):
            return [None] * len(new_shape)
        if [size for size in shape if size > 1] == [size for size in new_shape if size > 1]:
            remaining = [axis for axis, size in zip(labels, shape, strict=True) if size > 1][::-1]
            return [remaining.pop() if size > 1 else np.zeros(1, int) for size in new_shape]
        is_channel = [axis is not None and bool((axis > FIXED).any()) for axis in labels]
        fixed: list[Labels] = [np.zeros(size, int) for size in new_shape]
        if sum(is_channel) > 1:
            self.fix(labels, 'its features are mixed with those of another axis')
        if sum(is_channel) != 1:
            return fixed
        index = is_channel.index(True)
        axis_labels = labels[index]
        assert axis_labels is not None
        grid = np.broadcast_to(np.expand_dims(axis_labels, [a for a in range(len(shape)) if a != index]), shape)
        grid = grid.reshape(new_shape)
        for axis in range(len(new_shape)):  # the axis that the labels run over
            along = np.moveaxis(grid, axis, 0).reshape(new_shape[axis], -1)
            if (along == along[:, :1]).all():
                return [along[:, 0] if a == axis else fixed[a] for a in range(len(new_shape))]
        self.fix(labels, 'its features are divided by their index')
        return fixed

    def _convolution(self, params: Mapping[str, Any], operands: list[list[Labels]], shapes: Sequence[Sequence[int]],
                     shape: Sequence[int]) -> list[Labels]:
        """Return the labels of the output of a convolution."""
        (in_batch, in_features, *in_spatial), (features, channels, *spatial), (batch, out_features, *_) = params[
            'dimension_numbers']
        image, kernel = operands
        reason = 'it is an operand of a convolution over another axis'
        self.fix([*(image[axis] for axis in in_spatial), *(kernel[axis] for axis in spatial)], reason)
        groups = params['feature_group_count']
        kernel_in, kernel_out = (_array(kernel[axis], shapes[1][axis]) for axis in (channels, features))
        inputs = image[in_features]
        if params['batch_group_count'] > 1:
            self.fix([*image, *kernel], reason)
        elif len(kernel_in) == 1 and groups > 1:  # depthwise
            if inputs is not None:
                self.relate(np.repeat(inputs, len(kernel_out) // groups), kernel_out)
        else:
            by_group: list[Labels] = [None] * groups if inputs is None else list(np.split(inputs, groups))
            for group_inputs, group_outputs in zip(by_group, np.split(kernel_out, groups), strict=True):
                if group_inputs is None:
                    self.fix([kernel_in], reason)
                self.relate(group_inputs, kernel_in)
                self.relate(kernel_out[:len(group_outputs)], group_outputs)
        positions = math.prod(shapes[1][axis] for axis in spatial) * math.prod(shape) / shape[out_features]
        self._add_product(positions, [kernel_in, kernel_out])
        result: list[Labels] = [np.zeros(size, int) for size in shape]
        result[batch], result[out_features] = image[in_batch], kernel_out
        return result

    def _dot(self, dimension_numbers: Any, operands: list[list[Labels]], shapes: Sequence[Sequence[int]]) -> list[Labels]:
        """Return the labels of the output of a matrix product."""
        contracting, batch = dimension_numbers
        reason = 'it is an operand of a product over another axis'
        left, right = operands
        for a, b in zip(*contracting, strict=True):
            if left[a] is None or right[b] is None:  # a sum over channels
                self.fix([left[a], right[b]], reason)
            self.relate(left[a], right[b])
        result = [self.relate(left[a], right[b]) for a, b in zip(*batch, strict=True)]
        for operand, summed, shared in zip(operands, contracting, batch, strict=True):
            result += [labels for axis, labels in enumerate(operand) if axis not in summed and axis not in shared]
        if any(all(labels is None for labels in operand) for operand in operands):
            return result  # a product with a constant
        sizes = [shapes[0][a] for a in contracting[0]]
        axes = [_array(left[a], size) for a, size in zip(contracting[0], sizes, strict=True)]
        free = [shapes[0][a] for a in batch[0]] + [
            size for shape, summed, shared in zip(shapes, contracting, batch, strict=True)
            for a, size in enumerate(shape) if a not in summed and a not in shared]
        axes += [_array(labels, size) for labels, size in zip(result, free, strict=True)]
        self._add_product(1, axes)
        return result

    def _add_product(self, factor: float, axes: list[np.ndarray]) -> None:
        if self.products_count:
            self._products.append((factor, axes))

    def coupling(self, paths: Sequence[str], parameter_labels: Sequence[Sequence[Any]],
                 evaluated: frozenset[str]) -> Coupling:
        """Return the units, given the labels of the axes of each variable, and the variables that the logits need."""
        from scipy import sparse
        pairs = np.concatenate([np.zeros((2, 0), int), *self._pairs], 1)
        size = self._num_labels
        graph = sparse.coo_array((np.ones(pairs.shape[1], bool), tuple(pairs)), (size, size))
        component = sparse.csgraph.connected_components(graph, directed=False)[1]
        reason_by_component = {component[FIXED]: ''}
        for labels, reason in self._fixed:
            reason_by_component.update({c: reason_by_component.get(c) or reason for c in np.unique(component[labels])})
        needed = {c for path, labels_by_axis in zip(paths, parameter_labels, strict=True) if path in evaluated
                  for labels in labels_by_axis for c in np.unique(component[labels])}
        reason_by_component.update({c: 'only auxiliary classifiers have them'
                                    for c in np.unique(component) if c not in needed and c not in reason_by_component})
        is_fixed = np.zeros(size, bool)
        is_fixed[list(reason_by_component)] = True
        free_components = np.unique(component[~is_fixed[component]])
        unit_by_component = np.full(size, -1)
        unit_by_component[free_components] = np.arange(len(free_components))
        units = np.append(unit_by_component[component], -1)  # the last entry is that of ZERO
        axes = {(path, axis): units[labels] for path, labels_by_axis in zip(paths, parameter_labels, strict=True)
                for axis, labels in enumerate(labels_by_axis) if (units[labels] >= 0).any()}
        features = {path: axes[path, len(labels_by_axis) - 1] for path, labels_by_axis in zip(
            paths, parameter_labels, strict=True) if (path, len(labels_by_axis) - 1) in axes}
        products = tuple(Product(factor, tuple(units[labels] for labels in axes_labels))
                         for factor, axes_labels in self._products)
        reasons, layers = {}, []
        for path, labels_by_axis in zip(paths, parameter_labels, strict=True):
            collection, *modules, name = path.split('/')
            if (collection, name) != ('params', 'kernel') or not modules:
                continue
            if path in features:
                layers.append('/'.join(modules))
            else:
                reasons['/'.join(modules)] = reason_by_component[component[labels_by_axis[-1][0]]] or 'it has one feature'
        return Coupling(axes, features, len(free_components), products, reasons, tuple(layers), evaluated)
