"""The variables of learned rounding for all layers of a piece (``bitsplit.ops.rounding``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bitsplit.methods.clock import Clock
from bitsplit.methods.learning import LearnedScales, gradient_of, sound
from bitsplit.methods.tasks import LayerTask
from bitsplit.ops.rounding import inverse_soft_bit, rounding_step, soft_bit
from bitsplit.quantizers import set_weight

NEAREST = 0.501  # of a step: farther from its float weight no code is that was rounded to nearest
UNSURE = 0.05  # from a level: what is farther away from both has not been decided
LEAST = 0.001  # away from both levels is every weight at first, or its gradient would be zero for good


class SoftRounding:
    """Every weight between two levels, its layer's ``weight`` parameter holding the soft value.

    Of a layer rounded to nearest these are the two levels around the float weight, and h starts as what lies
    between.  Codes that a method has chosen are to be improved: then they are the chosen level and the
    neighbour on the float weight's side, and h starts ``1 - lean`` away from the chosen one.

    schedule: a row for every iteration of the clock (``bitsplit.ops.rounding.rounding_schedule``).
    scale_rate: of Adam on the logarithms of the scales, which goes beyond the papers; 0 leaves them alone.
    """

    def __init__(
        self, layers: Sequence[LayerTask], schedule: Tensor, clock: Clock, lean: float, scale_rate: float
    ) -> None:
        self._layers = [_LayerRounding(layer, lean) for layer in layers]
        learned = self._layers if scale_rate > 0 else []
        self._scales = LearnedScales([(x.quantizer, x.weight, x.scale) for x in learned], scale_rate)
        self._clock, self._schedule = clock, schedule.to(clock.device)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [layer.weight for layer in self._layers]

    def step(self) -> None:
        """Learn from the gradients of the weights, and forget them."""
        self._scales.step()
        parts = [part for layer in self._layers for part in layer.parts()]
        if parts:
            rounding_step(*map(list, zip(*parts, strict=True)), self._clock.row(self._schedule))
        for weight in self.parameters:
            weight.grad = None

    def undecided(self) -> float:
        """The share of weights that are far from both levels."""
        h = [soft_bit(layer.v) for layer in self._layers]
        return sum(int(((x > UNSURE) & (x < 1 - UNSURE)).sum()) for x in h) / max(
            1, sum(x.numel() for x in h)
        )

    def harden(self) -> None:
        """Every weight to the level it is closer to."""
        for layer in self._layers:
            layer.harden()


def in_steps(layer: LayerTask) -> Tensor:
    """The float weights of a layer, each in steps of its channel's scale."""
    quantizer = layer.module.weight_quantizer
    exact = layer.kind.unmatrix(layer.module, layer.weight)
    return exact / quantizer.per_channel(quantizer.scale.to(exact.dtype))


def were_chosen(layer: LayerTask) -> bool:
    """Whether codes of a layer are others than rounding to nearest gives."""
    quantizer = layer.module.weight_quantizer
    lowest, highest = quantizer.level_range
    reachable = torch.minimum(torch.maximum(in_steps(layer), lowest), highest)
    return bool(((reachable - quantizer.levels).abs() > NEAREST).any())


class _LayerRounding:
    """The variables of one layer."""

    def __init__(self, layer: LayerTask, lean: float) -> None:
        self._module = layer.module
        self.quantizer = quantizer = layer.module.weight_quantizer
        self.weight = layer.module.weight
        self._zero = quantizer.per_channel(quantizer.zero_point)
        self.scale = quantizer.scale.to(self.weight.dtype, copy=True)
        ratio, level, chosen = in_steps(layer), quantizer.levels, were_chosen(layer)
        lowest, highest = quantizer.level_range
        below = torch.where(ratio > level, level, level - 1) if chosen else ratio.floor()
        base = torch.minimum(torch.maximum(below, lowest), highest - 1)
        h = torch.where(base == level, 1 - lean, lean) if chosen else (ratio - base).clamp(LEAST, 1 - LEAST)
        like = self.weight.detach()
        self._base = torch.empty_like(like, dtype=torch.int16).copy_(base)
        self.v = torch.empty_like(like).copy_(inverse_soft_bit(h))
        self._mean, self._square = torch.zeros_like(like), torch.zeros_like(like)
        like.copy_(quantizer.per_channel(self.scale) * (self._base + soft_bit(self.v)))

    def parts(self) -> list[tuple[Tensor | int, ...]]:
        """What ``rounding_step`` takes: one part, of a grouped transposed convolution one for every group."""
        quantizer = self.quantizer
        tensors = (
            self.weight.data,
            gradient_of(self.weight),
            self.v,
            self._mean,
            self._square,
            self._base,
            self.scale,
        )
        if quantizer.axis == 0 or quantizer.groups == 1:
            return [(*tensors, quantizer.axis)]
        chunks = (tensor.chunk(quantizer.groups) for tensor in tensors)
        return [(*part, quantizer.axis) for part in zip(*chunks, strict=True)]

    def harden(self) -> None:
        level = self._base + (soft_bit(self.v) >= 0.5)
        quantizer = self.quantizer
        set_weight(self._module, level + self._zero, sound(self.scale), quantizer.zero_point)
