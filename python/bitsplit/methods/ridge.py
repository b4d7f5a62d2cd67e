"""How far fitted weights may leave the float ones: as far as images that they were not fitted to confirm.

Where a layer has many inputs and images are few, what answers the calibration images best answers others
badly.  A ridge holds the weights: every input counts as if it had been seen alone a little more often, with
the float weight as the answer.  How often is measured: rows are rounded for either half of the images and
judged by the other half.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from bitsplit.methods.starts import rounded, start_scales
from bitsplit.methods.statistics import Statistics
from bitsplit.methods.tasks import Inputs, LayerTask, View
from bitsplit.ops.split import objective
from bitsplit.ops.starts import every_start, influential
from bitsplit.quantizers import Grid

SHARES = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of the energy of every input
MULTIPLES = (0.9,)  # of the nearest scale; shares are compared at the same one


def held(weight: Tensor, sums: Statistics, share: float) -> Statistics:
    """``sums`` and of every input ``share`` of its energy once more, answered by weight [g, M, N]."""
    if share == 0:
        return sums
    energy = share * torch.diagonal(sums.gram, dim1=1, dim2=2)
    answers = energy.unsqueeze(1) * weight.to(energy.dtype)
    gram = sums.gram.clone()
    gram.diagonal(dim1=1, dim2=2).add_(energy)
    return replace(
        sums,
        gram=gram,
        cross=sums.cross + answers.transpose(1, 2),
        sum_yy=sums.sum_yy + (answers * weight).sum(2),
    )


def chosen_share(
    weight: Tensor,
    halves: tuple[Statistics, Statistics],
    grid: Grid,
    choices: list[tuple[int, int]],
    centre: bool,
) -> float:
    """The share after which a larger one no longer helps the other half; 0 where one half is empty.

    centre: whether a re-fitted bias will absorb the means.
    """
    if any(half.count == 0 for half in halves):
        return 0.0
    if centre:
        halves = halves[0].centred(), halves[1].centred()
    weighty = influential(weight, halves[0].gram + halves[1].gram)
    scale, levels = every_start(start_scales(weighty, grid, MULTIPLES), choices[:1])
    best, least = 0.0, float("inf")
    for share in SHARES:
        loss = sum(
            _loss_on(test, *rounded(weight, held(weight, fit, share), scale, levels, grid.per_tensor)[:2])
            for fit, test in (halves, halves[::-1])
        )
        if loss >= least:
            break
        best, least = share, loss
    return best


def seen(
    task: LayerTask,
    weight: Tensor,
    inputs: Inputs,
    ridge: float | Literal["auto"],
    choices: list[tuple[int, int]],
    centre: bool,
    view: View | None = None,
) -> tuple[Statistics, float]:
    """What a layer, or a view of it, is fitted to, and how strongly weight [g, M, N] is held."""
    if ridge != "auto":
        return task.statistics(inputs, view=view), ridge
    halves = task.halves(inputs, view)
    share = chosen_share(weight, halves, task.weight_grid, choices, centre)
    return halves[0] + halves[1], share


def _loss_on(sums: Statistics, codes: Tensor, scale: Tensor) -> float:
    return float(objective(codes, scale, sums.gram, sums.cross, sums.sum_yy).sum())
