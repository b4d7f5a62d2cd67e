"""A store for feature maps: on the card that reads them, in memory within a budget, on disk.

Values come back bit for bit and in the same memory format, whatever the budget.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bitsplit.calibration.memory import (
    SMALL,
    Room,
    Slabs,
    bytes_of,
    card_memory,
    dense_copy,
    held,
    host_memory,
    pinned_size,
)


@dataclass(frozen=True)
class _OnDisk:
    """Where a tensor lies that did not fit into memory."""

    path: Path
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


class FeatureStore:
    """Keeps trees of tensors under keys: on a card that reads them as long as a share of it stays free
    (``LEFT_FREE``), in host memory up to ``budget`` bytes, beyond that in files.

    ``reserved`` bytes of the budget are not for what is merely offered.  ``most``: bytes, on the card,
    in memory and on disk, that were kept at the same time, without what was offered.
    """

    def __init__(self, budget: int, folder: Path | None = None) -> None:
        self.budget = budget
        self.reserved = 0
        self.on_card = 0
        self.in_memory = 0
        self.on_disk = 0
        self.most = 0
        self._offered: dict[Hashable, int] = {}
        self._parent = folder
        self._folder: Path | None = None
        self._trees: dict[Hashable, tuple[list[Any], Any, torch.device]] = {}
        self._files = 0
        self._slabs: dict[Room, Slabs] = {"pinned": Slabs("pinned"), "pageable": Slabs("pageable")}
        self._blanks: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._tables: dict[int, Path | None] = {}

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised tensor: on the card, in the budget, or in a file."""
        count = math.prod(shape)
        size = count * dtype.itemsize
        path: Path | None = None
        if (memory := card_memory(count, dtype, device)) is not None:
            table = memory.view(shape)
            self.on_card += size
        elif (room := self._room(size, device)) is not None:
            table = host_memory(count, dtype, room).view(shape)
            self.in_memory += held(table)
        else:
            path = self._new_file()
            table = torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(shape)
            self.on_disk += size
        self._tables[table.data_ptr()] = path
        self._note_most()
        return table

    def free(self, table: Tensor) -> None:
        """Give back what ``allocate`` gave; it must not be used any more."""
        path = self._tables.pop(table.data_ptr())
        if table.is_cuda:
            self.on_card -= bytes_of(table)
        elif path is None:
            self.in_memory -= held(table)
        else:
            self.on_disk -= bytes_of(table)
            path.unlink(missing_ok=True)

    def put(self, key: Hashable, tree: Any, device: torch.device) -> None:
        """Keep ``tree``; ``get`` brings its tensors back to ``device``."""
        leaves, spec = pytree.tree_flatten(tree)
        self._trees[key] = ([self._keep(leaf, device) for leaf in leaves], spec, device)
        self._note_most()

    def offer(self, key: Hashable, tree: Any, device: torch.device) -> bool:
        """``put`` that is refused where memory is short."""
        size = sum(bytes_of(leaf) for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor))
        fits = self.in_memory + size <= self.budget - self.reserved
        if fits:
            self._offered[key] = size
            self.put(key, tree, device)
        return fits

    def drop(self, keys: Iterable[Hashable]) -> None:
        """Free the values under ``keys`` and forget them; there need not be any."""
        for key in self._trees.keys() & set(keys):
            self.release(key)
            del self._trees[key]

    def __contains__(self, key: Hashable) -> bool:
        return key in self._trees

    def get(self, key: Hashable) -> Any:
        """A fresh copy of the tree: the caller may change it in place."""
        leaves, spec, device = self._trees[key]
        return pytree.tree_unflatten([self._bring(leaf, device) for leaf in leaves], spec)

    def shape_only(self, key: Hashable) -> Any:
        """The tree with values of the right shapes, zeros at first, for values that nobody reads any more.

        All of them lie in one piece of memory: what models write into it, nobody reads either.
        """
        leaves, spec, device = self._trees[key]
        return pytree.tree_unflatten([self._stand_in(leaf, device) for leaf in leaves], spec)

    def release(self, key: Hashable) -> None:
        """Free the values under ``key`` but remember their shapes."""
        leaves, spec, device = self._trees[key]
        self._trees[key] = ([self._forget(leaf) for leaf in leaves], spec, device)
        self._offered.pop(key, None)

    def close(self) -> None:
        """Delete everything, files included."""
        self._trees.clear()
        self._blanks.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _room(self, size: int, device: torch.device) -> Room | None:
        """In which memory what goes to ``device`` has room; None where in none."""
        if device.type == "cuda" and self.in_memory + pinned_size(size) <= self.budget:
            return "pinned"
        return "pageable" if self.in_memory + size <= self.budget else None

    def _keep(self, leaf: Any, device: torch.device) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        size, leaf = bytes_of(leaf), leaf.detach()
        if (memory := card_memory(leaf.numel(), leaf.dtype, device)) is not None:
            self.on_card += size
            return dense_copy(leaf, memory)
        room = self._room(size, device)
        if room is None:
            return self._write(leaf.to("cpu", copy=True))
        if 0 < size < SMALL:
            self.in_memory += size
            return self._slabs[room].place(leaf)
        place = dense_copy(leaf, host_memory(leaf.numel(), leaf.dtype, room))
        self.in_memory += held(place)
        return place

    def _note_most(self) -> None:
        self.most = max(self.most, self.on_card + self.in_memory + self.on_disk - sum(self._offered.values()))

    def _new_file(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="bitsplit-features-", dir=self._parent))
        self._files += 1
        return self._folder / f"{self._files}.bin"

    def _write(self, tensor: Tensor) -> _OnDisk:
        path = self._new_file()
        tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy().tofile(path)
        self.on_disk += path.stat().st_size
        return _OnDisk(path, tensor.shape, tensor.stride(), tensor.dtype)

    @staticmethod
    def _bring(leaf: Any, device: torch.device) -> Any:
        if isinstance(leaf, _OnDisk):
            data = torch.from_file(str(leaf.path), size=leaf.path.stat().st_size, dtype=torch.uint8)
            return data.clone().view(leaf.dtype).as_strided(leaf.shape, leaf.stride).to(device)
        if isinstance(leaf, Tensor):
            return leaf.to(device, copy=True)
        return leaf

    def _stand_in(self, leaf: Any, device: torch.device) -> Any:
        if not isinstance(leaf, (Tensor, _OnDisk)):
            return leaf
        size, key = leaf.shape.numel(), (leaf.dtype, device)
        if key not in self._blanks or self._blanks[key].numel() < size:
            self._blanks[key] = torch.zeros(size, dtype=leaf.dtype, device=device)
        return self._blanks[key][:size].view(leaf.shape)

    def _forget(self, leaf: Any) -> Any:
        if isinstance(leaf, _OnDisk):
            self.on_disk -= leaf.path.stat().st_size
            leaf.path.unlink()
            return _hollow(leaf)
        if isinstance(leaf, Tensor) and leaf.is_cuda:
            self.on_card -= bytes_of(leaf)
            return _hollow(leaf)
        if isinstance(leaf, Tensor) and leaf.untyped_storage().nbytes() > leaf.element_size():
            self.in_memory -= bytes_of(leaf) if bytes_of(leaf) < SMALL else held(leaf)
            return _hollow(leaf)
        return leaf


def _hollow(leaf: Tensor | _OnDisk) -> Tensor:
    """Zeros in one element of memory that remember a shape."""
    return torch.zeros((), dtype=leaf.dtype).expand(leaf.shape)
