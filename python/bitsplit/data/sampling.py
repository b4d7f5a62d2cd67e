"""Draw calibration images by seed and remember which they were."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset

from bitsplit.data.preprocessing import Preprocessing
from bitsplit.errors import DataError


class Images(Protocol):
    """A data set that can name its images and hand out their files: ``ImageFolder``, ``JpegArchive``."""

    preprocessing: Any

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def name(self, index: int) -> str:
        """What identifies an image."""

    def read(self, index: int) -> bytes:
        """An image's file."""


class Sample(Dataset):
    """Some images of a data set, in a fixed order; itself a data set.

    Args:
        source: the data set they come from.
        indices: which of its images.
    """

    def __init__(self, source: Images, indices: Sequence[int]) -> None:
        self.source = source
        self.indices = list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.source[self.indices[index]]

    def rest(self) -> Sample:
        """The images of the source that were not drawn, in its order: what remains for a test."""
        drawn = set(self.indices)
        return Sample(self.source, [index for index in range(len(self.source)) if index not in drawn])

    def record(self) -> dict[str, Any]:
        """What to keep beside a result: preprocessing, name and SHA-256 of every image; plain JSON types."""
        preprocessing = self.source.preprocessing
        known = isinstance(preprocessing, Preprocessing)
        return {
            "preprocessing": dataclasses.asdict(preprocessing) if known else repr(preprocessing),
            "images": [
                {
                    "name": self.source.name(index),
                    "sha256": hashlib.sha256(self.source.read(index)).hexdigest(),
                }
                for index in self.indices
            ],
        }


def sample(source: Images, count: int, seed: int = 0) -> Sample:
    """Draws ``count`` different images of ``source``; the same seed draws the same ones in the same order."""
    if not 1 <= count <= len(source):
        raise DataError(f"cannot draw {count} images: the data set has {len(source)}")
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))
    return Sample(source, order[:count].tolist())
