"""Anything a user may call calibration data, as batches that can be walked again and again."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, TensorDataset

from bitsplit.data.batch_size import usual_batch_size
from bitsplit.data.digest import add_to_digest, brief_digest
from bitsplit.data.repeat import Repeatable
from bitsplit.device import fresh
from bitsplit.errors import CalibrationError

MEMORY = 2 << 30


class Batches:
    """Calibration batches; every walk over them gives equal batches in the same order.

    Data from a loader or a data set are kept in memory when all of them together fit ``memory`` bytes;
    otherwise they are read anew in every walk and checked to be the same. Every walk hands out copies,
    so a model may change its input in place.

    Made by ``as_batches``, which describes the arguments.
    """

    def __init__(self, source: Iterable[Any], inputs_only: bool, seed: int, memory: int) -> None:
        self._in_memory = source if isinstance(source, list) else None
        self._source = Repeatable(source, seed)
        self._inputs_only = inputs_only
        self._memory = memory
        self._surveyed = False
        self._briefs: list[bytes] = []
        self._images = 0
        self._fingerprint = ""

    def __len__(self) -> int:
        """Number of batches."""
        self._survey()
        return len(self._briefs)

    @property
    def images(self) -> int:
        """Number of images in all batches."""
        self._survey()
        return self._images

    @property
    def fingerprint(self) -> str:
        """Hash over all batches, values and structure: equal data in equal batches, equal fingerprints."""
        self._survey()
        return self._fingerprint

    def first(self) -> Any:
        """The first batch, without reading the others."""
        for batch in self._read():
            _check(batch, 0, count_images(batch))
            return fresh(batch)
        raise CalibrationError("the calibration data are empty: no batch came out of them")

    def __iter__(self) -> Iterator[Any]:
        self._survey()
        count = 0
        for batch in self._read():
            if self._in_memory is None:
                self._check_repeated(count, batch)
            yield fresh(batch)
            count += 1
        if count != len(self):
            raise CalibrationError(
                f"a walk over the calibration data ended after {count} of {len(self)} batches"
            )

    def _check_repeated(self, index: int, batch: Any) -> None:
        if index >= len(self) or brief_digest(batch) != self._briefs[index]:
            raise CalibrationError(
                f"calibration batch {index} is not what it was in the first walk over the data; it must come "
                "the same in every walk (no random augmentation that ignores the global seeds)"
            )

    def _read(self) -> Iterator[Any]:
        if self._in_memory is not None:
            batches: Iterable[Any] = self._in_memory
        else:
            batches = self._source
        for index, batch in enumerate(batches):
            yield _input_of(batch, index) if self._inputs_only else batch

    def _survey(self) -> None:
        """The first walk: counts, checks and hashes the batches, and keeps them if they fit."""
        if self._surveyed:
            return
        digest = hashlib.sha256()
        briefs: list[bytes] = []
        kept: list[Any] | None = []
        images = size = 0
        for index, batch in enumerate(self._read()):
            count = count_images(batch)
            _check(batch, index, count)
            images += count
            add_to_digest(digest, batch)
            briefs.append(brief_digest(batch))
            size += sum(getattr(leaf, "nbytes", 0) for leaf in pytree.tree_leaves(batch))
            if size > self._memory:
                kept = None
            if kept is not None:
                kept.append(fresh(batch))  # a source may use the same memory again
        if not briefs:
            raise CalibrationError("the calibration data are empty: no batch came out of them")
        if self._in_memory is None and kept is not None:
            self._in_memory, self._inputs_only = kept, False
        self._briefs, self._images, self._fingerprint = briefs, images, digest.hexdigest()
        self._surveyed = True


def as_batches(
    data: Any,
    batch_size: int | None = None,
    *,
    inputs_only: bool = True,
    seed: int = 0,
    memory: int = MEMORY,
    device: torch.device | str = "cpu",
) -> Batches:
    """Makes batches of calibration data.

    Args:
        data: one of

            * Tensor[N, ...]: N images, cut into batches; or a pair of them and their labels, Tensor[N]
            * a data set (``torch.utils.data.Dataset``): its items are single images, stacked into batches
            * a ``DataLoader``, a list or any other iterable: its items are batches already, as the model
              takes them. A loader that shuffles is given the same random state at the start of every walk. An
              iterator or generator, which can be walked only once, is read into memory with a warning.
        batch_size: images in a batch, where the batches are made here; None: ``usual_batch_size``.
        inputs_only: hand over the model's input only: of a batch like ``(images, labels)`` its first item.
        seed: of the random state in which a loader is walked.
        memory: bytes up to which batches of a loader or data set are kept in memory.
        device: where they will be computed with.
    """
    if isinstance(data, Batches):
        return data
    if is_pair(data) and not _are_two_batches(*data):
        data = _labelled(*data)
    if batch_size is None:
        batch_size = usual_batch_size(data, torch.device(device))
    if batch_size < 1:
        raise CalibrationError(f"batch_size must be at least 1, got {batch_size}")
    return Batches(_source(data, batch_size), inputs_only, seed, memory)


def fingerprint(data: Any) -> str:
    """The fingerprint of calibration data, whatever their form; see ``Batches.fingerprint``."""
    return as_batches(data).fingerprint


def is_pair(data: Any) -> bool:
    """Whether ``data`` is a tuple of two tensors."""
    return isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)


def count_images(batch: Any) -> int:
    """Number of images in a batch, as far as its form tells: in its first tensor or list of images."""
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.dim() else 1
    if isinstance(batch, Mapping):
        counted = [value for value in batch.values() if isinstance(value, Tensor | Mapping | list | tuple)]
        return count_images(counted[0]) if counted else min(1, len(batch))
    if isinstance(batch, list | tuple):
        is_image_list = isinstance(batch, list) and all(map(_is_image, batch))
        return len(batch) if is_image_list or not batch else count_images(batch[0])
    return 1


def _is_image(item: Any) -> bool:
    """A tensor without a batch axis, or a mapping whose first tensor is one (a detector's input)."""
    if isinstance(item, Mapping):
        item = next((value for value in item.values() if isinstance(value, Tensor)), None)
    return isinstance(item, Tensor) and item.dim() == 3


def _source(data: Any, batch_size: int) -> Iterable[Any]:
    """``data`` as an iterable of batches; a list where they are in memory already."""
    if isinstance(data, Tensor):
        if data.dim() < 2:
            raise CalibrationError(f"a tensor of images needs a batch axis, got shape {tuple(data.shape)}")
        return list(data.split(batch_size)) if len(data) else []
    if isinstance(data, Dataset):
        return DataLoader(data, batch_size)
    if isinstance(data, DataLoader):
        return data
    if isinstance(data, str | bytes | Mapping) or not isinstance(data, Iterable):
        raise CalibrationError(
            "calibration data must be a tensor of images, a data set, a loader or a list of batches, got "
            f"{type(data).__name__}; for a folder of photos use bitsplit.data.ImageFolder"
        )
    if isinstance(data, Iterator):
        batches = list(data)
        warnings.warn(
            f"the calibration data can be walked only once: read into memory ({len(batches)} batches); "
            "a list, a data set or a loader avoids this",
            stacklevel=4,
        )
        return batches
    return list(data) if isinstance(data, tuple) else data


def _are_two_batches(one: Tensor, other: Tensor) -> bool:
    """They hold the same kind of thing: values of one type, as many axes and channels."""
    return one.dtype == other.dtype and one.dim() == other.dim() and one.shape[1:2] == other.shape[1:2]


def _labelled(images: Tensor, labels: Tensor) -> TensorDataset:
    """A pair of tensors that are no two batches."""
    if labels.dim() == 0 or images.dim() < 2 or len(images) != len(labels):
        raise CalibrationError(
            "a pair of tensors is images [N, ...] and what belongs to them [N, ...], or two batches alike; "
            f"got shapes {list(images.shape)} and {list(labels.shape)}"
        )
    return TensorDataset(images, labels)


def _input_of(batch: Any, index: int) -> Tensor:
    if isinstance(batch, list | tuple) and batch:
        batch = batch[0]
    if not isinstance(batch, Tensor):
        raise CalibrationError(
            f"calibration batch {index}: expected a tensor or (tensor, ...), got {type(batch).__name__}; "
            "say with step= how such a batch runs through the model"
        )
    return batch


def _check(batch: Any, index: int, count: int) -> None:
    if count == 0:
        raise CalibrationError(f"calibration batch {index} holds no images")
    for leaf in pytree.tree_leaves(batch):
        array = torch.as_tensor(leaf) if isinstance(leaf, np.ndarray) and leaf.dtype.kind == "f" else leaf
        if isinstance(array, Tensor) and array.is_floating_point() and not torch.isfinite(array).all():
            raise CalibrationError(f"calibration batch {index} holds NaN or infinite values")
