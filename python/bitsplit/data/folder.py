"""Photos in a folder, in one of the layouts ImageNet comes in."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from bitsplit.data.archive import decode
from bitsplit.data.preprocessing import Preprocessing
from bitsplit.errors import DataError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"})


class ImageFolder(Dataset):
    """The photos of a folder, sorted; item i is (preprocessed image, label), without labels the image alone.

    Args:
        root: the folder.
        preprocessing: PIL image -> Tensor[3, H, W].
        labels: where the class of a photo comes from, never guessed:

            * ``"folders"``: one sub-folder a class; sorted by name they are classes 0, 1, 2, ...
            * ``"order"``: one photo a class, all directly in ``root``; by name they are classes 0, 1, ...
            * a path: a text file with lines ``photo class``, photos relative to ``root``, classes as numbers;
              only the photos it names are used (ImageNet's validation photos in one folder, with their truth)
            * None: no labels; all photos below ``root`` (enough for calibration)

    Raises:
        DataError: the folder does not have that layout, or holds no photo.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        preprocessing: Callable[[Image.Image], Tensor] | None = None,
        labels: str | os.PathLike[str] | None = "folders",
    ) -> None:
        self.root = Path(root)
        self.preprocessing = preprocessing or Preprocessing()
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder")
        self.files, self.labels = _layout(self.root, labels)
        if not self.files:
            raise DataError(f"{self.root}: no photos found; known endings are {', '.join(sorted(SUFFIXES))}")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | Tensor:
        image = self.preprocessing(self.image(index))
        return image if self.labels is None else (image, self.labels[index])

    def name(self, index: int) -> str:
        """The photo's path below the folder."""
        return self.files[index].as_posix()

    def read(self, index: int) -> bytes:
        """The photo's file."""
        path = self.root / self.files[index]
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error

    def image(self, index: int) -> Image.Image:
        """The photo, decoded; an unreadable one raises ``DataError`` with its path."""
        return decode(self.read(index), str(self.root / self.files[index]))


def _layout(root: Path, labels: str | os.PathLike[str] | None) -> tuple[list[Path], list[int] | None]:
    """The photos below ``root`` in order, relative to it, and their classes."""
    if labels is None:
        return _photos(root, "**/*"), None
    if labels == "order":
        files = _photos(root, "*")
        return files, list(range(len(files)))
    if labels == "folders":
        return _class_folders(root)
    return _listed(root, Path(labels))


def _photos(root: Path, pattern: str) -> list[Path]:
    found = (path for path in root.glob(pattern) if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(path.relative_to(root) for path in found)


def _class_folders(root: Path) -> tuple[list[Path], list[int]]:
    classes = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise DataError(
            f'{root}: no class folders in it; say labels="order" if each photo is a class of its own, '
            "labels=FILE for a list of photos with their classes, labels=None for no labels"
        )
    files: list[Path] = []
    labels: list[int] = []
    for number, folder in enumerate(classes):
        photos = [folder.relative_to(root) / photo for photo in _photos(folder, "**/*")]
        files += photos
        labels += [number] * len(photos)
    return files, labels


def _listed(root: Path, listing: Path) -> tuple[list[Path], list[int]]:
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"labels file {listing}: cannot be read ({error.strerror})") from error
    files: list[Path] = []
    labels: list[int] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        photo, _, label = line.strip().rpartition(" ")
        if not photo or not label.isdecimal():
            raise DataError(f"{listing}, line {number}: expected 'photo class-number', got {line!r}")
        files.append(Path(photo.strip()))
        labels.append(int(label))
    return files, labels
