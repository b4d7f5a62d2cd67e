"""``bitsplit evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import bitsplit
from bitsplit.cli import inputs, options
from bitsplit.models.load import load_model, preprocessing_of


def evaluate(
    model: options.ModelOption,
    data: Annotated[Path, typer.Option("--data", help="Test photos: a folder, or .npz.")],
    weights: options.WeightsOption = None,
    load: Annotated[
        Path | None,
        typer.Option(
            "--load", metavar="FILE", help="A network that quantize saved; without it, the float one."
        ),
    ] = None,
    labels: Annotated[
        str,
        typer.Option(
            help="Classes: 'folders' (one each), 'order' (one photo a class), or a file: photo class."
        ),
    ] = "folders",
    preprocessing: options.PreprocessingOption = None,
    batch_size: options.BatchSizeOption = None,
    device: options.DeviceOption = None,
) -> None:
    """Measure top-1 and top-5 accuracy of a float or quantized network."""
    network = load_model(model, weights)
    shaping = inputs.preprocessing_with(preprocessing_of(model, network), preprocessing)
    photos = inputs.open_images(data, shaping, labels)
    if load is not None:
        bitsplit.load(load, network)
    network.to(options.device_of(device))
    print(bitsplit.evaluate(network, photos, batch_size=batch_size))
