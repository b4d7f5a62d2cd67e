"""CIFAR-10 ResNet-20 at 2 to 4 bits: every method, with the checkpoint's norm statistics and with new ones.

    python benchmarks/cifar_resnet20.py ../shared/data [--seeds 3] [--threads 1] [--norms checkpoint]
        [--bits W4A32 W3A3] [--only bitsplit minmax] [--output docs/benchmarks/cifar_resnet20.md]

1,024 training images calibrate, all 10,000 test images test. First convolution and last layer have 8 bits.

Two columns: norm statistics of the checkpoint, and statistics estimated again on training batches of 64. The
checkpoint was trained on shifted and mirrored images (4 pixels of black around them), and its norms expect
them: re-estimation on plain images lowers the float accuracy by two points, on shifted and mirrored ones it
raises it by two. So that column calibrates on shifted and mirrored images, the first one on plain ones.
But the paper's method fits its patches on shifted and mirrored images in both, as its released code does.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bitsplit
from bitsplit.data import JpegArchive, Preprocessing
from bitsplit.evaluation import predict
from bitsplit.methods.base import Method
from bitsplit.models.load import load_model

PREPROCESSING = Preprocessing(None, None, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CALIBRATION_IMAGES = 1024
NORMS = ("checkpoint", "reestimated")
WIDTHS = {
    "W4A32": (4, None),
    "W3A32": (3, None),
    "W2A32": (2, None),
    "W4A8": (4, 8),
    "W4A4": (4, 4),
    "W3A3": (3, 3),
}
RELEASED = {  # top-1 of the released Bit-Split on this work: checkpoint norms, re-estimated norms
    "W4A32": (80.85, 82.72),
    "W3A32": (77.42, 81.74),
    "W2A32": (67.35, 79.17),
    "W4A8": (None, 82.87),
    "W4A4": (None, 81.71),
    "W3A3": (None, 78.44),
}
METHODS: dict[str, Callable[[], Method]] = {
    "minmax": bitsplit.MinMax,
    "kl": lambda: bitsplit.MinMax(activations="kl"),
    "mse": bitsplit.Mse,
    "bitsplit paper": lambda: bitsplit.BitSplit(paper=True),
    "bitsplit": bitsplit.BitSplit,
    "bitsplit affine": lambda: bitsplit.BitSplit(levels="affine"),
}
PAPER_WITHOUT_NORMS = {"paper": False, "reestimate_norms": False}
AUGMENTED = {"bitsplit paper"}  # calibrated on shifted and mirrored images in both columns


@dataclass(frozen=True)
class Work:
    """Network, images, and what the float network says."""

    network: nn.Module
    train: Tensor
    test: Tensor
    labels: Tensor

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Work:
        checkpoint = folder / "models" / "cifar10_resnet20.th"
        train, _ = _tensors(folder / "cifar10" / "train.npz")
        network = load_model("bitsplit.models.cifar:resnet20", checkpoint)
        return cls(network.to(device), train, *_tensors(folder / "cifar10" / "test.npz"))

    def top1(self, classes: Tensor) -> float:
        return 100 * float((classes == self.labels).double().mean())

    def calibration(self, seed: int, shifted: bool) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        chosen = self.train[torch.randperm(len(self.train), generator=generator)[:CALIBRATION_IMAGES]]
        return shift_and_mirror(chosen, generator) if shifted else chosen


def _tensors(path: Path) -> tuple[Tensor, Tensor]:
    archive = JpegArchive(path, PREPROCESSING)
    return torch.stack([archive[index][0] for index in range(len(archive))]), torch.tensor(archive.labels)


def shift_and_mirror(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image cut at random from itself with 4 black pixels around, every second one mirrored."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PREPROCESSING.mean, PREPROCESSING.std))
    padded = F.pad(images * std + mean, (4, 4, 4, 4))
    result = torch.empty_like(images)
    for index, image in enumerate(padded):
        top, left = torch.randint(9, (2,), generator=generator).tolist()
        cut = image[:, top : top + 32, left : left + 32]
        result[index] = cut.flip(2) if torch.rand(1, generator=generator) < 0.5 else cut
    return (result - mean) / std


@dataclass(frozen=True)
class Score:
    """Means and spreads over seeds."""

    top1: list[float]
    same: list[float]
    seconds: list[float]

    def __str__(self) -> str:
        spread = f" ± {statistics.stdev(self.top1):.2f}" if len(self.top1) > 1 else ""
        return (
            f"{statistics.mean(self.top1):.2f}{spread} / {statistics.mean(self.same):.1f}, "
            f"{statistics.mean(self.seconds):.0f} s"
        )


def chain_of(name: str, new_norms: bool) -> list[Method]:
    """A method and, if asked for, new norm statistics, which the paper's method estimates itself."""
    method = METHODS[name]()
    if name == "bitsplit paper":
        return [method if new_norms else method.model_copy(update=PAPER_WITHOUT_NORMS)]
    return [method, bitsplit.ReestimateNorms()] if new_norms else [method]


