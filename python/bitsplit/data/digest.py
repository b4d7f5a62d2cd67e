"""Hashes of batches, for fingerprints and for noticing that data changed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_PLAIN = (str, bytes, int, float, bool, type(None))
_BRIEF_ELEMENTS = 4096


def add_to_digest(digest: Any, batch: Any) -> None:
    """Feeds a batch, all of its tensors' bytes and its structure, into a ``hashlib`` object."""
    leaves, structure = pytree.tree_flatten(batch)
    digest.update(repr(structure).encode())
    for leaf in leaves:
        _add_leaf(digest, leaf, every=1)


def brief_digest(batch: Any) -> bytes:
    """A quick hash of a batch, from an even choice of about 4,096 elements of each of its tensors."""
    digest = hashlib.sha256()
    for leaf in pytree.tree_leaves(batch):
        every = max(1, leaf.numel() // _BRIEF_ELEMENTS) if isinstance(leaf, Tensor) else 1
        _add_leaf(digest, leaf, every)
    return digest.digest()


def _add_leaf(digest: Any, leaf: Any, every: int) -> None:
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc":
        leaf = torch.from_numpy(np.ascontiguousarray(leaf))
    if isinstance(leaf, Tensor):
        digest.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
        chosen = leaf.detach().reshape(-1)[::every].cpu().contiguous()
        digest.update(memoryview(chosen.view(torch.uint8).numpy()))
    elif isinstance(leaf, _PLAIN):
        digest.update(repr(leaf).encode())
    else:  # an object's repr may hold its address: its type and what is in it stay equal from run to run
        digest.update(type(leaf).__qualname__.encode())
        inside = dict(leaf) if isinstance(leaf, Mapping) else getattr(leaf, "__dict__", {})
        for name, value in inside.items():
            digest.update(repr(name).encode())
            for part in pytree.tree_leaves(value):
                _add_leaf(digest, part, every)
