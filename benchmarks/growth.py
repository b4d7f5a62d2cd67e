"""How time and memory grow with images, channels and kernel sizes.

    python benchmarks/growth.py [--threads 1]

A plain network of four convolutions on images of 32 px that are made as they are asked for; features may take
64 MiB of memory, the rest goes to disk. Every row is a process of its own: peak memory is what the process
had at most, less what it had before quantization began.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import bitsplit

IMAGES, CHANNELS, KERNEL = 256, 64, 3  # of the rows that vary something else
VARIED = {
    "images": [64, 128, 256, 512, 1024],
    "channels": [32, 64, 128, 256],
    "kernel": [1, 3, 5, 7],
}


class RandomImages(Dataset):
    """Images by number, none of them kept."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tensor:
        return torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(index))


def network(channels: int, kernel: int) -> nn.Module:
    """Four convolutions with norms, and a classifier."""
    layers: list[nn.Module] = []
    for inputs in (3, channels, channels, channels):
        convolution = nn.Conv2d(inputs, channels, kernel, padding=kernel // 2, bias=False)
        layers += [nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)).eval()


def peak() -> float:
    """MiB that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_here(images: int, channels: int, kernel: int, threads: int) -> dict[str, float]:
    """Seconds and MiB of one quantization in this process."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    model, data = network(channels, kernel), DataLoader(RandomImages(images), batch_size=32)
    bitsplit.quantize(network(8, 1), torch.randn(2, 3, 32, 32), weights=4)  # everything loaded
    before, started = peak(), time.perf_counter()
    bitsplit.quantize(model, data, weights=4, memory=64 << 20)
    return {"seconds": time.perf_counter() - started, "memory": peak() - before}


def measure(**case: int) -> dict[str, float]:
    """The same in a fresh process."""
    command = [sys.executable, str(Path(__file__)), "--case", json.dumps(case)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Read the arguments, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case is not None:
        print(json.dumps(measure_here(**arguments.case)))
        return
    print("| images | channels | kernel | seconds | peak MiB |\n|---|---|---|---|---|")
    for varied, values in VARIED.items():
        for value in values:
            case = {"images": IMAGES, "channels": CHANNELS, "kernel": KERNEL} | {varied: value}
            found = measure(**case, threads=arguments.threads)
            cells = " | ".join(f"**{v}**" if k == varied else str(v) for k, v in case.items())
            print(f"| {cells} | {found['seconds']:.1f} | {found['memory']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
