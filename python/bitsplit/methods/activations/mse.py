"""The range of least error among shrunken ones."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from bitsplit.methods.base import ActivationMethod
from bitsplit.methods.registry import register_activation
from bitsplit.methods.statistics import InputSample
from bitsplit.ops.ranges import lp_search, power_of_two_search
from bitsplit.quantizers import Grid


@register_activation
class MseActivations(ActivationMethod):
    """The best of ``candidates`` shrunken ranges under the sum of |x - Q(x)|^p."""

    name = "mse"
    candidates: int = Field(100, ge=2)
    p: float = Field(2.0, gt=0)

    def fit(self, sample: InputSample, grid: Grid) -> tuple[Tensor, Tensor]:
        where = (sample.values, -1, grid.low, grid.high, sample.low, sample.high)
        if grid.power_of_two:
            found = power_of_two_search(*where, self.p)
        else:
            found = lp_search(*where, self.candidates, self.p)
        return found.scale, found.zero_point
