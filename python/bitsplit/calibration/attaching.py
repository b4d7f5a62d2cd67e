"""The quantizers that a plan asks for, given to the model that is to be quantized."""

from __future__ import annotations

from torch import nn

from bitsplit.network.layers import kind_of
from bitsplit.plan import LayerPlan, Plan
from bitsplit.quantizers import (
    ActivationQuantizer,
    Grid,
    attach_input_quantizer,
    attach_weight_quantizer,
)
from bitsplit.recipe import Recipe


def attach_quantizers(model: nn.Module, plan: Plan) -> None:
    """Attach the unfitted quantizers that ``plan`` asks for to ``model`` (folded already), in place."""
    shared: dict[int, ActivationQuantizer] = {}
    for layer_plan in plan.layers:
        layer = model.get_submodule(layer_plan.name)
        if layer_plan.weights is not None:
            attach_weight_quantizer(layer, _weight_grid(layer_plan, plan.recipe))
        if layer_plan.activations is not None:
            grid = _activation_grid(layer_plan, plan.recipe.power_of_two)
            quantizer = ActivationQuantizer(grid, channel_axis=-1 - kind_of(layer).spatial)
            quantizer = shared.setdefault(layer_plan.input_key, quantizer)
            attach_input_quantizer(
                layer, quantizer, model.get_submodule(layer_plan.unit), layer_plan.argument
            )


def _weight_grid(layer_plan: LayerPlan, recipe: Recipe) -> Grid:
    """All levels from zero where the plan says affine, else those around zero."""
    make = Grid.unsigned if layer_plan.weight_levels == "affine" else Grid.symmetric
    per_tensor = recipe.starting is not None and recipe.starting.per_tensor
    return make(layer_plan.weights, recipe.power_of_two, per_tensor)


def _activation_grid(layer_plan: LayerPlan, power_of_two: bool) -> Grid:
    """Signed symmetric levels where the plan says so, else unsigned ones (perhaps with a zero point)."""
    make = Grid.symmetric if layer_plan.signed else Grid.unsigned
    return make(layer_plan.activations, power_of_two)
