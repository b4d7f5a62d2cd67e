"""Which width every layer gets: the least loss that a budget allows.

    minimise  sum of losses[i, w_i] + sum of pairs[i, j] where i and j both have the smallest width
    so that   sum of costs[i, w_i] <= budget

``exact`` solves it as an integer program; ``genetic`` is the search of BRECQ (ICLR 2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bitsplit.errors import RecipeError

ROUNDING = 1e-12  # of the budget: what adding up costs may be off


@dataclass(frozen=True)
class Question:
    """losses, costs: [layers, widths], the smallest width first.  pairs: by two layers, what is added."""

    losses: np.ndarray
    costs: np.ndarray
    budget: float
    pairs: Mapping[tuple[int, int], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.losses.shape != self.costs.shape or self.losses.ndim != 2 or not self.losses.size:
            shapes = f"{self.losses.shape} and {self.costs.shape}"
            raise ValueError(f"losses and costs must be tables of one shape, got {shapes}")
        if not (np.isfinite(self.losses).all() and np.isfinite(self.costs).all() and (self.costs >= 0).all()):
            raise ValueError("losses must be finite, costs finite and not negative")
        least = self.costs.min(1).sum()
        if not self.allows(least):
            raise RecipeError(
                f"a budget of {self.budget:g} cannot be met: the least that widths can cost is {least:g}"
            )

    @classmethod
    def of(cls, losses: Any, costs: Any, budget: float, pairs: Mapping[tuple[int, int], float]) -> Question:
        """From nested lists."""
        return cls(np.array(losses, float), np.array(costs, float), budget, pairs)

    def allows(self, cost: float) -> bool:
        """Whether it is within the budget, but for rounding."""
        return cost <= self.budget * (1 + ROUNDING)

    def answer(self, widths: Sequence[int], bound: float = -np.inf) -> Answer:
        """What choosing these widths means."""
        rows = np.arange(len(self.losses))
        pairs = sum(extra for pair, extra in self.pairs.items() if all(widths[i] == 0 for i in pair))
        loss = float(self.losses[rows, widths].sum() + pairs)
        return Answer(tuple(map(int, widths)), loss, float(self.costs[rows, widths].sum()), bound)


@dataclass(frozen=True)
class Answer:
    """widths: of every layer, by number.  bound: no choice within the budget has a smaller loss than this."""

    widths: tuple[int, ...]
    loss: float
    cost: float
    bound: float
