"""Re-estimation of norm statistics, as the released Bit-Split does, on a network whose norms are folded.

In training mode a norm would scale every channel of its layer's output y by the batch's mean and variance.
With the norm folded, y = a z + c per channel, the same is |gamma| (y - mean) / sqrt(var + a^2 eps) + beta.
Running averages of mean and variance are taken over the batches and at the end absorbed into scale and bias
of the layer, so the result stays integer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from bitsplit.methods.base import Method
from bitsplit.methods.registry import register
from bitsplit.methods.tasks import Run
from bitsplit.network import FoldedNorm, kind_of
from bitsplit.quantizers import refresh_weight

MOMENTUM = 0.1  # of running averages, as in training


@register
class ReestimateNorms(Method):
    """``batches`` training-mode batches (cycling through the calibration data), then folded in again."""

    name = "norms"
    batches: int = Field(200, ge=1)

    @property
    def needs_free_scales(self) -> bool:
        return True

    def finish(self, run: Run) -> None:
        trackers = {}
        with ExitStack() as hooks:
            for norm in run.network.norms:
                if norm.folded:
                    module = run.student.get_submodule(norm.name)
                    tracker = trackers[norm.layer] = _Tracker(module)
                    hooks.callback(module.register_forward_pre_hook(tracker, with_kwargs=True).remove)
            for index, batch in islice(_endless(run), self.batches):
                run.forward(run.student, index, batch)
        for name, tracker in trackers.items():
            if not tracker.has_seen:
                raise ValueError(
                    f"the norm behind {name} needs batches with two values or more of a channel, got one: "
                    "pass batch_size=2"
                )
            tracker.absorb_into(run.student.get_submodule(name))


def _endless(run: Run) -> Iterator[tuple[int, Any]]:
    """The batches over and over."""
    while True:
        yield from run.batches()


class _Tracker:
    """Normalises the input of one folded norm by the batch and keeps running averages."""

    def __init__(self, norm: FoldedNorm) -> None:
        self._gamma, self._beta = norm.reference_gain.double().abs(), norm.reference_mean.double()
        self._floor = self._gamma.square() * norm.eps / (norm.running_var.double() + norm.eps)
        self.has_seen = False  # a batch that has a variance
        self._mean = self._beta.clone()
        self._var = norm.reference_std.double().square()

    def __call__(self, module: FoldedNorm, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        y = module.read(args, kwargs)
        count = y.numel() // y.shape[1]
        if count < 2:
            return args, kwargs
        self.has_seen = True
        _, mean, inverse = torch.native_batch_norm(y, None, None, None, None, True, 0.0, 0.0)
        varies = inverse > 0  # a channel that does not keeps the statistics it has
        mean, var = mean.double(), inverse.double().pow(-2)
        momentum = MOMENTUM * varies.double()
        self._mean.lerp_(mean, momentum)
        self._var.lerp_(var.where(varies, 0) * (count / (count - 1)), momentum)
        gain, shift = self._affine(mean, var)
        shape = (1, -1) + (1,) * (y.dim() - 2)
        return (y * gain.view(shape).to(y.dtype) + shift.view(shape).to(y.dtype),), {}

    def _affine(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        gain = self._gamma / torch.sqrt(var + self._floor)
        gain = torch.where(torch.isfinite(gain), gain, torch.ones_like(gain))
        return gain, self._beta - mean * gain

    def absorb_into(self, layer: nn.Module) -> None:
        """Let the layer itself do what the norm would do in evaluation mode."""
        gain, shift = self._affine(self._mean, self._var)
        quantizer = getattr(layer, "weight_quantizer", None)
        if quantizer is not None and quantizer.is_fitted:
            quantizer.scale.mul_(gain.to(quantizer.scale.dtype))
            refresh_weight(layer)
        else:
            kind = kind_of(layer)
            matrix = kind.matrix(layer, layer.weight)
            scaled = matrix * gain.view(*matrix.shape[:2], 1).to(matrix.dtype)
            layer.weight.copy_(kind.unmatrix(layer, scaled))
        layer.bias.copy_(layer.bias.double() * gain + shift)
