"""Bit-Split (ICML 2020) and what goes beyond it on the same second moments.

A layer's rows are fitted one by one: minimise f(s, q) = || y - s q^T X ||^2 over a scale s and integers q.
Only G = X X^T and C = X Y^T are needed.  The paper alternates over ternary bit planes from one start.  The
default here fits the inputs of the *quantized* predecessors to the *float* responses, lets a re-fitted bias
absorb the means, and holds the weights as near to the float ones as images that they were not fitted to ask
for.  It rounds one coordinate after the other with error feedback at several scales, polishes the most
promising by coordinate descent over all levels, and looks around the best by tabu search.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor

from bitsplit.methods.activations import MseActivations
from bitsplit.methods.base import AnyActivationMethod, WeightMethod
from bitsplit.methods.norms import ReestimateNorms
from bitsplit.methods.ranges import store_levels
from bitsplit.methods.registry import register
from bitsplit.methods.ridge import held, seen
from bitsplit.methods.starts import start_scales
from bitsplit.methods.statistics import Statistics, refitted_bias
from bitsplit.methods.tasks import Inputs, LayerTask, Run
from bitsplit.methods.wide import MOST_COLUMNS, fit_in_parts, part_width
from bitsplit.network import LayerKind
from bitsplit.ops.levels import level_choices
from bitsplit.ops.split import Descent, fwa, ofwa, planes, polish, search
from bitsplit.ops.starts import (
    best_of,
    feedback_factor,
    influential,
    polish_together,
    response_target,
    solve_starts,
)
from bitsplit.quantizers import Grid

MATRICES = 4  # G, centred G, and four in float32 while it is factorized; and twice as much by halves
SEARCH_WORK = 12 * 10**7  # weights of a layer times steps: less than a tenth of a second of one core

PAPER = {
    "levels": "symmetric",
    "starts": "planes",
    "polish": False,
    "error_compensation": False,
    "refit_bias": False,
    "ridge": 0.0,
    "patches": 12_000,
    "reestimate_norms": True,
    "activations_last": True,
}


@register
class BitSplit(WeightMethod):
    """Closed-form fitting of integers and scales, without gradients.

    levels: ``affine`` needs ``several`` starts; each is then tried with zero on either side of the middle.
    rounds: at most so many sweeps of an alternation.  starts: ``several`` or the paper's ``planes``.
    scales: of several starts, in units of the nearest scale.  polish: descend over all levels in the end.
    search: steps of a tabu search from the best start of a row on, for every weight in it; large layers get
    fewer.
    ridge: what holds the weights near the float ones, as a share of every input's energy; ``auto`` finds it
    for every layer by fitting one half of the images and looking at the other (where all patches are used).
    error_compensation: fit inputs from the quantized predecessors instead of float ones.  refit_bias: let the
    bias absorb means.  reestimate_norms: give norms that stayed the statistics of the quantized network.
    patches: fit on so many sampled patches instead of all.  activations_last: fit input scales when all
    weights are fitted, on activations that are all float.  ecaq: one activation scale per input channel,
    moved into the weights before they are fitted, so that the accumulation stays integer.  paper: the
    released behaviour throughout.

    Input scales are those of ``mse``, of the paper's own alternation where paper asks for it.
    """

    name = "bitsplit"
    activations: AnyActivationMethod = MseActivations()
    rounds: int = Field(100, ge=1)
    starts: Literal["several", "planes"] = "several"
    scales: tuple[PositiveFloat, ...] = Field((0.6, 0.7, 0.8, 0.9, 1.0, 1.1), min_length=1)
    search: int = Field(100, ge=0)
    polish: bool = True
    error_compensation: bool = True
    refit_bias: bool = True
    ridge: Literal["auto"] | NonNegativeFloat = "auto"
    patches: int | None = Field(None, ge=1)
    reestimate_norms: bool = False
    activations_last: bool = False
    ecaq: bool = False
    paper: bool = False

    @model_validator(mode="before")
    @classmethod
    def _paper_settings(cls, options: Any) -> Any:
        if not isinstance(options, dict):
            return options
        if not options.get("paper"):
            return options
        options = {"activations": "bitsplit", **options}
        contrary = [key for key, value in PAPER.items() if options.get(key, value) != value]
        if contrary:
            raise ValueError(f"paper=True fixes {', '.join(contrary)}; leave paper out to choose them")
        return {**PAPER, **options}

    @model_validator(mode="after")
    def _compatible(self) -> BitSplit:
        if self.ecaq and not self.error_compensation:
            raise ValueError("ecaq needs error_compensation: its weights are fitted to the quantized inputs")
        if self.activations_last and self.error_compensation:
            raise ValueError("activations_last needs error_compensation=False: weights come before them")
        if self.starts == "several" and not self.polish:
            raise ValueError('polish=False needs starts="planes": several starts are compared when polished')
        if self.starts == "planes" and self.per_tensor:
            raise ValueError(
                'per_tensor needs starts="several": every row of bit planes has a scale of its own'
            )
        if self.starts == "planes" and self.levels == "affine":
            raise ValueError('levels="affine" needs starts="several": bit planes are symmetric around zero')
        return self

    @property
    def defers_inputs(self) -> bool:
        return self.activations_last

    @property
    def scales_in_weights(self) -> bool:
        return self.ecaq

    @property
    def needs_free_scales(self) -> bool:
        return self.starts == "planes" or self.reestimate_norms

    def fit_layer(self, task: LayerTask) -> None:
        if self.activations_last:
            if task.weight_grid is not None:
                self.fit_weights(task)
            return
        # float weights cannot take up scales per channel
        self.activations.fit_layer(task, per_channel=self.ecaq and task.weight_grid is not None)
        if task.weight_grid is not None:
            task.take_up_input_scales()
            self.fit_weights(task)

    def memory(self, kind: LayerKind, groups: int, columns: int) -> int:
        width = part_width(columns) if self._in_parts(kind, columns) else columns
        return 8 * MATRICES * (1 + self._by_halves) * groups * width**2

    @property
    def _by_halves(self) -> bool:
        return self.ridge == "auto" and self.patches is None

    def _in_parts(self, kind: LayerKind, columns: int) -> bool:
        whole = self.starts == "planes" or not self.error_compensation or self.patches is not None
        return kind.spatial == 0 and columns > MOST_COLUMNS and not whole

    def fit_weights(self, task: LayerTask) -> None:
        if self._in_parts(task.kind, task.weight.shape[2]):
            choices = self._choices(task.weight_grid.bits)
            return fit_in_parts(task, choices, self.scales, self.ridge, self.refit_bias)
        sums, share = self._seen(task)
        moments = held(task.weight, sums.centred() if self.refit_bias else sums, share)
        found = self.fit_rows(task.weight, moments.gram, moments.cross, task.weight_grid, task.seed)
        store_levels(task, found.codes, found.scale, found.levels)
        if self.refit_bias:
            task.store_bias(refitted_bias(task.bias, task.quantized_weight, sums))

    def _seen(self, task: LayerTask) -> tuple[Statistics, float]:
        """What the layer is fitted to, and how strongly its weights are held."""
        inputs: Inputs = "quantized" if self.error_compensation else "float"
        if self.patches is not None:
            return task.statistics(inputs, self.patches), 0.0 if self.ridge == "auto" else self.ridge
        choices = self._choices(task.weight_grid.bits)
        return seen(task, task.weight, inputs, self.ridge, choices, self.refit_bias)

    def _choices(self, bits: int) -> list[tuple[int, int]]:
        """The levels that a row may have."""
        return level_choices(bits, self.levels == "affine")

    def fit_rows(self, weight: Tensor, gram: Tensor, cross: Tensor, grid: Grid, seed: int) -> Descent:
        """Codes and scales of the rows of weight [g, M, N] from second moments alone."""
        if self.starts == "planes":
            return self._planes(weight, gram, cross, grid.bits)
        return self._several(weight, gram, cross, grid, seed)

    def _planes(self, weight: Tensor, gram: Tensor, cross: Tensor, bits: int) -> Descent:
        """The paper's own road: weight space, then bit planes in response space, then perhaps polish."""
        codes, scale = ofwa(weight, *fwa(weight, bits), bits)
        found = planes(codes, scale, gram, cross, bits, self.rounds)
        if self.polish:
            found = polish(found.codes, found.scale, gram, cross, found.levels, self.rounds)
        if self.paper:
            dead = torch.diagonal(gram, dim1=1, dim2=2) == 0
            found = found._replace(codes=found.codes.masked_fill(dead.unsqueeze(1), 0))
        return found

    def _several(self, weight: Tensor, gram: Tensor, cross: Tensor, grid: Grid, seed: int) -> Descent:
        """Scales rounded with error feedback and polished, then searched around; the best per row."""
        gram, cross = gram.float(), cross.float()
        factor = feedback_factor(gram)
        target = response_target(weight, gram, cross, factor).float()
        scales = start_scales(influential(weight, gram), grid, self.scales)
        fit_scale, together = not (grid.power_of_two or grid.per_tensor), grid.per_tensor
        choices = self._choices(grid.bits)
        best = solve_starts(target, scales, gram, cross, factor, choices, self.rounds, fit_scale, together)
        if together and not grid.power_of_two:
            best = polish_together(best, gram, cross, self.rounds)
        groups, rows, columns = best.codes.shape
        steps = min(self.search * columns, SEARCH_WORK // (groups * rows * columns))
        found = search(best.codes, best.scale, gram, cross, best.levels, steps, seed, fit_scale)
        found = polish(found.codes, found.scale, gram, cross, found.levels, self.rounds, fit_scale)
        return best_of(stacked(best, found), rows)

    def finish(self, run: Run) -> None:
        if self.reestimate_norms:
            ReestimateNorms().finish(run)
        if self.activations_last and self.activations.fit_network(run) and self.reestimate_norms:
            ReestimateNorms().finish(run)


def stacked(*found: Descent) -> Descent:
    """Several solutions of the same rows, one below the other."""
    return Descent(*(torch.cat(fields, dim=1) for fields in zip(*found, strict=True)))
