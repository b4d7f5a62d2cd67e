"""What the options about images mean: photos, files, images made without any; and where results may go."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import Tensor, nn

from bitsplit.cli import options
from bitsplit.data import ImageFolder, JpegArchive, Preprocessing, Sample, sample
from bitsplit.distillation import Distilled, read_images
from bitsplit.errors import ArtifactError, BitsplitError
from bitsplit.models.load import is_of_library, preprocessing_of

NO_DATA = "none"
DISTILLED = ".safetensors"


def preprocessing_with(base: Preprocessing, fields: str | None) -> Preprocessing:
    """``base`` with some of its fields replaced."""
    if fields is None:
        return base
    changes = options.plain(fields, "--preprocessing")
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


def calibration_images(
    model: str,
    network: nn.Module,
    data: Path,
    preprocessing: str | None,
    images: int | None,
    seed: int,
    size: str | None = None,
) -> Sample | Distilled | Tensor:
    """Photos drawn from ``data``, shaped as the model's library asks for; or images made without any."""
    if str(data) == NO_DATA:
        count = {} if images is None else {"images": images}
        known = size is not None or is_of_library(model)
        return Distilled(size=input_size(size, model, network) if known else None, **count)
    if data.suffix == DISTILLED:
        return read_images(data)[:images]
    shaping = preprocessing_with(preprocessing_of(model, network), preprocessing)
    photos = open_images(data, shaping, labels=None)
    return sample(photos, min(options.IMAGES, len(photos)) if images is None else images, seed)


def input_size(text: str | None, model: str, network: nn.Module) -> tuple[int, ...]:
    """Of one input: as ``--input`` says, or the model's own; 224 where nobody knows that."""
    if text is None:
        side = preprocessing_of(model, network).crop or 224
        return 3, side, side
    parts = text.split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise BitsplitError(f"--input is written like 3x224x224, got {text!r}")
    return tuple(map(int, parts))


def check_target(path: Path) -> None:
    """Tell that a file cannot be written before hours of work go into it."""
    if not path.parent.is_dir():
        raise ArtifactError(f"cannot save to {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise ArtifactError(f"cannot save to {path}: it is a folder; name a file")


def check_distilled(path: Path) -> None:
    """Tell that ``calibration_images`` would not know a file by its name."""
    if path.suffix != DISTILLED:
        raise BitsplitError(f"distilled images are saved as {DISTILLED} files, got {path}")
