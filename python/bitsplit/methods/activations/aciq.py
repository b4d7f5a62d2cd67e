"""Analytic clipping (ACIQ): the threshold of least expected error for a Laplacian or a Gaussian."""

from __future__ import annotations

import torch
from torch import Tensor

from bitsplit.methods.base import ActivationMethod
from bitsplit.methods.registry import register_activation
from bitsplit.methods.statistics import InputSample
from bitsplit.ops.ranges import grid_of_range
from bitsplit.ops.thresholds import Distribution, aciq_threshold
from bitsplit.quantizers import Grid


@register_activation
class AciqActivations(ActivationMethod):
    """Clip |x| where clipping and rounding error together are least, if x had this distribution."""

    name = "aciq"
    distribution: Distribution = "laplace"

    def fit(self, sample: InputSample, grid: Grid) -> tuple[Tensor, Tensor]:
        two_sided = bool(sample.low < 0)
        threshold = aciq_threshold(sample.values, grid.bits, two_sided, self.distribution)
        low, high = torch.maximum(sample.low, -threshold), torch.minimum(sample.high, threshold)
        return grid_of_range(low, high, grid.low, grid.high)
