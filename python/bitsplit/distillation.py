"""Calibration images out of a network's own batch norms, for where there is no data.

Every batch norm keeps the mean and the spread that its inputs had in training.  Noise is changed by Adam
until a batch of it gives the same in every norm, as the authors of BRECQ (ICLR 2021) do without data.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bitsplit.calibration.fingerprint import model_fingerprint, step_fingerprint
from bitsplit.calibration.norm_matching import by, matched
from bitsplit.device import device_of
from bitsplit.document import Document
from bitsplit.errors import DataError
from bitsplit.network.copying import copied, refuse_half
from bitsplit.network.running import Step, default_step, refuse_unseeable

USUAL_SIZE = (3, 224, 224)


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

    def sized(self, model: nn.Module) -> Distilled:
        """With a size."""
        return self.model_copy(update={"size": self.size or _usual_size(model)})

    def few(self) -> Distilled:
        """Of the same kind in a moment: one batch, hardly changed, not kept."""
        changes = {
            "images": min(self.images, self.batch),
            "iterations": min(1, self.iterations),
            "file": None,
        }
        return self.model_copy(update=changes)

    def make(
        self, model: nn.Module, seed: int, device: torch.device | None = None, step: Step | None = None
    ) -> Tensor:
        """Tensor[images, *size] on the CPU, of the dtype of the parameters; the same for the same seed.

        step: how images run through the model, ``step(model, images)``; None: ``model(images)``.
        """
        refuse_unseeable(model)
        refuse_half(model)
        if self.file is not None and not self.file.parent.is_dir():
            raise DataError(f"cannot write {self.file}: there is no folder {self.file.parent}")
        known = self.sized(model).model_copy(update={"file": None})
        identity = f"{known.fingerprint()} {seed} {model_fingerprint(model)}"
        if step is not None:
            identity += f" {step_fingerprint(step)}"
        if self.file is not None and self.file.exists():
            return read_images(self.file, identity)
        images = known._made(model, seed, device, step or default_step)
        if self.file is not None:
            try:
                save_file({"images": images}, self.file, {"identity": identity})
            except (OSError, SafetensorError) as error:
                raise DataError(f"cannot write {self.file}: {error}") from error
        return images

    @torch.inference_mode(False)
    def _made(self, model: nn.Module, seed: int, device: torch.device | None, step: Step) -> Tensor:
        place = device_of(model) if device is None else device
        model = copied(model).eval().requires_grad_(False).to(place)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(self.images, *self.size, generator=generator).to(_dtype_of(model))
        batches = list(noise.split(self.batch))
        if len(batches) > 1 and len(batches[-1]) == 1:  # one image has no spread
            batches[-2:] = [torch.cat(batches[-2:])]
        return torch.cat(matched(model, batches, step, self.iterations, self.rate, place))


def _dtype_of(model: nn.Module) -> torch.dtype:
    floating = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return next(floating, torch.float32)


def _usual_size(model: nn.Module) -> tuple[int, ...]:
    size = (getattr(model, "default_cfg", None) or {}).get("input_size")
    if size is not None:
        return tuple(size)
    warnings.warn(
        f"images of {by(USUAL_SIZE)} are distilled; for another size pass bitsplit.Distilled(size=...)",
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
        raise DataError(f"{path} holds images of another network, step, seed or options; use another file")
    return images


def contact_sheet(images: Tensor, path: str | os.PathLike[str], most: int = 64) -> None:
    """A PNG of the first images, each stretched to the range of a picture."""
    from torchvision.utils import save_image

    shown = images[:most, :3] if images.shape[1] >= 3 else images[:most, :1]
    save_image(shown, path, nrow=8, padding=2, normalize=True, scale_each=True)
