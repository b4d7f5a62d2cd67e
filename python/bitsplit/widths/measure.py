"""The verbs: ``sensitivities`` and ``mixed``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitsplit.calibration.checkpoint import Checkpoint
from bitsplit.calibration.engine import Engine
from bitsplit.calibration.fingerprint import run_fingerprint
from bitsplit.device import free_memory
from bitsplit.errors import RecipeError
from bitsplit.methods.presets import Effort
from bitsplit.plan import Plan
from bitsplit.planning import make_plan
from bitsplit.preparing import EXACTLY, Step, batches_of, call_model, observed_copy, recipe_of
from bitsplit.recipe import Recipe
from bitsplit.widths.sensitivities import MixedPlan, PairLoss, Sensitivities, Solver, from_figures
from bitsplit.widths.trial import WIDEST, Trial, at_width, pair_of

WIDTHS = (2, 3, 4, 6, 8)
LIMITS = ("bits", "bytes", "operations", "milliseconds", "times")


@EXACTLY
@torch.inference_mode(False)
@torch.autocast("cpu", enabled=False)
@torch.autocast("cuda", enabled=False)
def sensitivities(
    model: nn.Module,
    data: Any,
    method: Any = None,
    *,
    effort: Effort | None = None,
    activations: int | None = None,
    policy: str = "paper",
    power_of_two: bool = False,
    layers: Mapping[str, Mapping[str, Any]] | None = None,
    widths: Sequence[int] = WIDTHS,
    images: int = 256,
    step: Step | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    batch_size: int | None = None,
    checkpoint: str | Path | None = None,
    memory: int | None = None,
) -> Sensitivities:
    """What the network loses when one layer alone gets fewer bits, for every layer and width.

    widths: to be tried, 2 to 8.  images: of the calibration data, on which the network is asked.  All else
    as for ``quantize``; layers whose width a policy or an override fixes keep it.
    """
    tried = _checked(widths)
    smallest = Recipe().weights if isinstance(method, Recipe) else tried[0]  # for which effort chooses
    recipe = recipe_of(method, effort, smallest, activations, policy, power_of_two, layers, seed)
    recipe = recipe.model_copy(update={"weights": WIDEST})
    batches, forward = batches_of(model, data, batch_size, step, device, recipe.seed), step or call_model
    network, teacher = observed_copy(model, batches, forward, device)
    plan = make_plan(network, recipe)
    trial = Trial(
        chain=recipe.method,
        widths=tuple(width for width in tried if width < WIDEST),
        candidates=_candidates(plan),
        images=images,
    )
    fingerprint = run_fingerprint(teacher, batches, recipe, step) | {"tried": list(tried), "images": images}
    engine = Engine(
        network, teacher, plan, [trial], batches, forward,
        seed=recipe.seed, memory=free_memory() // 4 if memory is None else memory,
        checkpoint=None if checkpoint is None else Checkpoint(Path(checkpoint), fingerprint),
    )  # fmt: skip
    figures = {name: value for piece in engine.run().pieces for name, value in piece.figures.items()}
    macs = {name: layer.macs for name, layer in network.layers.items()}
    losses = {
        name: {width: 0.0 if width == WIDEST else figures[at_width(name, width)] for width in tried}
        for name in trial.candidates
    }
    units = [[name for name in unit.layers if name in trial.candidates] for unit in plan.units]
    pairs = [
        PairLoss(first=first, second=second, loss=figures[pair_of(first, second)])
        for unit in units
        for first, second in combinations(unit, 2)
    ]
    return from_figures(recipe, plan, macs, losses, pairs, min(images, batches.images))


def mixed(
    model: nn.Module, data: Any, method: Any = None, *, solver: Solver = "exact", **options: Any
) -> MixedPlan:
    """The width of every layer, 2 to 8 bits, with which the network loses least within a budget.

    Of the options ``bits``, ``bytes``, ``operations`` or ``milliseconds`` with ``times`` is the budget
    (``bitsplit.widths.Budget``); the others are those of ``sensitivities``, which this measures first.

    >>> found = bitsplit.mixed(model, images, bits=3)  # doctest: +SKIP
    >>> quantized = bitsplit.quantize(model, images, found.recipe)  # doctest: +SKIP
    """
    limits = {name: options.pop(name) for name in LIMITS if name in options}
    return sensitivities(model, data, method, **options).choose(
        solver=solver, seed=options.get("seed", 0), **limits
    )


def _checked(widths: Sequence[int]) -> tuple[int, ...]:
    tried = tuple(sorted(set(widths)))
    if len(tried) < 2 or not all(isinstance(width, int) and 2 <= width <= WIDEST for width in tried):
        raise RecipeError(f"widths must be two or more numbers from 2 to {WIDEST}, got {list(widths)}")
    return tried


def _candidates(plan: Plan) -> frozenset[str]:
    """Layers whose weights have the recipe's bits."""
    names = frozenset(row.name for row in plan.layers if row.why_weights == "recipe")
    if not names:
        raise RecipeError("no layer has a choice: policy and overrides fix the width of each")
    return names
