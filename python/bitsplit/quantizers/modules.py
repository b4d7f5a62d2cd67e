"""Weight and activation quantizers: the modules that hold codes, scales and zero points."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitsplit.ops.quantize import fake_quantize
from bitsplit.quantizers.grid import Grid


def _allowed(grid: Grid, scale: Tensor, zero_point: Tensor | None) -> tuple[Tensor, Tensor]:
    """As they are stored; what the grid does not allow is refused."""
    scale = scale.detach().to(torch.float32).reshape(-1).contiguous()
    zero = torch.zeros_like(scale) if zero_point is None else zero_point
    zero = zero.reshape(-1).to(torch.int32).contiguous()
    grid.check(scale, zero)
    return scale, zero


class WeightQuantizer(nn.Module):
    """The integers that a layer's weight *is* once it has been fitted.

    codes: integers in the weight's shape.  scale: Tensor[out], float32.  zero_point: Tensor[out], int32.
    The layer's ``weight`` parameter always equals ``scale * (codes - zero_point)``, with the output channels
    along ``axis`` (for grouped transposed convolutions: within each of the ``groups`` parts of axis 0).
    """

    codes: Tensor | None
    scale: Tensor | None
    zero_point: Tensor | None

    def __init__(self, grid: Grid, axis: int, groups: int = 1) -> None:
        super().__init__()
        self.grid = grid
        self.axis = axis
        self.groups = groups
        for name in ("codes", "scale", "zero_point"):
            self.register_buffer(name, None)

    @property
    def is_fitted(self) -> bool:
        return self.codes is not None

    @property
    def bits(self) -> int:
        return self.grid.bits

    def set(self, codes: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> None:
        """Store fitted values; codes outside the grid, and scales that it does not allow, are refused."""
        low, high = int(codes.min()), int(codes.max())
        if low < self.grid.low or high > self.grid.high:
            raise ValueError(f"codes must lie in [{self.grid.low}, {self.grid.high}], got [{low}, {high}]")
        allowed = _allowed(self.grid, scale, zero_point)
        self.codes = codes.to(self.grid.dtype).contiguous()
        self.scale, self.zero_point = allowed

    @property
    def levels(self) -> Tensor:
        """The codes without the zero point, int32."""
        return self.codes.to(torch.int32) - self.per_channel(self.zero_point)

    @property
    def level_range(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest level of every channel, in a shape that broadcasts against the codes."""
        zero = self.per_channel(self.zero_point)
        return self.grid.low - zero, self.grid.high - zero

    def nearest(self, ratio: Tensor) -> Tensor:
        """The levels nearest to weights in steps of the scale, in the shape of the codes."""
        lowest, highest = self.level_range
        return torch.minimum(torch.maximum(ratio.round(), lowest), highest)

    def dequantize(self) -> Tensor:
        """The float weight that the codes stand for."""
        return self.levels.to(torch.float32) * self.per_channel(self.scale)

    def stands_for(self, weight: Tensor) -> bool:
        """Whether ``weight`` is, in float32, still what the codes stand for."""
        return torch.equal(weight.float(), self.dequantize().float())

    def own(self, values: Tensor) -> Tensor:
        """Of values Tensor[out], one for every scale, those that may differ: one where the scale is one."""
        return values[:1] if self.grid.per_tensor else values

    def per_channel(self, values: Tensor) -> Tensor:
        """``values`` Tensor[out], or one for all, in a shape that broadcasts against the codes."""
        dims = self.codes.dim()
        if self.axis == 0 or values.numel() == 1:
            return values.view(-1, *[1] * (dims - 1))
        rows = self.codes.shape[0] // self.groups
        grouped = values.view(self.groups, 1, -1, *[1] * (dims - 2))
        return grouped.expand(-1, rows, *[-1] * (dims - 1)).flatten(0, 1)

    def sum_per_channel(self, values: Tensor) -> Tensor:
        """Tensor[out]: the sums over all weights of each output channel of ``values`` in the codes' shape."""
        rows = values.shape[0] // self.groups
        by_group = values.unflatten(0, (self.groups, rows)) if self.axis else values.unsqueeze(0)
        return by_group.transpose(1, 1 + self.axis).flatten(2).sum(2).flatten()

    def sum_per_scale(self, values: Tensor) -> Tensor:
        """The same for each of the scales that may differ."""
        sums = self.sum_per_channel(values)
        return sums.sum(0, keepdim=True) if self.grid.per_tensor else sums

    def extra_repr(self) -> str:
        return f"bits={self.bits}, fitted={self.is_fitted}"


class ActivationQuantizer(nn.Module):
    """Quantizes a layer's input; passes it through until it has been fitted.

    One scale for the whole tensor; or one per channel, which then live in the weights that read it (ECAQ), so
    that the multiply-accumulate stays integer.  ``channel_axis`` names the channels.
    """

    scale: Tensor | None
    zero_point: Tensor | None

    def __init__(self, grid: Grid, channel_axis: int) -> None:
        super().__init__()
        self.grid = grid
        self.channel_axis = channel_axis
        self.register_buffer("scale", None)
        self.register_buffer("zero_point", None)

    @property
    def is_fitted(self) -> bool:
        return self.scale is not None

    @property
    def bits(self) -> int:
        return self.grid.bits

    @property
    def is_per_channel(self) -> bool:
        return self.scale.numel() > 1

    def set(self, scale: Tensor, zero_point: Tensor | None = None) -> None:
        """Store fitted values: Tensor[1] each, or Tensor[channels] each (more than one)."""
        self.scale, self.zero_point = _allowed(self.grid, scale, zero_point)

    def forward(self, x: Tensor) -> Tensor:
        if self.scale is None:
            return x
        axis = self.channel_axis % x.dim() if self.is_per_channel else -1
        return fake_quantize(x, self.scale, self.zero_point, axis, self.grid.low, self.grid.high)

    def read(self, x: Tensor) -> Tensor:
        """What a layer computes with of a quantized ``x``.

        Itself; with one scale per channel the integers ``code - zero_point``, as float.  Its gradient passes
        as if nothing were rounded here: that is but the last place of a quotient.
        """
        if self.scale is None or not self.is_per_channel:
            return x
        ratio = x / self.per_channel(self.scale, x)
        if ratio.requires_grad:
            return (ratio + (ratio.round() - ratio).detach()).to(x.dtype)
        return ratio.round().to(x.dtype)

    def per_channel(self, values: Tensor, x: Tensor) -> Tensor:
        """One value, or one for every channel, in a shape that broadcasts against ``x``."""
        if values.numel() == 1:
            return values
        shape = [1] * x.dim()
        shape[self.channel_axis % x.dim()] = -1
        return values.view(shape)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, signed={self.grid.is_signed}, fitted={self.is_fitted}"
