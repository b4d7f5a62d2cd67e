"""The range that holds a given share of all values."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from bitsplit.methods.base import ActivationMethod
from bitsplit.methods.registry import register_activation
from bitsplit.methods.statistics import InputSample
from bitsplit.ops.ranges import grid_of_range
from bitsplit.ops.thresholds import percentile
from bitsplit.quantizers import Grid


@register_activation
class PercentileActivations(ActivationMethod):
    """``share`` percent of the values are inside; the rest is cut evenly from both ends."""

    name = "percentile"
    share: float = Field(99.99, gt=50, le=100)

    def fit(self, sample: InputSample, grid: Grid) -> tuple[Tensor, Tensor]:
        tail = (100 - self.share) / 2 if bool(sample.low < 0) else 0.0
        low = percentile(sample.values, tail) if tail else sample.low
        high = percentile(sample.values, self.share + tail)
        return grid_of_range(low.view(1), high.view(1), grid.low, grid.high)
