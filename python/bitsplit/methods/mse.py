"""Ranges of least squared error (OMSE), rounded to nearest."""

from __future__ import annotations

from pydantic import Field

from bitsplit.methods.activations import MseActivations
from bitsplit.methods.base import AnyActivationMethod, WeightMethod
from bitsplit.methods.ranges import best_range, rows_of, store_nearest
from bitsplit.methods.registry import register
from bitsplit.methods.tasks import LayerTask
from bitsplit.ops.ranges import channel_range


@register
class Mse(WeightMethod):
    """For weights and activations: the best of ``candidates`` shrunken ranges by sum of |x - Q(x)|^p."""

    name = "mse"
    activations: AnyActivationMethod = MseActivations()
    candidates: int = Field(80, ge=2)
    p: float = Field(2.0, gt=0)

    def fit_weights(self, task: LayerTask) -> None:
        rows = rows_of(task)
        grid = task.weight_grid
        low, high = channel_range(rows, 0)
        found = best_range(rows, 0, grid, low, high, self.candidates, self.p)
        store_nearest(task, found.scale, found.zero_point)
