"""The whole range (TF-Lite)."""

from __future__ import annotations

from torch import Tensor

from bitsplit.methods.base import ActivationMethod
from bitsplit.methods.registry import register_activation
from bitsplit.methods.statistics import InputSample
from bitsplit.ops.ranges import grid_of_range
from bitsplit.quantizers import Grid


@register_activation
class MinMaxActivations(ActivationMethod):
    """From the smallest to the largest value seen."""

    name = "minmax"
    sample_limit = 1  # the range is known without

    def fit(self, sample: InputSample, grid: Grid) -> tuple[Tensor, Tensor]:
        return grid_of_range(sample.low, sample.high, grid.low, grid.high)
