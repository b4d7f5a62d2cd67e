"""Where closed-form fits start, and the cheapest of them: rounding with error feedback, once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitsplit.methods.statistics import Statistics
from bitsplit.ops.split import fwa
from bitsplit.ops.starts import feedback_factor, response_target, round_starts
from bitsplit.quantizers import Grid
from bitsplit.quantizers.powers import power_below


def start_scales(weight: Tensor, grid: Grid, multiples: Sequence[float]) -> Tensor:
    """Scales [g, S, M] to start from: multiples of the one nearest to weight [g, M, N], or powers of two."""
    shape = weight.shape[:2]
    rows = weight.reshape(1, 1, -1) if grid.per_tensor else weight
    nearest = fwa(rows, grid.bits)[1].expand(shape)
    if grid.power_of_two:
        below = power_below(nearest)
        return torch.stack([below / 2, below, 2 * below], dim=1)
    return torch.stack([nearest * multiple for multiple in multiples], dim=1)


def rounded(
    weight: Tensor, moments: Statistics, scale: Tensor, levels: Tensor, together: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [g, M, N] of the start that loses least, its scale [g, M] and levels [g, M, 2].

    scale: [g, R].  levels: [g, R, 2].  Starts are stacked along R.  together: one for all channels.
    """
    gram, cross = moments.gram.float(), moments.cross.float()
    factor = feedback_factor(gram)
    target = response_target(weight, gram, cross, factor).float()
    return round_starts(target, scale, factor, levels, keep=1, together=together)
