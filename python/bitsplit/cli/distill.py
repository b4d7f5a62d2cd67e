"""``bitsplit distill``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import bitsplit
from bitsplit.cli import inputs, options
from bitsplit.models.load import load_model


def distill(
    model: options.ModelOption,
    save: Annotated[
        Path, typer.Option("--save", metavar="FILE", help="Where the images go, .safetensors: --data FILE.")
    ],
    weights: options.WeightsOption = None,
    input_size: options.SizeOption = None,
    images: Annotated[int, typer.Option("--images", min=2, help="How many.")] = 256,
    iterations: Annotated[int, typer.Option("--iterations", min=0, help="Of Adam, for each batch.")] = 200,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", metavar="FILE", help="A picture of the first ones, PNG.")
    ] = None,
    seed: options.SeedOption = None,
    device: options.DeviceOption = None,
) -> None:
    """Make calibration images from the statistics in a network's batch norms."""
    for target in filter(None, (save, sheet)):
        inputs.check_target(target)
    inputs.check_distilled(save)
    network = load_model(model, weights)
    size = inputs.input_size(input_size, model, network)
    distilled = bitsplit.Distilled(images=images, size=size, iterations=iterations, file=save)
    made = distilled.make(network, seed or 0, options.device_of(device))
    if sheet is not None:
        bitsplit.contact_sheet(made, sheet)
    print(f"{len(made)} images of {' x '.join(map(str, size))} in {save}")
