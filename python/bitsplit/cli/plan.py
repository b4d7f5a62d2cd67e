"""``bitsplit plan``."""

from __future__ import annotations

from typing import Annotated

import torch
import typer

import bitsplit
from bitsplit.cli import options
from bitsplit.errors import BitsplitError
from bitsplit.models.load import load_model, preprocessing_of


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
    input_size: Annotated[
        str | None,
        typer.Option(
            "--input", metavar="3x224x224", help="Size of one input.", show_default="the model's own"
        ),
    ] = None,
    as_yaml: Annotated[
        bool, typer.Option("--yaml", help="Print the plan as YAML instead of a table.")
    ] = False,
    device: options.DeviceOption = None,
) -> None:
    """Show what quantize would do to every layer; nothing is fitted, no photos are needed."""
    chosen = options.recipe_of(recipe, bits, method, effort, policy, power_of_two, layer, seed)
    network = load_model(model, weights)
    if input_size is None:
        side = preprocessing_of(model, network).crop or 224
        shape = [3, side, side]
    else:
        shape = _parse_size(input_size)
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    found = bitsplit.plan(network, images, chosen, device=options.device_of(device))
    if as_yaml:
        print(found.to_yaml(), end="")
    else:
        options.console().print(found.table())


def _parse_size(text: str) -> list[int]:
    parts = text.split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise BitsplitError(f"--input is written like 3x224x224, got {text!r}")
    return [int(part) for part in parts]
