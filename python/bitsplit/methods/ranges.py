"""From ranges to scales and zero points, and from values to codes."""

from __future__ import annotations

import torch
from torch import Tensor

from bitsplit.quantizers import Grid


def nearest_codes(weight: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Codes of ``weight`` [g, M, N] under ``scale`` [g, M]: the nearest level, ties to even."""
    return torch.round(weight / scale.unsqueeze(2)).clamp(grid.low, grid.high)
