"""Quantized layers: ordinary layers that carry a weight quantizer and perhaps an input quantizer.

A layer keeps its class and its ``state_dict`` keys.  Its ``weight`` parameter holds the dequantized codes, so
the forward pass is the layer's own; the input quantizer acts through a forward-pre hook.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bitsplit.errors import BitsplitError
from bitsplit.network.layers import input_of, kind_of
from bitsplit.quantizers.grid import Grid
from bitsplit.quantizers.modules import ActivationQuantizer, WeightQuantizer

if TYPE_CHECKING:
    from bitsplit.plan import LayerPlan, Plan


def quantize_input(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The forward-pre hook of every layer with an input quantizer."""
    quantized = module.input_quantizer(input_of(args, kwargs))
    return (quantized, *args[1:]), {name: value for name, value in kwargs.items() if name != "input"}


def attach_weight_quantizer(layer: nn.Module, grid: Grid) -> WeightQuantizer:
    """Give ``layer`` an unfitted weight quantizer."""
    layer.weight_quantizer = WeightQuantizer(grid, kind_of(layer).channel_axis, getattr(layer, "groups", 1))
    layer.weight_quantizer.to(layer.weight.device)
    return layer.weight_quantizer


def attach_input_quantizer(layer: nn.Module, quantizer: ActivationQuantizer) -> None:
    """Let ``quantizer`` act on the input of ``layer``; several layers may share one."""
    if hasattr(layer, "input_quantizer"):
        raise BitsplitError("this layer has an input quantizer already; was the model quantized before?")
    layer.input_quantizer = quantizer.to(layer.weight.device)
    layer.register_forward_pre_hook(quantize_input, with_kwargs=True)


def set_weight(layer: nn.Module, codes: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> None:
    """Store fitted codes and make ``layer.weight`` equal to what they stand for."""
    layer.weight_quantizer.set(codes, scale, zero_point)
    refresh_weight(layer)


@torch.no_grad()
def refresh_weight(layer: nn.Module) -> None:
    """Derive ``layer.weight`` from the codes again, in place."""
    layer.weight.copy_(layer.weight_quantizer.dequantize())


def prepare(model: nn.Module, plan: Plan) -> nn.Module:
    """Attach the unfitted quantizers that ``plan`` asks for to ``model`` (folded already), in place."""
    shared: dict[int, ActivationQuantizer] = {}
    for layer_plan in plan.layers:
        layer = model.get_submodule(layer_plan.name)
        if layer_plan.weights is not None:
            attach_weight_quantizer(layer, weight_grid(layer_plan))
        if layer_plan.activations is not None:
            grid = activation_grid(layer_plan)
            quantizer = ActivationQuantizer(grid, channel_axis=-1 - kind_of(layer).spatial)
            attach_input_quantizer(layer, shared.setdefault(layer_plan.input_key, quantizer))
    return model


def weight_grid(layer_plan: LayerPlan) -> Grid:
    """All levels from zero where the plan says affine, else those around zero."""
    make = Grid.unsigned if layer_plan.weight_levels == "affine" else Grid.symmetric
    return make(layer_plan.weights)


def activation_grid(layer_plan) -> Grid:
    """Signed symmetric levels where the plan says so, else unsigned ones (perhaps with a zero point)."""
    bits = layer_plan.activations
    return Grid.symmetric(bits) if layer_plan.signed else Grid.unsigned(bits)


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
