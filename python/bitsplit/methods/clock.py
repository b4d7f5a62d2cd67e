"""The number of the iteration, in the memory of the device that computes.

What an iteration computes depends on its number by way of these tensors alone.  So a GPU can record one
iteration and replay it (``bitsplit.methods.recorded``), and all devices run the same program.
"""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor


class Clock:
    """Counts ``iterations`` from 0: ``begin`` starts one, again if it was broken off, ``advance`` ends it."""

    def __init__(self, iterations: int, device: torch.device) -> None:
        self.iterations = iterations
        self.device = device
        self._now = torch.zeros(1, dtype=torch.int64, device=device)
        self._keys: dict[int, Tensor] = {}
        self._drawn: Counter[int] = Counter()  # with every seed in this iteration

    def begin(self) -> None:
        self._drawn.clear()

    def advance(self) -> None:
        self._now.add_(1)
        if self._keys:
            torch._foreach_add_([key[1:] for key in self._keys.values()], 1)

    def row(self, table: Tensor) -> Tensor:
        """This iteration's row of a table on the device."""
        return table.index_select(0, self._now)[0]

    def key(self, seed: int) -> Tensor:
        """(seed, iteration) for operators that draw at random (``bitsplit.ops.steps``).

        seed: of 32 bits; what lies above tells further draws in the same iteration apart.
        """
        self._drawn[seed] += 1
        seed += (self._drawn[seed] - 1) << 32
        if seed not in self._keys:
            self._keys[seed] = torch.cat([self._now.new_tensor([seed]), self._now])
        return self._keys[seed]

    def falling(self, rate: float, share: float = 1.0) -> Tensor:
        """A learning rate for every iteration, from ``rate`` to 0 along half a cosine, float32.

        share: of the iterations, after which it is 0.
        """
        progress = torch.arange(self.iterations, dtype=torch.float64) / max(1, share * self.iterations)
        progress = progress.clamp(max=1)
        return (rate / 2 * (1 + torch.cos(math.pi * progress))).float().to(self.device)
