"""The integer levels a quantizer may use, and what its scale may be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitsplit.quantizers.powers import first_other_than_power, power_by_ratio


@dataclass(frozen=True)
class Grid:
    """Integer levels ``low .. high`` of a ``bits`` wide code, and what scales may be.

    power_of_two: 2^k only.  per_tensor: one for all channels, as their zero points are.

    >>> Grid.symmetric(4)
    Grid(bits=4, low=-7, high=7, power_of_two=False, per_tensor=False)
    """

    bits: int
    low: int
    high: int
    power_of_two: bool = False
    per_tensor: bool = False

    @classmethod
    def symmetric(cls, bits: int, power_of_two: bool = False, per_tensor: bool = False) -> Grid:
        """Signed levels without the lowest one, so that zero sits in the middle (Bit-Split's levels)."""
        high = 2 ** (bits - 1) - 1
        return cls(bits, -high, high, power_of_two, per_tensor)

    @classmethod
    def unsigned(cls, bits: int, power_of_two: bool = False, per_tensor: bool = False) -> Grid:
        """All ``2**bits`` levels from zero; with a zero point they also cover signed ranges."""
        return cls(bits, 0, 2**bits - 1, power_of_two, per_tensor)

    def at(self, bits: int) -> Grid:
        """The same kind of levels, ``bits`` wide."""
        make = Grid.symmetric if self.is_signed else Grid.unsigned
        return make(bits, self.power_of_two, self.per_tensor)

    @property
    def is_signed(self) -> bool:
        return self.low < 0

    def allowed(self, scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest scale that this grid allows, by ratio, and the zero point that goes with it."""
        if not self.power_of_two:
            return scale, zero_point
        power = power_by_ratio(scale)
        below = (zero_point - self.low) * (scale / power)  # zero keeps its place in the range
        return power, (self.low + below.round()).clamp(self.low, self.high).to(torch.int32)

    def check(self, scale: Tensor, zero_point: Tensor) -> None:
        """Raise ``ValueError`` for what this grid does not allow."""
        if self.per_tensor and bool(((scale != scale[0]) | (zero_point != zero_point[0])).any()):
            raise ValueError("there must be one scale and one zero point for all channels")
        if self.power_of_two and (other := first_other_than_power(scale)) is not None:
            raise ValueError(f"scales must be powers of two, got {other:.6g}")

    @property
    def dtype(self) -> torch.dtype:
        """The smallest torch integer type that holds every level."""
        return torch.int8 if self.is_signed else torch.uint8
