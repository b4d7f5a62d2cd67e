"""From what a user passes to what a run works on: the recipe, the batches, two folded copies of the model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import nn

from bitsplit.calibration.checkpoint import Checkpoint
from bitsplit.calibration.engine import Engine
from bitsplit.calibration.fingerprint import run_fingerprint
from bitsplit.data import Batches, as_batches
from bitsplit.device import checked_device, device_of, free_memory, to_device
from bitsplit.distillation import Distilled
from bitsplit.document import explain
from bitsplit.errors import ModelError, RecipeError
from bitsplit.methods.base import Method
from bitsplit.network import Network, bake_effective_weights, fold_norms, observe, untie_layers
from bitsplit.network.copying import copied, refuse_half
from bitsplit.network.running import Step, default_step
from bitsplit.ops.precision import computing_in
from bitsplit.plan import Plan
from bitsplit.planning import make_plan
from bitsplit.quantizers import quantized_layers
from bitsplit.recipe import Recipe
from bitsplit.report.results import QuantizationReport

TRACE = 2.0**-100  # of a weight: scales some thousand times smaller, and their products, are normal numbers

Model = TypeVar("Model", bound=nn.Module)
Verb = TypeVar("Verb", bound=Callable[..., Any])


def undisturbed(verb: Verb) -> Verb:
    """``verb`` as it is outside of autocast and inference mode, and in float32.

    On cards too: torch's default there, TF32, is 1e-3 off.
    """
    for kind in ("cpu", "cuda"):
        verb = torch.autocast(kind, enabled=False)(verb)
    return computing_in("fp32", torch.device("cpu"))(torch.inference_mode(False)(verb))


class Unsaid(Enum):
    """The default of bits, of which None means float."""

    UNSAID = "as in the recipe, or as a recipe has it"

    def __repr__(self) -> str:
        return "UNSAID"


UNSAID = Unsaid.UNSAID
AskedBits = int | None | Unsaid


def recipe_of(
    method: Any,
    weights: AskedBits = UNSAID,
    activations: AskedBits = UNSAID,
    power_of_two: bool = False,
    **others: Any,
) -> Recipe:
    """``method`` where it is a whole recipe; else that of what was said: of ``others`` what is not empty."""
    bits = {"weights": weights, "activations": activations}
    asked = {name: value for name, value in bits.items() if value is not UNSAID}
    asked |= {name: value for name, value in others.items() if value not in (None, {})}
    if power_of_two:
        asked["power_of_two"] = True
    if isinstance(method, Recipe):
        if asked:
            raise RecipeError(f"the recipe says everything; leave out {', '.join(asked)} or the recipe")
        return method
    if method is not None:
        asked["method"] = method
    try:
        return Recipe(**asked)
    except ValidationError as error:
        raise RecipeError(explain(error)) from None


def _batches_of(
    model: nn.Module,
    data: Any,
    batch_size: int | None,
    step: Step | None,
    device: torch.device | str | None,
    seed: int,
) -> tuple[Batches, Callable[[], Batches]]:
    """What the network is observed on, and what gives the calibration batches.

    None, and ``Distilled``, make images from the network's batch norms, which takes its time: a few that look
    alike to the network come first.
    """
    place = checked_device(device_of(model) if device is None else device)

    def batches(source: Any) -> Batches:
        return as_batches(source, batch_size, inputs_only=step is None, device=place)

    if data is not None and not isinstance(data, Distilled):
        found = batches(data)
        return found, lambda: found
    images = (data or Distilled()).sized(model)
    if images.file is not None and images.file.exists():
        found = batches(images.make(model, seed, place, step))
        return found, lambda: found
    few = batches(images.few().make(model, seed, place, step))
    return few, lambda: batches(images.make(model, seed, place, step))


def observed_copy(
    model: nn.Module, batches: Batches, forward: Step, device: torch.device | str | None
) -> tuple[Network, nn.Module]:
    """The network of a folded copy of ``model``, and a second such copy that stays float."""
    if any(quantized_layers(model)):
        raise ModelError("this model is quantized already; pass the float model")
    refuse_half(model)
    student = copied(model).eval()
    if device is not None:
        student.to(device)
    untie_layers(student)
    network = observe(student, to_device(batches.first(), device_of(student)), forward)
    network = bake_effective_weights(network)
    fold_norms(network)
    drop_traces(network)
    return network, copy.deepcopy(student)


@torch.no_grad()
def drop_traces(network: Network) -> None:
    """Zero for weights that training has all but worn away: no scale in float32 stands for them."""
    for layer in network.layers.values():
        weight = layer.module.weight
        weight.masked_fill_(weight.abs() < TRACE, 0)


@dataclass(frozen=True)
class Prepared:
    """Everything that a run works on.

    teacher: the folded float model, the twin of the network's.  gather: gives the calibration batches.
    """

    recipe: Recipe
    gather: Callable[[], Batches]
    step: Step | None
    network: Network
    teacher: nn.Module
    plan: Plan

    @classmethod
    def of(
        cls,
        model: nn.Module,
        data: Any,
        recipe: Recipe,
        *,
        step: Step | None,
        device: torch.device | str | None,
        batch_size: int | None,
    ) -> Prepared:
        """``model`` stays as it is."""
        seen, gather = _batches_of(model, data, batch_size, step, device, recipe.seed)
        network, teacher = observed_copy(model, seen, step or default_step, device)
        return cls(recipe, gather, step, network, teacher, make_plan(network, recipe))

    @cached_property
    def batches(self) -> Batches:
        """The calibration batches; images that have to be made are made here."""
        return self.gather()

    def run(
        self,
        chain: Sequence[Method],
        checkpoint: str | Path | None,
        memory: int | None,
        **also: Any,
    ) -> QuantizationReport:
        """Walk ``chain`` over the network.  also: what else a checkpoint must have in common."""
        saved = None
        if checkpoint is not None:
            fingerprint = run_fingerprint(self.teacher, self.batches, self.recipe, self.step)
            saved = Checkpoint(Path(checkpoint), fingerprint | also)
        return Engine(
            self.network, self.teacher, self.plan, list(chain), self.batches, self.step or default_step,
            seed=self.recipe.seed, memory=free_memory() // 4 if memory is None else memory, checkpoint=saved,
        ).run()  # fmt: skip
