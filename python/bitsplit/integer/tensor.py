"""A tensor of integers that stand for numbers, which a model's own code can compute with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitsplit.errors import IntegerError
from bitsplit.quantizers.powers import powers

LARGEST = 2**31 - 1
EXACT_IN_FLOAT32 = 2**24  # sums of integers below
FARTHEST = 32  # a shift to the left by which every int32 but 0 leaves int32


class IntegerTensor(Tensor):
    """The numbers ``values * 2^exponents / divisor``; to a model a tensor of floats of their shape.

    values: int32.  exponents: int32, of the same shape, mostly expanded from one number or one a channel.
    divisor: 1, but behind a mean over a number of values that is no power of two.
    shares_memory: whether to the model it is another view of a tensor, or has such views.

    Operations that the model's code calls end in ``bitsplit.integer.functions``.
    """

    values: Tensor
    exponents: Tensor
    divisor: int
    shares_memory: bool

    @staticmethod
    def __new__(cls, values: Tensor, exponents: Tensor, divisor: int = 1) -> IntegerTensor:
        return Tensor._make_wrapper_subclass(
            cls, values.shape, dtype=torch.float32, device=values.device, requires_grad=False
        )

    def __init__(self, values: Tensor, exponents: Tensor, divisor: int = 1) -> None:
        self.values = values
        self.exponents = exponents.expand(values.shape)
        self.divisor = divisor
        self.shares_memory = False

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        from bitsplit.integer.functions import call

        return call(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"IntegerTensor({self.values}, exponents={self.exponents}, divisor={self.divisor})"

    def at(self, exponents: Tensor) -> Tensor:
        """The values at other exponents, none above its own: shifted to the left, int64."""
        return self.values.long() << (self.exponents - exponents).clamp(max=FARTHEST)

    def aligned(self) -> IntegerTensor:
        """The same numbers, all at the smallest of the exponents."""
        smallest = self.exponents.amin()
        return IntegerTensor(as_int32("aligned", self.at(smallest)), smallest, self.divisor)

    def numbers(self) -> Tensor:
        """What it stands for, in float64: exact but for the divisor."""
        return self.values.double() * powers(self.exponents, torch.float64) / self.divisor


def as_int32(name: str, values: Tensor) -> Tensor:
    """``IntegerError`` of the operation ``name`` where one does not fit."""
    if values.numel():
        least, most = (int(end) for end in values.aminmax())
        if least < -LARGEST - 1 or most > LARGEST:
            raise IntegerError(f"{name}: values from {least} to {most} leave int32")
    return values.int()
