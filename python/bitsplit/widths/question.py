"""Which width every layer gets: the least loss that a budget allows.

    minimise  sum of losses[i, w_i] + sum of pairs[i, j] where i and j both have the smallest width
    so that   sum of costs[i, w_i] <= budget

``exact`` solves it as an integer program; ``genetic`` is the search of BRECQ (ICLR 2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bitsplit.errors import RecipeError

ROUNDING = 1e-12  # of the budget: what adding up costs may be off


@dataclass(frozen=True)
class Question:
    """losses, costs: [layers, widths], the smallest width first.  pairs: by two layers, what is added.

    fixed: what everything else costs.  unit: of costs and budget.
    """

    losses: np.ndarray
    costs: np.ndarray
    budget: float
    pairs: Mapping[tuple[int, int], float] = field(default_factory=dict)
    fixed: float = 0.0
    unit: str = ""

    def __post_init__(self) -> None:
        if self.losses.shape != self.costs.shape or self.losses.ndim != 2 or not self.losses.size:
            shapes = f"{self.losses.shape} and {self.costs.shape}"
            raise ValueError(f"losses and costs must be tables of one shape, got {shapes}")
        if not (np.isfinite(self.losses).all() and np.isfinite(self.costs).all() and (self.costs >= 0).all()):
            raise ValueError("losses must be finite, costs finite and not negative")
        least = self.cost(self.costs.argmin(1))
        if not self.allows(least):
            budget, least = f"{self.budget:,.10g} {self.unit}".rstrip(), f"{least:,.10g}"
            raise RecipeError(f"a budget of {budget} cannot be met: the network takes {least} at least")

    def cost(self, widths: Sequence[int]) -> float:
        """Of everything, with these widths."""
        return float(self.fixed + self.costs[np.arange(len(self.costs)), widths].sum())

    def allows(self, cost: float) -> bool:
        """Whether it is within the budget, but for rounding."""
        return cost <= self.budget * (1 + ROUNDING)

    def answer(self, widths: Sequence[int], bound: float = -np.inf) -> Answer:
        """What choosing these widths means."""
        pairs = sum(extra for pair, extra in self.pairs.items() if all(widths[i] == 0 for i in pair))
        loss = float(self.losses[np.arange(len(self.losses)), widths].sum() + pairs)
        return Answer(tuple(map(int, widths)), loss, self.cost(widths), bound)


@dataclass(frozen=True)
class Answer:
    """widths: of every layer, by number.  bound: no choice within the budget has a smaller loss than this."""

    widths: tuple[int, ...]
    loss: float
    cost: float
    bound: float
