"""The scales and zero points of a quantized network, site by site."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from bitsplit.quantizers.layers import quantized_layers
from bitsplit.quantizers.powers import are_powers_of_two, exponents


@dataclass(frozen=True)
class SiteScales:
    """Of one quantizer: a scale and a zero point, or one each for every channel."""

    bits: int
    scale: Tensor
    zero_point: Tensor

    @property
    def exponents(self) -> Tensor | None:
        """The k of scales that all are 2^k, else None."""
        return exponents(self.scale) if are_powers_of_two(self.scale) else None


def scales(model: nn.Module) -> dict[str, SiteScales]:
    """Those of all weights (``"layer.weight"``) and inputs (``"layer.input"``) of ``model``.

    Layers that read the same tensor may share what stands under the names of both.
    """
    found = {}
    for name, layer in quantized_layers(model):
        for what in ("weight", "input"):
            quantizer = getattr(layer, f"{what}_quantizer", None)
            if quantizer is not None and quantizer.is_fitted:
                facts = SiteScales(quantizer.bits, quantizer.scale, quantizer.zero_point)
                found[f"{name}.{what}" if name else what] = facts
    return found
