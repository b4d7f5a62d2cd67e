"""CIFAR-10 ResNet-20 calibrated by real images, by images made from its batch norms, and by noise.

    python benchmarks/no_data.py ../shared/data [--images 256] [--iterations 200] [--learned 300]
        [--bits W4A32 W4A4 W2A4] [--only minmax] [--sheet made.png] [--threads 1]

All 10,000 test images test, norm statistics of the checkpoint, policy qdrop. Cells: top-1 / share of images
with the class of the float network, seconds.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from cifar_reconstruction import AFFINE, ECAQ, WIDTHS, measure
from cifar_resnet20 import Work

import bitsplit

SIZE = (3, 32, 32)
CHAINS = ["minmax", "closed form", "learned"]


def chains(iterations: int, quantized_inputs: bool) -> dict[str, list[Any]]:
    """By name; blocks are learned with so many iterations.  The closed form is that of effort `fast`."""
    learned = bitsplit.QDrop(iterations=iterations, rate=1e-2, step_rate=4e-4)
    closed = ECAQ if quantized_inputs else AFFINE
    return {"minmax": ["minmax"], "closed form": [closed], "learned": [closed, learned]}


def main() -> None:
    """Measure and print, row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with cifar10/ and models/")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--learned", type=int, default=300)
    parser.add_argument("--bits", nargs="+", choices=WIDTHS, default=["W4A32", "W4A4", "W2A4"])
    parser.add_argument("--only", nargs="+", choices=CHAINS, default=CHAINS)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    work = Work.load(arguments.data, arguments.device)
    started = time.perf_counter()
    options = bitsplit.Distilled(images=arguments.images, size=SIZE, iterations=arguments.iterations)
    made = options.make(work.network, 0)
    print(f"{len(made)} images made in {time.perf_counter() - started:.0f} s\n")
    if arguments.sheet is not None:
        bitsplit.contact_sheet(made, arguments.sheet)
    noise = torch.randn(made.shape, generator=torch.Generator().manual_seed(0))
    sources = {
        "real images": work.calibration(0, False)[: arguments.images],
        "distilled": made,
        "noise": noise,
    }
    print("| chain | bits | " + " | ".join(sources) + " |\n|---|---|" + "---|" * len(sources))
    for name in arguments.only:
        for bits in arguments.bits:
            cells = []
            for images in sources.values():
                chain = chains(arguments.learned, WIDTHS[bits][1] is not None)[name]
                cells.append(str(measure(work, chain, "qdrop", WIDTHS[bits], range(1), images=images)))
            print(f"| {name} | {bits} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
