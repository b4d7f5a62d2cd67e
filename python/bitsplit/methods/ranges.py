"""From ranges to scales and zero points, and from values to codes."""

from __future__ import annotations

import torch
from bitsplit.ops.ranges import lp_search
from torch import Tensor

from bitsplit.quantizers import Grid


def scale_of_range(low: Tensor, high: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The grid stretched over ``[low, high]`` (any shape, the same for both): scale and int32 zero point.

    Signed grids are symmetric around zero; unsigned ones keep zero exactly representable and shift by a zero
    point when ``low`` is negative.  An empty range gives scale 1.
    """
    low, high = low.double().clamp(max=0), high.double().clamp(min=0)
    width = 2 * torch.maximum(-low, high) if grid.is_signed else high - low
    scale = width / (grid.high - grid.low)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale)).float()
    zero_point = torch.zeros_like(scale) if grid.is_signed else torch.round(-low / scale)
    return scale, zero_point.to(torch.int32)


def best_scale(
    rows: Tensor, low: Tensor, high: Tensor, grid: Grid, candidates: int, p: float
) -> tuple[Tensor, Tensor]:
    """For each of ``rows`` Tensor[n, values] the best shrunken range under the sum of |x - Q(x)|^p."""
    low, high = low.float().clamp(max=0), high.float().clamp(min=0)
    scale, zero_point, _ = lp_search(rows, 0, grid.low, grid.high, low, high, candidates, p)
    return scale, zero_point


def nearest_codes(weight: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Codes of ``weight`` [g, M, N] under ``scale`` [g, M]: the nearest level, ties to even."""
    return torch.round(weight / scale.unsqueeze(2)).clamp(grid.low, grid.high)
