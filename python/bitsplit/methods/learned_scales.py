"""Learned weight scales and biases beside learned rounding: what goes beyond the papers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from bitsplit.methods.base import LayerTask
from bitsplit.methods.soft_rounding import SoftRounding


class LearnedScales:
    """Adam on the logarithm of every weight scale; to stand before the rounding, whose gradients it reads."""

    parameters: Sequence[nn.Parameter] = ()  # the gradients of the weights say all

    def __init__(self, rounding: SoftRounding, rate: float) -> None:
        self._layers = rounding.layers
        self._logarithms = [nn.Parameter(layer.scale.log()) for layer in self._layers]
        self._optimizer = torch.optim.Adam(self._logarithms, lr=rate)

    def step(self, iteration: int) -> None:
        """Learn from the gradients of the weights; the rounding writes the weights with the new scales."""
        with torch.no_grad():
            for layer, logarithm in zip(self._layers, self._logarithms, strict=True):
                logarithm.grad = layer.quantizer.sum_per_channel(layer.weight.grad * layer.weight)
            self._optimizer.step()
            for layer, logarithm in zip(self._layers, self._logarithms, strict=True):
                torch.exp(logarithm, out=layer.scale)


class LearnedBiases:
    """Adam on the biases of layers; one that has none gets one."""

    def __init__(self, layers: Sequence[LayerTask], rate: float) -> None:
        for layer in layers:
            if layer.module.bias is None:
                layer.store_bias(layer.weight.new_zeros(layer.weight.shape[:2]))
        self.parameters = [layer.module.bias for layer in layers]
        self._optimizer = torch.optim.Adam(self.parameters, lr=rate)

    def step(self, iteration: int) -> None:
        """Learn from the gradients of the biases, and forget them."""
        self._optimizer.step()
        self._optimizer.zero_grad()
