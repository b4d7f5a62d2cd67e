"""Bit-Split's activation scale: codes and scale in turn until nothing changes."""

from __future__ import annotations

import torch
from torch import Tensor

from bitsplit.methods.base import ActivationMethod
from bitsplit.methods.registry import register_activation
from bitsplit.methods.statistics import InputSample
from bitsplit.ops.ranges import alternate_scale
from bitsplit.quantizers import Grid


@register_activation
class BitSplitActivations(ActivationMethod):
    """The fixed point of q = clip(round(x / beta)), beta = <x, q> / <q, q>, started at max|x| / qmax.

    The levels have no zero point: unsigned grids look at the positive values only.
    """

    name = "bitsplit"
    zero_point = False

    def fit(self, sample: InputSample, grid: Grid) -> tuple[Tensor, Tensor]:
        scale = alternate_scale(sample.values, grid.low, grid.high)
        return scale, torch.zeros_like(scale, dtype=torch.int32)
