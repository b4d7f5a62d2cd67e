"""Accuracy of CIFAR-10 ResNet-20 against the iterations of block reconstruction, from two starts.

    python benchmarks/iterations.py ../shared/data [--bits W2A32 W3A32 W4A32] [--seed 0] [--threads 1]
        [--figures iterations.json] [--chart iterations.png] [--longest 20000]

*nearest*: BRECQ as its paper has it, weights rounded to nearest, rate 1e-3.  *bitsplit*: integers and scales
in closed form, then BRECQ at rate 1e-2 that learns scales and biases too.  Every finished cell is added to
the file of figures, and cells that are in it are not computed again; the chart is drawn from it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from cifar_reconstruction import AFFINE, FAST, WIDTHS, measure
from cifar_resnet20 import Work

import bitsplit

STARTS = {
    "nearest": lambda iterations: [bitsplit.Brecq(iterations=iterations)],
    "bitsplit": lambda iterations: [AFFINE, bitsplit.Brecq(iterations=iterations, **FAST)],
}
ITERATIONS = {"nearest": [0, 500, 2000, 20000], "bitsplit": [0, 250, 500, 1000, 2000]}


def draw(cells: dict[str, dict[str, float]], path: Path) -> None:
    """One panel per width, a line per start."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    widths = sorted({key.split()[0] for key in cells})
    figure, panels = pyplot.subplots(1, len(widths), figsize=(4.5 * len(widths), 3.6), squeeze=False)
    for panel, width in zip(panels[0], widths, strict=True):
        for start in STARTS:
            points = sorted(
                (int(key.split()[2]), cell["same"])
                for key, cell in cells.items()
                if key.split()[:2] == [width, start]
            )
            panel.plot(*zip(*points, strict=True), marker="o", label=f"from {start}")
        panel.set_xscale("symlog", linthresh=100)
        panel.set(title=width, xlabel="iterations a block", ylabel="% same class as float")
        panel.grid(alpha=0.3)
        panel.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure what is missing, print all, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with cifar10/ and models/")
    parser.add_argument("--bits", nargs="+", choices=WIDTHS, default=["W2A32", "W3A32", "W4A32"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--longest", type=int, default=20_000)
    parser.add_argument("--figures", type=Path, default=Path("iterations.json"))
    parser.add_argument("--chart", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    work = Work.load(arguments.data, arguments.device)
    cells = json.loads(arguments.figures.read_text()) if arguments.figures.exists() else {}
    print("| width | start | iterations | top-1 / same class, seconds |\n|---|---|---|---|")
    for width in arguments.bits:
        for start, chain in STARTS.items():
            for iterations in filter(lambda count: count <= arguments.longest, ITERATIONS[start]):
                key = f"{width} {start} {iterations}"
                if key not in cells:
                    seeds = range(arguments.seed, arguments.seed + 1)
                    score = measure(work, chain(iterations), "brecq", WIDTHS[width], seeds)
                    cells[key] = {"top1": score.top1[0], "same": score.same[0], "seconds": score.seconds[0]}
                    arguments.figures.write_text(json.dumps(cells, indent=1))
                cell = cells[key]
                print(
                    f"| {width} | {start} | {iterations} "
                    f"| {cell['top1']:.2f} / {cell['same']:.1f}, {cell['seconds']:.0f} s |",
                    flush=True,
                )
    if arguments.chart is not None:
        draw(cells, arguments.chart)


if __name__ == "__main__":
    main()
