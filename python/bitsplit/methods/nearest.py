"""Nearest rounding with the least-squares scale of every output channel."""

from __future__ import annotations

from bitsplit.methods.activations import MinMaxActivations
from bitsplit.methods.base import AnyActivationMethod, WeightMethod
from bitsplit.methods.ranges import nearest_levels, store_levels
from bitsplit.methods.registry import register
from bitsplit.methods.tasks import LayerTask
from bitsplit.ops.levels import level_choices
from bitsplit.ops.split import fwa


@register
class Nearest(WeightMethod):
    """Codes are the nearest levels, the scale fits them best: the fixed point of both in turn.

    Affine rows take the better of the two places that zero may have.
    """

    name = "nearest"
    activations: AnyActivationMethod = MinMaxActivations()

    def fit_weights(self, task: LayerTask) -> None:
        grid, affine = task.weight_grid, self.levels == "affine"
        if not affine and not grid.power_of_two:
            task.store(*fwa(task.weight, grid.bits))
            return
        levels, scale, bounds = nearest_levels(
            task.weight, level_choices(grid.bits, affine), grid.power_of_two
        )
        store_levels(task, levels, scale, bounds)
