"""Nearest rounding with the least-squares scale of every output channel."""

from __future__ import annotations

from bitsplit.methods.activations import MinMaxActivations
from bitsplit.methods.base import AnyActivationMethod, LayerTask, WeightMethod
from bitsplit.methods.registry import register
from bitsplit.ops.split import fwa


@register
class Nearest(WeightMethod):
    """Codes are the nearest levels, the scale fits them best: the fixed point of both in turn."""

    name = "nearest"
    activations: AnyActivationMethod = MinMaxActivations()

    def fit_weights(self, task: LayerTask) -> None:
        codes, scale = fwa(task.weight, task.weight_grid.bits)
        task.store(codes, scale)
