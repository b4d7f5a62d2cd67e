"""Which width every layer gets: the least loss that a budget allows.

    minimise  sum of losses[i, w_i] + sum of pairs[i, j] where i and j both have the smallest width
    so that   sum of costs[i, w_i] <= budget

``exact`` solves it as an integer program; ``genetic`` is the search of BRECQ (ICLR 2021).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from bitsplit.errors import RecipeError

POPULATION, GENERATIONS, MUTATION = 50, 100, 0.1  # the paper's
PARENTS = 10  # of a generation, the best so many
MOST_ATTEMPTS = 100  # to get a child within the budget
ROUNDING = 1e-12  # of the budget: what adding up costs may be off
SLACK = 1e-6  # of the budget: how far the solver may be beyond it


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


def exact(question: Question) -> Answer:
    """The best choice, by branch and bound (HiGHS).

    A pair is a variable that is 1 where both of its layers have the smallest width.
    """
    layers, widths = question.losses.shape
    pairs = question.pairs
    whole = np.concatenate([np.ones(layers * widths), np.zeros(len(pairs))])  # pairs follow from the rest
    unit = max(np.abs(question.losses).max(), *map(abs, pairs.values()), 1e-300)
    weights = np.concatenate([question.losses.ravel(), list(pairs.values())]) / unit
    one_each = _sparse([(i, i * widths + w, 1.0) for i in range(layers) for w in range(widths)], weights.size)
    constraints = [LinearConstraint(one_each, 1, 1)]
    if pairs:
        constraints.append(_pair_constraint(pairs, layers, widths))
    costs = np.zeros((1, weights.size))
    costs[0, : layers * widths] = question.costs.ravel()
    allowed = question.budget
    while True:
        within = LinearConstraint(costs / max(allowed, 1e-300), -np.inf, 1)
        with _silence():
            found = milp(
                weights, integrality=whole, bounds=Bounds(0, 1), constraints=[*constraints, within],
                options={"mip_rel_gap": 0.0},
            )  # fmt: skip
        if found.x is None:
            raise RuntimeError(f"the integer program was not solved: {found.message}")
        chosen = found.x[: layers * widths].reshape(layers, widths).argmax(1)
        answer = question.answer(chosen, found.mip_dual_bound * unit)
        if question.allows(answer.cost):
            return answer
        allowed -= SLACK * question.budget  # the solver used its tolerance


@contextmanager
def _silence() -> Iterator[None]:
    """Some releases of HiGHS print lines of their own, whatever their options say."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _sparse(entries: Sequence[tuple[int, int, float]], columns: int) -> coo_array:
    rows, places, values = zip(*entries, strict=True)
    return coo_array((values, (rows, places)), shape=(max(rows) + 1, columns))


def _pair_constraint(pairs: Mapping[tuple[int, int], float], layers: int, widths: int) -> LinearConstraint:
    """y >= x_i + x_j - 1 for the smallest widths of a pair that costs; y <= x_i, x_j for one that gains."""
    entries, lowest = [], []
    for number, (pair, extra) in enumerate(pairs.items()):
        y = layers * widths + number
        if extra >= 0:
            entries += [(len(lowest), i * widths, -1.0) for i in pair] + [(len(lowest), y, 1.0)]
            lowest.append(-1.0)
            continue
        for i in pair:
            entries += [(len(lowest), i * widths, 1.0), (len(lowest), y, -1.0)]
            lowest.append(0.0)
    return LinearConstraint(_sparse(entries, layers * widths + len(pairs)), lowest, np.inf)


def genetic(question: Question, seed: int = 0) -> Answer:
    """A good choice, by crossing and mutating the best of a population."""
    random = np.random.default_rng(seed)
    layers, widths = question.losses.shape
    cheapest = question.costs.argmin(1)

    def within(make) -> np.ndarray:
        for _ in range(MOST_ATTEMPTS):
            child = make()
            if question.allows(question.costs[np.arange(layers), child].sum()):
                return child
        return cheapest

    def anyone() -> np.ndarray:
        return random.integers(widths, size=layers)

    def mutated(parents: np.ndarray) -> np.ndarray:
        return np.where(random.random(layers) < MUTATION, anyone(), parents[random.integers(len(parents))])

    def crossed(parents: np.ndarray) -> np.ndarray:
        mother, father = parents[random.choice(len(parents), 2)]
        return np.where(random.random(layers) < 0.5, mother, father)

    people = np.array([within(anyone) for _ in range(POPULATION)])
    for _ in range(GENERATIONS):
        order = np.argsort([question.answer(person).loss for person in people], kind="stable")
        parents = people[order[:PARENTS]]
        half = (POPULATION - PARENTS) // 2
        children = [within(lambda: mutated(parents)) for _ in range(half)]  # noqa: B023
        children += [within(lambda: crossed(parents)) for _ in range(half)]  # noqa: B023
        people = np.concatenate([parents, children])
    return min((question.answer(person) for person in people), key=lambda answer: answer.loss)
