"""Options that several commands share, and how their texts become what the Python functions take."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from rich.console import Console
from torch import nn

from bitsplit.data import ImageFolder, JpegArchive, Preprocessing, Sample, sample
from bitsplit.device import checked_device
from bitsplit.errors import ArtifactError, BitsplitError, RecipeError
from bitsplit.models.load import preprocessing_of
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
    typer.Option("--power-of-two", help="Every scale is 2^k: integers and shifts alone run the network."),
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
    typer.Option(
        "--recipe", metavar="FILE", help="YAML or JSON, instead of bits, method, policy, layer and seed."
    ),
]
PhotosOption = Annotated[
    Path, typer.Option("--data", help="Calibration photos: a folder, labels not needed; or .npz.")
]
IMAGES = 1024
ImagesOption = Annotated[
    int | None,
    typer.Option(
        "--images", min=1, help="How many photos to draw.", show_default=f"{IMAGES}, or all if fewer"
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
    fields: dict[str, Any] = dict(parse_bits(bits or "W4"))
    fields["weights"] = fields.get("weights")
    fields["power_of_two"] = power_of_two
    if method:
        fields["method"] = [_plain(text, "--method") for text in method]
    if effort is not None or not method:
        fields["effort"] = effort or "fast"
    if policy is not None:
        fields["policy"] = policy
    if seed is not None:
        fields["seed"] = seed
    layers: dict[str, dict[str, Any]] = {}
    for pattern, override in map(_override, layer or []):
        layers.setdefault(pattern, {}).update(override)
    return Recipe(layers=layers, **fields)


def parse_bits(text: str) -> dict[str, int | None]:
    """Bits by kind from ``W4``, ``A8``, ``W4A8`` or ``float``; 32 means float."""
    if text.lower() == "float":
        return {"weights": None, "activations": None}
    match = re.fullmatch(r"(?:W(\d+))?(?:A(\d+))?", text, re.IGNORECASE)
    if match is None or not any(match.groups()):
        raise RecipeError(f"bits are written like W4, A8, W4A8 or float, got {text!r}")
    found = zip(("weights", "activations"), match.groups(), strict=True)
    return {kind: None if bits == "32" else int(bits) for kind, bits in found if bits is not None}


def preprocessing_with(base: Preprocessing, fields: str | None) -> Preprocessing:
    """``base`` with some of its fields replaced."""
    if fields is None:
        return base
    changes = _plain(fields, "--preprocessing")
    known = [field.name for field in dataclasses.fields(Preprocessing)]
    if not isinstance(changes, dict) or not changes.keys() <= set(known):
        raise BitsplitError(
            f"--preprocessing takes fields {{name: value, ...}} of {', '.join(known)}, got {fields}"
        )
    changes = {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
    try:
        return dataclasses.replace(base, **changes)
    except (ValueError, TypeError) as error:
        raise BitsplitError(f"--preprocessing: {error}") from error


def open_images(
    path: Path, preprocessing: Preprocessing, labels: str | Path | None
) -> ImageFolder | JpegArchive:
    """A folder of photos, or an archive of them (.npz), which brings its own labels."""
    if path.suffix != ".npz":
        return ImageFolder(path, preprocessing, labels)
    try:
        return JpegArchive(path, preprocessing)
    except (OSError, ValueError) as error:
        raise BitsplitError(f"cannot read {path}: {error}") from error


def draw_photos(
    model: str, network: nn.Module, data: Path, preprocessing: str | None, images: int | None, seed: int
) -> Sample:
    """Calibration photos, shaped as the model's library asks for."""
    shaping = preprocessing_with(preprocessing_of(model, network), preprocessing)
    photos = open_images(data, shaping, labels=None)
    return sample(photos, min(IMAGES, len(photos)) if images is None else images, seed)


def check_target(path: Path) -> None:
    """Tell that a file cannot be written before hours of work go into it."""
    if not path.parent.is_dir():
        raise ArtifactError(f"cannot save to {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise ArtifactError(f"cannot save to {path}: it is a folder; name a file")


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


def _plain(text: str, option: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BitsplitError(f"{option} {text!r} is not valid: {error}") from error
