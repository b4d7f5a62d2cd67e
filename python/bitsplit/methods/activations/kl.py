"""The clipping threshold of least KL divergence (TensorRT)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from bitsplit.methods.base import ActivationMethod
from bitsplit.methods.registry import register_activation
from bitsplit.methods.statistics import InputSample
from bitsplit.ops.ranges import grid_of_range, histogram, kl_threshold
from bitsplit.quantizers import Grid


@register_activation
class KlActivations(ActivationMethod):
    """Clip |x| where the quantized histogram, of ``bins`` cells, diverges least from the clipped one."""

    name = "kl"
    bins: int = Field(2048, ge=256, le=8192)

    def fit(self, sample: InputSample, grid: Grid) -> tuple[Tensor, Tensor]:
        top = torch.maximum(-sample.low, sample.high)
        if not bool(top > 0):
            return grid_of_range(sample.low, sample.high, grid.low, grid.high)
        magnitudes = sample.values[sample.values != 0].abs()  # zeros are exact whatever the threshold
        counts = histogram(magnitudes, 0.0, float(top), self.bins)
        levels = grid.high + 1 if grid.is_signed or bool(sample.low >= 0) else (grid.high + 1) // 2
        threshold = top * (kl_threshold(counts, levels) / self.bins)
        low, high = torch.maximum(sample.low, -threshold), torch.minimum(sample.high, threshold)
        return grid_of_range(low, high, grid.low, grid.high)
