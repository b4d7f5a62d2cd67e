"""Turn one model into another of the same structure, keeping its module objects."""

from __future__ import annotations

from collections.abc import Mapping
from types import MethodType
from typing import Any

from torch import nn


def adopt(model: nn.Module, source: nn.Module) -> nn.Module:
    """Make ``model`` what ``source`` (a changed deep copy of it) is.

    Every module object of ``model`` stays the same object, so that whoever holds one sees the change; modules
    that only ``source`` has are taken over, those it has no longer are dropped.
    """
    kept = {id(copied): original for original, copied in _pairs(model, source)}
    for copied in list(source.modules()):
        original = kept.get(id(copied), copied)
        for name, value in copied.__dict__.items():
            copied.__dict__[name] = _with_originals(value, kept)
        original.__class__ = copied.__class__
        original.__dict__ = copied.__dict__  # one for both: who else holds the copy sees the same
    return model


def _with_originals(value: Any, kept: Mapping[int, nn.Module]) -> Any:
    """``value`` with the originals of the modules in it, in containers and as owners of methods (hooks)."""
    if isinstance(value, nn.Module):
        return kept.get(id(value), value)
    if isinstance(value, MethodType):
        return MethodType(value.__func__, _with_originals(value.__self__, kept))
    if isinstance(value, dict):
        for key, inner in value.items():
            value[key] = _with_originals(inner, kept)
    elif type(value) in (list, tuple, set):
        return type(value)(_with_originals(inner, kept) for inner in value)
    return value


def _pairs(model: nn.Module, source: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    copies = dict(source.named_modules(remove_duplicate=False))
    modules = model.named_modules(remove_duplicate=False)
    return [(module, copies[name]) for name, module in modules if name in copies]
