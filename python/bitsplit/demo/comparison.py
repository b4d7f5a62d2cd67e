"""Quantize the demo's network by several methods and widths, and measure what is left of its accuracy."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import track
from torch import Tensor

from bitsplit.api import quantize
from bitsplit.demo.assets import load_calibration_images, load_test_images, trained_network
from bitsplit.demo.chart import draw_chart
from bitsplit.demo.results import METHODS, Result, Widths, chain_of
from bitsplit.demo.table import print_table
from bitsplit.evaluation import evaluate, predict
from bitsplit.models.cifar import CifarResNet
from bitsplit.report import summary
from bitsplit.report.figure import require_matplotlib

CALIBRATED, TESTED = 256, 1_000  # of the embedded images, so that all of it takes less than two minutes
WEIGHTS_ONLY = tuple(Widths(bits) for bits in (8, 4, 3, 2))
BATCH = 250  # test images at once: twice as fast as 64 of them
WITH_ACTIVATIONS = (Widths(8, 8), Widths(4, 8), Widths(4, 4), Widths(3, 3))


def run(
    chart: str | os.PathLike[str] | None = None,
    widths: Sequence[Widths] = (*WEIGHTS_ONLY, *WITH_ACTIVATIONS),
    console: Console | None = None,
) -> list[Result]:
    """Runs the demo: prints a table, returns what is in it.

    Args:
        chart: where to draw the results as PNG (needs matplotlib); None draws none.
        widths: which bits to try.
        console: where to print.
    """
    if chart is not None:
        require_matplotlib()
    console = console or Console()
    model = trained_network()
    images, _ = load_calibration_images().tensors(range(CALIBRATED))
    test = load_test_images().tensors(range(TESTED))
    results = [_float_result(model, test)]
    classes = predict(model, test, batch_size=BATCH)
    cases = [(bits, name) for bits in widths for name in METHODS if chain_of(name, bits) is not None]
    for bits, name in track(cases, "demo", console=console, disable=not console.is_terminal, transient=True):
        results.append(_measure(model, images, test, classes, name, bits))
    print_table(results, console)
    if chart is not None:
        draw_chart(results, chart)
        console.print(f"chart: {os.fspath(chart)}")
    return results


def _float_result(model: CifarResNet, test: tuple[Tensor, Tensor]) -> Result:
    return Result(
        "float", None, evaluate(model, test, batch_size=BATCH).top1, 100.0, summary(model).float_bytes, 0.0
    )


def _measure(
    model: CifarResNet,
    images: Tensor,
    test: tuple[Tensor, Tensor],
    classes: Tensor,
    method: str,
    widths: Widths,
) -> Result:
    started = time.perf_counter()
    chain = chain_of(method, widths)
    quantized = quantize(model, images, chain, weights=widths.weights, activations=widths.activations)
    seconds = time.perf_counter() - started
    found = predict(quantized, test, batch_size=BATCH)
    return Result(
        method,
        widths,
        accuracy=100 * float((found == test[1]).double().mean()),
        same_class=100 * float((found == classes).double().mean()),
        size=summary(quantized).quantized_bytes,
        seconds=seconds,
    )
