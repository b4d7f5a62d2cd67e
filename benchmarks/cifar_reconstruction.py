"""CIFAR-10 ResNet-20 by the methods that learn, alone and in chains, against their authors' released codes.

    python benchmarks/cifar_reconstruction.py ../shared/data [--seeds 3] [--threads 1] [--bits W2A32 W4A4]
        [--only brecq qdrop] [--iterations 2000] [--policy brecq]

*closed form* is what effort `fast` takes: affine levels, and a scale for every channel of quantized inputs.

1,024 plain training images calibrate, all 10,000 test images test, norm statistics of the checkpoint, first
and last layers by the papers' rules (their shortcuts are quantized); --policy sets one for all rows. Cells:
top-1 / share of images with the class of the float network, seconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cifar_resnet20 import Score, Work
from torch import Tensor

import bitsplit
from bitsplit.evaluation import predict

WIDTHS = {
    "W4A32": (4, None),
    "W3A32": (3, None),
    "W2A32": (2, None),
    "W4A4": (4, 4),
    "W2A4": (2, 4),
    "W2A2": (2, 2),
}
RELEASED = {  # with 2,000 iterations a unit, one run each
    "brecq": {
        "W4A32": "80.81 / 96.5",
        "W3A32": "80.18 / 93.0",
        "W2A32": "77.72 / 86.0",
        "W4A4": "79.06 / 91.8",
        "W2A4": "75.60 / 83.6",
    },
    "qdrop": {"W4A4": "80.29 / 91.4", "W2A4": "77.78 / 84.6", "W2A2": "66.28 / 70.5"},
}
FAST = {"rate": 1e-2, "scale_rate": 1e-3, "bias_rate": 1e-3}
AFFINE = bitsplit.BitSplit(levels="affine")
ECAQ = bitsplit.BitSplit(levels="affine", ecaq=True)
ONE_SCALE = bitsplit.BitSplit(levels="affine", per_tensor=True)
RANGES = bitsplit.Mse(levels="affine", per_tensor=True)
TO_LEARN = bitsplit.Brecq().start.model_copy(update={"per_tensor": True})


def methods(iterations: int) -> dict[str, tuple[Callable[[bool], list[Any]], str]]:
    """By name: the chain, given whether activations are quantized, and the policy."""

    def closed(quantized_inputs: bool) -> Any:
        return ECAQ if quantized_inputs else AFFINE

    def learned(quantized_inputs: bool) -> Any:
        if quantized_inputs:
            return bitsplit.QDrop(iterations=iterations, step_rate=4e-4, **FAST)
        return bitsplit.Brecq(iterations=iterations, **FAST)

    return {
        "adaround": (lambda _: [bitsplit.AdaRound(iterations=iterations)], "paper"),
        "brecq": (lambda _: [bitsplit.Brecq(iterations=iterations, step_iterations=iterations)], "paper"),
        "qdrop": (lambda _: [bitsplit.QDrop(iterations=iterations)], "paper"),
        "flexround": (lambda _: [bitsplit.FlexRound(iterations=iterations)], "paper"),
        "mse, one scale a layer": (lambda _: [RANGES], "qdrop"),
        "brecq, one scale a layer": (
            lambda _: [bitsplit.Brecq(iterations=iterations, start=TO_LEARN)],
            "qdrop",
        ),
        "bitsplit affine, one scale a layer": (lambda _: [ONE_SCALE], "qdrop"),
        "bitsplit affine": (lambda _: [AFFINE], "qdrop"),
        "closed form": (lambda inputs: [closed(inputs)], "qdrop"),
        "closed form, global": (lambda inputs: [closed(inputs), bitsplit.Global()], "qdrop"),
        "closed form, learned": (lambda inputs: [closed(inputs), learned(inputs)], "qdrop"),
        "closed form, learned, global": (
            lambda inputs: [closed(inputs), learned(inputs), bitsplit.Global()],
            "qdrop",
        ),
    }


def measure(
    work: Work,
    chain: list[Any],
    policy: str,
    bits: tuple[int, int | None],
    seeds: range,
    power_of_two: bool = False,
    images: Tensor | None = None,
) -> Score:
    """One cell of the table; ``images`` calibrate in place of those of the work."""
    reference, score = predict(work.network, work.test), Score([], [], [])
    for seed in seeds:
        calibration = work.calibration(seed, False) if images is None else images
        started = time.perf_counter()
        quantized = bitsplit.quantize(
            work.network, calibration, chain, weights=bits[0], activations=bits[1], policy=policy, seed=seed,
            power_of_two=power_of_two,
        )  # fmt: skip
        score.seconds.append(time.perf_counter() - started)
        classes = predict(quantized, work.test)
        score.top1.append(work.top1(classes))
        score.same.append(100 * float((classes == reference).double().mean()))
    return score


def main() -> None:
    """Measure and print, row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with cifar10/ and models/")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--bits", nargs="+", choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--policy", choices=("paper", "brecq", "qdrop"))
    known = methods(1)
    parser.add_argument("--only", nargs="+", choices=known, default=list(known))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    work = Work.load(arguments.data, arguments.device)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    print(f"torch {torch.__version__}, {arguments.threads} thread(s), {arguments.iterations} iterations")
    for name in arguments.only:
        make, policy = methods(arguments.iterations)[name]
        for width in arguments.bits:
            if name == "qdrop" and WIDTHS[width][1] is None:
                continue  # without activations to drop it is brecq
            chain = make(WIDTHS[width][1] is not None)
            score = measure(work, chain, arguments.policy or policy, WIDTHS[width], seeds)
            released = RELEASED.get(name, {}).get(width, "–")
            print(
                f"| {name} | {width} | {score} | {released} | {statistics.mean(score.top1):.2f}", flush=True
            )


if __name__ == "__main__":
    main()
