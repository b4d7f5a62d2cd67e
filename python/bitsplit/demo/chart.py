"""The demo's results as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from bitsplit.demo.results import Result, methods_of

# Okabe and Ito's palette, distinguishable by colour-blind readers, and a marker each.
_STYLES = {
    "minmax": ("#E69F00", "s"),
    "mse": ("#56B4E9", "^"),
    "kl": ("#009E73", "D"),
    "bitsplit": ("#D55E00", "o"),
    "learned": ("#0072B2", "v"),
}


def draw_chart(results: Sequence[Result], path: str | os.PathLike[str]) -> None:
    """Writes a PNG with accuracy over bits, for weights alone and for weights with activations.

    Args:
        results: the float network first.
        path: the file.
    """
    from matplotlib.figure import Figure

    original, *quantized = results
    panels = {
        "weights only": [result for result in quantized if result.widths.activations is None],
        "weights and activations": [result for result in quantized if result.widths.activations is not None],
    }
    shown = {title: group for title, group in panels.items() if group}
    figure = Figure(figsize=(5.5 * len(shown), 4), layout="constrained")
    for axes, (title, group) in zip(
        figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True
    ):
        _draw(axes, group, original.accuracy)
        axes.set_title(title)
    figure.savefig(path, format="png", dpi=150)


def _draw(axes: Any, group: Sequence[Result], original: float) -> None:
    places = list(dict.fromkeys(str(result.widths) for result in group))
    axes.axhline(original, color="0.4", linestyle="--", label="float")
    for method in methods_of(group):
        points = [(places.index(str(r.widths)), r.accuracy) for r in group if r.method == method]
        colour, marker = _STYLES[method]
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, label=method)
    axes.set_xticks(range(len(places)), places)
    axes.set_ylabel("test images right, %")
    axes.grid(alpha=0.3)
    axes.legend()
