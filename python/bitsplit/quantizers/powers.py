"""Scales that are powers of two, so that going from one to another is a shift."""

from __future__ import annotations

import torch
from torch import Tensor


def are_powers_of_two(scale: Tensor) -> bool:
    """Whether every element is 2^k for an integer k."""
    return first_other_than_power(scale) is None


def first_other_than_power(scale: Tensor) -> float | None:
    """The first element that is no 2^k; None where all are."""
    mantissa, _ = torch.frexp(scale)
    others = scale[mantissa != 0.5]
    return others[0].item() if len(others) else None


def exponents(scale: Tensor) -> Tensor:
    """The k of scales 2^k, int32."""
    return torch.frexp(scale).exponent - 1


def powers(exponents: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """2^k for integers k of normal numbers, float32 or float64.

    Made of bits: the exponential functions of a GPU may miss a power of two by a last place.
    """
    if dtype == torch.float64:
        return ((exponents.long() + 1023) << 52).view(dtype)
    return ((exponents.int() + 127) << 23).view(torch.float32)


def power_below(scale: Tensor) -> Tensor:
    """The largest power of two that is not above, in the dtype of ``scale``."""
    mantissa, _ = torch.frexp(scale)
    return scale / (2 * mantissa)


def power_by_ratio(scale: Tensor) -> Tensor:
    """The power of two that differs by the smallest factor: rounding of the logarithm."""
    mantissa, _ = torch.frexp(scale)
    below = power_below(scale)
    return torch.where(2 * mantissa * mantissa < 1, below, 2 * below)


def power_by_distance(scale: Tensor) -> Tensor:
    """The power of two that lies nearest: what is left of a parabola whose minimum ``scale`` is."""
    below = power_below(scale)
    return torch.where(scale <= 1.5 * below, below, 2 * below)
