"""The levels that rows of codes are taken from: what `polish`, `search` and `feedback` take.

They are relative to zero: with zero point z the codes 0 .. 2^bits - 1 are the levels -z .. 2^bits - 1 - z.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def level_choices(bits: int, affine: bool = False) -> list[tuple[int, int]]:
    """The levels that a row of ``bits`` wide codes may have: around zero, or all 2^bits with a zero point.

    Zero then lies on either side of the middle, as far as int8 holds it: not so at 8 bits.

    >>> level_choices(2), level_choices(2, affine=True)
    ([(-1, 1)], [(-2, 1), (-1, 2)])
    """
    limit = 2 ** (bits - 1) - 1
    if not affine:
        return [(-limit, limit)]
    return [(-limit - 1, limit), (-limit, limit + 1)][: 1 if bits == 8 else 2]


def levels_of(choices: Sequence[tuple[int, int]], scale: Tensor) -> Tensor:
    """Levels [g, R, 2] for rows of ``scale`` [g, R], which are cut into one equal part for each choice."""
    groups, rows = scale.shape
    if not choices or rows % len(choices):
        raise ValueError(f"{rows} rows cannot be cut into {len(choices)} equal parts, one for each choice")
    table = torch.tensor(choices, dtype=torch.int8, device=scale.device)
    return table.repeat_interleave(rows // len(choices), dim=0).expand(groups, -1, -1).contiguous()
