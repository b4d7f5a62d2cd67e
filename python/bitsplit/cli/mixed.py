"""``bitsplit mixed``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from torch import Tensor, nn

import bitsplit
from bitsplit.calibration.fingerprint import model_fingerprint
from bitsplit.cli import inputs, options
from bitsplit.errors import BitsplitError
from bitsplit.models.load import load_model
from bitsplit.recipe import Recipe
from bitsplit.report.figure import require_matplotlib
from bitsplit.widths import Budget, Sensitivities
from bitsplit.widths.curve import trade_off
from bitsplit.widths.measure import WIDTHS, checked_widths
from bitsplit.widths.sensitivities import check_solver

STEPS = 4  # of the curve, to one bit


def mixed(
    model: options.ModelOption,
    save: Annotated[
        Path, typer.Option("--save", metavar="FILE", help="Where the recipe goes: quantize --recipe FILE.")
    ],
    data: options.PhotosIfAnyOption = None,
    weights: options.WeightsOption = None,
    average: Annotated[
        float | None, typer.Option("--average", metavar="BITS", help="Budget: mean bits of the weights.")
    ] = None,
    size: Annotated[float | None, typer.Option("--bytes", help="Budget: size of the whole model.")] = None,
    operations: Annotated[
        float | None, typer.Option("--operations", help="Budget: bit operations for one image.")
    ] = None,
    milliseconds: Annotated[
        float | None, typer.Option("--milliseconds", help="Budget: time, by the table --times.")
    ] = None,
    times: Annotated[
        Path | None, typer.Option("--times", metavar="FILE", help="CSV: layer, width, milliseconds.")
    ] = None,
    activations: Annotated[
        int | None, typer.Option("--activations", help="Bits of the inputs.", show_default="float")
    ] = None,
    widths: Annotated[str, typer.Option("--widths", metavar="LIST", help="Bits to try.")] = ",".join(
        map(str, WIDTHS)
    ),
    method: options.MethodOption = None,
    effort: options.EffortOption = None,
    solver: Annotated[str, typer.Option("--solver", help="Who chooses: exact or genetic.")] = "exact",
    policy: options.PolicyOption = None,
    power_of_two: options.PowerOfTwoOption = False,
    layer: options.LayerOption = None,
    seed: options.SeedOption = None,
    recipe: options.RecipeOption = None,
    measured: Annotated[
        Path | None,
        typer.Option(
            "--measured",
            metavar="FILE",
            help="Keeps what was measured (JSON); when it exists, nothing is measured again.",
        ),
    ] = None,
    curve: Annotated[
        Path | None,
        typer.Option("--curve", metavar="FILE", help="Expected loss over size: a PNG, and a JSON beside it."),
    ] = None,
    images: options.ImagesOption = None,
    input_size: options.SizeOption = None,
    preprocessing: options.PreprocessingOption = None,
    batch_size: options.BatchSizeOption = None,
    checkpoint: options.CheckpointOption = None,
    device: options.DeviceOption = None,
) -> None:
    """Choose the width of every layer for a budget, and save it as a recipe."""
    limits = {"bits": average, "bytes": size, "operations": operations, "milliseconds": milliseconds}
    if all(limit is None for limit in limits.values()):
        raise BitsplitError("a budget is needed: --average, --bytes, --operations or --milliseconds")
    budget, tried = Budget.asked(**limits, times=times), checked_widths(_widths(widths))
    check_solver(solver)
    _check_files(save, measured, curve)
    if recipe is not None and activations is not None:
        raise BitsplitError("--recipe says everything; leave out --activations or the recipe")
    bits = None if recipe else f"W{min(tried)}A{32 if activations is None else activations}"
    chosen = options.recipe_of(recipe, bits, method, effort, policy, power_of_two, layer, seed)
    network = load_model(model, weights)
    if measured is not None and measured.exists():
        found = Sensitivities.from_json(measured)
        given = [recipe, activations, method, effort, policy, power_of_two or None, layer, seed]
        _check_same(measured, found, network, tried, chosen if any(x is not None for x in given) else None)
    elif data is None:
        raise BitsplitError("nothing has been measured yet: --data says on which photos")
    else:
        drawn = inputs.calibration_images(
            model, network, data, preprocessing, images, chosen.seed, input_size
        )
        found = bitsplit.sensitivities(
            network, drawn, chosen, widths=tried, budget=budget, device=options.device_of(device),
            batch_size=batch_size, checkpoint=checkpoint,
        )  # fmt: skip
        if measured is not None:
            found.to_json(measured)
    plan = found.choose(budget, solver=solver)
    (plan.recipe.to_json if save.suffix == ".json" else plan.recipe.to_yaml)(save)
    print(f"{plan}; {found.bytes_of(plan) / 1024:,.1f} KiB")
    if curve is not None:
        low, high = found.widths[0], found.widths[-1]
        points = trade_off(found, [low + step / STEPS for step in range(STEPS * (high - low) + 1)])
        points.draw(curve)
        points.to_json(curve.with_suffix(".json"))


def _check_files(save: Path, measured: Path | None, curve: Path | None) -> None:
    """All can be written, each of its own, before hours of work go into them."""
    files = [save, *filter(None, [measured, curve])]
    if curve is not None:
        require_matplotlib()
        files.append(curve.with_suffix(".json"))
    for path in files:
        inputs.check_target(path)
    twice = [path for path in files if files.count(path) > 1]
    if twice:
        raise BitsplitError(f"{twice[0]} would be written twice; the curve's figures go to FILE.json")


def _check_same(
    file: Path, found: Sensitivities, network: nn.Module, tried: tuple[int, ...], chosen: Recipe | None
) -> None:
    """What a file has measured is of this network, these widths and, where options say one, this recipe."""
    modules = dict(network.named_modules())
    for row in found.layers:
        weight = getattr(modules.get(row.layer.name), "weight", None)
        if not isinstance(weight, Tensor) or weight.numel() != row.layer.count:
            raise BitsplitError(f"{file} is of another network: {row.layer.name} is not a layer of this one")
    if found.network not in ("", model_fingerprint(network)):
        raise BitsplitError(f"{file} is of another network: its weights or its code are others")
    if tried != found.widths:
        raise BitsplitError(f"{file} has the widths {found.widths}, got --widths {tried}")
    if chosen is not None and chosen.model_copy(update={"weights": found.recipe.weights}) != found.recipe:
        raise BitsplitError(f"{file} was measured with another recipe: give its options, or another file")


def _widths(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise BitsplitError(f"--widths is written like 2,3,4, got {text!r}") from None
