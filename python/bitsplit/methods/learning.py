"""What can be learned beside the rounding of weights, and what all learning shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from bitsplit.methods.base import LayerTask
from bitsplit.ops.steps import learned_quantize
from bitsplit.quantizers import ActivationQuantizer

SMALLEST = 1e-8


class Variables(Protocol):
    """What is learned.  parameters: those of the model that need gradients for it."""

    parameters: list[nn.Parameter]

    def step(self, iteration: int) -> None:
        """Change them by the gradients that the last backward pass left, and forget these."""

    def harden(self) -> None:
        """Leave the result to the model."""


@contextmanager
def learning(module: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """While active, of all parameters in ``module`` only these get gradients."""
    before = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    chosen = set(map(id, parameters))
    for parameter, _ in before:
        parameter.requires_grad_(id(parameter) in chosen)
    try:
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
            parameter.grad = None


class Adam:
    """Adam whose learning rate falls from ``rate`` to 0 along half a cosine; also on nothing at all."""

    def __init__(self, variables: Sequence[Tensor], rate: float, iterations: int) -> None:
        self._optimizer = torch.optim.Adam(variables or [torch.zeros(1)], lr=rate)
        self._rates = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimizer, max(1, iterations))

    def step(self) -> None:
        """Use the gradients and forget them."""
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._rates.step()


class LearnedBiases:
    """The biases of layers; a layer that has none gets one."""

    def __init__(self, layers: Sequence[LayerTask], rate: float, iterations: int) -> None:
        for layer in layers:
            if layer.module.bias is None:
                layer.store_bias(layer.weight.new_zeros(layer.weight.shape[:2]))
        self.parameters = [layer.module.bias for layer in layers]
        self._adam = Adam(self.parameters, rate, iterations)

    def step(self, iteration: int) -> None:
        self._adam.step()

    def harden(self) -> None:
        """They are the model's own."""


class LearnedSteps:
    """The steps of input quantizers (LSQ), which until ``harden`` quantize with what is learned.

    drop: the chance of an element to stay as it is (QDrop).  Quantizers with one scale per channel (ECAQ)
    keep theirs.
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
        self._adam = Adam(self._scales, rate, iterations)
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
        self._adam.step()
        for scale, key in zip(self._scales, self._keys, strict=True):
            scale.data.clamp_(min=SMALLEST)
            key[1] = iteration + 1

    def harden(self) -> None:
        """Give the quantizers what was learned, and their own ways back."""
        for quantizer, scale in zip(self._quantizers, self._scales, strict=True):
            del quantizer.forward
            quantizer.set(scale, quantizer.zero_point)
