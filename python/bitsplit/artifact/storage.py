"""Files on disk: written whole or not at all, read only when every hash agrees."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bitsplit.artifact.manifest import Manifest, tensor_hash
from bitsplit.errors import ArtifactError


def write(path: Path, tensors: dict[str, Tensor], manifest: Manifest) -> None:
    """Write a file atomically: whatever happens, ``path`` holds its old content or all of the new one."""
    content = safetensors.torch.save(tensors, metadata=manifest.to_header())
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror}") from error
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(0o666 & ~_umask())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            size = len(content) / 2**20
            raise ArtifactError(
                f"cannot write {path} ({size:.1f} MiB): {error.strerror}; what was there is unchanged"
            ) from error
        raise
    _sync_folder(path.parent)


def read_manifest(path: Path) -> Manifest:
    """The manifest of a file; the tensors are not read."""
    try:
        with safe_open(path, framework="pt") as file:
            return Manifest.from_header(file.metadata(), str(path))
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def read(path: Path) -> tuple[Manifest, dict[str, Tensor]]:
    """Manifest and tensors of a file, all hashes checked."""
    manifest = read_manifest(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    if tensors.keys() != manifest.hashes.keys():
        names = sorted(tensors.keys() ^ manifest.hashes.keys())
        raise ArtifactError(f"{path} is damaged or was altered: its tensors are not those listed: {names[0]}")
    for name, tensor in tensors.items():
        if tensor_hash(tensor) != manifest.hashes[name]:
            raise ArtifactError(f"{path} is damaged or was altered: {name} does not match its hash")
    return manifest, tensors


def _unreadable(path: Path, error: Exception) -> ArtifactError:
    if isinstance(error, OSError):
        return ArtifactError(f"cannot read {path}: {error.strerror or error}")
    return ArtifactError(f"{path} is truncated or no safetensors file: {error}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
