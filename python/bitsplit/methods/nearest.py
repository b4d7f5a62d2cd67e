"""Nearest rounding with the least-squares scale of every output channel."""

from __future__ import annotations

from bitsplit.methods.activations import MinMaxActivations
from bitsplit.methods.base import AnyActivationMethod, WeightMethod
from bitsplit.methods.ranges import nearest_levels, rows_of, store_levels
from bitsplit.methods.registry import register
from bitsplit.methods.tasks import LayerTask
from bitsplit.ops.levels import level_choices, levels_of
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
        rows, choices = rows_of(task).unsqueeze(0), level_choices(grid.bits, affine)
        if affine or grid.power_of_two:
            levels, scale, bounds = nearest_levels(rows, choices, grid.power_of_two)
        else:
            levels, scale = fwa(rows, grid.bits)
            bounds = levels_of(choices, scale)
        shape = task.weight.shape[:2]
        scale, bounds = scale.expand(1, shape.numel()), bounds.expand(1, shape.numel(), 2)
        store_levels(task, levels.view_as(task.weight), scale.view(shape), bounds.view(*shape, 2))
