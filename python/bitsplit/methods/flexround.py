"""FlexRound (ICLR 2023): every weight is divided by a learned number of its own before it is rounded.

    W' = s1 * clip(round(W / (s1 * S)))

The scale s1 of every channel and the divisors S are learned together, so that a weight may end at any level
of its sign, and a large one moves farther than a small one.  Rounding lets gradients pass.
S starts at 1, and where an earlier method has chosen another level, at what just leads to that one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from bitsplit.methods.clock import Clock
from bitsplit.methods.learning import Adam
from bitsplit.methods.reconstruction import Reconstruction
from bitsplit.methods.registry import register
from bitsplit.methods.straight_through import RoundedWeight
from bitsplit.methods.tasks import LayerTask

KEPT = 0.499  # of a step: what is no farther from a level is rounded to it


@register
class FlexRound(Reconstruction):
    """rate: of Adam on the logarithms of the divisors, scale_rate: on those of the scales."""

    name = "flexround"
    policy: ClassVar[str | None] = "qdrop"
    iterations: int = Field(5_000, ge=0)
    scale_rate: float = Field(1e-3, ge=0)

    def weight_variables(self, layers: Sequence[LayerTask], clock: Clock) -> Divisors:
        return Divisors(layers, self.rate, self.scale_rate)


class Divisors:
    """The divisors and scales of layers, whose ``weight`` parameters hold the rounded weights."""

    def __init__(self, layers: Sequence[LayerTask], rate: float, scale_rate: float) -> None:
        self._layers = [_LayerDivisors(layer) for layer in layers]
        self._divisors = Adam([layer.divisor for layer in self._layers], rate)
        self._scales = Adam([layer.log_scale for layer in self._layers if not layer.keeps_scale], scale_rate)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [layer.weight for layer in self._layers]

    @torch.no_grad()
    def step(self) -> None:
        """Learn from the gradients of the weights, and forget them."""
        for layer in self._layers:
            layer.take_gradients()
        self._divisors.step()
        self._scales.step()
        for layer in self._layers:
            layer.write()

    def undecided(self) -> float:
        """Every weight is at a level all the time."""
        return 0.0

    def harden(self) -> None:
        for layer in self._layers:
            layer.harden()


class _LayerDivisors:
    """Logarithms of the divisors and scales of one layer."""

    def __init__(self, layer: LayerTask) -> None:
        self.rounded = RoundedWeight(layer)
        self._quantizer = quantizer = layer.module.weight_quantizer
        self.weight = layer.module.weight
        self.divisor = nn.Parameter(self._leading_to(quantizer.levels).log())
        self.log_scale = nn.Parameter(quantizer.own(quantizer.scale).log().to(self.weight.dtype))
        self.keeps_scale = quantizer.grid.power_of_two
        self.write()

    @property
    def scale(self) -> Tensor:
        """Of every channel, or one for all."""
        return self._quantizer.scale if self.keeps_scale else self.log_scale.detach().exp()

    def _leading_to(self, level: Tensor) -> Tensor:
        """The divisors closest to 1 that round every weight to ``level``, or to 0 if its sign is another."""
        ratio = self.rounded.exact / self._quantizer.per_channel(self._quantizer.scale)
        size, level_size = ratio.abs(), level * ratio.sign()
        wanted = torch.minimum(torch.maximum(size, level_size - KEPT), level_size + KEPT)
        reached = torch.maximum(wanted, size.clamp(max=KEPT))
        stays = (self._quantizer.nearest(ratio) == level) | (size == 0)
        return torch.where(stays, 1.0, size / reached)

    def write(self) -> None:
        """The weight that scales and divisors stand for."""
        self.rounded.write(self.scale, self.divisor.detach().exp())

    def take_gradients(self) -> None:
        """From the gradient of the weight, rounding taken for the identity within the levels."""
        self.log_scale.grad, self.divisor.grad = self.rounded.take_gradients(self.scale)

    def harden(self) -> None:
        self.rounded.harden(self.scale)
