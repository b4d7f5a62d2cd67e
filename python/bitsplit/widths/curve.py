"""What a network is worth at every size: widths chosen for a row of budgets, beside one width everywhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import nn

from bitsplit.api import quantize
from bitsplit.document import Document
from bitsplit.report.figure import require_matplotlib
from bitsplit.widths.sensitivities import MixedPlan, Sensitivities

Kind = Literal["mixed", "uniform"]
COLOURS: dict[Kind, str] = {"mixed": "#0072B2", "uniform": "#E69F00"}
MARKERS: dict[Kind, str] = {"mixed": "o", "uniform": "s"}


class CurvePoint(Document):
    """One network.

    Attributes:
        kind: widths chosen by layer, or one for all that have a choice.
        bits: mean bits of the weights that have a choice.
        bytes: size of the model.
        loss: what the sensitivities expect.
        accuracy: what was measured of the quantized network; None where nothing was.
        widths: by layer.
    """

    kind: Kind
    bits: float
    bytes: int
    loss: float
    accuracy: float | None = None
    widths: dict[str, int]


class Curve(Document):
    """Points by size; what their accuracy is, in words."""

    points: tuple[CurvePoint, ...]
    measured: str

    def draw(self, path: str | os.PathLike[str]) -> None:
        """A PNG: accuracy, or where none was measured the expected loss, over size."""
        require_matplotlib()
        from matplotlib.figure import Figure

        has_accuracy = all(point.accuracy is not None for point in self.points)
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        for kind in COLOURS:
            points = [
                (point.bytes / 1024, point.accuracy if has_accuracy else point.loss)
                for point in self.points
                if point.kind == kind
            ]
            axes.plot(*zip(*points, strict=True), color=COLOURS[kind], marker=MARKERS[kind], label=kind)
        axes.set_xlabel("size of the model, KiB")
        axes.set_ylabel(self.measured if has_accuracy else "expected loss (divergence from float)")
        if not has_accuracy:
            least = min((point.loss for point in self.points if point.loss > 0), default=1.0)
            axes.set_yscale("symlog", linthresh=least)  # of the widest there is none
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(path, format="png", dpi=150)


def trade_off(
    found: Sensitivities,
    bits: Sequence[float],
    model: nn.Module | None = None,
    data: Any = None,
    *,
    measure: Callable[[nn.Module], float] | None = None,
    measured: str = "accuracy",
    **options: Any,
) -> Curve:
    """The curve over budgets of so many bits a weight, and over all uniform widths that were tried.

    measure: of a quantized network, such as ``lambda net: bitsplit.evaluate(net, test).top1``; then ``model``
    is quantized with ``data`` at every point, with the options of ``quantize``.  measured: what it is.
    """
    plans: list[tuple[Kind, MixedPlan]] = [("mixed", found.choose(bits=budget)) for budget in sorted(bits)]
    plans += [("uniform", found.uniform(width)) for width in found.widths]

    def point(kind: Kind, plan: MixedPlan) -> CurvePoint:
        accuracy = None
        if measure is not None:
            accuracy = measure(quantize(model, data, plan.recipe, **options))
        facts = {"bits": plan.cost, "bytes": found.bytes_of(plan), "loss": plan.loss, "widths": plan.widths}
        return CurvePoint(kind=kind, accuracy=accuracy, **facts)

    return Curve(points=tuple(point(*each) for each in plans), measured=measured)
