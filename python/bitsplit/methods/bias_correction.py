"""Bias correction: the bias takes up the mean error that rounding leaves in a layer's response."""

from __future__ import annotations

from bitsplit.methods.base import LayerTask, Method
from bitsplit.methods.registry import register
from bitsplit.methods.statistics import refitted_bias
from bitsplit.network import LayerKind


@register
class BiasCorrection(Method):
    """A step after a weight method: b + E[W x] - E[W_q x_q], with x_q from the quantized predecessors."""

    name = "bias_correction"

    def memory(self, kind: LayerKind, groups: int, columns: int) -> int:
        return 8 * groups * columns**2

    def fit_layer(self, task: LayerTask) -> None:
        if task.weight_grid is None:
            return
        if not task.is_fitted:
            raise ValueError("it must come after a weight method")
        sums = task.statistics("quantized")
        task.store_bias(refitted_bias(task.bias, task.quantized_weight, sums))
