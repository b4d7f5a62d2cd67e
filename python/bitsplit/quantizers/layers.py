"""Quantized layers: ordinary layers that carry a weight quantizer and perhaps an input quantizer.

A layer keeps its class and its ``state_dict`` keys.  Its ``weight`` parameter holds the dequantized codes, so
the forward pass is the layer's own; the input quantizer acts through a forward-pre hook.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bitsplit.errors import BitsplitError
from bitsplit.network.layers import input_of, kind_of
from bitsplit.quantizers.grid import Grid
from bitsplit.quantizers.modules import ActivationQuantizer, WeightQuantizer
from bitsplit.quantizers.powers import power_below, powers

MOST_STEPS = 2**22  # of a sum, that a bias may be: float32 still tells sums of that size apart
DEAD_STEPS = 2**12  # that the largest bias is where all weights are zero: fine, yet means of it fit int32


def quantize_input(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The forward-pre hook of every layer with an input quantizer that acts on it alone."""
    quantizer = module.input_quantizer
    return _with_input(args, kwargs, quantizer.read(quantizer(input_of(args, kwargs))))


def read_input(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The forward-pre hook of every layer whose input its block has quantized."""
    return _with_input(args, kwargs, module.input_quantizer.read(input_of(args, kwargs)))


def _with_input(args: tuple, kwargs: dict[str, Any], x: Tensor) -> tuple[tuple, dict[str, Any]]:
    return (x, *args[1:]), {name: value for name, value in kwargs.items() if name != "input"}


def quantize_arguments(
    module: nn.Module, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """The forward-pre hook of every block that quantizes what it is called with."""
    leaves, spec = pytree.tree_flatten((args, dict(sorted(kwargs.items()))))
    places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    for position, quantizer in module.argument_quantizers.items():
        leaves[places[position]] = quantizer(leaves[places[position]])
    return pytree.tree_unflatten(leaves, spec)


def attach_weight_quantizer(layer: nn.Module, grid: Grid) -> WeightQuantizer:
    """Give ``layer`` an unfitted weight quantizer."""
    layer.weight_quantizer = WeightQuantizer(grid, kind_of(layer).channel_axis, getattr(layer, "groups", 1))
    layer.weight_quantizer.to(layer.weight.device)
    return layer.weight_quantizer


def attach_input_quantizer(
    layer: nn.Module,
    quantizer: ActivationQuantizer,
    block: nn.Module | None = None,
    argument: int | None = None,
) -> None:
    """Let ``quantizer`` act on the input of ``layer``; several layers may share one.

    argument: it acts on this tensor among those that ``block`` is called with, which is the layer's input.
    """
    if hasattr(layer, "input_quantizer"):
        raise BitsplitError("this layer has an input quantizer already; was the model quantized before?")
    layer.input_quantizer = quantizer.to(layer.weight.device)
    if argument is None:
        layer.register_forward_pre_hook(quantize_input, with_kwargs=True)
        return
    if not hasattr(block, "argument_quantizers"):
        block.argument_quantizers = {}  # a plain dict: the quantizers are modules of their layers
        block.register_forward_pre_hook(quantize_arguments, with_kwargs=True)
    block.argument_quantizers[argument] = quantizer
    layer.register_forward_pre_hook(read_input, with_kwargs=True)


def set_weight(layer: nn.Module, codes: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> None:
    """Store fitted codes and make ``layer.weight`` equal to what they stand for."""
    layer.weight_quantizer.set(codes, scale, zero_point)
    refresh_weight(layer)


@torch.no_grad()
def refresh_weight(layer: nn.Module) -> None:
    """Derive ``layer.weight`` from the codes again, in place."""
    layer.weight.copy_(layer.weight_quantizer.dequantize())


def fitted_state(layer: nn.Module) -> dict[str, Tensor]:
    """Everything that fitting changes in a layer, by name; what has not been fitted yet is left out."""
    state = {
        f"{owner}.{name}": value.clone()
        for owner in ("weight_quantizer", "input_quantizer")
        if hasattr(layer, owner)
        for name, value in getattr(layer, owner)._buffers.items()
        if value is not None
    }
    if layer.bias is not None:
        state["bias"] = layer.bias.detach().clone()
    return state


def set_fitted_state(layer: nn.Module, state: dict[str, Tensor]) -> None:
    """Give ``layer`` what ``fitted_state`` told of it; ``state`` stays its own."""
    device = layer.weight.device
    required = (layer.weight if layer.bias is None else layer.bias).requires_grad
    if "bias" not in state:
        layer.bias = None
    for key, value in state.items():
        if key == "bias":
            layer.bias = nn.Parameter(value.to(device, copy=True), requires_grad=required)
        else:
            owner, name = key.split(".")
            getattr(layer, owner)._buffers[name] = value.to(device, copy=True)
    quantizer = getattr(layer, "weight_quantizer", None)
    if quantizer is not None and quantizer.is_fitted:
        refresh_weight(layer)


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every layer of ``model`` that carries a quantizer, in module order."""
    for name, module in model.named_modules():
        if hasattr(module, "weight_quantizer") or hasattr(module, "input_quantizer"):
            yield name, module


@dataclass(frozen=True)
class LayerCodes:
    """Integers and scales of one quantized layer: ``weight == scale * (codes - zero_point)``."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    bits: int
    axis: int


def codes(model: nn.Module) -> dict[str, LayerCodes]:
    """Integer codes (in the weight's shape), scales and zero points of every quantized layer of ``model``."""
    found = {}
    for name, layer in quantized_layers(model):
        quantizer = getattr(layer, "weight_quantizer", None)
        if quantizer is not None and quantizer.is_fitted:
            found[name] = LayerCodes(
                quantizer.codes, quantizer.scale, quantizer.zero_point, quantizer.bits, quantizer.axis
            )
    return found


@torch.no_grad()
def align_biases(model: nn.Module) -> None:
    """Round every bias to a multiple of its layer's input scale times weight scale, as its sums are.

    Where that would be more than ``MOST_STEPS``, because the weights of a channel are all but zero, their
    scale grows until it is not.  Scales of channels without any weight but zero are chosen for the bias.
    """
    for _, layer in quantized_layers(model):
        weight, inputs = getattr(layer, "weight_quantizer", None), getattr(layer, "input_quantizer", None)
        if layer.bias is None or weight is None or inputs is None:
            continue
        _rescale_dead_channels(layer)
        unit = weight.scale.double() if inputs.is_per_channel else weight.scale.double() * inputs.scale
        beyond = powers((layer.bias.abs() / unit / MOST_STEPS).clamp(min=1).log2().ceil())
        if weight.grid.per_tensor:
            beyond = beyond.amax().expand_as(beyond)
        if (beyond > 1).any():
            levels = (weight.levels / weight.per_channel(beyond)).round()
            codes = levels + weight.per_channel(weight.zero_point)
            set_weight(layer, codes, weight.scale * beyond, weight.zero_point)
        layer.bias.copy_((layer.bias / (unit * beyond)).round() * (unit * beyond))


def _rescale_dead_channels(layer: nn.Module) -> None:
    """Any scale stands for weights of zero: give such channels the middle one of the others.

    Where there are no others, the largest bias is some thousand steps.
    """
    weight, inputs = layer.weight_quantizer, layer.input_quantizer
    alive = weight.sum_per_channel(weight.levels.abs()) > 0
    if alive.any():
        scale = weight.scale[alive].median()
    elif layer.bias.any():
        scale = power_below(layer.bias.abs().max()) / DEAD_STEPS
        scale = scale if inputs.is_per_channel else scale / inputs.scale
    else:
        return
    set_weight(layer, weight.codes, torch.where(alive, weight.scale, scale), weight.zero_point)
