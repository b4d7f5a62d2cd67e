"""What a quantization run leaves behind: the facts that tables show and files keep."""

from __future__ import annotations

from typing import Annotated, Any

import numpy
import torch
from pydantic import Field
from torch import nn

from bitsplit._version import __version__
from bitsplit.document import Document
from bitsplit.plan import Plan
from bitsplit.recipe import Bits


class LayerResult(Document):
    """One fitted layer.

    Attributes:
        name, kind, unit, weights, activations: as in the plan.
        error: squared error of the layer's response relative to the float layer's, over the calibration data;
            None when the layer saw no data.
        seconds: time spent on the layer.
    """

    name: str
    kind: str
    unit: str
    weights: Bits | None
    activations: Bits | None
    error: Annotated[float, Field(ge=0)] | None = None
    seconds: float = Field(ge=0)


class PieceResult(Document):
    """One piece of the network that a method has learned.

    Attributes:
        name: of the layer or block.
        method: its name.
        before, after: the loss of the piece relative to the energy of its float output.
        undecided: the share of its weights that rounding had not decided when learning ended.
        remark: what was unusual, or an empty text.
        figures: what else has been measured, by name.
        seconds: time spent on it.
    """

    name: str
    method: str
    before: float
    after: float
    undecided: float
    remark: str
    figures: dict[str, float] = Field(default_factory=dict)
    seconds: float = Field(ge=0)


def versions() -> dict[str, str]:
    """Versions of what results may depend on."""
    return {"bitsplit": __version__, "torch": str(torch.__version__), "numpy": numpy.__version__}


class QuantizationReport(Document):
    """A whole run; ``report_of`` a quantized model gives it.

    Attributes:
        plan: what was done, with the recipe.
        layers: the fitted layers in execution order.
        pieces: what has been learned, in execution order.
        seconds: of the whole walk over the network.
        features: bytes of feature maps kept at the worst moment: forecast, and used.
        data: what identifies the calibration data (number of images, hash, list of files, ...).
        versions: of bitsplit, torch and NumPy at the time.
    """

    plan: Plan
    layers: tuple[LayerResult, ...]
    pieces: tuple[PieceResult, ...] = ()
    seconds: float = Field(ge=0)
    features: dict[str, int] = Field(default_factory=dict)
    data: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=versions)

    def layer(self, name: str) -> LayerResult | None:
        """The result of one layer; None for a layer that stayed float."""
        return next((layer for layer in self.layers if layer.name == name), None)


def report_of(model: nn.Module) -> QuantizationReport | None:
    """What the run that quantized ``model`` has left; None when there was none."""
    report = getattr(model, "_bitsplit", None)
    return report if isinstance(report, QuantizationReport) else None


def attach_report(model: nn.Module, report: QuantizationReport) -> None:
    """From now on ``report_of`` the model is this."""
    model._bitsplit = report
