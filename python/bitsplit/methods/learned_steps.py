"""Learned steps of the input quantizers of a piece (LSQ), of which elements are dropped at random (QDrop)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from bitsplit.ops.steps import learned_quantize
from bitsplit.quantizers import ActivationQuantizer

SMALLEST = 1e-8


class LearnedSteps:
    """While it stands, the quantizers quantize with steps that get gradients, each element with a chance.

    Adam, the learning rate falling from ``rate`` to 0 along half a cosine.  drop: the chance of an element to
    stay as it is.  Quantizers with one scale per channel (ECAQ) keep theirs.
    """

    def __init__(
        self, quantizers: Sequence[ActivationQuantizer], iterations: int, rate: float, drop: float, seed: int
    ) -> None:
        self._drop = drop
        self._quantizers = [quantizer for quantizer in quantizers if not quantizer.is_per_channel]
        self._scales = [nn.Parameter(quantizer.scale.clone()) for quantizer in self._quantizers]
        self._keys = [
            torch.tensor([seed + number, 0], device=scale.device) for number, scale in enumerate(self._scales)
        ]
        self._optimizer = torch.optim.Adam(self._scales or [torch.zeros(1)], lr=rate)
        self._rates = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimizer, max(1, iterations))
        for quantizer, scale, key in zip(self._quantizers, self._scales, self._keys, strict=True):
            quantizer.forward = self._forward(quantizer, scale, key)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return self._scales

    def _forward(
        self, quantizer: ActivationQuantizer, scale: Tensor, key: Tensor
    ) -> Callable[[Tensor], Tensor]:
        grid = quantizer.grid
        return partial(
            learned_quantize, scale=scale, zero_point=quantizer.zero_point, qmin=grid.low, qmax=grid.high,
            drop=self._drop, key=key,
        )  # fmt: skip

    def step(self, iteration: int) -> None:
        """Learn from the gradients of the steps, and forget them."""
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._rates.step()
        for scale, key in zip(self._scales, self._keys, strict=True):
            scale.data.clamp_(min=SMALLEST)
            key[1] = iteration + 1

    def harden(self) -> None:
        """Give the quantizers what was learned, and their own ways back."""
        for quantizer, scale in zip(self._quantizers, self._scales, strict=True):
            del quantizer.forward
            quantizer.set(scale, quantizer.zero_point)
