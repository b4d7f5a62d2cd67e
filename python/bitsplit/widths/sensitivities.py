"""What every width of every layer costs the network, and the choice of widths that a budget allows."""

from __future__ import annotations

from collections import Counter
from glob import escape
from typing import Any, Literal

import numpy as np
from pydantic import Field

from bitsplit.document import Document
from bitsplit.errors import RecipeError
from bitsplit.plan import LayerPlan, Plan
from bitsplit.recipe import Bits, LayerOverride, Recipe
from bitsplit.widths.budget import Budget, bit_operations
from bitsplit.widths.genetic_search import genetic
from bitsplit.widths.integer_program import exact
from bitsplit.widths.question import Answer, Question

Solver = Literal["exact", "genetic"]
SOLVERS = {"exact": lambda question, seed: exact(question), "genetic": genetic}


def check_solver(solver: str) -> None:
    """``RecipeError`` for one that there is not."""
    if solver not in SOLVERS:
        raise RecipeError(f"solver is one of {', '.join(SOLVERS)}, got {solver!r}")


class LayerLosses(Document):
    """One layer that may have several widths.

    Attributes:
        layer: its row of the plan, with eight bits.
        macs: its multiplications for one image.
        losses: by width, how much farther from the float network this one ends when the layer alone has it.
    """

    layer: LayerPlan
    macs: int
    losses: dict[int, float]

    def at(self, bits: int) -> LayerPlan:
        """Its row of a plan in which it has so many bits."""
        return self.layer.model_copy(update={"weights": bits})


class PairLoss(Document):
    """loss: what two layers of a unit cost at the smallest width beyond what each costs alone."""

    first: str
    second: str
    loss: float


class MixedPlan(Document):
    """The widths chosen for a budget.

    Attributes:
        recipe: what measured the losses, with the widths as overrides: it can be given to ``quantize``.
        widths: bits of every layer that had a choice.
        loss, bound: of the choice, and what no choice within the budget can go below (None: not known).
        cost, limit, unit: what the choice costs, what was allowed, and in what.
        solver: who chose.
    """

    recipe: Recipe
    widths: dict[str, Bits]
    loss: float
    bound: float | None
    cost: float
    limit: float
    unit: str
    solver: Solver

    def __str__(self) -> str:
        counts = Counter(self.widths.values())
        layers = ", ".join(f"{counts[bits]} of {bits} bits" for bits in sorted(counts))
        bound = "" if self.bound is None else f", no choice has less than {self.bound:.4g}"
        return (
            f"{len(self.widths)} layers: {layers}; {self.cost:,.6g} of {self.limit:,.6g} {self.unit}; "
            f"expected loss {self.loss:.4g}{bound}"
        )

    @property
    def layers(self) -> dict[str, dict[str, int]]:
        """As the argument ``layers`` of ``quantize``, beside any method."""
        return {escape(name): {"weights": bits} for name, bits in self.widths.items()}


class Sensitivities(Document):
    """What ``bitsplit.sensitivities`` has measured.

    Attributes:
        recipe: with which methods and which activations; eight bits wherever nothing else is tried.
        images: how many of them the network was asked about.
        network: fingerprint of the float network; empty where it is not known.
        layers: in execution order.
        pairs: of layers in one unit.
        other_bytes: size of all of the model that has no choice.
        other_operations: bit operations of layers that have no choice, for one image.
    """

    recipe: Recipe
    images: int
    network: str = ""
    layers: tuple[LayerLosses, ...] = Field(min_length=1)
    pairs: tuple[PairLoss, ...] = ()
    other_bytes: int
    other_operations: int

    @property
    def widths(self) -> tuple[int, ...]:
        """That were tried, ascending."""
        return tuple(sorted(self.layers[0].losses))

    def choose(
        self, budget: Budget | None = None, *, solver: Solver = "exact", seed: int = 0, **limits: Any
    ) -> MixedPlan:
        """The widths of least loss within a budget, one of ``Budget``'s fields: ``choose(bits=3)``."""
        check_solver(solver)
        if budget is not None and limits:
            raise RecipeError(f"a budget says everything; leave out {', '.join(limits)} or the budget")
        budget = Budget.asked(**limits) if budget is None else budget
        found = SOLVERS[solver](self._question(budget), seed)
        widths = {
            row.layer.name: self.widths[number] for row, number in zip(self.layers, found.widths, strict=True)
        }
        return self._plan(budget, solver, widths, found)

    def uniform(self, bits: int) -> MixedPlan:
        """The same width everywhere, with the loss that is expected of it, for comparison."""
        if bits not in self.widths:
            raise RecipeError(f"{bits} bits were not tried; {', '.join(map(str, self.widths))} were")
        budget = Budget(bits=bits)
        widths = {row.layer.name: bits for row in self.layers}
        answer = self._question(budget).answer([self.widths.index(bits)] * len(self.layers))
        return self._plan(budget, "exact", widths, answer)

    def bytes_of(self, plan: MixedPlan) -> int:
        """Size of the whole model with these widths."""
        return self.other_bytes + sum(row.at(plan.widths[row.layer.name]).weight_bytes for row in self.layers)

    def _overrides(self, widths: dict[str, int]) -> dict[str, LayerOverride]:
        """The recipe's, and behind them the widths; inputs keep the bits that they were measured with."""
        overrides = dict(self.recipe.layers)
        for row in self.layers:
            pattern = escape(row.layer.name)
            replaced = overrides.pop(pattern, None)
            own_input = replaced is not None and "activations" in replaced.given
            inputs = {"activations": row.layer.activations} if own_input else {}
            overrides[pattern] = LayerOverride(weights=widths[row.layer.name], **inputs)
        return overrides

    def _question(self, budget: Budget) -> Question:
        numbers = {row.layer.name: number for number, row in enumerate(self.layers)}
        pairs = {(numbers[pair.first], numbers[pair.second]): pair.loss for pair in self.pairs}
        losses = [[row.losses[bits] for bits in self.widths] for row in self.layers]
        costs, fixed = budget.costs(self)
        tables = np.array(losses, float), np.array(costs, float)
        return Question(*tables, budget.limit, pairs, fixed, budget.unit)

    def _plan(self, budget: Budget, solver: Solver, widths: dict[str, int], found: Answer) -> MixedPlan:
        return MixedPlan(
            recipe=self.recipe.model_copy(update={"layers": self._overrides(widths)}),
            widths=widths,
            loss=found.loss,
            bound=found.bound if found.bound > float("-inf") else None,
            cost=found.cost,
            limit=budget.limit,
            unit=budget.unit,
            solver=solver,
        )


def from_figures(
    recipe: Recipe,
    plan: Plan,
    macs: dict[str, int],
    losses: dict[str, dict[int, float]],
    pairs: list[PairLoss],
    images: int,
    network: str = "",
) -> Sensitivities:
    """Joins what was measured with what the plan and the network say about the layers."""
    chosen = [row for row in plan.layers if row.name in losses]
    others = [row for row in plan.layers if row.name not in losses]
    return Sensitivities(
        recipe=recipe,
        images=images,
        network=network,
        layers=tuple(LayerLosses(layer=row, macs=macs[row.name], losses=losses[row.name]) for row in chosen),
        pairs=tuple(pairs),
        other_bytes=plan.quantized_bytes - sum(row.weight_bytes for row in chosen),
        other_operations=sum(bit_operations(row, macs[row.name]) for row in others),
    )
