"""How well a classifier does: accuracy, and agreement with another network."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from bitsplit.data.batch_size import usual_batch_size
from bitsplit.data.batches import is_pair
from bitsplit.data.folder import ImageFolder
from bitsplit.data.preprocessing import Preprocessing
from bitsplit.device import device_of
from bitsplit.errors import DataError, ModelError


@dataclass(frozen=True)
class Accuracy:
    """What ``evaluate`` measured.

    Attributes:
        top1: percentage of images whose class has the highest score.
        top5: percentage of images whose class is among the five highest scores; None up to five classes.
        images: how many images were seen.
        seconds: how long it took, data included.
    """

    top1: float
    top5: float | None
    images: int
    seconds: float

    def __str__(self) -> str:
        top5 = "" if self.top5 is None else f", top-5 {self.top5:.2f} %"
        return f"top-1 {self.top1:.2f} %{top5} ({self.images:,} images, {self.seconds:.1f} s)"


def evaluate(
    model: nn.Module,
    data: Any,
    *,
    batch_size: int | None = None,
    preprocessing: Preprocessing | None = None,
    labels: str | os.PathLike[str] = "folders",
) -> Accuracy:
    """Measures a classifier, in eval mode, on the device of its parameters; the model's modes are restored.

    Args:
        model: images Tensor[B, ...] -> scores Tensor[B, classes].
        data: a folder of photos, a data set of (image, label), a pair (images Tensor[N, ...], labels
            Tensor[N]), or any iterable of batches (images, labels).
        batch_size: images in a batch, where the batches are made here; None: as ``quantize`` does.
        preprocessing: of a folder's photos; ImageNet's usual one when None.
        labels: where a folder's classes come from, see ``bitsplit.data.ImageFolder``.
    """
    if isinstance(data, str | os.PathLike):
        data = ImageFolder(data, preprocessing, labels)
    started = time.perf_counter()
    images = right1 = right5 = classes = 0
    for scores, truth in _scores(model, data, batch_size, "evaluate"):
        if truth is None:
            raise DataError("evaluate needs batches of (images, labels), got batches without labels")
        classes = scores.shape[1]
        _check_labels(truth, scores)
        best = scores.topk(min(5, classes), dim=1).indices.cpu()
        hits = best == truth[:, None]
        images += len(truth)
        right1 += int(hits[:, 0].sum())
        right5 += int(hits.any(1).sum())
    seconds = time.perf_counter() - started
    return Accuracy(100 * right1 / images, 100 * right5 / images if classes > 5 else None, images, seconds)


def predict(model: nn.Module, data: Any, *, batch_size: int | None = None) -> Tensor:
    """The class with the highest score for every image, Tensor[N].

    Args:
        model: images Tensor[B, ...] -> scores Tensor[B, classes].
        data: images Tensor[N, ...], or any data ``evaluate`` takes; labels are ignored.
        batch_size: images in a batch, where the batches are made here; None: as ``quantize`` does.
    """
    if isinstance(data, str | os.PathLike):
        data = ImageFolder(data, labels=None)
    scored = _scores(model, data, batch_size, "predict")
    return torch.cat([scores.argmax(1).cpu() for scores, _ in scored])


def agreement(
    model: nn.Module, reference: nn.Module | Tensor, data: Any, *, batch_size: int | None = None
) -> float:
    """Percentage of images to which both networks give the same class.

    Args:
        model: the network in question.
        reference: the network to compare with, or what ``predict`` gave for it on the same data.
        data: as for ``predict``; must come in the same order every time.
        batch_size: images in a batch, where the batches are made here; None: as ``quantize`` does.
    """
    wanted = reference if isinstance(reference, Tensor) else predict(reference, data, batch_size=batch_size)
    got = predict(model, data, batch_size=batch_size)
    if len(got) != len(wanted):
        raise DataError(
            f"agreement: the reference has classes for {len(wanted)} images, the data are {len(got)}"
        )
    return 100 * float((got == wanted.cpu()).double().mean())


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Puts every module into eval mode and afterwards back into the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _batches(data: Any, batch_size: int | None, device: torch.device) -> Iterable[Any]:
    if is_pair(data):
        if len(data[0]) != len(data[1]):
            raise DataError(f"{len(data[0])} images but {len(data[1])} labels")
        data = TensorDataset(*data)
    if batch_size is None:
        batch_size = usual_batch_size(data, device)
    if isinstance(data, Tensor):
        return data.split(batch_size)
    if isinstance(data, Dataset):
        return DataLoader(data, batch_size)
    return data


def _scores(
    model: nn.Module, data: Any, batch_size: int | None, what: str
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Scores Tensor[B, classes] and labels Tensor[B] of every batch, with a progress bar on a terminal."""
    device = device_of(model)
    batches = _batches(data, batch_size, device)
    console = Console(stderr=True)
    seen = 0
    with eval_mode(model), torch.inference_mode():
        for batch in track(batches, what, console=console, disable=not console.is_terminal, transient=True):
            images, truth = _split(batch)
            scores = model(images.to(device))
            if not isinstance(scores, Tensor) or scores.dim() != 2 or len(scores) != len(images):
                got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
                raise ModelError(f"{what}: the model must give scores [{len(images)}, classes], got {got}")
            if scores.isnan().any():
                raise ModelError(
                    f"{what}: the model's scores for images {seen} to {seen + len(images) - 1} hold NaN"
                )
            seen += len(images)
            yield scores, truth
    if seen == 0:
        raise DataError(f"{what}: the data are empty")


def _split(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Images and labels of a batch; labels are None where it holds only images."""
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, list | tuple) and batch and isinstance(batch[0], Tensor):
        if len(batch) == 1:
            return batch[0], None
        if len(batch) == 2:
            return batch[0], torch.as_tensor(batch[1]).cpu()
    raise DataError(f"expected batches of (images, labels), got {type(batch).__name__}")


def _check_labels(truth: Tensor, scores: Tensor) -> None:
    if truth.shape != (len(scores),):
        raise DataError(
            f"labels must be of shape [{len(scores)}], one class number an image, got {list(truth.shape)}"
        )
    if len(truth) and not 0 <= int(truth.min()) <= int(truth.max()) < scores.shape[1]:
        raise DataError(
            f"labels go from {truth.min()} to {truth.max()}, but the model has {scores.shape[1]} classes"
        )
