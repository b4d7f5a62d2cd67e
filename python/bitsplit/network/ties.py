"""Parameters that several modules share."""

from __future__ import annotations

from collections import defaultdict

from torch import nn

from bitsplit.network.layers import kind_of


def shared_parameters(model: nn.Module) -> set[str]:
    """The names of parameters that several modules own, all names of each."""
    names: dict[int, list[str]] = defaultdict(list)
    for path, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            names[id(parameter)].append(f"{path}.{key}" if path else key)
    return {name for group in names.values() if len(group) > 1 for name in group}


def untie_layers(model: nn.Module) -> None:
    """Give every layer that can be quantized a weight and a bias of its own.

    Layers that share a weight see other inputs, so each gets its own codes and scales.
    """
    shared = shared_parameters(model)
    for path, module in model.named_modules():
        if kind_of(module) is None:
            continue
        for key, parameter in list(module.named_parameters(recurse=False)):
            if (f"{path}.{key}" if path else key) in shared:
                own = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                module.register_parameter(key, own)
