"""TF-Lite's weights: the range of every output channel, rounded to nearest."""

from __future__ import annotations

import torch

from bitsplit.methods.activations import MinMaxActivations
from bitsplit.methods.base import AnyActivationMethod, LayerTask, WeightMethod
from bitsplit.methods.ranges import nearest_codes, scale_of_range
from bitsplit.methods.registry import register


@register
class MinMax(WeightMethod):
    """Weights by the largest magnitude of each channel, activations by their whole range."""

    name = "minmax"
    activations: AnyActivationMethod = MinMaxActivations()

    def fit_weights(self, task: LayerTask) -> None:
        low, high = torch.aminmax(task.weight, dim=2)
        scale, _ = scale_of_range(low, high, task.weight_grid)
        task.store(nearest_codes(task.weight, scale, task.weight_grid), scale)
