"""What a run depends on, in a form that can be compared."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import partial
from types import CodeType
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
    """SHA-256 over all modules: classes and the code of their forwards, plain attributes, values of all
    parameters and buffers.

    Code is compared as compiled: another version of Python is another model.
    """
    digest = hashlib.sha256()
    forward = functools.cache(_forward_fingerprint)
    for name, module in model.named_modules():
        plain = {key: value for key, value in vars(module).items() if _is_setting(key, value)}
        digest.update(f"{name}:{type(module).__qualname__}:{forward(type(module))}:".encode())
        if "forward" in vars(module):  # this object's own
            digest.update(step_fingerprint(module.forward).encode())
        digest.update(f"{sorted(plain.items())};".encode())
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _forward_fingerprint(kind: type[nn.Module]) -> str:
    """SHA-256 over the code of ``forward`` and of the methods that it names; those of torch do not count."""
    found: dict[str, list[str]] = {}
    pending = ["forward"]
    while pending:
        name = pending.pop()
        if name in found:
            continue
        methods = [vars(base)[name] for base in kind.__mro__ if name in vars(base)]
        methods = [method for method in methods if _is_users(inspect.unwrap(method))]
        found[name] = [step_fingerprint(method) for method in methods]
        for method in methods:
            for code in _codes(inspect.unwrap(method).__code__):
                pending += code.co_names
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()


def _is_users(method: Any) -> bool:
    return inspect.isfunction(method) and (method.__module__ or "").partition(".")[0] != "torch"


def step_fingerprint(step: Callable[..., Any]) -> str:
    """SHA-256 over the code of a function, its defaults and the plain values it encloses, or that are bound.

    A decorated function counts with its decorator.  Of other callables, and of functions that it calls, only
    the names count.
    """
    if isinstance(step, partial):
        bound = [value for value in (*step.args, *sorted(step.keywords.items())) if _is_plain(value)]
        return hashlib.sha256(f"{step_fingerprint(step.func)}{bound}".encode()).hexdigest()
    parts: list[Any] = [type(step).__qualname__, getattr(step, "__qualname__", "")]
    function = getattr(step, "__func__", step)
    if inspect.isfunction(function):
        enclosed = inspect.getclosurevars(function).nonlocals.values()
        defaults = (*(function.__defaults__ or ()), *sorted((function.__kwdefaults__ or {}).items()))
        parts.append([value for value in (*enclosed, *defaults) if _is_plain(value)])
        parts += map(_code_parts, _codes(function.__code__))
    if hasattr(step, "__wrapped__"):
        parts.append(step_fingerprint(step.__wrapped__))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _codes(code: CodeType) -> Iterator[CodeType]:
    """``code`` and that of the functions and comprehensions inside of it."""
    yield code
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _codes(value)


def _code_parts(code: CodeType) -> tuple[Any, ...]:
    return code.co_code, code.co_names, [value for value in code.co_consts if _is_plain(value)]


def _is_setting(key: str, value: Any) -> bool:
    """Of a module; its own dictionaries (parameters, hooks) are none."""
    if key == "training" or (key.startswith("_") and isinstance(value, dict)):
        return False
    return _is_plain(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(_is_plain(key) and _is_plain(content) for key, content in value.items())
    if is_dataclass(value) and not isinstance(value, type):
        return all(_is_plain(getattr(value, field.name)) for field in fields(value))
    return isinstance(value, (bool, int, float, complex, str, bytes, type(None), torch.dtype))
