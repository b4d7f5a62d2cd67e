"""``bitsplit demo``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bitsplit.demo import run

CHART = Path("bitsplit-demo.png")


def demo(
    chart: Annotated[
        Path | None,
        typer.Option("--chart", metavar="FILE", help="Where the chart goes, a PNG.", show_default=str(CHART)),
    ] = None,
    no_chart: Annotated[bool, typer.Option("--no-chart", help="Draw none.")] = False,
) -> None:
    """Quantize a small CIFAR-10 network by several methods and widths; print accuracies, draw a chart."""
    run(None if no_chart else chart or _default_chart())


def _default_chart() -> Path | None:
    """The chart nobody asked for is drawn only where that is possible."""
    if importlib.util.find_spec("matplotlib") is not None:
        return CHART
    Console(stderr=True).print("note: no chart without matplotlib (pip install 'bitsplit-ptq[plot]')")
    return None