def measure(work: Work, name: str, bits: tuple[int, int | None], new_norms: bool, seeds: int) -> Score:
    """One cell of the table."""
    chain = chain_of(name, new_norms)
    reference = predict(reestimated(work, 0) if new_norms else work.network, work.test)
    score = Score([], [], [])
    for seed in range(seeds):
        images = work.calibration(seed, new_norms or name in AUGMENTED)
        started = time.perf_counter()
        quantized = bitsplit.quantize(
            work.network, images, chain, weights=bits[0], activations=bits[1], seed=seed
        )
        score.seconds.append(time.perf_counter() - started)
        classes = predict(quantized, work.test)
        score.top1.append(work.top1(classes))
        score.same.append(100 * float((classes == reference).double().mean()))
    return score


def reestimated(work: Work, seed: int) -> nn.Module:
    """The float network with new norm statistics (its last layer in 8 bits, or there were nothing to fit)."""
    chain = [bitsplit.MinMax(), bitsplit.ReestimateNorms()]
    layers = {"*": {"weights": None}, "linear": {"weights": 8}}
    return bitsplit.quantize(work.network, work.calibration(seed, True), chain, weights=8, layers=layers)


def report(
    work: Work, chosen: list[str], names: list[str], norms: list[str], seeds: int, threads: int
) -> str:
    """The table as Markdown; rows are printed as they come."""
    original, estimated = (
        work.top1(predict(network, work.test)) for network in (work.network, reestimated(work, 0))
    )
    lines = [
        "# CIFAR-10 ResNet-20",
        "",
        f"{time.strftime('%Y-%m-%d')}, {platform.processor() or platform.machine()}, {threads} thread(s), "
        f"torch {torch.__version__}, {seeds} seed(s). `python benchmarks/cifar_resnet20.py`",
        "",
        f"Float top-1: {original:.2f} % (checkpoint norms), {estimated:.2f} % (norms re-estimated). "
        "Cells: top-1 / share of images with the same class as the float network treated the same way, time.",
        "",
        "| bits | method | checkpoint norms | norms re-estimated | released, as given |",
        "|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for width in chosen:
        bits = WIDTHS[width]
        for name in names:
            if name == "kl" and bits[1] is None:
                continue  # its weights are those of minmax
            cells = [
                str(measure(work, name, bits, column == "reestimated", seeds)) if column in norms else "–"
                for column in NORMS
            ]
            released = " / ".join("–" if value is None else str(value) for value in RELEASED[width])
            lines.append(f"| {width} | {name} | {cells[0]} | {cells[1]} | {released} |")
            print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the arguments, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with cifar10/ and models/")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bits", nargs="+", choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--norms", nargs="+", choices=NORMS, default=list(NORMS))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    work = Work.load(arguments.data)
    text = report(work, arguments.bits, arguments.only, arguments.norms, arguments.seeds, arguments.threads)
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
