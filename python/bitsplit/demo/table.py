"""The demo's results as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from bitsplit.demo.results import Result, methods_of


def print_table(results: Sequence[Result], console: Console) -> None:
    """One row for each choice of bits, one column for each method; the most accurate of a row in bold.

    Args:
        results: the float network first.
        console: where to print.
    """
    original, *quantized = results
    methods = methods_of(quantized)
    rows: dict[str, dict[str, Result]] = {}
    for result in quantized:
        rows.setdefault(str(result.widths), {})[result.method] = result

    table = Table(
        title=f"float: {original.accuracy:.2f} % of the test images right, {original.size / 1024:.0f} KiB",
        caption="% right / % same class as float, seconds to quantize; first and last layer at 8 bits",
        box=box.SIMPLE_HEAD,  # fits into 80 columns
        padding=0,
        collapse_padding=True,
    )
    table.add_column("bits")
    table.add_column("KiB", justify="right")
    for method in methods:
        table.add_column(method, justify="right")
    for bits, row in rows.items():
        best = max(result.accuracy for result in row.values())
        size = max(result.size for result in row.values())
        cells = [_cell(row[method], best) if method in row else "" for method in methods]
        table.add_row(bits, f"{size / 1024:.0f}", *cells)
    console.print(table)


def _cell(result: Result, best: float) -> str:
    text = f"{result.accuracy:.2f}/{result.same_class:.0f} {result.seconds:2.0f}s"
    return f"[bold]{text}[/bold]" if result.accuracy == best else text
