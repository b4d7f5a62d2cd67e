"""The integer levels a quantizer may use."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Grid:
    """Integer levels ``low .. high`` of a ``bits`` wide code.

    >>> Grid.symmetric(4)
    Grid(bits=4, low=-7, high=7)
    """

    bits: int
    low: int
    high: int

    @classmethod
    def symmetric(cls, bits: int) -> Grid:
        """Signed levels without the lowest one, so that zero sits in the middle (Bit-Split's levels)."""
        high = 2 ** (bits - 1) - 1
        return cls(bits, -high, high)

    @classmethod
    def unsigned(cls, bits: int) -> Grid:
        """All ``2**bits`` levels from zero; with a zero point they also cover signed ranges."""
        return cls(bits, 0, 2**bits - 1)

    @property
    def is_signed(self) -> bool:
        return self.low < 0

    @property
    def dtype(self) -> torch.dtype:
        """The smallest torch integer type that holds every level."""
        return torch.int8 if self.is_signed else torch.uint8
