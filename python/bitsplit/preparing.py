"""From what a user passes to what a run works on: the recipe, the batches, two folded copies of the model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from bitsplit.data import Batches, as_batches
from bitsplit.device import checked_device, device_of, to_device
from bitsplit.distillation import Distilled
from bitsplit.document import explain
from bitsplit.errors import ModelError, RecipeError
from bitsplit.network import Network, bake_effective_weights, fold_norms, observe, untie_layers
from bitsplit.ops.precision import computing_in
from bitsplit.quantizers import quantized_layers
from bitsplit.recipe import Recipe

Model = TypeVar("Model", bound=nn.Module)
Step = Callable[[nn.Module, Any], Any]

EXACTLY = computing_in("fp32", torch.device("cpu"))  # on cards too: torch's default there, TF32, is 1e-3 off


def recipe_of(
    method: Any,
    effort: str | None,
    weights: int | None,
    activations: int | None,
    policy: str,
    power_of_two: bool,
    layers: Mapping[str, Mapping[str, Any]] | None,
    seed: int,
) -> Recipe:
    asked = {"weights": weights, "activations": activations, "policy": policy, "seed": seed}
    asked |= {"power_of_two": power_of_two, "layers": layers or {}}
    if isinstance(method, Recipe):
        asked["effort"] = effort
        contrary = [name for name, value in asked.items() if value != getattr(Recipe(), name, None)]
        if contrary:
            raise RecipeError(f"the recipe says everything; leave out {', '.join(contrary)} or the recipe")
        return method
    if method is None:
        asked["effort"] = effort or "fast"
        if policy == "paper":
            del asked["policy"]
    else:
        asked |= {"method": method, "effort": effort}
    try:
        return Recipe(**asked)
    except ValidationError as error:
        raise RecipeError(explain(error)) from None


def batches_of(
    model: nn.Module,
    data: Any,
    batch_size: int | None,
    step: Step | None,
    device: torch.device | str | None,
    seed: int,
) -> Batches:
    """The calibration batches; None, and ``Distilled``, make images from the network's batch norms."""
    place = checked_device(device_of(model) if device is None else device)
    if data is None or isinstance(data, Distilled):
        data = (data or Distilled()).make(model, seed, place)
    return as_batches(data, batch_size, inputs_only=step is None, device=place)


def call_model(model: nn.Module, batch: Any) -> Any:
    return model(batch)


def _copied(model: Model) -> Model:
    """A deep copy; tensors with a history, such as the weights of the old weight_norm, lose it."""
    tensors = (value for module in model.modules() for value in vars(module).values())
    with_history = (value for value in tensors if isinstance(value, Tensor) and not value.is_leaf)
    try:
        return copy.deepcopy(model, {id(value): value.detach().clone() for value in with_history})
    except (RuntimeError, TypeError) as error:  # locks, open files
        raise ModelError(f"the model cannot be copied: {error}") from error


def observed_copy(
    model: nn.Module, batches: Batches, forward: Step, device: torch.device | str | None
) -> tuple[Network, nn.Module]:
    """The network of a folded copy of ``model``, and a second such copy that stays float."""
    if any(quantized_layers(model)):
        raise ModelError("this model is quantized already; pass the float model")
    for name, parameter in model.named_parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            raise ModelError(f"{name} is {parameter.dtype}: second moments need more; pass model.float()")
    student = _copied(model).eval()
    if device is not None:
        student.to(device)
    untie_layers(student)
    network = observe(student, to_device(batches.first(), device_of(student)), forward)
    network = bake_effective_weights(network)
    fold_norms(network)
    return network, copy.deepcopy(student)
