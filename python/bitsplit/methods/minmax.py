"""TF-Lite's weights: the range of every output channel, rounded to nearest."""

from __future__ import annotations

import torch

from bitsplit.methods.activations import MinMaxActivations
from bitsplit.methods.base import AnyActivationMethod, WeightMethod
from bitsplit.methods.ranges import rows_of, store_nearest
from bitsplit.methods.registry import register
from bitsplit.methods.tasks import LayerTask
from bitsplit.ops.ranges import grid_of_range


@register
class MinMax(WeightMethod):
    """Weights by the largest magnitude or (affine) the range of a channel, activations by their range."""

    name = "minmax"
    activations: AnyActivationMethod = MinMaxActivations()

    def fit_weights(self, task: LayerTask) -> None:
        grid = task.weight_grid
        low, high = torch.aminmax(rows_of(task), dim=1)
        store_nearest(task, *grid_of_range(low, high, grid.low, grid.high))
