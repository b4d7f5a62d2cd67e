"""From a decoded photo to the tensor a network was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from bitsplit.errors import DataError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop, scale to 0..1, subtract ``mean``, divide by ``std``; defaults are ImageNet's.

    Plain data, so that it can be recorded next to a result. Shrinking is always antialiased, as in PIL.

    Args:
        resize: length of the shorter side after resizing; None leaves the size alone.
        crop: side of the square cut from the centre, smaller images are padded with black; None cuts nothing.
        mean, std: of the three channels, for pixels scaled to 0..1; the (x - 127) / 128 of some networks is
            mean 127/255, std 128/255.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
        squash: resize both sides to ``resize``, changing the aspect ratio.
    """

    resize: int | None = 256
    crop: int | None = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bilinear"
    squash: bool = False

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise DataError(f"preprocessing: {name} must be at least 1, got {size}")
        if len(self.mean) != 3 or len(self.std) != 3:
            raise DataError(f"preprocessing: mean and std need 3 numbers, got {self.mean} and {self.std}")
        if min(self.std) <= 0:
            raise DataError(f"preprocessing: std must be positive, got {self.std}")
        if self.interpolation not in _INTERPOLATIONS:
            known = ", ".join(_INTERPOLATIONS)
            raise DataError(
                f"preprocessing: interpolation must be one of {known}, got {self.interpolation!r}"
            )
        if self.squash and self.resize is None:
            raise DataError("preprocessing: squash needs a resize length")

    def __call__(self, image: Image.Image) -> Tensor:
        """PIL image -> float32 Tensor[3, H, W]."""
        image = self._resized(image.convert("RGB"))
        if self.crop is not None:
            image = _centre(image, self.crop)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return self.normalise(pixels)

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 Tensor[..., 3, H, W] -> float32 of the same shape."""
        mean = torch.tensor(self.mean).view(3, 1, 1)
        std = torch.tensor(self.std).view(3, 1, 1)
        return pixels.float().div(255).sub_(mean).div_(std).contiguous()

    def _resized(self, image: Image.Image) -> Image.Image:
        if self.resize is None:
            return image
        width, height = image.size
        if self.squash:
            target = (self.resize, self.resize)
        elif width <= height:
            target = (self.resize, int(self.resize * height / width))
        else:
            target = (int(self.resize * width / height), self.resize)
        if target == image.size:
            return image
        return image.resize(target, _INTERPOLATIONS[self.interpolation])


def for_torchvision(weights: Any) -> Preprocessing:
    """The preprocessing a torchvision weights entry asks for, e.g. ``ResNet18_Weights.DEFAULT``."""
    preset = weights.transforms()
    needed = ("resize_size", "crop_size", "mean", "std", "interpolation")
    missing = [name for name in needed if not hasattr(preset, name)]
    if missing:
        raise DataError(
            f"{weights}: its transforms have no {', '.join(missing)}, so they are not for classification"
        )
    (resize,), (crop,) = preset.resize_size, preset.crop_size
    return Preprocessing(resize, crop, tuple(preset.mean), tuple(preset.std), preset.interpolation.value)


def for_timm(model: nn.Module) -> Preprocessing:
    """The preprocessing of a timm model, from the data configuration of its weights."""
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    crop_mode = config.get("crop_mode", "center")
    if channels != 3 or height != width or crop_mode not in ("center", "squash"):
        raise DataError(
            "timm preprocessing: only square RGB inputs, centred or squashed, are known; "
            f"got input size {config['input_size']} and crop mode {crop_mode!r}; make a Preprocessing by hand"
        )
    resize = int(height / config["crop_pct"])
    return Preprocessing(
        resize, height, config["mean"], config["std"], config["interpolation"], squash=crop_mode == "squash"
    )


def _centre(image: Image.Image, side: int) -> Image.Image:
    """The central ``side`` x ``side`` square; where the image is smaller, black is added around it."""
    width, height = image.size
    # Where a margin is odd, Python's round (half to even) decides the side, as in torchvision.
    left = int(round((width - side) / 2)) if width >= side else -((side - width) // 2)
    top = int(round((height - side) / 2)) if height >= side else -((side - height) // 2)
    return image.crop((left, top, left + side, top + side))
