"""Bit-Split (ICML 2020) and what goes beyond it on the same second moments.

A layer's rows are fitted one by one: minimise f(s, q) = || y - s q^T X ||^2 over a scale s and integers q.
Only G = X X^T and C = X Y^T are needed.  The paper alternates over ternary bit planes from one start.  The
default here fits the inputs of the *quantized* predecessors to the *float* responses, lets a re-fitted bias
absorb the means, tries several starts (scales, coordinate orders) by rounding one coordinate after the other
with error feedback, polishes each by coordinate descent over all levels, and keeps the best per row.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from bitsplit.methods.activations import BitSplitActivations
from bitsplit.methods.base import AnyActivationMethod, LayerTask, Run, WeightMethod
from bitsplit.methods.norms import reestimate
from bitsplit.methods.registry import register
from bitsplit.methods.statistics import Statistics
from bitsplit.ops.split import feedback, fwa, objective, ofwa, planes, polish

PAPER = {
    "starts": "planes",
    "polish": False,
    "error_compensation": False,
    "refit_bias": False,
    "patches": 12_000,
    "reestimate_norms": True,
}


@register
class BitSplit(WeightMethod):
    """Closed-form fitting of integers and scales, without gradients.

    rounds: at most so many sweeps of an alternation.  starts: ``several`` or the paper's ``planes``.
    error_compensation: fit inputs from the quantized predecessors instead of float ones.  patches: fit on so
    many sampled patches instead of all.  paper: the released behaviour in everything.
    """

    name = "bitsplit"
    activations: AnyActivationMethod = BitSplitActivations()
    rounds: int = Field(100, ge=1)
    starts: Literal["several", "planes"] = "several"
    scales: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1)
    orders: int = Field(6, ge=0, description="random coordinate orders tried at the best scale")
    polish: bool = True
    error_compensation: bool = True
    refit_bias: bool = True
    damping: float = Field(0.01, gt=0, description="added to the Gram diagonal, relative to its mean")
    patches: int | None = Field(None, ge=1)
    reestimate_norms: bool = False
    paper: bool = False

    @model_validator(mode="before")
    @classmethod
    def _paper_settings(cls, options: Any) -> Any:
        if not isinstance(options, dict) or not options.get("paper"):
            return options
        contrary = [key for key, value in PAPER.items() if options.get(key, value) != value]
        if contrary:
            raise ValueError(f"paper=True fixes {', '.join(contrary)}; leave paper out to choose them")
        return {**PAPER, **options}

    def fit_weights(self, task: LayerTask) -> None:
        sums = task.statistics("quantized" if self.error_compensation else "float", self.patches)
        moments = sums.centred() if self.refit_bias else sums
        fit = self._planes if self.starts == "planes" else self._several
        codes, scale = fit(task, moments)
        task.store(codes, scale)
        if self.refit_bias:
            task.store_bias(refitted_bias(task, sums, codes, scale))

    def _planes(self, task: LayerTask, moments: Statistics) -> tuple[Tensor, Tensor]:
        """The paper's own road: weight space, then bit planes in response space, then perhaps polish."""
        bits = task.weight_grid.bits
        weight, gram, cross = task.weight.double(), moments.gram, moments.cross
        codes, scale = ofwa(weight, *fwa(weight, bits), bits, 50)
        codes, scale, _ = planes(codes, scale, gram, cross, bits, self.rounds)
        if self.polish:
            codes, scale, _ = polish(codes, scale, gram, cross, bits, self.rounds)
        if self.paper:
            dead = torch.diagonal(gram, dim1=1, dim2=2) == 0
            codes = codes.masked_fill(dead.unsqueeze(1), 0)
        return codes, scale

    def _several(self, task: LayerTask, moments: Statistics) -> tuple[Tensor, Tensor]:
        """Every start rounded with error feedback and polished; the best per row."""
        bits = task.weight_grid.bits
        target = response_target(task.weight.double(), moments, self.damping)
        _, scale = fwa(task.weight.double(), bits)
        best = _Best(moments)
        factor = feedback_factor(moments.gram, self.damping)
        for multiplier in self.scales:
            start = scale * multiplier
            best.take(*self._descend(feedback(target, start, factor, bits), start, moments, bits))
        generator = torch.Generator().manual_seed(task.seed)
        for _ in range(self.orders):
            order = torch.randperm(target.shape[2], generator=generator).to(target.device)
            factor = feedback_factor(moments.gram[:, order][:, :, order], self.damping)
            codes = feedback(target[:, :, order], best.scale, factor, bits)[:, :, torch.argsort(order)]
            best.take(*self._descend(codes, best.scale, moments, bits))
        return best.codes, best.scale

    def _descend(self, codes: Tensor, scale: Tensor, moments: Statistics, bits: int) -> tuple[Tensor, Tensor]:
        if self.polish:
            codes, scale, _ = polish(codes, scale, moments.gram, moments.cross, bits, self.rounds)
        return codes, scale

    def finish(self, run: Run) -> None:
        if self.reestimate_norms:
            reestimate(run)


class _Best:
    """The best codes and scale of every row so far."""

    def __init__(self, moments: Statistics) -> None:
        self._moments = moments
        self._error: Tensor | None = None

    def take(self, codes: Tensor, scale: Tensor) -> None:
        """Keep those rows of (codes, scale) that are better than what is kept."""
        m = self._moments
        error = objective(codes, scale, m.gram, m.cross, m.sum_yy)
        if self._error is None:
            self.codes, self.scale, self._error = codes, scale, error
            return
        better = error < self._error
        self.codes = torch.where(better.unsqueeze(2), codes, self.codes)
        self.scale = torch.where(better, scale, self.scale)
        self._error = torch.where(better, error, self._error)


def damped(gram: Tensor, damping: float) -> Tensor:
    """G with ``damping`` times its mean diagonal added, so that dead inputs do not make it singular."""
    diagonal = torch.diagonal(gram, dim1=1, dim2=2)
    level = diagonal.mean(1, keepdim=True)
    level = damping * torch.where(level > 0, level, torch.ones_like(level))
    return gram + torch.diag_embed(level.expand_as(diagonal))


def feedback_factor(gram: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped Gram matrix: how later coordinates answer an error."""
    lower = torch.linalg.cholesky(damped(gram, damping))
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)


def response_target(weight: Tensor, moments: Statistics, damping: float) -> Tensor:
    """The float weight that answers the quantized inputs best: W + (C^T - W G) (G + damping)^-1."""
    mismatch = moments.cross - moments.gram @ weight.transpose(1, 2)
    return weight + torch.linalg.solve(damped(moments.gram, damping), mismatch).transpose(1, 2)


def refitted_bias(task: LayerTask, sums: Statistics, codes: Tensor, scale: Tensor) -> Tensor:
    """The bias that keeps the mean response: b + mean(y) - s q^T mean(x)."""
    mean_response = scale.double() * (codes.double() @ sums.mean_x.unsqueeze(2)).squeeze(2)
    shift = sums.mean_y - mean_response
    return shift.flatten() + (0 if task.bias is None else task.bias.double())
