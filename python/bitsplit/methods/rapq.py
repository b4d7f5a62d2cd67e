"""RAPQ (IJCAI 2022): scales that are powers of two, chosen for a whole block together.

    s = 2^(k + h(p)),  h as in learned rounding

k and k + 1 are the exponent that was best for the channel on its own, and the neighbour on the side of the
best scale of any value.  For the first iterations p is learned for every channel, with the weights rounded to
nearest at these scales; a penalty pushes every h to 0 or 1.  Then the exponents are whole numbers for good,
and the rounding of the weights is learned at the scales that will stay.  Steps of inputs are powers of two
all the time; their exponents are learned.  The block's error is an L_p one, p by the norm at its end.

In the released code exponents and activation steps never become whole numbers, and rounding is learned at
scales that still move.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from bitsplit.methods.clock import Clock
from bitsplit.methods.learning import Adam
from bitsplit.methods.qdrop import QDrop
from bitsplit.methods.ranges import rows_of
from bitsplit.methods.registry import register
from bitsplit.methods.soft_rounding import were_chosen
from bitsplit.methods.straight_through import RoundedWeight
from bitsplit.methods.tasks import LayerTask, Piece, Samples
from bitsplit.network import FoldedNorm
from bitsplit.ops.ranges import channel_range, lp_search
from bitsplit.ops.rounding import STRETCH, inverse_soft_bit, rounding_schedule, soft_bit
from bitsplit.quantizers.powers import exponents, powers

PENALTY = 10  # times the regularizer of the rounding
RANGES, RANGES_P = 80, 2.4  # of the search for the scale that is best on its own
LEAN = 0.75  # at first of every h towards the exponent that was best on its own


@register
class Rapq(QDrop):
    """exponent_iterations: of all iterations, those in which the exponents of weights are learned.

    exponent_rate: of Adam on p.  spread: the L_p error has p = 1 + spread * sigmoid((sum of the norm's
    weights - 1) / channels); blocks without a norm, and spread None, have p = 2.
    Codes that an earlier method has chosen keep their exponents.  step_rate changes nothing: steps are powers
    of two.
    """

    name = "rapq"
    exponent_iterations: int = Field(500, ge=0)
    exponent_rate: float = Field(1e-3, gt=0)
    spread: float | None = Field(0.1, ge=0)

    @model_validator(mode="after")
    def _learns_rounding(self) -> Rapq:
        if 0 < self.iterations <= self.exponent_iterations:
            raise ValueError(
                f"iterations must be more than exponent_iterations ({self.exponent_iterations}), or no "
                f"rounding is learned, got {self.iterations}"
            )
        return self

    @property
    def makes_powers_of_two(self) -> bool:
        return True

    def reconstruct(self, piece: Piece, samples: Samples) -> float:
        p = 2.0 if self.spread is None else norm_guided(piece.module, self.spread)
        free = [layer for layer in piece.layers if layer.weight_grid is not None and not were_chosen(layer)]
        first = min(self.exponent_iterations, self.iterations) if free else 0
        if first > 0:
            clock = Clock(first, piece.device)
            schedule = rounding_schedule(first, 1.0, PENALTY * self.regularizer, self.warm_up)
            with self.dropping(piece, clock) as (steps, inputs):
                found = Exponents(free, self.exponent_rate, schedule, clock)
                self.learn(piece, samples, [steps, found], clock, p=p, inputs=inputs)
                found.harden()
        clock = Clock(self.iterations - first, piece.device)
        with self.dropping(piece, clock) as (steps, inputs):
            return self.learn_weights(piece, samples, clock, [steps], p=p, inputs=inputs)


def norm_guided(module: nn.Module, spread: float) -> float:
    """The p that the norm registered last in a module stands for; 2 without one.

    In blocks that register their shortcut's norm after the others (torchvision's), it is that one.
    """
    norms = [norm for norm in module.modules() if isinstance(norm, FoldedNorm) and norm.weight is not None]
    if not norms:
        return 2.0
    weight = norms[-1].weight.detach()
    return 1 + spread * float(torch.sigmoid((weight.sum() - 1) / weight.numel()))


class Exponents:
    """The exponents of the weight scales of layers, whose ``weight`` parameters are rounded to nearest.

    schedule: a row for every iteration of the clock (``bitsplit.ops.rounding.rounding_schedule``).
    """

    def __init__(self, layers: Sequence[LayerTask], rate: float, schedule: Tensor, clock: Clock) -> None:
        self._layers = [_LayerExponents(layer) for layer in layers]
        self._adam = Adam([layer.v for layer in self._layers], rate)
        self._clock, self._schedule = clock, schedule.to(clock.device)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [layer.rounded.parameter for layer in self._layers]

    @torch.no_grad()
    def step(self) -> None:
        """Learn from the gradients of the weights, and forget them."""
        _, _, weight, power = self._clock.row(self._schedule)
        for layer in self._layers:
            layer.take_gradients(weight, power)
        self._adam.step()
        for layer in self._layers:
            layer.write()

    def harden(self) -> None:
        """The closer exponent for every channel, and the codes nearest then."""
        for layer in self._layers:
            layer.harden()


class _LayerExponents:
    """The variables of one layer."""

    def __init__(self, layer: LayerTask) -> None:
        self.rounded = RoundedWeight(layer)
        rows, grid = rows_of(layer), layer.weight_grid
        best = lp_search(rows, 0, grid.low, grid.high, *channel_range(rows, 0), RANGES, RANGES_P).scale
        chosen = self.rounded.quantizer.own(self.rounded.quantizer.scale)
        upwards = best.to(chosen.dtype) > chosen
        self._below = exponents(chosen) - (~upwards).int()
        self.v = nn.Parameter(inverse_soft_bit(torch.where(upwards, 1 - LEAN, LEAN).to(self.rounded.exact)))
        self.write()

    @property
    def _scale(self) -> Tensor:
        return torch.exp2(self._below + soft_bit(self.v.detach()))

    def write(self) -> None:
        """The weight at the present scales."""
        self.rounded.write(self._scale)

    def take_gradients(self, weight: Tensor, power: Tensor) -> None:
        """weight, power: of the penalty 1 - |2 h - 1|^power."""
        of_logarithm, _ = self.rounded.take_gradients(self._scale)
        h, sigmoid = soft_bit(self.v), torch.sigmoid(self.v)
        off = 2 * h - 1
        penalty = -2 * weight * power * off.abs().pow(power - 1) * off.sign()
        inside = (h > 0) & (h < 1)
        slope = torch.where(inside, (1 + 2 * STRETCH) * sigmoid * (1 - sigmoid), 0)
        self.v.grad = (of_logarithm * math.log(2) + penalty) * slope

    def harden(self) -> None:
        scale = powers(self._below + (soft_bit(self.v.detach()) >= 0.5))
        self.rounded.write(scale)
        self.rounded.harden(scale)
