"""The range of least error among shrunken ones."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from bitsplit.methods.base import ActivationMethod
from bitsplit.methods.ranges import best_range
from bitsplit.methods.registry import register_activation
from bitsplit.methods.statistics import InputSample
from bitsplit.quantizers import Grid


@register_activation
class MseActivations(ActivationMethod):
    """The best of ``candidates`` shrunken ranges under the sum of |x - Q(x)|^p."""

    name = "mse"
    candidates: int = Field(100, ge=2)
    p: float = Field(2.0, gt=0)

    def fit(self, sample: InputSample, grid: Grid) -> tuple[Tensor, Tensor]:
        found = best_range(sample.values, -1, grid, sample.low, sample.high, self.candidates, self.p)
        return found.scale, found.zero_point
