"""The verbs: ``quantize`` and ``plan``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitsplit.calibration.checkpoint import Checkpoint
from bitsplit.calibration.engine import Engine
from bitsplit.calibration.fingerprint import run_fingerprint
from bitsplit.device import free_memory
from bitsplit.inplace import adopt
from bitsplit.methods.presets import Effort
from bitsplit.plan import Plan
from bitsplit.planning import make_plan
from bitsplit.preparing import EXACTLY, Model, Step, batches_of, call_model, observed_copy, recipe_of


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

    data: calibration inputs without labels: Tensor[N, ...], a list of batches, a DataLoader; None: images are
    made from the statistics in the network's batch norms (``bitsplit.Distilled`` has options).
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
    recipe = recipe_of(method, effort, weights, activations, policy, power_of_two, layers, seed)
    batches, forward = batches_of(model, data, batch_size, step, device, recipe.seed), step or call_model
    network, teacher = observed_copy(model, batches, forward, device)
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
    recipe = recipe_of(method, effort, weights, activations, policy, power_of_two, layers, seed)
    batches = batches_of(model, data, batch_size, step, device, recipe.seed)
    network, _ = observed_copy(model, batches, step or call_model, device)
    return make_plan(network, recipe)
