"""Parameters that several modules share, or that are used outside of their module."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from torch import nn

from bitsplit.network.layers import kind_of
from bitsplit.network.record import Record


def _owned(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """Every parameter of every module: its full name, the module, its name there, the parameter."""
    for path, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            yield f"{path}.{key}" if path else key, module, key, parameter


def shared_parameters(model: nn.Module) -> set[str]:
    """The names of parameters that several modules own, all names of each."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, _, _, parameter in _owned(model):
        names[id(parameter)].append(name)
    return {name for group in names.values() if len(group) > 1 for name in group}


def used_elsewhere(record: Record) -> set[str]:
    """The names of parameters that operations read outside of the calls of the module that owns them."""
    found = set()
    for op in record.ops:
        for value in (record.values[number] for number in op.inputs):
            if value.origin == "parameter":
                owner = value.name.rpartition(".")[0]
                if all(record.calls[call].name != owner for call in record.ancestors(op.call)):
                    found.add(value.name)
    return found


def untie_layers(model: nn.Module) -> None:
    """Give every layer that can be quantized a weight and a bias of its own.

    Layers that share a weight see other inputs, so each gets its own codes and scales.
    """
    shared = shared_parameters(model)
    for name, module, key, parameter in list(_owned(model)):
        if name in shared and kind_of(module) is not None:
            own = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
            module.register_parameter(key, own)
