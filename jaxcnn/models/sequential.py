"""Networks written as a string of layers, such as `'conv(32)|norm|relu|max_pool(2)|flatten|dense'`."""

import bisect
import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax

from jaxcnn.config import bind, parse_calls
from jaxcnn.errors import UserError, name_field, unknown
from jaxcnn.models.network import Maps, Models, Network
from jaxcnn.models.sequential_layers import LAYERS, Conv, Dense, Layer, Shape

FIELD = 'config.model.layers'
MAX_IMAGE_SIZE = 1 << 40  # larger than any image

EXAMPLE = ('conv(32)|norm|relu|max_pool(2)|conv(64)|norm|relu|max_pool(2)|conv(128)|norm|relu|'
           'flatten|dense(128)|relu|dropout|dense')


@dataclasses.dataclass(frozen=True)
class Entry:
    """A layer of a string.

    Attributes:
      layer: the layer.
      label: its number, counted from 1, and its text in the string, for errors.
    """

    layer: Layer
    label: str


@functools.cache
def parse_layers(text: str) -> tuple[Entry, ...]:
    """Return the layers that a string stands for.

    Raises:
      UserError: A layer or an argument is unknown, or an argument has a value that the layer does not take.
    """
    if not text.strip():
        raise UserError('the string is empty', field=FIELD, hint="a network is, for example, 'conv(32)|relu|flatten|dense'")
    entries = []
    calls = parse_calls(text, FIELD)
    for number, ((name, args, kwargs), call) in enumerate(zip(calls, text.split('|'), strict=True), 1):
        label = f'layer {number}, {call.strip()}'
        if name not in LAYERS:
            raise unknown('layer', name, LAYERS, field=f'layer {number}')
        layer = LAYERS[name](**bind(LAYERS[name], args, kwargs, label))
        with name_field(label):
            layer.check()
        entries.append(Entry(layer, label))
    return tuple(entries)


def shapes(entries: Sequence[Entry], shape: Shape) -> Iterator[Shape]:
    """Yield the shape of each layer's output for images of a shape.

    Raises:
      UserError: A layer does not take its input; the error names the layer.
    """
    for entry in entries:
        with name_field(entry.label):
            shape = entry.layer.output_shape(shape)
        yield shape


def _blocks(entries: Sequence[Entry]) -> list[list[Layer]]:
    """Return each convolution with the elementwise layers after it, and each other layer by itself."""
    blocks: list[list[Layer]] = []
    for layer in (entry.layer for entry in entries):
        if layer.elementwise and blocks and isinstance(blocks[-1][0], Conv):
            blocks[-1].append(layer)
        else:
            blocks.append([layer])
    return blocks


class Sequential(Network):
    """A network whose layers are written as a string, each with the output of the one before it as its input.

    The layers are separated by `|`. Arguments may have names, as in `conv(64, kernel=5, stride=2)`.

    | layer | result |
    |---|---|
    | `conv(features, kernel=3, stride=1, padding=None, groups=1, dilation=1, use_bias=True)` | convolution, see `Conv` |
    | `norm` | BatchNorm |
    | `relu`, `leaky_relu`, `elu` and the other names of `layers.ACTIVATIONS` | activation |
    | `lrn(size=5, alpha=1e-4, beta=0.75, k=2.0)` | local response normalisation |
    | `max_pool(size, stride=None, padding=0)`, `avg_pool(size, stride=None, padding=0)` | pooling |
    | `global_avg_pool` | mean over the map, a vector |
    | `flatten` | the map as a vector, so that all images must have one size |
    | `dense(features)` | fully connected layer; the last layer is `dense` without an argument, one feature for each class |
    | `dropout(rate)` | dropout; without an argument by the field `dropout` |

    With `remat`, a block is a convolution with the normalisation, activations and dropout that follow it.

    Attributes:
      layers: the layers.
    """

    layers: str = EXAMPLE
    dropout: float = 0.5

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        with name_field(FIELD):
            self._check_layers()

    def _check_layers(self) -> None:
        entries = parse_layers(self.layers)
        for entry in entries[:-1]:
            if isinstance(entry.layer, Dense) and entry.layer.features is None:
                raise UserError('it needs a number of features, as in dense(256); only the last layer has none',
                                field=entry.label)
        *_, last_shape = shapes(entries, Shape(None, (MAX_IMAGE_SIZE, MAX_IMAGE_SIZE)))
        if not isinstance(entries[-1].layer, Dense) or entries[-1].layer.features is not None:
            raise UserError('the last layer must be dense without an argument, which has a feature for each class',
                            field=entries[-1].label,
                            hint=f"append '|{'dense' if last_shape.size is None else 'global_avg_pool|dense'}'")

    def min_image_size(self) -> int:
        """See `Network.min_image_size`."""
        entries = parse_layers(self.layers)

        def fits(side: int) -> bool:
            try:
                return bool(list(shapes(entries, Shape(None, (side, side)))))
            except UserError:
                return False
        return bisect.bisect_left(range(MAX_IMAGE_SIZE), True, lo=1, key=fits)

    def check_image(self, shape: Sequence[int]) -> None:
        """See `Network.check_image`; the error names the layer that does not take its input."""
        height, width, channels = shape
        with name_field(FIELD):
            try:
                list(shapes(parse_layers(self.layers), Shape(channels, (height, width))))
            except UserError as error:
                try:
                    super().check_image(shape)
                except UserError as too_small:
                    too_small.add_hint(str(error))
                    raise
                raise

    def published_for(self) -> tuple[tuple[int, int, int], int]:
        """Return the image shape of CIFAR-10, or a larger one if the network needs it, and its number of classes."""
        side = max(32, self.min_image_size())
        return (side, side, 3), 10

    def forward(self, x: jax.Array, train: bool, maps: Maps) -> jax.Array:
        """See `Network.forward`; the feature maps are `conv1`, `conv2` and so on, after the activations."""
        for block in _blocks(parse_layers(self.layers)):
            if isinstance(block[0], Conv):
                x = maps[f'conv{len(maps) + 1}'] = self.block(type(self).apply_layers, x, train, block)
            else:
                x = self.apply_layers(x, train, block)
        return x

    def apply_layers(self, x: jax.Array, train: bool, layers: Sequence[Layer]) -> jax.Array:
        """Apply layers one after the other."""
        for layer in layers:
            x = layer.apply(self, x, train)
        return x


MODELS: Models = {'sequential': (Sequential, {})}
