"""Where to clip values of which a few are far out: percentiles, and analytically (ACIQ, NeurIPS 2019)."""

from __future__ import annotations

import functools
import math
from typing import Literal

import torch
from torch import Tensor

from bitsplit.ops.ranges import compute_dtype


def percentile(x: Tensor, percent: float) -> Tensor:
    """The value below or at which `percent` percent of all values are (nearest rank, exact).

    Selects in linear time, without sorting; give it a sample of very large data.

    Args:
        x: any shape, not empty, no NaN. percent: 0 (the smallest value) to 100 (the largest).

    Returns:
        One of x's values, Tensor [].
    """
    if x.numel() == 0 or not 0 <= percent <= 100:
        raise ValueError(
            f"percentile needs values and 0 <= percent <= 100, got {x.numel()} values and {percent}"
        )
    rank = math.ceil(x.numel() * percent / 100)
    return x.flatten().kthvalue(max(rank, 1)).values


Distribution = Literal["gauss", "laplace"]


def aciq_threshold(x: Tensor, bits: int, signed: bool, distribution: Distribution = "laplace") -> Tensor:
    """Analytic clipping (ACIQ): where to clip |x| if x were drawn from the given distribution around zero.

    The distribution's width is estimated from x: the mean of |x| (Laplace) or the root of the mean of x^2
    (Gauss).

    Args:
        x: any shape. With signed=False (after a ReLU) only its positive values count, as one half of a
            symmetric distribution, which gets one bit more.
        bits: of the code, 2 to 8.

    Returns:
        The threshold, Tensor [], x's dtype; never above max|x|; 0 without values to look at.
    """
    values = (x.abs() if signed else x[x > 0]).to(compute_dtype(x))
    if values.numel() == 0:
        return x.new_zeros(())
    width = values.mean() if distribution == "laplace" else values.square().mean().sqrt()
    threshold = width * aciq_constant(distribution, bits if signed else bits + 1)
    return torch.minimum(threshold, values.max()).to(x.dtype)


@functools.cache
def aciq_constant(distribution: Distribution, bits: int) -> float:
    """The best clipping threshold for 2^bits levels, in units of the distribution's width (b or sigma).

    The minimum over t > 0 of the expected squared error of clipping at +-t and rounding to 2^bits levels
    between,

        E(t) = 2 * integral from t on of (x - t)^2 f(x) dx + t^2 / (3 * 4^bits),

    is where E'(t) = 0; E is convex, so bisection finds it.
    """
    if distribution not in _MEAN_EXCESS:
        raise ValueError(f"distribution must be one of {sorted(_MEAN_EXCESS)}, got {distribution!r}")
    mean_excess = _MEAN_EXCESS[distribution]
    low, high = 0.0, 64.0
    for _ in range(100):
        middle = (low + high) / 2
        slope = -4 * mean_excess(middle) + 2 * middle / (3 * 4.0**bits)
        low, high = (middle, high) if slope < 0 else (low, middle)
    return (low + high) / 2


def _mean_excess_of_gauss(t: float) -> float:
    density = math.exp(-t * t / 2) / math.sqrt(2 * math.pi)
    return density - t * math.erfc(t / math.sqrt(2)) / 2


def _mean_excess_of_laplace(t: float) -> float:
    return math.exp(-t) / 2


# Integral from t on of (x - t) f(x) dx, for width 1.
_MEAN_EXCESS = {"gauss": _mean_excess_of_gauss, "laplace": _mean_excess_of_laplace}
