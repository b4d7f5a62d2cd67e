"""Scales that are powers of two, so that going from one to another is a shift."""

from __future__ import annotations

import torch
from torch import Tensor


def are_powers_of_two(scale: Tensor) -> bool:
    """Whether every element is 2^k for an integer k."""
    mantissa, _ = torch.frexp(scale)
    return bool((mantissa == 0.5).all())


def exponents(scale: Tensor) -> Tensor:
    """The k of scales 2^k, int32."""
    return torch.frexp(scale).exponent - 1


def power_below(scale: Tensor) -> Tensor:
    """The largest power of two that is not above, in the dtype of ``scale``."""
    return torch.ldexp(torch.ones_like(scale), exponents(scale))


def power_by_ratio(scale: Tensor) -> Tensor:
    """The power of two that differs by the smallest factor: rounding of the logarithm."""
    below = power_below(scale)
    return torch.where(scale * scale < 2 * below * below, below, 2 * below)


def power_by_distance(scale: Tensor) -> Tensor:
    """The power of two that lies nearest: what is left of a parabola whose minimum ``scale`` is."""
    below = power_below(scale)
    return torch.where(scale <= 1.5 * below, below, 2 * below)
