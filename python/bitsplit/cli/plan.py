"""``bitsplit plan``."""

from __future__ import annotations

from typing import Annotated

import torch
import typer

import bitsplit
from bitsplit.cli import inputs, options
from bitsplit.models.load import load_model


def plan(
    model: options.ModelOption,
    weights: options.WeightsOption = None,
    bits: options.BitsOption = None,
    method: options.MethodOption = None,
    effort: options.EffortOption = None,
    policy: options.PolicyOption = None,
    power_of_two: options.PowerOfTwoOption = False,
    layer: options.LayerOption = None,
    seed: options.SeedOption = None,
    recipe: options.RecipeOption = None,
    size: options.SizeOption = None,
    as_yaml: Annotated[
        bool, typer.Option("--yaml", help="Print the plan as YAML instead of a table.")
    ] = False,
    device: options.DeviceOption = None,
) -> None:
    """Show what quantize would do to every layer; nothing is fitted, no photos are needed."""
    chosen = options.recipe_of(recipe, bits, method, effort, policy, power_of_two, layer, seed)
    network = load_model(model, weights)
    shape = inputs.input_size(size, model, network)
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    found = bitsplit.plan(network, images, chosen, device=options.device_of(device))
    if as_yaml:
        print(found.to_yaml(), end="")
    else:
        options.console().print(found.table())
