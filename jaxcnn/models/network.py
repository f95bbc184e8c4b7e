"""The base class of all networks."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from jaxcnn.errors import UserError, unknown
from jaxcnn.models.layers import BIASED_LAYERS, BatchNorm, Conv, Dense, activation, constant, initializer
from jaxcnn.models.quantized_layers import Quantizer
from jaxcnn.ops.conv import check_implementation
from jaxcnn.ops.roi import response_geometry

Maps = dict[str, jax.Array]  # feature maps by name
Pool = Callable[[Maps], jax.Array]  # returns regions (K, h, w, C) of feature maps


class Step(NamedTuple):
    """The layers of a network from one feature map, or from the image, to the next.

    Attributes:
      name: name of the feature map that they compute.
      apply: computes it from the previous one.
      windows: kernel size, stride and padding of the layers that have a stride, or a padding other than half the kernel's
        size, in their order.
    """

    name: str
    apply: Callable[[jax.Array], jax.Array]
    windows: tuple[tuple[int, int, int], ...] = ()


class Network(nn.Module):
    """The base class of all networks, which map float images (N, H, W, C) to logits (N, num_classes).

    A subclass implements `forward`, extends `check` for its own fields, and overrides `min_image_size` and `published_for`
    where the defaults do not hold. A network that detectors can use as their backbone also implements `steps`,
    `region_input` and `pooled_features`, and its `forward` calls `trunk`.

    Attributes:
      num_classes: number of logits.
      dtype: type of the computation, float32, bfloat16 or float16; BatchNorm statistics stay float32.
      param_dtype: type of the parameters, float32, bfloat16 or float16; those of BatchNorm stay float32.
      kernel_init: name of the initialiser of convolution and dense kernels.
      bias_init: initial value of biases, any number; a small positive one keeps ReLUs active at first (AlexNet has 1 in some
        layers, TensorFlow's tutorials 0.1). Biases of normalisation layers start at 0 in any case.
      bias_init_layers: layers whose biases start at `bias_init`: `all`, `conv` or `dense`; other biases start at 0.
      conv_implementation: how convolutions are computed: `auto`, or an implementation of `ops.conv.conv_general_dilated` by
        name. With `auto` and `native`, BatchNorm uses the native library on the CPU, too.
      dropout: probability of zeroing a feature, in [0, 1).
      bn_momentum: weight of the old running statistics at each step, or micro-batch (PyTorch's momentum is one minus this).
        The variance that enters is the batch's biased one; PyTorch's running variance is N / (N - 1) times as large.
      bn_frozen: use the running statistics in training, too.
      bn_epsilon: added to the variance.
      bn_axis: name of the pmap axis over which BatchNorm statistics are averaged.
      quantizer: rounds the inputs and kernels of convolutions and dense layers; None: they stay as they are.
      remat: store only the outputs of blocks for the backward pass and recompute what is inside them.
      layer_widths: features of convolutions and dense layers by their names, such as `Conv_0`, in place of those of the
        architecture; removing channels sets them. A depthwise convolution has as many groups as its input has channels.
    """

    left_out_gradient: ClassVar[str] = ''  # on what the loss depends without a gradient, by design
    outputs: ClassVar[str] = 'logits'  # what it returns: `logits`, or `detections` if it is a `detection.Detector`

    num_classes: int = 10
    dtype: str = 'float32'
    param_dtype: str = 'float32'
    kernel_init: str = 'he_normal'
    bias_init: float = 0.0
    bias_init_layers: str = 'all'
    conv_implementation: str = 'auto'
    dropout: float = 0.0
    bn_momentum: float = 0.9
    bn_frozen: bool = False
    bn_epsilon: float = 1e-5
    bn_axis: str | None = None
    quantizer: Quantizer | None = None
    remat: bool = False
    layer_widths: Mapping[str, int] = FrozenDict()

    def check(self) -> None:
        """Check the fields; `models.create` calls this method.

        Raises:
          UserError: A field has a value with which no network can be built.
        """
        for name in ('dtype', 'param_dtype'):
            dtypes = ('float32', 'bfloat16', 'float16')
            if getattr(self, name) not in dtypes:
                raise unknown(name, getattr(self, name), dtypes)
        initializer(self.kernel_init)
        if self.bias_init_layers not in BIASED_LAYERS:
            raise unknown('bias_init_layers', self.bias_init_layers, BIASED_LAYERS)
        check_implementation('conv_implementation', self.conv_implementation)
        for name, low, high in (('dropout', 0, 1), ('bn_momentum', 0, 1)):
            if not low <= getattr(self, name) < high:
                raise UserError(f'{name} must be in [{low}, {high}), got {getattr(self, name)!r}')
        if self.bn_epsilon <= 0:
            raise UserError(f'bn_epsilon must be above 0, got {self.bn_epsilon!r}')
        if self.num_classes < 1:
            raise UserError(f'num_classes must be at least 1, got {self.num_classes!r}')
        for layer, width in self.layer_widths.items():
            if isinstance(width, bool) or not isinstance(width, int) or width < 1:
                raise UserError(f'layer_widths must be positive integers, got {width!r} for {layer}')

    def min_image_size(self) -> int:
        """Return the smallest height and width, in pixels, of images that the network accepts."""
        return 1

    def check_image(self, shape: Sequence[int]) -> None:
        """Check that the network accepts images of a shape (H, W, C).

        Raises:
          UserError: The images are smaller than `min_image_size`.
        """
        smallest = self.min_image_size()
        if min(shape[:2]) < smallest:
            raise UserError(f'{type(self).__name__} needs images of at least {smallest} x {smallest} pixels, '
                            f'got {shape[0]} x {shape[1]}')

    def check_output(self, output: Any) -> None:
        """Check the output of the network in training or evaluation.

        Raises:
          UserError: The output is not one row of logits (num_classes,) for each image.
        """
        logits = output[0] if isinstance(output, tuple) else output
        if logits.ndim != 2 and getattr(self, 'head', '') == 'dense_conv':
            raise UserError("training needs one row of logits for each image, and 'dense_conv' gives a map of scores "
                            f'{logits.shape[1:]}', field='config.model.head',
                            hint="train with head='dense', which has the same parameters")
        if logits.shape[1:] != (self.num_classes,):
            shape = ', '.join(map(str, ('N', *logits.shape[1:])))
            raise UserError(f'{type(self).__name__} gives an output of shape ({shape}) for N images, expected '
                            f'(N, {self.num_classes})', field='config.model',
                            hint='the last layer has self.num_classes features, as many as the data has classes')

    def classifier_part(self) -> 'tuple[str, Network]':
        """Return the part whose parameters a classifier's weights initialise: its name in the parameters, and itself.

        By default it is the network as a whole, which has no name.
        """
        return '', self

    def published_for(self) -> tuple[tuple[int, int, int], int]:
        """Return the image shape (H, W, C) and the number of classes for which the network was published."""
        return (224, 224, 3), 1000

    def forward(self, x: jax.Array, train: bool, maps: Maps) -> Any:
        """Compute the logits; every network implements this method, and `__call__` calls it.

        Args:
          x: images (N, H, W, C).
          train: see `__call__`.
          maps: the network adds its feature maps (N, H', W', C') to this dict, by name, in the order of computation.

        Returns:
          Logits (N, num_classes), or in training a tuple of these and the logits of the auxiliary classifiers.
        """
        raise UserError(f'the network {type(self).__name__} has no method forward(self, x, train, maps)')

    def steps(self, train: bool) -> list[Step]:
        """Return the steps that compute the feature maps one after the other; a network for detectors implements it."""
        raise UserError(f'the network {type(self).__name__} cannot be the backbone of a detector',
                        hint='choose a ResNet, VGG, AlexNet, MobileNet v2 or EfficientNet-Lite, such as resnet18')

    def region_input(self) -> tuple[str, int]:
        """Return the name of the feature map from which detectors without a feature pyramid pool their regions, and the
        height and width of a pooled region."""
        return self.steps(False)[-1].name, 7

    def pooled_features(self, x: jax.Array, train: bool) -> jax.Array:
        """Return the features (N, F) before the last dense layer, from the last feature map (N, H, W, C)."""
        return x.mean((1, 2))

    def map_geometry(self, name: str) -> tuple[int, float]:
        """Return the stride of a feature map, and the centre of its first receptive field, in pixels of the image.

        They are the arguments `stride` and `first_center` of `ops.roi.map_to_features`. With the padding `SAME` they hold
        for images whose sides are multiples of the stride.
        """
        windows: list[tuple[int, int, int]] = []
        for step in self._steps(False, last=name):
            windows.extend(step.windows)
        return response_geometry(windows)

    def _steps(self, train: bool, after: str = '', last: str = '') -> list[Step]:
        """Return the steps after one feature map and up to another; by default from the first to the last."""
        steps = self.steps(train)
        names = [step.name for step in steps]
        for name in (after, last):
            if name and name not in names:
                raise unknown(f'feature map of {type(self).__name__}', name, names)
        return steps[names.index(after) + 1 if after else 0:names.index(last) + 1 if last else None]

    def trunk(self, x: jax.Array, train: bool, maps: Maps, after: str = '', last: str = '') -> jax.Array:
        """Compute the feature maps and return the last one.

        Args:
          x: images (N, H, W, C), or the feature map `after`.
          train: see `__call__`.
          maps: the feature maps are added to this dict.
          after: start after this feature map instead of from the images.
          last: stop at this feature map; by default all are computed.
        """
        for step in self._steps(train, after, last):
            x = maps[step.name] = step.apply(x)
        return x

    def feature_maps(self, x: jax.Array, train: bool = False, last: str = '') -> Maps:
        """Compute the feature maps up to `last`, and no layer after it.

        The parameters have the names and shapes that they have in the classifier; those of the layers after `last` do not
        exist. A module that uses the network as its part `backbone` can so start from a classifier's weights.

        Args:
          x: images (N, H, W, C), normalised as in training.
          train: see `__call__`.
          last: name of the last feature map; by default all are computed.

        Raises:
          UserError: The network has no such feature map, or cannot be a backbone.
        """
        maps: Maps = self(x, train, last=last)
        return maps

    def region_features(self, x: jax.Array, train: bool, pool: Pool, last: str = '') -> jax.Array:
        """Compute the feature maps up to `last`, pool regions from them, and apply the classifier's other layers to these.

        The layers after `last`, without the last dense one, map each region to the features that the classifier computes
        of an image: dense layers in VGG and AlexNet, the last stage and the mean in ResNet. Parameters have the names of
        the classifier's. They are numbered in the order of computation, so that all of this is one call.

        Args:
          x: images (N, H, W, C), normalised as in training.
          train: see `__call__`.
          pool: returns pooled regions (K, h, w, C) of the map `last`, or (K, bins, C) where dense layers follow; its
            argument is the dict of the maps. It may call other modules, which must have been created before.
          last: name of the map; by default that of `region_input`.

        Returns:
          (K, F).
        """
        regions: jax.Array = self(x, train, last=last or self.region_input()[0], pool=pool)
        return regions

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, features: bool = False, *, last: str | None = None,
                 pool: Pool | None = None) -> Any:
        """Compute the logits of images.

        Args:
          x: images (N, H, W, C), normalised as in training.
          train: apply dropout, normalise by the batch's statistics, and compute auxiliary classifiers.
          features: also return the feature maps.
          last: return the dict of the feature maps up to this one instead; see `feature_maps`.
          pool: return the features of regions instead; see `region_features`.

        Returns:
          Logits (N, num_classes). In training, networks with auxiliary classifiers return a tuple of their logits and those
          of the auxiliary classifiers. With `features`, a pair of that and of a dict of feature maps (N, H', W', C').

        Raises:
          UserError: The images are not of shape (N, H, W, C), or see `check_image`.
        """
        if x.ndim != 4:
            raise UserError(f'{type(self).__name__} takes images (N, H, W, C), got an array of shape {x.shape}')
        self.check_image(x.shape[1:])
        maps: Maps = {}
        with _set_widths(self.layer_widths, self.path):
            if last is not None:
                self.trunk(x, train, maps, last=last)
                if pool is None:
                    return maps
                return self.pooled_features(self.trunk(pool(maps), train, {}, after=last), train)
            output = self.forward(x, train, maps)
        return (output, maps) if features else output

    def block(self, body: Callable[..., jax.Array], x: jax.Array, *static: Any) -> jax.Array:
        """Return `body(self, x, *static)`, a block of the network, which `remat` recomputes in the backward pass.

        Args:
          body: a method of the class, as in `self.block(type(self).stage, x, train)`.
          x: the block's input.
          *static: further arguments of `body`, none of them an array.
        """
        def call(self: Self, x: jax.Array) -> jax.Array:
            return body(self, x, *static)
        return nn.remat(call)(self, x) if self.remat else call(self, x)

    def conv(self, features: int, size: int | tuple[int, int], stride: int = 1, padding: Any = None,
             **fields: Any) -> Conv:
        """Return a convolution.

        Args:
          features: number of output channels.
          size: side of a square kernel, or (height, width).
          stride: in both directions.
          padding: a number, 'VALID', 'SAME', or ((top, bottom), (left, right)). By default it is half the kernel's size on
            each side, as in PyTorch's networks, which keeps the size of the map at stride 1.
          **fields: further fields of `Conv`.
        """
        kernel = (size, size) if isinstance(size, int) else size
        padding = [(k // 2, k // 2) for k in kernel] if padding is None else padding
        return Conv(features, kernel, (stride, stride), padding, param_dtype=jnp.dtype(self.param_dtype),
                    implementation=self.conv_implementation, quantizer=self._placed_quantizer(),
                    **{'dtype': jnp.dtype(self.dtype), **self.initializers('conv'), **fields})

    def dense(self, features: int, **fields: Any) -> nn.Dense:
        """Return a fully connected layer."""
        fields = {'dtype': jnp.dtype(self.dtype), 'param_dtype': jnp.dtype(self.param_dtype), **self.initializers('dense'),
                  **fields}
        quantizer = self._placed_quantizer()
        return nn.Dense(features, **fields) if quantizer is None else Dense(features, quantizer=quantizer, **fields)

    def _placed_quantizer(self) -> Quantizer | None:
        """Return the quantizer for the devices of this network; its ranges freeze with BatchNorm's statistics."""
        return self.quantizer and dataclasses.replace(self.quantizer, is_frozen=self.bn_frozen, axis_name=self.bn_axis)

    def initializers(self, kind: str) -> dict[str, Any]:
        """Return the initialisers of the kernel and the bias of a layer of the kind `conv` or `dense`."""
        bias = self.bias_init if self.bias_init_layers in ('all', kind) else 0.0
        return {'kernel_init': initializer(self.kernel_init), 'bias_init': constant(bias)}

    def norm(self, x: jax.Array, train: bool, relu: bool = False, zero: bool = False,
             scaled: bool = True) -> jax.Array:
        """Apply batch normalisation (Ioffe & Szegedy 2015), with statistics in float32.

        Args:
          x: activations (N, ..., C).
          train: normalise by the batch's statistics, unless `bn_frozen`.
          relu: apply ReLU afterwards.
          zero: the scale starts at 0 instead of 1.
          scaled: there is a scale.
        """
        scale = nn.initializers.zeros if zero else nn.initializers.ones
        return BatchNorm(use_running_average=not train or self.bn_frozen, momentum=self.bn_momentum, epsilon=self.bn_epsilon,
                         dtype=jnp.dtype(self.dtype), param_dtype=jnp.float32, axis_name=self.bn_axis, relu=relu,
                         scale_init=scale, use_scale=scaled, native=self.conv_implementation in ('auto', 'native'))(x)

    def conv_norm(self, x: jax.Array, train: bool, features: int, size: int | tuple[int, int], stride: int = 1,
                  padding: Any = None, relu: bool = True, zero: bool = False, **fields: Any) -> jax.Array:
        """Apply a convolution without bias, batch normalisation and ReLU; see `conv` and `norm`."""
        return self.norm(self.conv(features, size, stride, padding, use_bias=False, **fields)(x), train, relu, zero)

    def norm_activation(self, x: jax.Array, train: bool, name: str) -> jax.Array:
        """Apply batch normalisation and the activation `name`; see `norm`, which computes a ReLU together with it."""
        return self.norm(x, train, relu=True) if name == 'relu' else activation(name)(self.norm(x, train))

    def drop(self, x: jax.Array, train: bool) -> jax.Array:
        """Apply dropout (Srivastava et al. 2014) in training."""
        return nn.Dropout(self.dropout, deterministic=not train)(x)


def _set_widths(widths: Mapping[str, int], parent: tuple[str, ...]) -> contextlib.AbstractContextManager[None]:
    """Give layers that are called in the context other features and groups; see `Network.layer_widths`.

    Args:
      widths: features by the names of layers.
      parent: path of the network that has the layers.
    """
    def set_width(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        layer = context.module
        width = widths.get('/'.join(layer.path[len(parent):]))
        if width is not None and context.method_name == '__call__':
            # the layer is an object of this call of the network alone, so that it may be changed
            if isinstance(layer, nn.Conv):
                channels, groups = args[0].shape[-1], layer.feature_group_count
                groups = channels if groups == layer.features and width == channels else min(groups, channels)
                object.__setattr__(layer, 'feature_group_count', groups)
            object.__setattr__(layer, 'features', width)
        return call(*args, **kwargs)
    return nn.intercept_methods(set_width) if widths else contextlib.nullcontext()


Models = dict[str, tuple[type[Network], dict[str, Any]]]  # name -> the class and the fields of this variant
