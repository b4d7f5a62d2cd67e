"""Layers and quantizers of a quantized network, in integers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bitsplit.errors import IntegerError
from bitsplit.integer.tensor import LARGEST, IntegerTensor
from bitsplit.network.layers import Columns, kind_of
from bitsplit.network.product import has_plain_forward
from bitsplit.ops.integer import integer_conv, requantize
from bitsplit.ops.quantize import quantize
from bitsplit.quantizers import ActivationQuantizer, WeightQuantizer
from bitsplit.quantizers.powers import exponents, first_other_than_power, powers

WIDEST_LEVEL = 2**15 - 1


class IntegerQuantizer:
    """What an input quantizer does to integers: a rounding shift.  Floats are what enters the network.

    As of the quantizer itself, what a layer computes with is what it reads of the result.
    """

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        self._quantizer = quantizer
        self._exponents = exponents(quantizer.scale)
        self._low = quantizer.grid.low - quantizer.zero_point
        self._high = quantizer.grid.high - quantizer.zero_point

    @property
    def largest(self) -> Tensor:
        """Level that there can be, Tensor[1] or Tensor[channels]."""
        return torch.maximum(-self._low, self._high)

    def __call__(self, x: Tensor) -> IntegerTensor:
        levels = self._shifted(x) if isinstance(x, IntegerTensor) else self._entering(x)
        return IntegerTensor(levels.int(), self._quantizer.per_channel(self._exponents, x))

    def read(self, x: IntegerTensor) -> IntegerTensor:
        """Scales per channel lie in the weights."""
        return IntegerTensor(x.values, torch.zeros_like(x.exponents)) if self._quantizer.is_per_channel else x

    def _shifted(self, x: IntegerTensor) -> Tensor:
        along = self._quantizer.per_channel
        shift = along(self._exponents, x) - x.exponents
        levels = requantize(x.values, shift, x.divisor, -WIDEST_LEVEL, WIDEST_LEVEL)
        low, high = (along(end, x) for end in (self._low, self._high))
        return torch.minimum(torch.maximum(levels, low), high)

    def _entering(self, x: Tensor) -> Tensor:
        if x.numel() == 0 or not x.isfinite().all():
            got = f"an empty batch, {list(x.shape)}" if x.numel() == 0 else "NaN or infinite values"
            raise IntegerError(f"the network's input must be finite numbers, got {got}")
        quantizer = self._quantizer
        axis = quantizer.channel_axis % x.dim() if quantizer.is_per_channel else -1
        grid, zero = quantizer.grid, quantizer.zero_point
        codes = quantize(x, quantizer.scale, zero, axis, grid.low, grid.high)
        return codes.int() - quantizer.per_channel(zero, x)


class IntegerLayer:
    """A layer whose input is quantized: integer products, sums in int32.

    Raises ``IntegerError`` when that cannot be, or when sums are not proven to fit.
    """

    def __init__(self, name: str, layer: nn.Module) -> None:
        self._name, self._layer, self._kind = name, layer, kind_of(layer)
        weight, inputs = getattr(layer, "weight_quantizer", None), getattr(layer, "input_quantizer", None)
        if weight is None or inputs is None:
            what = "weights" if weight is None else "input"
            raise IntegerError(f"{name}: its {what} must be quantized")
        self._check_current(weight, inputs)
        if self._kind.spatial == 3:
            raise IntegerError(f"{name}: {self._kind.name} has no form in integers")
        matrix = self._kind.matrix(layer, weight.levels.short())
        self._matrix = matrix.flatten(0, 1)  # [m, columns]
        one = torch.zeros_like(inputs.scale[:1]) if inputs.is_per_channel else exponents(inputs.scale)
        self._exponents = exponents(weight.scale) + one.int()
        self._bias = self._counted_bias(layer.bias)
        self.most = self._most(matrix, IntegerQuantizer(inputs).largest)
        if self.most > LARGEST:
            raise IntegerError(f"{name}: sums may reach {self.most}, beyond int32")

    def _check_current(self, weight: WeightQuantizer, inputs: ActivationQuantizer) -> None:
        """What runs are codes and exponents: the floats must still be what they stand for."""
        for scale in (weight.scale, inputs.scale):
            if (other := first_other_than_power(scale)) is not None:
                raise IntegerError(
                    f"{self._name}: its scales must be powers of two, got {other:.6g}; "
                    "quantize with power_of_two=True and leave them as they are"
                )
        if not weight.stands_for(self._layer.weight):
            raise IntegerError(
                f"{self._name}: its weight must be what its codes stand for, but was changed since it was "
                "quantized"
            )

    def _counted_bias(self, bias: Tensor | None) -> Tensor | None:
        """In units of the sums."""
        if bias is None:
            return None
        counted = bias.detach().double() * powers(-self._exponents, torch.float64)
        if not torch.equal(counted, counted.round()) or counted.abs().max() > LARGEST:
            raise IntegerError(f"{self._name}: its bias is no int32 number of steps of its sums")
        return counted.int()

    def _most(self, matrix: Tensor, largest: Tensor) -> int:
        """No sum of any part of the products exceeds it."""
        groups, _, columns = matrix.shape
        if largest.numel() > 1:
            largest = largest.view(groups, 1, -1, 1).expand(-1, -1, -1, columns * groups // largest.numel())
            largest = largest.flatten(2)
        sums = (matrix.abs().long() * largest).sum(2).flatten()
        return int((sums + (0 if self._bias is None else self._bias.abs().long())).max())

    def _read(self, levels: Tensor, output_size: Sequence[int] | None) -> Columns:
        """The input as a convolution sees it; a layer's own forward is asked with floats, which are exact."""
        kept = self._kind.spatial == 0 or has_plain_forward(self._layer)
        y = None if output_size is None else self._shaped(levels, output_size)
        return self._kind.columns(self._layer, levels.short() if kept else levels.float(), y)

    def _shaped(self, levels: Tensor, output_size: Sequence[int]) -> Tensor:
        """Nothing, in the shape that a transposed convolution is asked for; torch refuses impossible ones."""
        layer, spatial = self._layer, self._kind.spatial
        geometry = (layer.stride, layer.padding, layer.kernel_size, spatial, layer.dilation)
        layer._output_padding(levels, list(output_size), *geometry)
        return levels.new_empty(*levels.shape[:-spatial], *output_size[-spatial:], device="meta")

    def __call__(self, x: IntegerTensor, output_size: Sequence[int] | None = None) -> IntegerTensor:
        read = self._read(x.values, output_size)
        weight = self._matrix.view(len(self._matrix), -1, *read.kernel)
        sums = integer_conv(
            read.x.short(), weight, self._bias, read.stride, read.padding, read.dilation, read.groups
        )
        own = self._exponents
        if self._kind.spatial == 0:
            return IntegerTensor(sums.squeeze(2).transpose(1, 2).reshape(*x.shape[:-1], len(own)), own)
        if self._kind.spatial == 1:
            sums = sums.squeeze(2)
        sums = sums if x.dim() == self._kind.spatial + 2 else sums.squeeze(0)
        return IntegerTensor(sums, own.view(-1, *[1] * self._kind.spatial))
