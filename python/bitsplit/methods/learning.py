"""What can be learned beside the rounding of weights, and what all learning shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from bitsplit.methods.base import Method
from bitsplit.methods.clock import Clock
from bitsplit.methods.tasks import LayerTask
from bitsplit.ops.heap import kept_memory
from bitsplit.ops.precision import Precision, computing_in
from bitsplit.ops.steps import learned_quantize
from bitsplit.ops.threads import one_thread
from bitsplit.quantizers import ActivationQuantizer, WeightQuantizer, fitted_state, set_fitted_state
from bitsplit.quantizers.powers import powers

SMALLEST, LARGEST = 2.0**-27, 2.0**126  # step
EXPONENT_RATE = 1e-2  # of Adam on the exponents of steps that are powers of two,
SETTLED = 0.5  # which stay when this share of the iterations is over
SLOWER = 4

AnyMethod = TypeVar("AnyMethod", bound=Method)


class Diverged(ArithmeticError):
    """A loss or a scale is not a number any more, or a scale not above zero."""


def sound(scale: Tensor) -> Tensor:
    """A learned scale that can be stored; ``Diverged`` for another."""
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise Diverged
    return scale


class Variables(Protocol):
    """What is learned.  parameters: those of the model that need gradients for it."""

    parameters: list[nn.Parameter]

    def step(self) -> None:
        """Change them by the gradients that the last backward pass left, and forget these."""


class WeightVariables(Variables, Protocol):
    """What decides about weights."""

    def harden(self) -> None:
        """Leave the result to the model; ``Diverged`` when it is none."""

    def undecided(self) -> float:
        """The share of weights that are far from every level."""


@contextmanager
def learning(
    module: nn.Module, parameters: Sequence[nn.Parameter], precision: Precision, device: torch.device
) -> Iterator[None]:
    """For a loop of iterations: of all parameters in ``module`` only these get gradients.

    The loop gives the same bits every time: on the CPU in one thread, because gradients of convolutions
    depend on the number of threads; on a GPU by the choice of cuDNN's algorithms, so far as the module's
    other operations do.
    """
    before = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    chosen = set(map(id, parameters))
    for parameter, _ in before:
        parameter.requires_grad_(id(parameter) in chosen)
    try:
        with one_thread(), kept_memory(), computing_in(precision, device), torch.enable_grad():
            yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
            parameter.grad = None


def fitted(layers: Sequence[LayerTask]) -> dict[str, dict[str, Tensor]]:
    """What has been fitted in all these layers."""
    return {layer.name: fitted_state(layer.module) for layer in layers}


def set_fitted(layers: Sequence[LayerTask], state: dict[str, dict[str, Tensor]]) -> None:
    """Bring back what ``fitted`` told."""
    for layer in layers:
        set_fitted_state(layer.module, state[layer.name])


def slower(method: AnyMethod) -> AnyMethod:
    """The same at a fraction of its rates, for what they were too high for."""
    rates = {name: value / SLOWER for name, value in method if name.endswith("rate")}
    return method.model_copy(update=rates)


def gradient_of(weight: nn.Parameter) -> Tensor:
    """What the last backward pass left; zeros where no call has come to this weight."""
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


def log_scale_gradient(quantizer: WeightQuantizer, weight: nn.Parameter) -> Tensor:
    """With regard to the logarithms of the scales, which the weights are proportional to."""
    return quantizer.sum_per_scale(gradient_of(weight) * weight)


class Adam:
    """Adam, also on nothing at all.

    clock: with it the learning rate falls from ``rate`` to 0 along half a cosine, in this ``share`` of the
    iterations; without it it stays.
    """

    def __init__(
        self, variables: Sequence[Tensor], rate: float, clock: Clock | None = None, share: float = 1.0
    ) -> None:
        self._optimizer: torch.optim.Adam | None = None
        self._clock = clock
        if not variables:
            return
        self._rate = torch.tensor(rate, dtype=torch.float32, device=variables[0].device)
        self._rates = None if clock is None else clock.falling(rate, share)
        self._optimizer = torch.optim.Adam(variables, lr=self._rate, fused=True, capturable=True)
        self._optimizer._warned_capturable_if_run_uncaptured = True  # not every iteration is recorded

    def step(self) -> None:
        """Use the gradients and forget them."""
        if self._optimizer is None:
            return
        if self._rates is not None:
            self._rate.copy_(self._clock.row(self._rates))
        self._optimizer.step()
        self._optimizer.zero_grad()


class LearnedScales:
    """Adam on the logarithms of weight scales, from the gradients of the weights.

    scales: quantizer, weight, and the scale of every channel, which changes in place: whoever writes the
    weight next does so with the new one.  Scales that are powers of two stay.  rate, clock: as for ``Adam``.
    """

    def __init__(
        self,
        scales: Sequence[tuple[WeightQuantizer, nn.Parameter, Tensor]],
        rate: float,
        clock: Clock | None = None,
    ) -> None:
        self._scales = [of_weight for of_weight in scales if not of_weight[0].grid.power_of_two]
        self._logarithms = [nn.Parameter(quantizer.own(scale).log()) for quantizer, _, scale in self._scales]
        self._adam = Adam(self._logarithms, rate, clock)

    @torch.no_grad()
    def step(self) -> None:
        """Learn from the gradients of the weights, which stay."""
        for (quantizer, weight, scale), logarithm in zip(self._scales, self._logarithms, strict=True):
            logarithm.grad = log_scale_gradient(quantizer, weight).to(scale.dtype)
        self._adam.step()
        for (_, _, scale), logarithm in zip(self._scales, self._logarithms, strict=True):
            scale.copy_(logarithm.exp())


class LearnedBiases:
    """The biases of layers; a layer that has none gets one."""

    def __init__(self, layers: Sequence[LayerTask], rate: float, clock: Clock) -> None:
        for layer in layers:
            if layer.module.bias is None:
                layer.store_bias(layer.weight.new_zeros(layer.weight.shape[:2]))
        self.parameters = [layer.module.bias for layer in layers]
        self._adam = Adam(self.parameters, rate, clock)

    def step(self) -> None:
        self._adam.step()


class LearnedSteps:
    """The steps of input quantizers (LSQ); a context in which they quantize with what is learned.

    drop: the chance of an element to stay as it is (QDrop), drawn by the key that ``key`` gives for an input.
    Quantizers with one scale per channel (ECAQ) keep theirs.  Of a step that is a power of two the logarithm
    is learned, and rounded in every iteration; it stays when the first half of them is over, so that all else
    can settle.
    """

    def __init__(
        self,
        quantizers: Sequence[ActivationQuantizer],
        rate: float,
        clock: Clock,
        drop: float = 0.0,
        key: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._quantizers = [quantizer for quantizer in quantizers if not quantizer.is_per_channel]
        self.parameters = [nn.Parameter(quantizer.scale.clone()) for quantizer in self._quantizers]
        powers = [quantizer.grid.power_of_two for quantizer in self._quantizers]
        free = [step for step, power in zip(self.parameters, powers, strict=True) if not power]
        self._powers = [step for step, power in zip(self.parameters, powers, strict=True) if power]
        self._exponents = [nn.Parameter(step.detach().log2()) for step in self._powers]
        self._adam = Adam(free, rate, clock)
        self._exponent_adam = Adam(self._exponents, EXPONENT_RATE, clock, SETTLED)
        self._drop = drop
        self._key = key or (lambda _: clock.key(0))

    def __enter__(self) -> LearnedSteps:
        for number, quantizer in enumerate(self._quantizers):
            quantizer.forward = partial(self._quantized, number)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for quantizer in self._quantizers:
            del quantizer.forward
        if kind is None:
            for quantizer, scale in zip(self._quantizers, self.parameters, strict=True):
                quantizer.set(sound(scale), quantizer.zero_point)

    def _quantized(self, number: int, x: Tensor) -> Tensor:
        quantizer = self._quantizers[number]
        low, high = quantizer.grid.low, quantizer.grid.high
        step, zero = self.parameters[number], quantizer.zero_point
        return learned_quantize(x, step, zero, low, high, self._drop, self._key(x))

    @torch.no_grad()
    def step(self) -> None:
        """Learn from the gradients of the steps, and forget them."""
        self._adam.step()
        for exponent, step in zip(self._exponents, self._powers, strict=True):
            exponent.grad, step.grad = gradient_of(step) * step * math.log(2), None
        self._exponent_adam.step()
        for exponent, step in zip(self._exponents, self._powers, strict=True):
            step.copy_(powers(exponent.round()) + 0 * exponent)  # a step that is no number stays none
        for step in self.parameters:
            step.clamp_(SMALLEST, LARGEST)
