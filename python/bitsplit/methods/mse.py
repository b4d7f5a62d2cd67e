"""Ranges of least squared error (OMSE), rounded to nearest."""

from __future__ import annotations

from pydantic import Field

from bitsplit.methods.activations import MseActivations
from bitsplit.methods.base import AnyActivationMethod, LayerTask, WeightMethod
from bitsplit.methods.ranges import best_scale, nearest_codes
from bitsplit.methods.registry import register


@register
class Mse(WeightMethod):
    """For weights (per output channel) and activations: the best of ``candidates`` shrunken ranges."""

    name = "mse"
    activations: AnyActivationMethod = MseActivations()
    candidates: int = Field(80, ge=2)
    p: float = Field(2.0, gt=0)

    def fit_weights(self, task: LayerTask) -> None:
        rows = task.weight.flatten(0, 1)
        scale, _ = best_scale(rows, rows.amin(1), rows.amax(1), task.weight_grid, self.candidates, self.p)
        scale = scale.view(task.weight.shape[:2])
        task.store(nearest_codes(task.weight, scale, task.weight_grid), scale)
