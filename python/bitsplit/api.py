"""The verbs: ``quantize`` and ``plan``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitsplit.inplace import adopt
from bitsplit.methods.presets import Effort
from bitsplit.plan import Plan
from bitsplit.preparing import UNSAID, AskedBits, Model, Prepared, Step, recipe_of, undisturbed
from bitsplit.report import attach_report


@undisturbed
def quantize(
    model: Model,
    data: Any,
    method: Any = None,
    *,
    effort: Effort | None = None,
    weights: AskedBits = UNSAID,
    activations: AskedBits = UNSAID,
    policy: str | None = None,
    power_of_two: bool = False,
    layers: Mapping[str, Mapping[str, Any]] | None = None,
    step: Step | None = None,
    inplace: bool = False,
    seed: int | None = None,
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
    weights, activations: bits, 2 to 8, None is float; default 4 and None.  policy: which rule holds for first
    and last layers; default the method's own.
    power_of_two: all scales are 2^k; with quantized activations integers alone can then run the network, with
    shifts between layers (``bitsplit.IntegerNetwork``).
    layers: overrides by wildcard, such as
    ``{"layer1.*": {"weights": 8}, "fc": {"weights": None}}``.  seed: of all that is random; default 0.
    step: how one batch runs through the model, default ``model(batch)``.
    batch_size: images in a batch, where the batches are made here; default 64, on the CPU as many as make
    about eight photos of 224 pixels.
    checkpoint: a folder for finished layers; the same call again goes on from there.
    memory: bytes of host memory for features, beyond that they go to disk; default a quarter of what is free.
    """
    recipe = recipe_of(
        method, weights, activations, power_of_two, effort=effort, policy=policy, layers=layers, seed=seed
    )
    work = Prepared.of(model, data, recipe, step=step, device=device, batch_size=batch_size)
    attach_report(work.network.model, work.run(recipe.method, checkpoint, memory))
    return adopt(model, work.network.model) if inplace else work.network.model


@undisturbed
def plan(
    model: nn.Module,
    data: Any,
    method: Any = None,
    *,
    effort: Effort | None = None,
    weights: AskedBits = UNSAID,
    activations: AskedBits = UNSAID,
    policy: str | None = None,
    power_of_two: bool = False,
    layers: Mapping[str, Mapping[str, Any]] | None = None,
    step: Step | None = None,
    inplace: bool = False,
    seed: int | None = None,
    device: torch.device | str | None = None,
    batch_size: int | None = None,
    checkpoint: str | Path | None = None,
    memory: int | None = None,
) -> Plan:
    """What ``quantize`` with the same arguments would do to every layer; nothing is fitted or changed.

    inplace, checkpoint and memory decide nothing here: they may stand among the arguments of both.
    """
    recipe = recipe_of(
        method, weights, activations, power_of_two, effort=effort, policy=policy, layers=layers, seed=seed
    )
    return Prepared.of(model, data, recipe, step=step, device=device, batch_size=batch_size).plan
