"""Finished layers on disk, so that a killed run goes on where it stopped and ends with the same bits."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from bitsplit.errors import CheckpointError
from bitsplit.quantizers import fitted_state, set_fitted_state

LONGEST_NAME = 150  # characters; file systems allow 255 bytes, and ends are added


class Checkpoint:
    """A folder with one file per fitted layer or learned piece, and the fingerprint of their run."""

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

    def restore(self, key: str, layers: Mapping[str, nn.Module]) -> dict[str, Any] | None:
        """Bring back the fitted state of ``layers``, and the facts saved with it; None when there is none."""
        path = self._path(key)
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads(file.metadata()["facts"])
            tensors = load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged ({error}); delete it to fit {key} again") from error
        for name, layer in layers.items():
            prefix = f"{name}:"
            state = {key.removeprefix(prefix): v for key, v in tensors.items() if key.startswith(prefix)}
            set_fitted_state(layer, state)
        return facts

    def save(self, key: str, layers: Mapping[str, nn.Module], facts: dict[str, Any]) -> None:
        """Keep the fitted state of ``layers``; either all of it arrives on disk or nothing."""
        tensors = {
            f"{name}:{field}": value.contiguous()
            for name, layer in layers.items()
            for field, value in fitted_state(layer).items()
        }
        metadata = {"facts": json.dumps(facts)}
        _write_atomically(self._path(key), lambda path: save_file(tensors, path, metadata))

    def _path(self, key: str) -> Path:
        name = quote(key, safe="") or "model"
        if len(name) > LONGEST_NAME:
            name = f"{name[:LONGEST_NAME]}-{hashlib.sha256(key.encode()).hexdigest()}"
        return self.folder / f"{name}.layer.safetensors"


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
