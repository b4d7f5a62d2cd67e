"""``bitsplit quantize``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from torch import Tensor, nn

import bitsplit
from bitsplit.cli import inputs, options
from bitsplit.data import Sample
from bitsplit.distillation import Distilled
from bitsplit.models.load import load_model
from bitsplit.report import attach_report, report_of


def quantize(
    model: options.ModelOption,
    data: options.PhotosOption,
    save: Annotated[Path, typer.Option("--save", metavar="FILE", help="Where the quantized network goes.")],
    weights: options.WeightsOption = None,
    bits: options.BitsOption = None,
    method: options.MethodOption = None,
    effort: options.EffortOption = None,
    policy: options.PolicyOption = None,
    power_of_two: options.PowerOfTwoOption = False,
    layer: options.LayerOption = None,
    seed: options.SeedOption = None,
    recipe: options.RecipeOption = None,
    images: options.ImagesOption = None,
    size: options.SizeOption = None,
    preprocessing: options.PreprocessingOption = None,
    batch_size: options.BatchSizeOption = None,
    checkpoint: options.CheckpointOption = None,
    device: options.DeviceOption = None,
) -> None:
    """Quantize a network with calibration photos and save it."""
    chosen = options.recipe_of(recipe, bits, method, effort, policy, power_of_two, layer, seed)
    inputs.check_target(save)
    network = load_model(model, weights)
    place = options.device_of(device)
    drawn = inputs.calibration_images(model, network, data, preprocessing, images, chosen.seed, size)
    notes = Console(stderr=True, highlight=False)
    if weights is None and model.startswith(("torchvision:", "timm:")):
        notes.print("note: without --weights the network has random weights")
    notes.print(f"{_told(drawn)}, on {place}")
    quantized = bitsplit.quantize(
        network, drawn, chosen, device=place, batch_size=batch_size, checkpoint=checkpoint
    )
    if isinstance(drawn, Sample):
        _record_images(quantized, drawn)
    bitsplit.save(quantized, save)
    options.console().print(*bitsplit.summary(quantized).tables())
    notes.print(f"saved to {save} ({save.stat().st_size / 2**20:.2f} MiB)")


def _told(drawn: Sample | Distilled | Tensor) -> str:
    if isinstance(drawn, Sample):
        return f"{len(drawn)} of {len(drawn) + len(drawn.rest())} photos"
    return f"{drawn.images if isinstance(drawn, Distilled) else len(drawn)} distilled images"


def _record_images(quantized: nn.Module, drawn: Sample) -> None:
    """Add the list of calibration images to the report of the run."""
    report = report_of(quantized)
    data = {**report.data, "sample": drawn.record()}
    attach_report(quantized, report.model_copy(update={"data": data}))
