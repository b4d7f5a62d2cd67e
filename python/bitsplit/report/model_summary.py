"""A table of a model: bits, errors, time and size of every layer."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from bitsplit.network import kind_of
from bitsplit.plan import stored_bytes
from bitsplit.quantizers import ActivationQuantizer, WeightQuantizer
from bitsplit.report.piece_table import piece_table
from bitsplit.report.results import QuantizationReport, report_of


@dataclass(frozen=True)
class SummaryRow:
    """One layer with weights.

    bits, input_bits: None where float.  levels: of the weights, "symmetric" or "affine" (with a zero point).
    input_levels: "unsigned", "signed", or "affine".
    error: squared error of the response relative to the float layer's, None where unknown; so is seconds.
    float_bytes, quantized_bytes: size of the weights before, and of codes, scales and zero points now.
    """

    name: str
    kind: str
    bits: int | None
    levels: str | None
    input_bits: int | None
    input_levels: str | None
    error: float | None
    seconds: float | None
    float_bytes: int
    quantized_bytes: int


@dataclass(frozen=True)
class Summary:
    """What ``summary`` found; prints as a table.

    report: of the run that made the model; None for a float model.
    other_bytes: size of all parameters and buffers that are no layer's weight.
    """

    model_class: str
    rows: tuple[SummaryRow, ...]
    report: QuantizationReport | None
    other_bytes: int

    @property
    def is_quantized(self) -> bool:
        """Whether any layer has integer weights or a quantized input."""
        return any(row.bits is not None or row.input_bits is not None for row in self.rows)

    @property
    def float_bytes(self) -> int:
        """Size of the model with float weights."""
        return self.other_bytes + sum(row.float_bytes for row in self.rows)

    @property
    def quantized_bytes(self) -> int:
        """Size of the model as it is."""
        return self.other_bytes + sum(row.quantized_bytes for row in self.rows)

    def table(self) -> Table:
        """One row per layer, for ``rich.print``."""
        title = f"{self.model_class}, {self._what()}"
        table = Table(title=title, caption=self._caption(), caption_justify="left")
        table.add_column("layer", overflow="fold")
        table.add_column("kind")
        for heading in ("weights", "input"):
            table.add_column(heading)
        for heading in ("error", "seconds", "KiB"):
            table.add_column(heading, justify="right")
        for row in self.rows:
            table.add_row(
                escape(row.name or "(model)"),
                row.kind,
                _weight_cell(row),
                "float" if row.input_bits is None else f"A{row.input_bits} {row.input_levels}",
                "-" if row.error is None else f"{row.error:.2%}",
                "-" if row.seconds is None else f"{row.seconds:.2f}",
                f"{row.quantized_bytes / 1024:.1f}",
            )
        return table

    def tables(self) -> list[Table]:
        """The table of the layers and, of a model in which something was learned, that of the pieces."""
        learned = None if self.report is None else piece_table(self.report)
        return [self.table()] if learned is None else [self.table(), learned]

    def _what(self) -> str:
        if not self.is_quantized:
            return "a float model: no layer is quantized"
        if self.report is None:
            return "quantized"
        methods = " + ".join(method.name for method in self.report.plan.recipe.method)
        return f"quantized by {methods}, policy {self.report.plan.rule}"

    def _caption(self) -> str:
        quantized = sum(row.bits is not None for row in self.rows)
        size = f"{self.float_bytes / 2**20:.2f} MiB"
        if self.is_quantized:
            size += f" float, {self.quantized_bytes / 2**20:.2f} MiB quantized"
        line = f"{quantized} of {len(self.rows)} layers have integer weights; {size}"
        if self.report is None:
            return line
        uncovered = [f"not covered: {p.name} ({p.what}): {p.reason}" for p in self.report.plan.uncovered]
        line += f"; {self.report.seconds:.1f} s"
        if features := self.report.features:
            used, forecast = (features[name] / 2**20 for name in ("used", "forecast"))
            line += f"; features {used:.1f} MiB, forecast {forecast:.1f} MiB"
        return escape("\n".join([line, *uncovered]))

    def __str__(self) -> str:
        console = Console(width=120, color_system=None)
        with console.capture() as capture:
            for table in self.tables():
                console.print(table)
        return capture.get()


def summary(model: nn.Module) -> Summary:
    """Bits, errors, time and size of every layer of ``model``, quantized just now, loaded, or float."""
    report = report_of(model)
    layers = {name: module for name, module in model.named_modules() if kind_of(module) is not None}
    if report is not None:
        order = {layer.name: position for position, layer in enumerate(report.plan.layers)}
        layers = dict(sorted(layers.items(), key=lambda item: order.get(item[0], len(order))))
    rows = tuple(_row(name, layer, report) for name, layer in layers.items())
    everything = sum(_own_bytes(module) for module in model.modules())
    other = everything - sum(row.float_bytes for row in rows)
    return Summary(type(model).__name__, rows, report, other)


def _row(name: str, layer: nn.Module, report: QuantizationReport | None) -> SummaryRow:
    weight = layer.weight
    size = weight.numel() * weight.element_size()
    weights: WeightQuantizer | None = getattr(layer, "weight_quantizer", None)
    inputs: ActivationQuantizer | None = getattr(layer, "input_quantizer", None)
    result = None if report is None else report.layer(name)
    channels = 0 if weights is None or weights.scale is None else weights.scale.numel()
    return SummaryRow(
        name=name,
        kind=kind_of(layer).name,
        bits=None if weights is None else weights.bits,
        levels=None if weights is None else "symmetric" if weights.grid.is_signed else "affine",
        input_bits=None if inputs is None else inputs.bits,
        input_levels=None if inputs is None else _levels(inputs),
        error=None if result is None else result.error,
        seconds=None if result is None else result.seconds,
        float_bytes=size,
        quantized_bytes=size if weights is None else stored_bytes(weight.numel(), weights.bits, channels),
    )


def _weight_cell(row: SummaryRow) -> str:
    if row.bits is None:
        return "float"
    return f"W{row.bits} affine" if row.levels == "affine" else f"W{row.bits}"


def _levels(quantizer: ActivationQuantizer) -> str:
    if quantizer.grid.is_signed:
        return "signed"
    has_zero_point = quantizer.is_fitted and bool(quantizer.zero_point.any())
    return "affine" if has_zero_point else "unsigned"


def _own_bytes(module: nn.Module) -> int:
    """Size of what is stored in ``module`` itself as it is."""
    if isinstance(module, (WeightQuantizer, ActivationQuantizer)):
        return 0
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
