"""Many small JPEG files in one NumPy archive."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from bitsplit.data.preprocessing import Preprocessing
from bitsplit.errors import DataError


class JpegArchive(Dataset):
    """Images and labels of an ``.npz`` file; item i is (preprocessed image, label).

    The file holds ``jpeg`` (uint8, all JPEG files end to end), ``offset`` (n + 1 positions: image i is
    ``jpeg[offset[i]:offset[i + 1]]``), ``label`` (n) and ``classes`` (their names).

    Args:
        path: the archive.
        preprocessing: PIL image -> Tensor; the default only scales to 0..1.
    """

    def __init__(
        self, path: str | os.PathLike[str], preprocessing: Callable[[Image.Image], Tensor] | None = None
    ) -> None:
        self.path = os.fspath(path)
        self.preprocessing = preprocessing or Preprocessing(None, None, (0.0,) * 3, (1.0,) * 3)
        with np.load(self.path, allow_pickle=False) as archive:
            missing = {"jpeg", "offset", "label", "classes"} - set(archive.files)
            if missing:
                raise DataError(
                    f"{self.path}: no array named {', '.join(sorted(missing))}; has {archive.files}"
                )
            self._bytes, self._offset = archive["jpeg"], archive["offset"]
            self.labels: list[int] = archive["label"].tolist()
            self.classes: list[str] = archive["classes"].tolist()
        if len(self._offset) != len(self.labels) + 1 or self._offset[-1] != len(self._bytes):
            raise DataError(
                f"{self.path}: offset does not fit: {len(self.labels)} labels, {len(self._bytes)} bytes"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.preprocessing(self.image(index)), self.labels[index]

    def name(self, index: int) -> str:
        """What identifies image ``index`` in messages and lists."""
        return f"{os.path.basename(self.path)}[{index}]"

    def read(self, index: int) -> bytes:
        """The JPEG file of image ``index``."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path}: no image {index}, there are {len(self)}")
        return self._bytes[self._offset[index] : self._offset[index + 1]].tobytes()

    def image(self, index: int) -> Image.Image:
        """Image ``index``, decoded."""
        return decode(self.read(index), self.name(index))

    def tensors(self, indices: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Images Tensor[n, 3, H, W] and labels Tensor[n] of ``indices`` (all when None), all of one size."""
        chosen = range(len(self)) if indices is None else indices
        images = torch.stack([self.preprocessing(self.image(index)) for index in chosen])
        return images, torch.tensor([self.labels[index] for index in chosen])


def write_archive(path: str | os.PathLike[str], source: JpegArchive, indices: Sequence[int]) -> None:
    """Writes the images ``indices`` of ``source`` as an archive of their own, in that order."""
    files = [source.read(int(index)) for index in indices]
    np.savez(
        path,
        jpeg=np.frombuffer(b"".join(files), np.uint8),
        offset=np.cumsum([0, *map(len, files)]),
        label=np.array([source.labels[index] for index in indices]),
        classes=np.array(source.classes),
    )


def decode(content: bytes, name: str) -> Image.Image:
    """Decodes an image file as RGB.

    Raises:
        DataError: the bytes are no readable image; the message names it.
    """
    try:
        return Image.open(io.BytesIO(content)).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{name}: not a readable image ({error})") from error
