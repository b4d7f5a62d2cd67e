#!/usr/bin/env python3
"""Trains the demo's network on CIFAR-10 and writes what the demo embeds: weights and images, at most 4 MB.

Needs the archives ``train.npz`` and ``test.npz`` of the shared test data; about 20 minutes on one CPU core.
The test images are looked at once, after training: nothing was chosen by them.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bitsplit.data.archive import JpegArchive, write_archive
from bitsplit.demo.assets import (
    CALIBRATION,
    PREPROCESSING,
    TEST,
    WEIGHTS,
    load_test_images,
    network,
    save_weights,
)

CALIBRATION_IMAGES = 500
TEST_IMAGES = 2_000
MOST_BYTES = 4_000_000


def main() -> None:
    """Reads the arguments, trains, writes the files, reports the accuracy on the embedded test images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with train.npz and test.npz")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=0.2, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    training = JpegArchive(arguments.data / "train.npz", PREPROCESSING)
    test = JpegArchive(arguments.data / "test.npz", PREPROCESSING)
    model = network().to(memory_format=torch.channels_last)
    train(model, *training.tensors(), arguments.epochs, arguments.batch, arguments.rate)

    chosen = np.random.default_rng(arguments.seed)
    save_weights(model)
    write_archive(CALIBRATION, training, chosen.choice(len(training), CALIBRATION_IMAGES, replace=False))
    write_archive(TEST, test, chosen.choice(len(test), TEST_IMAGES, replace=False))
    size = sum(path.stat().st_size for path in (WEIGHTS, CALIBRATION, TEST))
    if size > MOST_BYTES:
        raise SystemExit(f"the embedded files have {size:,} bytes, at most {MOST_BYTES:,} are wanted")
    for what, archive in (("embedded", load_test_images()), ("all", test)):
        print(f"top-1 on {what} test images ({len(archive):,}): {accuracy(model, *archive.tensors()):.2%}")


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, batch: int, rate: float) -> None:
    """SGD with one learning-rate cycle, label smoothing and bfloat16 convolutions.

    Args:
        images: Tensor[n, 3, 32, 32], normalised.
        labels: Tensor[n].
    """
    steps = len(images) // batch
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * steps, pct_start=0.15)
    model.train()
    for epoch in range(epochs):
        started, total = time.monotonic(), 0.0
        for chosen in torch.randperm(len(images))[: steps * batch].split(batch):
            inputs = augment(images[chosen]).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                loss = functional.cross_entropy(model(inputs), labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.monotonic() - started
        print(f"epoch {epoch + 1}/{epochs}  loss {total / steps:.4f}  {seconds:.1f} s", flush=True)
    model.eval()


def augment(images: Tensor, shift: int = 4, hole: int = 8) -> Tensor:
    """Every image mirrored by chance, moved by up to ``shift`` pixels, a ``hole`` x ``hole`` square blanked.

    Args:
        images: Tensor[B, 3, S, S].
    """
    count, _, side, _ = images.shape
    padded = functional.pad(images, (shift,) * 4, mode="reflect")
    line = torch.arange(side)
    rows = torch.randint(2 * shift + 1, (count, 1)) + line
    columns = torch.randint(2 * shift + 1, (count, 1)) + line
    mirrored = torch.rand(count, 1) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    image = torch.arange(count)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]]

    top = torch.randint(side, (count, 1)) - hole // 2
    left = torch.randint(side, (count, 1)) - hole // 2
    in_rows = (line >= top) & (line < top + hole)
    in_columns = (line >= left) & (line < left + hole)
    blank = in_rows[:, :, None] & in_columns[:, None, :]
    return moved.masked_fill(blank[..., None], 0).permute(0, 3, 1, 2)


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images classified right."""
    right = [
        (model(some).argmax(1) == truth).sum()
        for some, truth in zip(images.split(500), labels.split(500), strict=True)
    ]
    return float(sum(right)) / len(images)


if __name__ == "__main__":
    main()
