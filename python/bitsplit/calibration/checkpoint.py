"""Finished layers on disk, so that a killed run goes on where it stopped and ends with the same bits."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bitsplit.errors import CheckpointError
from bitsplit.quantizers import refresh_weight


class Checkpoint:
    """A folder with one file per fitted layer and the fingerprint of the run they belong to."""

    def __init__(self, folder: Path, fingerprint: dict[str, Any]) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot make the folder {folder}: {error.strerror}") from error
        manifest = folder / "run.json"
        if manifest.exists():
            _refuse_other_run(manifest, fingerprint)
        else:
            _write_atomically(manifest, lambda path: path.write_text(json.dumps(fingerprint, indent=2)))

    def restore(self, name: str, layer: nn.Module) -> bool:
        """Bring back the fitted state of ``layer``; False when it has not been saved."""
        path = self._path(name)
        if not path.exists():
            return False
        try:
            tensors = load_file(path, device=str(layer.weight.device))
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged ({error}); delete it to fit {name} again") from error
        _set_state(layer, tensors)
        return True

    def save(self, name: str, layer: nn.Module) -> None:
        """Keep the fitted state of ``layer``; either all of it arrives on disk or nothing."""
        tensors = {key: value.contiguous() for key, value in _state(layer).items()}
        _write_atomically(self._path(name), lambda path: save_file(tensors, path))

    def _path(self, name: str) -> Path:
        return self.folder / f"{quote(name, safe='') or 'model'}.layer.safetensors"


def _state(layer: nn.Module) -> dict[str, Tensor]:
    """Everything that fitting changes in a layer."""
    state = {f"buffer.{name}": value for name, value in _buffers(layer).items() if value is not None}
    if layer.bias is not None:
        state["bias"] = layer.bias.detach()
    return state


def _buffers(layer: nn.Module) -> dict[str, Tensor | None]:
    return {
        f"{quantizer}.{name}": value
        for quantizer in ("weight_quantizer", "input_quantizer")
        if hasattr(layer, quantizer)
        for name, value in getattr(layer, quantizer)._buffers.items()
    }


def _set_state(layer: nn.Module, tensors: dict[str, Tensor]) -> None:
    for key, value in tensors.items():
        if key == "bias":
            layer.bias = nn.Parameter(value, requires_grad=layer.weight.requires_grad)
        else:
            _, quantizer, name = key.split(".")
            getattr(layer, quantizer)._buffers[name] = value
    if getattr(layer, "weight_quantizer", None) is not None and layer.weight_quantizer.is_fitted:
        refresh_weight(layer)


def _refuse_other_run(manifest: Path, fingerprint: dict[str, Any]) -> None:
    try:
        saved = json.loads(manifest.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{manifest} cannot be read ({error}); use another folder") from error
    differing = [key for key in sorted({*saved, *fingerprint}) if saved.get(key) != fingerprint.get(key)]
    if differing:
        details = "; ".join(
            f"{key}: saved {saved.get(key)!r}, now {fingerprint.get(key)!r}" for key in differing
        )
        raise CheckpointError(f"{manifest.parent} belongs to another run. {details}")


def _write_atomically(path: Path, write: Any) -> None:
    """``write`` to a neighbour of ``path`` and move it into place; a failure leaves nothing behind."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write {path}: {error}") from error
