"""Weights rounded to nearest while what they are divided by is learned: rounding lets gradients pass."""

from __future__ import annotations

import torch
from torch import Tensor

from bitsplit.methods.learning import gradient_of, sound
from bitsplit.methods.tasks import LayerTask
from bitsplit.quantizers import set_weight


class RoundedWeight:
    """Of one layer, W' = s * clip(round(W / (s * S))) with the scale s of every channel and divisors S.

    The layer's ``weight`` parameter holds W'.  ratio: W / (s * S), as ``write`` found it last.
    """

    def __init__(self, layer: LayerTask) -> None:
        self._module = layer.module
        self.quantizer = quantizer = layer.module.weight_quantizer
        self.parameter = layer.module.weight
        self.exact = layer.kind.unmatrix(layer.module, layer.weight).clone()
        self._zero = quantizer.per_channel(quantizer.zero_point)
        # written in place: a recorded iteration reads the same memory every time
        self.ratio, self._level = torch.empty_like(self.exact), torch.empty_like(self.exact)

    def write(self, scale: Tensor, divisor: Tensor | float = 1.0) -> None:
        """The weight for these: scale [out], or one for all, divisor in the shape of the weight."""
        scale = self.quantizer.per_channel(scale)
        self.ratio.copy_(self.exact / (scale * divisor))
        self._level.copy_(self.quantizer.nearest(self.ratio))
        self.parameter.data.copy_(scale * self._level)

    def take_gradients(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Of the logarithms of scales and divisors, from the gradient of the weight, which is forgotten."""
        grad = gradient_of(self.parameter) * self.quantizer.per_channel(scale)
        passed = torch.where(self.ratio.round() == self._level, grad * self.ratio, 0)
        self.parameter.grad = None
        return self.quantizer.sum_per_scale(grad * self._level - passed), -passed

    def harden(self, scale: Tensor) -> None:
        """Give the layer the levels written last."""
        scale = sound(scale).expand_as(self.quantizer.scale)
        set_weight(self._module, self._level + self._zero, scale, self.quantizer.zero_point)
