"""The verbs: ``quantize`` and ``plan``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from bitsplit.calibration.checkpoint import Checkpoint
from bitsplit.calibration.engine import Engine
from bitsplit.calibration.fingerprint import run_fingerprint
from bitsplit.data import Batches, as_batches
from bitsplit.device import checked_device, device_of, free_memory, to_device
from bitsplit.document import explain
from bitsplit.errors import ModelError, RecipeError
from bitsplit.inplace import adopt
from bitsplit.methods.presets import Effort
from bitsplit.network import Network, bake_effective_weights, fold_norms, observe, untie_layers
from bitsplit.ops.precision import computing_in
from bitsplit.plan import Plan
from bitsplit.planning import make_plan
from bitsplit.quantizers import quantized_layers
from bitsplit.recipe import Recipe

Model = TypeVar("Model", bound=nn.Module)
Step = Callable[[nn.Module, Any], Any]


EXACTLY = computing_in("fp32", torch.device("cpu"))  # on cards too: torch's default there, TF32, is 1e-3 off


@EXACTLY
@torch.inference_mode(False)
@torch.autocast("cpu", enabled=False)
@torch.autocast("cuda", enabled=False)
def quantize(
    model: Model,
    data: Any,
    method: Any = None,
    *,
    effort: Effort | None = None,
    weights: int | None = 4,
    activations: int | None = None,
    policy: str = "paper",
    power_of_two: bool = False,
    layers: Mapping[str, Mapping[str, Any]] | None = None,
    step: Step | None = None,
    inplace: bool = False,
    seed: int = 0,
    device: torch.device | str | None = None,
    batch_size: int | None = None,
    checkpoint: str | Path | None = None,
    memory: int | None = None,
) -> Model:
    """A quantized copy of ``model`` (the same class; ``inplace=True`` changes ``model`` itself).

    data: calibration inputs without labels: Tensor[N, ...], a list of batches, a DataLoader.
    method: a name, a config, a list of them (a chain), or a whole ``Recipe`` (then bits, policy, layers and
    seed are the recipe's).  effort: without a method the best chain for this time, ``fast`` (default),
    ``normal`` or ``best``.
    weights, activations: bits, 2 to 8, None is float.  policy: which rule holds for first and last layers.
    power_of_two: all scales are 2^k, so that integers alone can run the network, with shifts between layers.
    layers: overrides by wildcard, such as
    ``{"layer1.*": {"weights": 8}, "fc": {"weights": None}}``.
    step: how one batch runs through the model, default ``model(batch)``.
    batch_size: images in a batch, where the batches are made here; default 64, on the CPU as many as make
    about eight photos of 224 pixels.
    checkpoint: a folder for finished layers; the same call again goes on from there.
    memory: bytes of host memory for features, beyond that they go to disk; default a quarter of what is free.
    """
    recipe = _recipe(method, effort, weights, activations, policy, power_of_two, layers, seed)
    batches, forward = _batches(model, data, batch_size, step, device), step or _call
    network, teacher = _observed_copy(model, batches, forward, device)
    resolved = make_plan(network, recipe)
    saved = (
        None
        if checkpoint is None
        else Checkpoint(Path(checkpoint), run_fingerprint(teacher, batches, recipe, step))
    )
    engine = Engine(
        network, teacher, resolved, list(recipe.method), batches, forward,
        seed=recipe.seed, memory=free_memory() // 4 if memory is None else memory, checkpoint=saved,
    )  # fmt: skip
    network.model._bitsplit = engine.run()
    return adopt(model, network.model) if inplace else network.model


@EXACTLY
@torch.autocast("cpu", enabled=False)
@torch.autocast("cuda", enabled=False)
def plan(
    model: nn.Module,
    data: Any,
    method: Any = None,
    *,
    effort: Effort | None = None,
    weights: int | None = 4,
    activations: int | None = None,
    policy: str = "paper",
    power_of_two: bool = False,
    layers: Mapping[str, Mapping[str, Any]] | None = None,
    step: Step | None = None,
    inplace: bool = False,
    seed: int = 0,
    device: torch.device | str | None = None,
    batch_size: int | None = None,
    checkpoint: str | Path | None = None,
    memory: int | None = None,
) -> Plan:
    """What ``quantize`` with the same arguments would do to every layer; nothing is fitted or changed.

    inplace, checkpoint and memory decide nothing here: they may stand among the arguments of both.
    """
    recipe = _recipe(method, effort, weights, activations, policy, power_of_two, layers, seed)
    batches = _batches(model, data, batch_size, step, device)
    network, _ = _observed_copy(model, batches, step or _call, device)
    return make_plan(network, recipe)


def _recipe(
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


def _batches(
    model: nn.Module, data: Any, batch_size: int | None, step: Step | None, device: torch.device | str | None
) -> Batches:
    place = checked_device(device_of(model) if device is None else device)
    return as_batches(data, batch_size, inputs_only=step is None, device=place)


def _call(model: nn.Module, batch: Any) -> Any:
    return model(batch)


def _copied(model: Model) -> Model:
    """A deep copy; tensors with a history, such as the weights of the old weight_norm, lose it."""
    tensors = (value for module in model.modules() for value in vars(module).values())
    with_history = (value for value in tensors if isinstance(value, Tensor) and not value.is_leaf)
    try:
        return copy.deepcopy(model, {id(value): value.detach().clone() for value in with_history})
    except (RuntimeError, TypeError) as error:  # locks, open files
        raise ModelError(f"the model cannot be copied: {error}") from error


def _observed_copy(
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
