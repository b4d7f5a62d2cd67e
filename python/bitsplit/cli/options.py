"""Options that several commands share, and how their texts become what the Python functions take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from rich.console import Console

from bitsplit.device import checked_device
from bitsplit.errors import BitsplitError, RecipeError
from bitsplit.preparing import recipe_of as asked_recipe
from bitsplit.recipe import Recipe

ModelOption = Annotated[
    str,
    typer.Option(
        "--model", metavar="NAME", help="torchvision:NAME, timm:NAME, FILE.py:FUNCTION or MODULE:FUNCTION."
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="FILE",
        help='The trained float weights: a state dict, or "pretrained" for the library\'s.',
    ),
]
BitsOption = Annotated[
    str | None,
    typer.Option(
        "--bits", metavar="W4A8", help="Of weights and activations: W4, A8, W4A8.", show_default="W4"
    ),
]
MethodOption = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        metavar="NAME",
        help='A name, or "{name: bitsplit, paper: true}"; several make a chain.',
        show_default="by --effort",
    ),
]
EffortOption = Annotated[
    str | None,
    typer.Option(
        "--effort",
        metavar="NAME",
        help="Without a method, the best chain for this time: fast, normal or best.",
        show_default="fast",
    ),
]
PolicyOption = Annotated[
    str | None,
    typer.Option(
        "--policy",
        metavar="NAME",
        help="First and last layers: paper, brecq, qdrop, adaround or all.",
        show_default="paper, or by effort qdrop",
    ),
]
PowerOfTwoOption = Annotated[
    bool,
    typer.Option(
        "--power-of-two",
        help="Every scale is 2^k: with quantized activations integers and shifts alone run the network.",
    ),
]
LayerOption = Annotated[
    list[str] | None,
    typer.Option(
        "--layer", metavar="PATTERN=BITS", help="Override by wildcard: 'layer1.*=W8', 'fc=float'. Repeatable."
    ),
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", help="Of everything drawn at random.", show_default="0")
]
RecipeOption = Annotated[
    Path | None,
    typer.Option("--recipe", metavar="FILE", help="YAML or JSON, instead of all options that say how."),
]
_PHOTOS = typer.Option(
    "--data",
    help="Calibration photos: a folder, labels not needed; .npz; what distill has saved; or none: images are "
    "made from the network's batch norms.",
)
PhotosOption = Annotated[Path, _PHOTOS]
PhotosIfAnyOption = Annotated[Path | None, _PHOTOS]
SizeOption = Annotated[
    str | None,
    typer.Option(
        "--input",
        metavar="3x224x224",
        help="Size of one input.",
        show_default="the library's, else 3x224x224",
    ),
]
ImagesOption = Annotated[
    int | None,
    typer.Option(
        "--images",
        min=1,
        help="How many photos to draw, or images to make.",
        show_default="1024, or all if fewer; 256 with --data none",
    ),
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option("--checkpoint", metavar="FOLDER", help="Keeps finished layers, to go on after a stop."),
]
PreprocessingOption = Annotated[
    str | None,
    typer.Option(
        "--preprocessing",
        metavar="FIELDS",
        help='Fields that differ from the model\'s own, such as "{resize: 219, crop: 192, squash: true}".',
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="cpu, cuda, cuda:1.",
        show_default="cuda where there is a card, else cpu",
    ),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=1,
        help="Images in a batch.",
        show_default="64, fewer where they are large and run on the CPU",
    ),
]

WIDE = 140
IMAGES = 1024


def console() -> Console:
    """Where results go; wide enough for tables where nobody's terminal sets the width."""
    found = Console()
    return found if found.is_terminal else Console(width=max(WIDE, found.width))


def recipe_of(
    recipe: Path | None,
    bits: str | None,
    method: list[str] | None,
    effort: str | None,
    policy: str | None,
    power_of_two: bool,
    layer: list[str] | None,
    seed: int | None,
) -> Recipe:
    """The recipe of a file, or the one that the other options spell; not both."""
    spelled = {"--bits": bits, "--method": method, "--effort": effort}
    spelled |= {"--policy": policy, "--power-of-two": power_of_two or None, "--layer": layer, "--seed": seed}
    if recipe is not None:
        both = [name for name, value in spelled.items() if value not in (None, [])]
        if both:
            raise RecipeError(f"--recipe says everything; leave out {', '.join(both)} or the recipe")
        return Recipe.from_file(recipe)
    layers: dict[str, dict[str, Any]] = {}
    for pattern, override in map(_override, layer or []):
        layers.setdefault(pattern, {}).update(override)
    chain = [plain(text, "--method") for text in method or []]
    wanted = {"weights": None, **parse_bits(bits)} if bits else {}
    return asked_recipe(
        chain or None, **wanted, power_of_two=power_of_two, effort=effort, policy=policy, layers=layers,
        seed=seed,
    )  # fmt: skip


def parse_bits(text: str) -> dict[str, int | None]:
    """Bits by kind from ``W4``, ``A8``, ``W4A8`` or ``float``; 32 means float."""
    if text.lower() == "float":
        return {"weights": None, "activations": None}
    match = re.fullmatch(r"(?:W(\d+))?(?:A(\d+))?", text, re.IGNORECASE)
    if match is None or not any(match.groups()):
        raise RecipeError(f"bits are written like W4, A8, W4A8 or float, got {text!r}")
    found = zip(("weights", "activations"), match.groups(), strict=True)
    return {kind: None if bits == "32" else int(bits) for kind, bits in found if bits is not None}


def device_of(name: str | None) -> torch.device:
    """The device to work on."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return checked_device(name)


def _override(text: str) -> tuple[str, dict[str, int | None]]:
    pattern, _, bits = text.rpartition("=")
    if not pattern:
        raise RecipeError(f"--layer takes PATTERN=BITS, such as 'layer1.*=W8' or fc=float, got {text!r}")
    return pattern, parse_bits(bits)


def plain(text: str, option: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BitsplitError(f"{option} {text!r} is not valid: {error}") from error
