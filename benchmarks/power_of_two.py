"""CIFAR-10 ResNet-20 with every scale a power of two, beside scales of any value, and run in integers.

    python benchmarks/power_of_two.py ../shared/data [--seeds 3] [--threads 1] [--bits W4A4]
        [--only bitsplit] [--iterations 2000] [--integers]

1,024 plain training images calibrate, all 10,000 test images test, norm statistics of the checkpoint, policy
qdrop (shortcuts are quantized; with powers of two the network's input too, to 8 bits).  Cells: top-1 / share
of images with the class of the float network, seconds.  --integers runs every power-of-two network in
integers on all test images and counts the images for which any score differs from the simulated one.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from cifar_reconstruction import AFFINE, ECAQ, FAST, measure
from cifar_resnet20 import Work
from torch import nn

import bitsplit

WIDTHS = {"W8A8": (8, 8), "W4A4": (4, 4), "W3A4": (3, 4), "W2A4": (2, 4), "W2A2": (2, 2)}
AT_ONCE = 250


def chains(iterations: int) -> dict[str, list[Any]]:
    """By name; learned pieces get so many iterations."""
    return {
        "mse": [bitsplit.Mse(levels="affine")],
        "qdrop": [bitsplit.QDrop(iterations=iterations)],
        "rapq": [bitsplit.Rapq(iterations=iterations)],
        "bitsplit": ["bitsplit"],
        "bitsplit affine": [AFFINE],
        "bitsplit affine, ecaq": [ECAQ],
        "bitsplit affine, ecaq, global": [ECAQ, bitsplit.Global()],
        "bitsplit affine, ecaq, learned": [
            ECAQ, bitsplit.QDrop(iterations=iterations, step_rate=4e-4, **FAST)
        ],
    }  # fmt: skip


def count_differences(simulated: nn.Module, work: Work) -> tuple[int, float]:
    """Test images with any score that differs in integers, and the seconds that integers took."""
    network, different, seconds = bitsplit.IntegerNetwork(simulated), 0, 0.0
    for images in work.test.split(AT_ONCE):
        started = time.perf_counter()
        scores = network(images)
        seconds += time.perf_counter() - started
        with torch.no_grad():
            different += int((scores != simulated(images)).any(1).sum())
    return different, seconds


def main() -> None:
    """Measure and print, row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with cifar10/ and models/")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--bits", nargs="+", choices=WIDTHS, default=["W4A4", "W3A4", "W2A4"])
    known = chains(2000)
    parser.add_argument("--only", nargs="+", choices=known, default=list(known))
    parser.add_argument("--integers", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    work = Work.load(arguments.data, arguments.device)
    for width in arguments.bits:
        bits = WIDTHS[width]
        for name in arguments.only:
            chain = chains(arguments.iterations)[name]
            if arguments.integers:
                simulated = bitsplit.quantize(
                    work.network, work.calibration(0, False), chain, weights=bits[0], activations=bits[1],
                    policy="qdrop", power_of_two=True,
                )  # fmt: skip
                different, seconds = count_differences(simulated, work)
                print(f"| {width} | {name} | {different} images differ | {seconds:.0f} s |", flush=True)
                continue
            seeds = range(arguments.seeds)
            powers = measure(work, chain, "qdrop", bits, seeds, power_of_two=True)
            free = "" if name == "rapq" else measure(work, chain, "qdrop", bits, seeds)
            print(f"| {width} | {name} | {powers} | {free} |", flush=True)


if __name__ == "__main__":
    main()
