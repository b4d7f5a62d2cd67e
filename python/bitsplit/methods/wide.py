"""Linear layers with more inputs than one matrix of second moments should hold, such as VGG's 25,088.

The columns are fitted part by part.  Each part answers what the finished parts and the float weights of those
still to come leave of the float response, so it makes good for the errors before it; within a part codes are
rounded with error feedback.  A row has one scale for all parts, chosen on the first one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitsplit.methods.base import LayerTask
from bitsplit.methods.statistics import Statistics, refitted_bias
from bitsplit.ops.split import feedback, feedback_factor, fwa, response_target

WIDEST = 10_000  # inputs


def part_width(columns: int) -> int:
    """Of equal parts, none wider than ``WIDEST``."""
    parts = -(-columns // WIDEST)
    return -(-columns // parts)


def fit_in_parts(task: LayerTask, scales: Sequence[float], damping: float, refit_bias: bool) -> None:
    """Codes, scales and bias of a linear layer. ``scales``: multiples of the nearest scale to choose from."""
    bits, columns = task.weight_grid.bits, task.weight.shape[2]
    width = part_width(columns)
    weight, codes = task.weight.clone(), torch.zeros_like(task.weight, dtype=torch.int8)
    _, nearest = fwa(task.weight, bits)
    scale = torch.stack([nearest * multiplier for multiplier in scales], dim=1)  # [1, S, M], later S = 1
    for begin in range(0, columns, width):
        part = slice(begin, min(begin + width, columns))
        sums = task.part_statistics(part, weight)
        moments = sums.centred() if refit_bias else sums
        rounded, scale = _round(weight[:, :, part], moments, scale, damping, bits)
        codes[:, :, part] = rounded
        weight[:, :, part] = rounded * scale.squeeze(1).unsqueeze(2)
    task.store(codes, scale.squeeze(1))
    if refit_bias:
        task.store_bias(refitted_bias(task.bias, weight[:, :, part], sums))


def _round(
    weight: Tensor, moments: Statistics, scale: Tensor, damping: float, bits: int
) -> tuple[Tensor, Tensor]:
    """Codes [1, M, n] of a part at that scale of ``scale`` [1, S, M] that loses least, and this one."""
    gram, cross = moments.gram.float(), moments.cross.float()
    factor = feedback_factor(gram, damping)
    target = response_target(weight, gram, cross, factor).float()
    codes, loss = feedback(target, scale.flatten(1), factor, bits)
    best = loss.view_as(scale).argmin(1, keepdim=True)
    rows = best * scale.shape[2] + torch.arange(scale.shape[2], device=scale.device)
    return codes[:, rows.flatten()], scale.gather(1, best)
