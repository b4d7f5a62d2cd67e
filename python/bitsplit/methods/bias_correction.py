"""Bias correction: the bias takes up the mean error that rounding leaves in a layer's response."""

from __future__ import annotations

from bitsplit.methods.base import Method
from bitsplit.methods.registry import register
from bitsplit.methods.tasks import LayerTask


@register
class BiasCorrection(Method):
    """A step after a weight method: b + E[W x] - E[W_q x_q], with x_q from the quantized predecessors."""

    name = "bias_correction"

    def fit_layer(self, task: LayerTask) -> None:
        if task.weight_grid is None:
            return
        if not task.is_fitted:
            raise ValueError("it must come after a weight method")
        error = task.mean_error()
        task.store_bias(error if task.module.bias is None else task.module.bias.detach() + error)
