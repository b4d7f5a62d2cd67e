"""A table of what methods have learned, piece by piece."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from bitsplit.report.results import QuantizationReport


def piece_table(report: QuantizationReport) -> Table | None:
    """One row for every piece; None when nothing was learned."""
    if not report.pieces:
        return None
    table = Table(title="learned", title_justify="left")
    table.add_column("piece", overflow="fold")
    table.add_column("method")
    for heading in ("error before", "after", "undecided", "seconds"):
        table.add_column(heading, justify="right")
    table.add_column("remark", overflow="fold")
    for piece in report.pieces:
        table.add_row(
            escape(piece.name),
            piece.method,
            f"{piece.before:.2%}",
            f"{piece.after:.2%}",
            f"{piece.undecided:.1%}",
            f"{piece.seconds:.1f}",
            escape(piece.remark),
        )
    return table
