"""Weight and activation quantizers and the layers they sit in."""

from bitsplit.quantizers.grid import Grid
from bitsplit.quantizers.layers import (
    LayerCodes,
    attach_input_quantizer,
    attach_weight_quantizer,
    codes,
    fitted_state,
    prepare,
    quantized_layers,
    refresh_weight,
    set_fitted_state,
    set_weight,
)
from bitsplit.quantizers.modules import ActivationQuantizer, WeightQuantizer

__all__ = [
    "ActivationQuantizer",
    "Grid",
    "LayerCodes",
    "WeightQuantizer",
    "attach_input_quantizer",
    "attach_weight_quantizer",
    "codes",
    "fitted_state",
    "prepare",
    "quantized_layers",
    "refresh_weight",
    "set_fitted_state",
    "set_weight",
]
