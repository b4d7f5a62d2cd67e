"""The verbs: ``sensitivities`` and ``mixed``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitsplit.calibration.fingerprint import model_fingerprint
from bitsplit.errors import RecipeError
from bitsplit.methods.presets import Effort
from bitsplit.methods.whole import Outputs
from bitsplit.plan import Plan
from bitsplit.preparing import UNSAID, AskedBits, Prepared, Step, recipe_of, undisturbed
from bitsplit.recipe import Recipe
from bitsplit.widths.budget import Budget
from bitsplit.widths.sensitivities import (
    MixedPlan,
    PairLoss,
    Sensitivities,
    Solver,
    check_solver,
    from_figures,
)
from bitsplit.widths.trial import WIDEST, Trial, at_width, pair_of

WIDTHS = (2, 3, 4, 6, 8)


@undisturbed
def sensitivities(
    model: nn.Module,
    data: Any,
    method: Any = None,
    *,
    effort: Effort | None = None,
    activations: AskedBits = UNSAID,
    policy: str | None = None,
    power_of_two: bool = False,
    layers: Mapping[str, Mapping[str, Any]] | None = None,
    widths: Sequence[int] = WIDTHS,
    images: int = 256,
    outputs: Outputs = "classes",
    budget: Budget | None = None,
    step: Step | None = None,
    seed: int | None = None,
    device: torch.device | str | None = None,
    batch_size: int | None = None,
    checkpoint: str | Path | None = None,
    memory: int | None = None,
) -> Sensitivities:
    """What the network loses when one layer alone gets fewer bits, for every layer and width.

    widths: to be tried, 2 to 8.  images: of the calibration data, on which the network is asked, in whole
    batches.  outputs: what a tensor [images, two or more] that the network gives holds: scores of classes, or
    ``values`` that stand for themselves.  budget: refused before anything is measured when it cannot be met.
    All else as for ``quantize``; layers whose width a policy or an override fixes keep it.
    """
    tried = checked_widths(widths)
    if images < 1:
        raise RecipeError(f"the network must be asked about 1 image or more, got images={images}")
    smallest = UNSAID if isinstance(method, Recipe) else tried[0]  # for which effort chooses
    recipe = recipe_of(
        method, smallest, activations, power_of_two, effort=effort, policy=policy, layers=layers, seed=seed
    ).model_copy(update={"weights": WIDEST})
    _refuse_inputs_at_the_end(recipe)
    work = Prepared.of(model, data, recipe, step=step, device=device, batch_size=batch_size)
    trial = Trial(
        chain=recipe.method,
        widths=tuple(width for width in tried if width < WIDEST),
        candidates=_candidates(work.plan),
        images=images,
        outputs=outputs,
    )
    macs = {name: layer.macs for name, layer in work.network.layers.items()}
    if budget is not None:
        unmeasured = {name: dict.fromkeys(tried, 0.0) for name in trial.candidates}
        from_figures(recipe, work.plan, macs, unmeasured, [], images).choose(budget)
    report = work.run([trial], checkpoint, memory, tried=list(tried), images=images, outputs=outputs)
    figures = {name: value for piece in report.pieces for name, value in piece.figures.items()}
    losses = {
        name: {width: 0.0 if width == WIDEST else figures[at_width(name, width)] for width in tried}
        for name in trial.candidates
    }
    losses = _seen(losses)
    units = [[name for name in unit.layers if name in losses] for unit in work.plan.units]
    pairs = [
        PairLoss(first=first, second=second, loss=figures[pair_of(first, second)])
        for unit in units
        for first, second in combinations(unit, 2)
    ]
    asked = min(images, work.batches.images)
    return from_figures(recipe, work.plan, macs, losses, pairs, asked, model_fingerprint(model))


def _seen(losses: dict[str, dict[int, float]]) -> dict[str, dict[int, float]]:
    """Without the layers whose width changes nothing; a warning names them."""
    seen = {name: of_layer for name, of_layer in losses.items() if any(of_layer.values())}
    if not seen:
        raise RecipeError("no width of any layer changes what the network gives")
    if unseen := losses.keys() - seen:
        warnings.warn(
            f"no width of {', '.join(sorted(unseen))} changes what the network gives, perhaps as it only "
            f"decides which rows are selected: kept at {WIDEST} bits",
            stacklevel=3,
        )
    return seen


def mixed(
    model: nn.Module, data: Any, method: Any = None, *, solver: Solver = "exact", **options: Any
) -> MixedPlan:
    """The width of every layer, 2 to 8 bits, with which the network loses least within a budget.

    Of the options ``bits``, ``bytes``, ``operations`` or ``milliseconds`` with ``times`` is the budget
    (``bitsplit.widths.Budget``); the others are those of ``sensitivities``, which this measures first.

    >>> found = bitsplit.mixed(model, images, bits=3)  # doctest: +SKIP
    >>> quantized = bitsplit.quantize(model, images, found.recipe)  # doctest: +SKIP
    """
    budget = Budget.asked(**{name: options.pop(name) for name in Budget.model_fields if name in options})
    check_solver(solver)
    found = sensitivities(model, data, method, budget=budget, **options)
    return found.choose(budget, solver=solver, seed=found.recipe.seed)


def checked_widths(widths: Sequence[int]) -> tuple[int, ...]:
    """Ascending, each once."""
    tried = tuple(sorted(set(widths)))
    if len(tried) < 2 or not all(isinstance(width, int) and 2 <= width <= WIDEST for width in tried):
        raise RecipeError(f"widths must be two or more numbers from 2 to {WIDEST}, got {list(widths)}")
    return tried


def _refuse_inputs_at_the_end(recipe: Recipe) -> None:
    """Where nothing quantizes inputs before all layers are finished they would be measured in float."""
    late = [method.name for method in recipe.method if method.defers_inputs]
    if late and recipe.activations is not None:
        raise RecipeError(
            f"with these options {late[0]} fits inputs when all layers are finished: what it costs layer by "
            "layer cannot be measured"
        )


def _candidates(plan: Plan) -> frozenset[str]:
    """Layers whose weights have the recipe's bits."""
    names = frozenset(row.name for row in plan.layers if row.why_weights == "recipe")
    if not names:
        raise RecipeError("no layer has a choice: policy and overrides fix the width of each")
    return names
