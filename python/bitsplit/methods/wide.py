"""Linear layers with more inputs than one matrix of second moments should hold, such as VGG's 25,088.

The columns are fitted part by part.  Each part answers what the finished parts and the float weights of those
still to come leave of the float response, so it makes good for the errors before it; within a part codes are
rounded with error feedback.  A row has one scale and one choice of levels for all parts, made on the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bitsplit.methods.ranges import store_levels
from bitsplit.methods.ridge import held, seen
from bitsplit.methods.starts import rounded, start_scales
from bitsplit.methods.statistics import refitted_bias
from bitsplit.methods.tasks import LayerTask
from bitsplit.network import Columns
from bitsplit.ops.starts import every_start
from bitsplit.ops.threads import one_thread

MOST_COLUMNS = 7_000  # inputs of a layer fitted in one piece


def part_width(columns: int) -> int:
    """Of equal parts, none wider than ``MOST_COLUMNS``."""
    parts = -(-columns // MOST_COLUMNS)
    return -(-columns // parts)


@dataclass(frozen=True)
class Cut:
    """Some columns, to answer what all others leave.  others: their weight [1, M, N], zero in these."""

    columns: slice
    others: Tensor

    @classmethod
    def out_of(cls, columns: slice, weight: Tensor) -> Cut:
        """What leaves all other columns what they have in ``weight``."""
        others = weight.clone()
        others[:, :, columns] = 0
        return cls(columns, others)

    @one_thread()  # whose sums do not depend on how many there are
    def of(self, whole: Columns) -> Columns:
        answered = F.conv2d(whole.x, self.others[0, :, :, None, None].to(whole.x.dtype))
        return replace(whole, x=whole.x[:, self.columns], y=whole.y - answered)


def fit_in_parts(
    task: LayerTask,
    choices: Sequence[tuple[int, int]],
    scales: Sequence[float],
    ridge: float | Literal["auto"],
    refit_bias: bool,
) -> None:
    """Codes, scales and bias of a linear layer.

    ``choices`` of levels and ``scales``, multiples of the nearest scale: what a row may have.  The ridge that
    is found for the first part holds the others too.
    """
    columns = task.weight.shape[2]
    width = part_width(columns)
    weight, codes = task.weight.clone(), torch.zeros_like(task.weight, dtype=torch.int8)
    scale, levels = every_start(start_scales(task.weight, task.weight_grid, scales), choices)
    for begin in range(0, columns, width):
        part = slice(begin, min(begin + width, columns))
        cut = Cut.out_of(part, weight)
        sums, ridge = seen(task, weight[:, :, part], "quantized", ridge, choices, refit_bias, cut)
        moments = held(weight[:, :, part], sums.centred() if refit_bias else sums, ridge)
        codes[:, :, part], scale, levels = rounded(
            weight[:, :, part], moments, scale, levels, task.weight_grid.per_tensor
        )
        weight[:, :, part] = codes[:, :, part] * scale.unsqueeze(2)
    store_levels(task, codes, scale, levels)
    if refit_bias:
        task.store_bias(refitted_bias(task.bias, weight[:, :, part], sums))
