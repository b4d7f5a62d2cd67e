"""Weight and activation quantizers and the layers they sit in."""

from bitsplit.quantizers.grid import Grid
from bitsplit.quantizers.layers import (
    LayerCodes,
    align_biases,
    attach_input_quantizer,
    attach_weight_quantizer,
    codes,
    fitted_state,
    quantized_layers,
    refresh_weight,
    set_fitted_state,
    set_weight,
)
from bitsplit.quantizers.modules import ActivationQuantizer, WeightQuantizer
from bitsplit.quantizers.scales import SiteScales, scales

__all__ = [
    "ActivationQuantizer",
    "Grid",
    "LayerCodes",
    "SiteScales",
    "WeightQuantizer",
    "align_biases",
    "attach_input_quantizer",
    "attach_weight_quantizer",
    "codes",
    "fitted_state",
    "quantized_layers",
    "refresh_weight",
    "scales",
    "set_fitted_state",
    "set_weight",
]
