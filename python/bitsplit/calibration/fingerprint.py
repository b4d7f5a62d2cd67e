"""What a run depends on, in a form that can be compared."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from bitsplit._version import __version__
from bitsplit.data import Batches
from bitsplit.device import device_of
from bitsplit.recipe import Recipe


def run_fingerprint(model: nn.Module, data: Batches, recipe: Recipe) -> dict[str, Any]:
    """Everything that decides the result of a run: model, data, recipe, versions."""
    return {
        "model": model_fingerprint(model),
        "data": data.fingerprint,
        "recipe": recipe.model_dump(mode="json"),
        "bitsplit": __version__,
        "torch": torch.__version__,
        "device": device_of(model).type,
    }


def model_fingerprint(model: nn.Module) -> str:
    """SHA-256 over the classes of all modules and the values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        digest.update(f"{name}:{type(module).__qualname__};".encode())
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor):
            digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
