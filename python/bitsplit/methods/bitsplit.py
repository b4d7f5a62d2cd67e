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
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from bitsplit.methods.activations import BitSplitActivations
from bitsplit.methods.base import AnyActivationMethod, LayerTask, Run, WeightMethod
from bitsplit.methods.norms import ReestimateNorms
from bitsplit.methods.registry import register
from bitsplit.methods.statistics import Statistics
from bitsplit.ops.split import (
    Descent,
    best_of,
    feedback,
    feedback_factor,
    fwa,
    ofwa,
    planes,
    polish,
    response_target,
    solve_starts,
)
from bitsplit.quantizers import Grid

KICK_COPIES = 4  # tried at once
KICK_SHARE = 0.02  # of the codes of a row
KICK_PATIENCE = 10  # restarts without any gain after which the search ends
KICK_WORK = 10**9  # rows times columns squared, summed over the restarts of one layer

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
    many sampled patches instead of all.  ecaq: one activation scale per input channel, moved into the weights
    before they are fitted, so that the accumulation stays integer.  paper: the released behaviour throughout.
    """

    name = "bitsplit"
    activations: AnyActivationMethod = BitSplitActivations()
    rounds: int = Field(100, ge=1)
    starts: Literal["several", "planes"] = "several"
    scales: tuple[PositiveFloat, ...] = Field((0.6, 0.7, 0.8, 0.9, 1.0, 1.1), min_length=1)
    orders: int = Field(6, ge=0, description="random coordinate orders tried at the best scale")
    kicks: int = Field(100, ge=0, description="restarts from the best codes, a few of them changed")
    polish: bool = True
    error_compensation: bool = True
    refit_bias: bool = True
    damping: float = Field(0.01, gt=0, description="added to the Gram diagonal, relative to its mean")
    patches: int | None = Field(None, ge=1)
    reestimate_norms: bool = False
    ecaq: bool = False
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

    @model_validator(mode="after")
    def _compatible(self) -> BitSplit:
        if self.ecaq and not self.error_compensation:
            raise ValueError("ecaq needs error_compensation: its weights are fitted to the quantized inputs")
        if self.starts == "several" and not self.polish:
            raise ValueError('polish=False needs starts="planes": several starts are compared when polished')
        return self

    def fit_layer(self, task: LayerTask) -> None:
        # float weights cannot take up scales per channel
        self.activations.fit_layer(task, per_channel=self.ecaq and task.weight_grid is not None)
        if task.weight_grid is not None:
            if self.ecaq:  # its own first call feeds its second one while the statistics are taken
                task.module.weight.copy_(task.kind.unmatrix(task.module, task.weight))
            self.fit_weights(task)

    def fit_weights(self, task: LayerTask) -> None:
        sums = task.statistics("quantized" if self.error_compensation else "float", self.patches)
        moments = sums.centred() if self.refit_bias else sums
        fit = self._planes if self.starts == "planes" else self._several
        found = fit(task, moments)
        task.store(found.codes, found.scale)
        if self.refit_bias:
            task.store_bias(refitted_bias(task, sums))

    def _planes(self, task: LayerTask, moments: Statistics) -> Descent:
        """The paper's own road: weight space, then bit planes in response space, then perhaps polish."""
        bits = task.weight_grid.bits
        gram, cross = moments.gram, moments.cross
        codes, scale = ofwa(task.weight, *fwa(task.weight, bits), bits)
        found = planes(codes, scale, gram, cross, bits, self.rounds)
        if self.polish:
            found = polish(found.codes, found.scale, gram, cross, bits, self.rounds)
        if self.paper:
            dead = torch.diagonal(gram, dim1=1, dim2=2) == 0
            found = found._replace(codes=found.codes.masked_fill(dead.unsqueeze(1), 0))
        return found

    def _several(self, task: LayerTask, moments: Statistics) -> Descent:
        """Every start rounded with error feedback and polished; the best per row."""
        bits = task.weight_grid.bits
        gram, cross = moments.gram.float(), moments.cross.float()
        factor = feedback_factor(moments.gram, self.damping)
        target = response_target(task.weight, moments.gram, moments.cross, factor).float()
        _, scale = fwa(task.weight, bits)
        scales = torch.stack([scale * multiplier for multiplier in self.scales], dim=1)
        best = solve_starts(target, scales, gram, cross, factor, bits, self.rounds)
        generator = torch.Generator().manual_seed(task.seed)
        for _ in range(self.orders):
            order = torch.randperm(target.shape[2], generator=generator).to(target.device)
            factor = feedback_factor(moments.gram[:, order][:, :, order], self.damping)
            codes = feedback(target[:, :, order], best.scale, factor, bits)[:, :, torch.argsort(order)]
            found = polish(codes, best.scale, gram, cross, bits, self.rounds)
            best = best_of(stacked(best, found), target.shape[1])
        return self._kick(best, gram, cross, task.weight_grid, generator)

    def _kick(
        self, best: Descent, gram: Tensor, cross: Tensor, grid: Grid, generator: torch.Generator
    ) -> Descent:
        """Restart from the best codes, a few of them moved, until nothing has come of it for a while."""
        _, rows, columns = best.codes.shape
        idle = 0
        for _ in range(min(self.kicks, KICK_WORK // (rows * columns * columns))):
            codes, scale = kicked(best, grid, generator)
            found = polish(codes, scale, gram, cross, grid.bits, self.rounds)
            before, best = best, best_of(stacked(best, found), rows)
            idle = idle + 1 if torch.equal(before.explained, best.explained) else 0
            if idle == KICK_PATIENCE:
                break
        return best

    def finish(self, run: Run) -> None:
        if self.reestimate_norms:
            ReestimateNorms().finish(run)


def stacked(*found: Descent) -> Descent:
    """Several solutions of the same rows, one below the other."""
    return Descent(*(torch.cat(fields, dim=1) for fields in zip(*found, strict=True)))


def kicked(best: Descent, grid: Grid, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``KICK_COPIES`` copies of codes and scale, in each a share of the codes one level up or down."""
    codes = best.codes.repeat(1, KICK_COPIES, 1).to(torch.int16)  # so that a step beyond 127 does not wrap
    chance = torch.rand(codes.shape, generator=generator).to(codes.device)
    step = (chance < KICK_SHARE / 2).to(torch.int16) - (chance > 1 - KICK_SHARE / 2).to(torch.int16)
    moved = (codes + step).clamp(grid.low, grid.high).to(torch.int8)
    return moved, best.scale.repeat(1, KICK_COPIES)


def refitted_bias(task: LayerTask, sums: Statistics) -> Tensor:
    """The bias that keeps the mean response of the fitted weight Q: b + mean(y) - Q mean(x)."""
    mean_response = (task.quantized_weight.double() @ sums.mean_x.unsqueeze(2)).squeeze(2)
    shift = sums.mean_y - mean_response
    return shift.flatten() + (0 if task.bias is None else task.bias.double())
