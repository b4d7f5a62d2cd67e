"""Linear layers with more inputs than one matrix of second moments should hold, such as VGG's 25,088.

The columns are fitted part by part.  Each part answers what the finished parts and the float weights of those
still to come leave of the float response, so it makes good for the errors before it; within a part codes are
rounded with error feedback.  A row has one scale and one choice of levels for all parts, made on the first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitsplit.methods.ranges import store_levels
from bitsplit.methods.statistics import Statistics, refitted_bias
from bitsplit.methods.tasks import LayerTask
from bitsplit.ops.levels import levels_of
from bitsplit.ops.split import feedback, feedback_factor, fwa, response_target
from bitsplit.quantizers import Grid
from bitsplit.quantizers.powers import power_below

WIDEST = 10_000  # inputs


def part_width(columns: int) -> int:
    """Of equal parts, none wider than ``WIDEST``."""
    parts = -(-columns // WIDEST)
    return -(-columns // parts)


def fit_in_parts(
    task: LayerTask,
    choices: Sequence[tuple[int, int]],
    scales: Sequence[float],
    damping: float,
    refit_bias: bool,
) -> None:
    """Codes, scales and bias of a linear layer.

    ``choices`` of levels and ``scales``, multiples of the nearest scale: what a row may have.
    """
    columns = task.weight.shape[2]
    width = part_width(columns)
    weight, codes = task.weight.clone(), torch.zeros_like(task.weight, dtype=torch.int8)
    starts = start_scales(task.weight, task.weight_grid, scales)
    scale = starts.repeat(1, len(choices), 1).flatten(1)  # [1, R], R = starts * M, later M
    levels = levels_of(choices, scale)
    for begin in range(0, columns, width):
        part = slice(begin, min(begin + width, columns))
        sums = task.part_statistics(part, weight)
        moments = sums.centred() if refit_bias else sums
        codes[:, :, part], scale, levels = _round(weight[:, :, part], moments, scale, levels, damping)
        weight[:, :, part] = codes[:, :, part] * scale.unsqueeze(2)
    store_levels(task, codes, scale, levels)
    if refit_bias:
        task.store_bias(refitted_bias(task.bias, weight[:, :, part], sums))


def start_scales(weight: Tensor, grid: Grid, multiples: Sequence[float]) -> Tensor:
    """Scales [g, S, M] to start from: multiples of the one nearest to weight [g, M, N], or powers of two."""
    _, nearest = fwa(weight, grid.bits)
    if grid.power_of_two:
        below = power_below(nearest)
        return torch.stack([below / 2, below, 2 * below], dim=1)
    return torch.stack([nearest * multiple for multiple in multiples], dim=1)


def _round(
    weight: Tensor, moments: Statistics, scale: Tensor, levels: Tensor, damping: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [1, M, n] of a part from the start that loses least, its scale [1, M] and levels [1, M, 2].

    scale: [1, R].  levels: [1, R, 2].  Starts are stacked along R.
    """
    gram, cross = moments.gram.float(), moments.cross.float()
    factor = feedback_factor(gram, damping)
    target = response_target(weight, gram, cross, factor).float()
    codes, loss = feedback(target, scale, factor, levels)
    channels = weight.shape[1]
    best = loss.view(-1, channels).argmin(0)
    rows = best * channels + torch.arange(channels, device=scale.device)
    return codes[:, rows], scale[:, rows], levels[:, rows]
