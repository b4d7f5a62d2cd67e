"""What a run depends on, in a form that can be compared."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from bitsplit._version import __version__
from bitsplit.data import Batches
from bitsplit.device import device_of
from bitsplit.recipe import Recipe


def run_fingerprint(
    model: nn.Module, data: Batches, recipe: Recipe, step: Callable[..., Any] | None
) -> dict[str, Any]:
    """Everything that decides the result of a run: model, data, recipe, step, versions."""
    return {
        "model": model_fingerprint(model),
        "data": data.fingerprint,
        "recipe": recipe.model_dump(mode="json"),
        "step": None if step is None else step_fingerprint(step),
        "bitsplit": __version__,
        "torch": torch.__version__,
        "device": device_of(model).type,
    }


def model_fingerprint(model: nn.Module) -> str:
    """SHA-256 over all modules: classes, plain attributes, values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        plain = {key: value for key, value in vars(module).items() if _is_plain(value) and key != "training"}
        digest.update(f"{name}:{type(module).__qualname__}:{sorted(plain.items())};".encode())
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def step_fingerprint(step: Callable[..., Any]) -> str:
    """SHA-256 over the code of a function, its defaults and the plain values it encloses, or that are bound.

    Of other callables, and of functions that it calls, only the names count.
    """
    if isinstance(step, partial):
        bound = [value for value in (*step.args, *sorted(step.keywords.items())) if _is_plain(value)]
        return hashlib.sha256(f"{step_fingerprint(step.func)}{bound}".encode()).hexdigest()
    code = getattr(step, "__code__", None)
    parts: list[Any] = [type(step).__qualname__, getattr(step, "__qualname__", "")]
    if code is not None:
        enclosed = inspect.getclosurevars(step).nonlocals.values()
        values = (*code.co_consts, *enclosed, *(step.__defaults__ or ()))
        parts += [code.co_code, code.co_names, [value for value in values if _is_plain(value)]]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return isinstance(value, (bool, int, float, complex, str, bytes, type(None), torch.dtype))
