"""Turn one model into another of the same structure, keeping its module objects."""

from __future__ import annotations

from torch import nn


def adopt(model: nn.Module, source: nn.Module) -> nn.Module:
    """Make ``model`` what ``source`` (a changed deep copy of it) is.

    Every module object of ``model`` stays the same object, so that whoever holds one sees the change; modules
    that only ``source`` has are taken over, those it has no longer are dropped.
    """
    kept = {id(copied): original for original, copied in _pairs(model, source)}
    for copied in list(source.modules()):
        original = kept.get(id(copied), copied)
        copied._modules = type(copied._modules)(
            (name, None if child is None else kept.get(id(child), child))
            for name, child in copied._modules.items()
        )
        original.__class__ = copied.__class__
        original.__dict__ = copied.__dict__  # one for both: hooks and plain attributes may hold the copy
    return model


def _pairs(model: nn.Module, source: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    copies = dict(source.named_modules(remove_duplicate=False))
    modules = model.named_modules(remove_duplicate=False)
    return [(module, copies[name]) for name, module in modules if name in copies]
