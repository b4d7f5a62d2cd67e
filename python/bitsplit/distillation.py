"""Calibration images out of a network's own batch norms, for where there is no data.

Every batch norm keeps the mean and the spread that its inputs had in training.  Noise is changed by Adam
until a batch of it gives the same in every norm, as the authors of BRECQ (ICLR 2021) do without data.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bitsplit.calibration.fingerprint import model_fingerprint
from bitsplit.copying import copied
from bitsplit.device import device_of
from bitsplit.document import Document
from bitsplit.errors import DataError, ModelError
from bitsplit.network.norms import has_statistics
from bitsplit.ops.precision import computing_in
from bitsplit.ops.threads import one_thread

USUAL_SIZE = (3, 224, 224)
SMALLEST = 1e-6  # of a spread that others are divided by


class Distilled(Document):
    """Images that ``quantize`` makes itself: ``quantize(model, Distilled(size=(3, 32, 32)))``.

    images: how many.  size: of one; None: what timm says of its models, else 3 x 224 x 224.
    iterations, batch, rate: of Adam, images that are changed together.
    file: where they are kept (.safetensors): used when it is there already and belongs to this network and
    these options.
    """

    images: int = Field(256, ge=1)
    size: tuple[int, ...] | None = None
    iterations: int = Field(200, ge=0)
    batch: int = Field(64, ge=2)
    rate: float = Field(0.1, gt=0)
    file: Path | None = None

    def make(self, model: nn.Module, seed: int, device: torch.device | None = None) -> Tensor:
        """Tensor[images, *size] on the CPU; the same for the same seed."""
        known = self.model_copy(update={"size": self.size or _usual_size(model), "file": None})
        identity = f"{known.fingerprint()} {seed} {model_fingerprint(model)}"
        if self.file is not None and self.file.exists():
            return read_images(self.file, identity)
        images = distill(model, known, seed, device)
        if self.file is not None:
            try:
                save_file({"images": images}, self.file, {"identity": identity})
            except (OSError, SafetensorError) as error:
                raise DataError(f"cannot write {self.file}: {error}") from error
        return images


def _usual_size(model: nn.Module) -> tuple[int, ...]:
    size = (getattr(model, "default_cfg", None) or {}).get("input_size")
    if size is not None:
        return tuple(size)
    warnings.warn(
        f"images of {' x '.join(map(str, USUAL_SIZE))} are distilled; for another size pass "
        "bitsplit.Distilled(size=...)",
        stacklevel=2,
    )
    return USUAL_SIZE


def read_images(path: Path, identity: str | None = None) -> Tensor:
    """The images of a file; with ``identity`` only those that were made so."""
    try:
        with safe_open(path, "pt") as file:
            saved = (file.metadata() or {}).get("identity")
            images = file.get_tensor("images")
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if identity not in (None, saved):
        raise DataError(f"{path} holds images of another network, seed or options; use another file")
    return images


def distill(model: nn.Module, options: Distilled, seed: int, device: torch.device | None = None) -> Tensor:
    """Images whose statistics in every batch norm of ``model`` are those that the norm keeps."""
    place = device_of(model) if device is None else device
    model = copied(model).eval().requires_grad_(False).to(place)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(options.images, *options.size, generator=generator)
    batches = list(noise.split(options.batch))
    if len(batches) > 1 and len(batches[-1]) == 1:  # one image has no spread
        batches[-2:] = [torch.cat(batches[-2:])]
    console = Console(stderr=True)
    steps = track(
        range(len(batches) * options.iterations), "distilling images", console=console,
        disable=not console.is_terminal, transient=True,
    )  # fmt: skip
    ticks = iter(steps)
    with torch.enable_grad(), one_thread(), computing_in("fp32", place):
        made = [_distilled(model, batch.to(place), options, ticks).cpu() for batch in batches]
    for _ in ticks:
        pass
    return torch.cat(made)


def _distilled(model: nn.Module, noise: Tensor, options: Distilled, ticks: Iterator[int]) -> Tensor:
    images = noise.clone().requires_grad_(True)
    adam = torch.optim.Adam([images], lr=options.rate)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(1, options.iterations))
    with _watching(model) as distances:
        for _ in range(options.iterations):
            next(ticks)
            distances.clear()
            model(images)
            if not distances:
                raise ModelError("no batch norm of the network takes part in its forward pass")
            loss = torch.stack(distances).mean()
            (images.grad,) = torch.autograd.grad(loss, [images])
            adam.step()
            falling.step()
    return images.detach()


@contextmanager
def _watching(model: nn.Module) -> Iterator[list[Tensor]]:
    """Every call of a batch norm adds how far the statistics of its input are from those that it keeps."""
    norms = [module for module in model.modules() if has_statistics(module)]
    if not norms:
        raise ModelError(
            "the network has no batch norm with stored statistics to make images from; pass calibration "
            "images (a few hundred, without labels)"
        )
    distances: list[Tensor] = []

    def note(norm: nn.Module, args: tuple[Any, ...]) -> None:
        distances.append(distance(args[0], norm.running_mean, norm.running_var))

    with ExitStack() as hooks:
        for norm in norms:
            hooks.callback(norm.register_forward_pre_hook(note).remove)
        yield distances


def distance(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Of the channels' means and spreads, relative to the spread that they should have, squared."""
    others = [axis for axis in range(x.dim()) if axis != 1]
    spread = variance.sqrt().clamp(min=SMALLEST)
    means = ((x.mean(others) - mean) / spread).square().mean()
    return means + (x.std(others) / spread - 1).square().mean()


def contact_sheet(images: Tensor, path: str | os.PathLike[str], most: int = 64) -> None:
    """A PNG of the first images, each stretched to the range of a picture."""
    from torchvision.utils import save_image

    shown = images[:most, :3] if images.shape[1] >= 3 else images[:most, :1]
    save_image(shown, path, nrow=8, padding=2, normalize=True, scale_each=True)
