"""Mixed widths beside one width everywhere at the same size, on real networks.

    python benchmarks/mixed_precision.py resnet20 ../shared/data [--average 2.5 3] [--activations 4]
        [--output FOLDER] [--images 1024] [--seeds 3] [--threads 1]
    python benchmarks/mixed_precision.py efficientnet ../shared/data/imagenet-sample [...]
    python benchmarks/mixed_precision.py solver

Integers in closed form (affine levels), policy qdrop. Sensitivities are measured once on the calibration
images; "same bits" is one width for all layers, or, where the budget is no whole number, the larger width
from the first layer on as far as the budget goes ("in order"). --output keeps sensitivities and curve.
"solver" times both solvers on made-up networks of 150 layers.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import efficientnet_lite
import numpy as np
import torch
from cifar_resnet20 import Work
from efficientnet_lite import AFFINE
from torch import Tensor, nn

import bitsplit
from bitsplit.data import ImageFolder, sample
from bitsplit.evaluation import agreement, evaluate, predict
from bitsplit.widths import Question, exact, genetic
from bitsplit.widths.curve import trade_off

Test = tuple[Tensor, Tensor]


def resnet20(data: Path, images: int, seed: int) -> tuple[nn.Module, Tensor, Test]:
    """The network, calibration images, test images with labels."""
    work = Work.load(data)
    return work.network, work.calibration(seed, False)[:images], (work.test, work.labels)


def efficientnet(data: Path, images: int, seed: int) -> tuple[nn.Module, Tensor, Test]:
    """Likewise; half of the photos at most calibrate."""
    photos = ImageFolder(data, efficientnet_lite.PREPROCESSING, labels="order")
    calibration = sample(photos, len(photos) // 2, seed)
    test = efficientnet_lite.tensors(calibration.rest())
    return efficientnet_lite.load_network(), efficientnet_lite.tensors(calibration)[0][:images], test


def in_order(found: bitsplit.Sensitivities, bits: float) -> dict[str, int]:
    """The larger of two neighbouring widths for the first layers, the smaller for the others."""
    low, high = math.floor(bits), math.ceil(bits)
    left = (bits - low) * sum(row.layer.count for row in found.layers)
    widths = {}
    for row in found.layers:
        widths[row.layer.name] = high if row.layer.count <= left else low
        left -= row.layer.count if widths[row.layer.name] == high else 0
    return widths


def compare(
    network: nn.Module, images: Tensor, test: Test, averages: list[float], activations: int | None,
    output: Path | None,
) -> None:  # fmt: skip
    """Print a row for every budget and choice."""
    classes = predict(network, test)
    started = time.perf_counter()
    options = {"activations": activations, "policy": "qdrop"}
    found = bitsplit.sensitivities(network, images, AFFINE, **options)
    print(
        f"{len(found.layers)} layers, {time.perf_counter() - started:.0f} s to measure, {len(images)} images"
    )
    print("\n| bits | widths | top-1 | same class | expected loss |\n|---|---|---|---|---|")

    def accuracy(layers: dict[str, dict[str, int]]) -> str:
        quantized = bitsplit.quantize(network, images, AFFINE, weights=8, layers=layers, **options)
        return f"{evaluate(quantized, test).top1:.2f} | {agreement(quantized, classes, test):.2f}"

    for bits in averages:
        chosen = {name: found.choose(bits=bits, solver=name) for name in ("exact", "genetic")}
        losses = ", ".join(f"{plan.solver} {plan.loss:.4f}" for plan in chosen.values())
        if bits == int(bits):
            losses += f", same bits {found.uniform(int(bits)).loss:.4f}"
        rows = {"same bits" if bits == int(bits) else "in order": in_order(found, bits)}
        rows["chosen"] = chosen["exact"].widths
        for name, widths in rows.items():
            layers = {layer: {"weights": width} for layer, width in widths.items()}
            print(f"| {bits} | {name} | {accuracy(layers)} | {losses} |", flush=True)
    if output is not None:
        found.to_json(output / "sensitivities.json")
        curve = trade_off(
            found, [2.25, 2.5, 2.75, 3, 3.5, 4, 5], network, images,
            measure=lambda net: evaluate(net, test).top1, measured="top-1, %",
        )  # fmt: skip
        curve.draw(output / "curve.png")
        curve.to_json(output / "curve.json")


def time_solvers(layers: int = 150) -> None:
    """On losses that fall by a factor of about four a bit, with pairs of either sign in units of three."""
    random = np.random.default_rng(0)
    print("| layers | pairs | exact, s | genetic, s | genetic loss / exact |\n|---|---|---|---|---|")
    for _ in range(5):
        widths = np.array([2, 3, 4, 6, 8])
        losses = (
            random.exponential(size=(layers, 1))
            * 4.0 ** -(widths - 2)
            * random.uniform(0.7, 1.3, (layers, 5))
        )
        counts = random.integers(1_000, 2_000_000, (layers, 1))
        pairs = {
            (i, j): 0.3 * random.normal() * losses[i, 0]
            for i in range(layers)
            for j in range(i + 1, min(layers, i // 3 * 3 + 3))
        }
        question = Question(losses, counts * widths, 3.0 * counts.sum(), pairs)
        times, answers = [], []
        solvers: list[Callable] = [exact, genetic]
        for solver in solvers:
            started = time.perf_counter()
            answers.append(solver(question))
            times.append(time.perf_counter() - started)
        ratio = answers[1].loss / answers[0].loss
        print(f"| {layers} | {len(pairs)} | {times[0]:.3f} | {times[1]:.3f} | {ratio:.2f} |", flush=True)


def main() -> None:
    """Reads the arguments and prints what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("resnet20", "efficientnet", "solver"))
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--average", type=float, nargs="+", default=[2.5, 3])
    parser.add_argument("--activations", type=int)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.what == "solver":
        time_solvers()
        return
    load = {"resnet20": resnet20, "efficientnet": efficientnet}[arguments.what]
    for seed in range(arguments.seeds):
        work = load(arguments.data, arguments.images, seed)
        compare(*work, arguments.average, arguments.activations, arguments.output if seed == 0 else None)


if __name__ == "__main__":
    main()
