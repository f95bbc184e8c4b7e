"""Convolutions of 8-bit integers on the CPU, through oneDNN, with requantisation, residual sum and activation fused.

A layer computes `activation(scale * (x * kernel) + bias + residual)` and, if its output is quantised, rounds that to the
nearest integers. Products are summed exactly, in 32 bits. Without VNNI, pairs of products are summed in 16 bits first, which
unsigned integers above 127 would overflow (see `Integers`), and oneDNN halves the weights of layers with signed inputs.
"""

import ctypes
import dataclasses
import weakref

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.errors import UserError
from jaxcnn.ops import native

ACTIVATIONS = 'none', 'relu', 'relu6'
# values of dnnl_cpu_isa_t, each a set of bits that contains those of the sets below it
_INSTRUCTION_SETS = {
    0x1: 'SSE4.1', 0x3: 'AVX', 0x7: 'AVX2', 0xf: 'AVX2 with VNNI', 0x27: 'AVX-512', 0x67: 'AVX-512 with VNNI',
    0xe7: 'AVX-512 with VNNI and bfloat16'}
_VNNI_BITS = 0x8, 0x40


def instruction_set() -> tuple[str, bool]:
    """Return the name of the instruction set that oneDNN uses, and whether it has products of 8-bit integers.

    Raises:
      UserError: oneDNN is not available.
    """
    native.require(jnp.float32)
    isa = int(native.library().JaxcnnInstructionSet())
    name = _INSTRUCTION_SETS.get(isa, f'instruction set {isa:#x} of oneDNN')
    return name, any(isa & bit for bit in _VNNI_BITS)


@dataclasses.dataclass(frozen=True)
class Integers:
    """The quantisation of an array.

    Attributes:
      scale: the value of one unit.
      signed: int8 instead of uint8.
      high: the largest integer; 127 for unsigned integers where the processor has no VNNI.
    """

    scale: float
    signed: bool
    high: int

    @classmethod
    def for_processor(cls, scale: float, signed: bool, has_vnni: bool) -> 'Integers':
        """Return the quantisation to 8 bits; without VNNI, unsigned integers have 7 bits for the same range."""
        if signed:
            return cls(scale, True, 127)
        return cls(scale, False, 255) if has_vnni else cls(scale * 255 / 127, False, 127)

    @property
    def dtype(self) -> np.dtype:
        """The type of the integers."""
        return np.dtype(np.int8 if self.signed else np.uint8)


class QuantizedConv:
    """A convolution of 8-bit integers.

    Args:
      kernel: int8 (height, width, channels / groups, features).
      kernel_scale: float32 (features,).
      bias: float32 (features,).
      x: the quantisation of the input.
      output: that of the output; None: it is float32.
      residual: that of the residual, for which `output` must be quantised; None: there is none.
      strides: (height, width).
      padding: ((top, bottom), (left, right)).
      dilation: of the kernel, (height, width).
      groups: number of groups.
      activation: one of `ACTIVATIONS`.

    Raises:
      UserError: oneDNN is not available.
    """

    def __init__(self, kernel: np.ndarray, kernel_scale: np.ndarray, bias: np.ndarray, x: Integers, output: Integers | None,
                 residual: Integers | None = None, *, strides: tuple[int, int] = (1, 1),
                 padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0)), dilation: tuple[int, int] = (1, 1),
                 groups: int = 1, activation: str = 'none'):
        native.require(jnp.float32)
        assert output is not None or residual is None
        (top, bottom), (left, right) = padding
        self._kernel_size, self._features = kernel.shape[:2], kernel.shape[3]
        self._x, self._output, self._residual = x, output, residual
        self._strides, self._padding, self._dilation = strides, padding, dilation
        upper = 6.0 if activation == 'relu6' else np.inf
        if output and not output.signed and output.high < 255:
            upper = min(upper, output.high * output.scale)
        scales = np.array([x.scale, output.scale if output else 1, residual.scale if residual else 0, upper], np.float32)
        kind = 2 if np.isfinite(upper) else ACTIVATIONS.index(activation)
        settings = np.array([*kernel.shape, groups, *strides, top, left, bottom, right, *dilation,
                             kind, 1 + residual.signed if residual else 0], np.int64)
        arrays: list[np.ndarray] = [
            settings, scales, np.ascontiguousarray(kernel, np.int8), np.ascontiguousarray(kernel_scale, np.float32),
            np.ascontiguousarray(bias, np.float32)]
        library = native.library()
        library.JaxcnnAddQuantizedLayer.restype = ctypes.c_int64
        self._number = library.JaxcnnAddQuantizedLayer(*(array.ctypes.data_as(ctypes.c_void_p) for array in arrays))
        weakref.finalize(self, library.JaxcnnRemoveQuantizedLayer, ctypes.c_int64(self._number))

    def __call__(self, x: jax.Array, residual: jax.Array | None = None) -> jax.Array:
        """Return the output (N, H', W', features).

        Args:
          x: integers (N, H, W, C).
          residual: integers of the shape of the output.
        """
        if x.dtype != self._x.dtype:
            raise UserError(f'expected an input of {self._x.dtype}, got {x.dtype}')
        sizes = [(side + sum(pads) - (size - 1) * dilation - 1) // stride + 1 for side, pads, size, dilation, stride in zip(
            x.shape[1:3], self._padding, self._kernel_size, self._dilation, self._strides, strict=True)]
        dtype = self._output.dtype if self._output else np.dtype(np.float32)
        shape = jax.ShapeDtypeStruct((len(x), *sizes, self._features), dtype)
        if self._residual is None:
            y: jax.Array = jax.ffi.ffi_call(native.QUANTIZED_CONV, shape)(x, layer=np.int64(self._number))
            return y
        assert residual is not None
        # the residual's buffer becomes that of the output, whose type may have another sign
        signed_residual = jax.lax.bitcast_convert_type(residual, dtype)
        y = jax.ffi.ffi_call(native.QUANTIZED_SUM, shape, input_output_aliases={1: 0})(
            x, signed_residual, layer=np.int64(self._number))
        return y
