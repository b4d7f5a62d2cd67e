"""The best choice of widths there is, by an integer program.

Layers that pairs join are taken together, a few at a time.  Such a group has a variable for every combination
of its layers' widths that may be worth its cost, pairs inside of it included: that leaves branch and bound
(HiGHS) much less to do than a variable for every layer and width.  A pair across groups is one more variable,
1 where both layers have the smallest width.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, vstack
from scipy.sparse.csgraph import connected_components

from bitsplit.errors import RecipeError
from bitsplit.widths.question import ROUNDING, Answer, Question

LARGEST = 3  # layers of a group
SCALE = 1e4  # of what the budget leaves free: the solver may be beyond it by 1e-6


@dataclass(frozen=True)
class _Group:
    """layers: by number.  widths: [combinations, layers].  losses, costs: [combinations].

    begin: number of the first combination's variable.
    """

    layers: tuple[int, ...]
    widths: np.ndarray
    losses: np.ndarray
    costs: np.ndarray
    begin: int

    @property
    def variables(self) -> slice:
        return slice(self.begin, self.begin + len(self.costs))


def exact(question: Question) -> Answer:
    """The best choice, and the bound that proves it."""
    parts = _parts(question)
    inside, across = _by_part(question.pairs, parts)
    groups, columns = [], 0
    for layers in parts:
        groups.append(_group(question, layers, inside, across, columns))
        columns = groups[-1].variables.stop
    losses = np.concatenate([*(group.losses for group in groups), list(across.values())])
    extra = np.concatenate([*(group.costs - group.costs.min() for group in groups), np.zeros(len(across))])
    least = question.fixed + sum(group.costs.min() for group in groups)
    free = max(question.budget * (1 + ROUNDING) - least, 0.0)
    affordable = extra <= free
    whole = np.arange(len(losses)) < columns  # pairs follow from the rest
    one_each = np.repeat(np.arange(len(groups)), [len(group.costs) for group in groups])
    constraints = [
        LinearConstraint(_sparse(one_each, np.arange(columns), 1.0, len(groups), len(losses)), 1, 1),
        LinearConstraint(np.where(affordable, extra, 0)[None] * (SCALE / max(free, 1e-300)), -np.inf, SCALE),
    ]
    if across:
        constraints.append(_pair_constraint(across, groups, columns))
    unit = max(np.abs(losses).max(), 1e-300)
    while True:
        with _silence():
            found = milp(
                losses / unit, integrality=whole, bounds=Bounds(0, affordable), constraints=constraints,
                options={"mip_rel_gap": 0.0},
            )  # fmt: skip
        if found.x is None:
            raise RecipeError(f"the integer program was not solved: {found.message}")
        chosen = np.array([group.begin + found.x[group.variables].argmax() for group in groups])
        answer = question.answer(_widths(groups, chosen), found.mip_dual_bound * unit)
        if question.allows(answer.cost):
            return answer
        # the solver used its tolerance: the same without this choice
        unlike = _sparse(np.zeros(len(chosen), int), chosen, 1.0, 1, len(losses))
        constraints.append(LinearConstraint(unlike, -np.inf, len(groups) - 1))


def _parts(question: Question) -> list[tuple[int, ...]]:
    """All layers in groups: those that pairs join, cut into equal parts of ``LARGEST`` layers at most."""
    layers = len(question.losses)
    first, second = np.array(list(question.pairs), int).reshape(-1, 2).T
    count, labels = connected_components(_sparse(first, second, 1.0, layers, layers), directed=False)
    joined = [np.flatnonzero(labels == label) for label in range(count)]
    cut = [part for some in joined for part in np.array_split(some, -(-len(some) // LARGEST))]
    return [tuple(map(int, part)) for part in cut]


def _by_part(
    pairs: Mapping[tuple[int, int], float], parts: list[tuple[int, ...]]
) -> tuple[dict[tuple[int, int], float], dict[tuple[int, int], float]]:
    """The pairs inside of one part, and those across two."""
    part_of = {layer: number for number, layers in enumerate(parts) for layer in layers}
    together = {pair: part_of[pair[0]] == part_of[pair[1]] for pair in pairs}
    inside, across = ({p: pairs[p] for p in pairs if together[p] is wanted} for wanted in (True, False))
    return inside, across


def _group(
    question: Question,
    layers: tuple[int, ...],
    inside: Mapping[tuple[int, int], float],
    across: Mapping[tuple[int, int], float],
    begin: int,
) -> _Group:
    """All combinations but those that cost and lose no less than another that looks alike from outside."""
    widths = np.array(list(itertools.product(range(question.losses.shape[1]), repeat=len(layers))))
    losses, costs = (table[list(layers), widths].sum(1) for table in (question.losses, question.costs))
    place = {layer: number for number, layer in enumerate(layers)}
    for (i, j), extra in inside.items():
        if i in place:
            losses = losses + extra * (widths[:, [place[i], place[j]]] == 0).all(1)
    watched = [place[layer] for layer in layers if any(layer in pair for pair in across)]
    least: dict[bytes, float] = {}
    kept = []
    for number in np.lexsort((losses, costs)):
        seen = (widths[number, watched] == 0).tobytes()
        if losses[number] < least.get(seen, np.inf):
            least[seen] = losses[number]
            kept.append(number)
    return _Group(layers, widths[kept], losses[kept], costs[kept], begin)


def _widths(groups: list[_Group], chosen: np.ndarray) -> np.ndarray:
    """Of every layer, by the variable that the program chose for its group."""
    widths = np.zeros(sum(len(group.layers) for group in groups), int)
    for group, variable in zip(groups, chosen, strict=True):
        widths[list(group.layers)] = group.widths[variable - group.begin]
    return widths


def _pair_constraint(
    across: Mapping[tuple[int, int], float], groups: list[_Group], columns: int
) -> LinearConstraint:
    """y >= s_i + s_j - 1 for a pair that costs; y <= s_i, s_j for one that gains.

    s_i, whether layer i has the smallest width, is the sum of the combinations of its group where it does.
    """
    smallest = {
        layer: group.begin + np.flatnonzero(group.widths[:, place] == 0)
        for group in groups
        for place, layer in enumerate(group.layers)
    }
    width, rows, lowest = columns + len(across), [], []
    for number, (pair, extra) in enumerate(across.items()):
        sets = [np.concatenate([smallest[i] for i in pair])] if extra >= 0 else [smallest[i] for i in pair]
        sign = 1.0 if extra >= 0 else -1.0
        for some in sets:
            places, values = np.append(some, columns + number), np.append(np.full(len(some), -sign), sign)
            rows.append(_sparse(np.zeros(len(places), int), places, values, 1, width))
            lowest.append(-1.0 if extra >= 0 else 0.0)
    return LinearConstraint(vstack(rows), lowest, np.inf)


def _sparse(
    rows: np.ndarray, columns: np.ndarray, values: np.ndarray | float, height: int, width: int
) -> coo_array:
    return coo_array((np.broadcast_to(values, len(rows)), (rows, columns)), shape=(height, width))


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
