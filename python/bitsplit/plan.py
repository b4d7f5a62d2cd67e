"""What will be done to every layer, as data and as a table."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bitsplit.document import Document, nearest
from bitsplit.methods.base import WeightLevels
from bitsplit.recipe import Bits, Recipe

FLOAT_BITS = 32  # that what stays float counts as

Levels = Literal["unsigned", "signed", "affine"]
"""Of an input quantizer: 0 .. 2^b-1; symmetric around zero; 0 .. 2^b-1 with a zero point."""


class LayerPlan(Document):
    """What will be done to one layer.

    Attributes:
        name, kind, unit: of the layer, its layer kind and the unit that it belongs to.
        weights, activations: bits of the weights and of the input, None for float.
        why_weights, why_activations: the reason: the recipe, a place of the policy, an override.
        input_key: layers of equal key read the same tensor in the same way (bits, levels, channel axis, float
            or integer weights); they share one input quantizer.
        weight_levels: symmetric around zero, or affine: all 2^b with a zero point per row; None for float.
        levels: of the input quantizer; None when the input stays float.
        argument: where the input quantizer acts: on this one of the tensors that the unit is called with, so
            that all that reads it there sees it quantized; None: on the layer's own input.
        count: number of weights.
        float_bytes: their size in the float model.
        channels: number of output channels, one weight scale each.
    """

    name: str
    kind: str
    unit: str
    weights: Bits | None
    activations: Bits | None
    why_weights: str
    why_activations: str
    input_key: int
    levels: Levels | None
    argument: int | None = None
    weight_levels: WeightLevels | None = "symmetric"
    count: int
    float_bytes: int
    channels: int

    @property
    def signed(self) -> bool:
        """Whether the input quantizer has levels below zero."""
        return self.levels == "signed"

    @property
    def weight_bytes(self) -> int:
        """Size in a file: packed codes, a scale and a zero point per channel; or as the weights were."""
        if self.weights is None:
            return self.float_bytes
        return stored_bytes(self.count, self.weights, self.channels)


def stored_bytes(count: int, bits: int, channels: int) -> int:
    """Size of ``count`` codes, packed to their width, with a scale and a zero point per channel."""
    return (count * bits + 7) // 8 + 8 * channels


class UnitPlan(Document):
    """A unit: layers that are fitted one after the other on the same features."""

    name: str
    kind: str
    layers: tuple[str, ...]


class UncoveredPart(Document):
    """Weights of the model that nothing quantizes, and why."""

    name: str
    what: str
    reason: str


class Plan(Document):
    """The resolved plan: one row per layer in execution order.

    Attributes:
        recipe: what was asked.
        rule: the name of the policy that was applied ("paper" resolved to the method's own).
        layers: in execution order.
        units: in execution order; every layer is in exactly one.
        uncovered: what stays float because bitsplit cannot quantize it.
        float_bytes: size of all parameters and buffers of the (folded) float model.
    """

    recipe: Recipe
    rule: str
    layers: tuple[LayerPlan, ...]
    units: tuple[UnitPlan, ...]
    uncovered: tuple[UncoveredPart, ...] = ()
    float_bytes: int = Field(ge=0)

    def layer(self, name: str) -> LayerPlan:
        """The plan of one layer."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(
            f"the plan has no layer {name!r}; {nearest(name, [layer.name for layer in self.layers])}"
        )

    def quantizer_owner(self, layer: LayerPlan) -> str | None:
        """The first layer that uses the input quantizer of ``layer``; None when its input stays float."""
        if layer.activations is None:
            return None
        return next(other.name for other in self.layers if other.input_key == layer.input_key)

    @property
    def quantized_bytes(self) -> int:
        """Size of the quantized model: packed weights, scales, and everything else as it was."""
        return self.float_bytes - sum(layer.float_bytes - layer.weight_bytes for layer in self.layers)

    @property
    def average_bits(self) -> float:
        """Mean number of bits over the weights of all layers."""
        total = sum(layer.count for layer in self.layers)
        return sum(layer.count * (layer.weights or FLOAT_BITS) for layer in self.layers) / max(total, 1)

    def table(self) -> Table:
        """One row per layer, for ``rich.print``."""
        methods = " + ".join(method.name for method in self.recipe.method)
        title = f"{methods}, policy {self.rule}"
        if self.recipe.power_of_two:
            title += ", scales are powers of two"
        if self.recipe.starting is not None and self.recipe.starting.per_tensor:
            title += ", one weight scale a layer"
        table = Table(title=title, caption=self._caption(), caption_justify="left")
        for heading in ("layer", "kind", "unit", "weights", "input", "input quantizer", "why"):
            table.add_column(heading, overflow="fold")
        for layer in self.layers:
            weights, activations = _weight_cell(layer), _width(layer.activations, "A")
            site = self._site(layer)
            cells = (layer.name, layer.kind, layer.unit, weights, activations, site, _why(layer))
            table.add_row(*map(escape, cells))
        return table

    def _site(self, layer: LayerPlan) -> str:
        owner = self.quantizer_owner(layer)
        if owner is None:
            return "-"
        place = "" if layer.argument is None else f" at the input of {layer.unit}"
        return f"{layer.levels}{place}" if owner == layer.name else f"{layer.levels}, shared with {owner}"

    def _caption(self) -> str:
        mib = 2**20
        lines = [
            f"{len(self.layers)} layers in {len(self.units)} units; {self.average_bits:.2f} bits per weight; "
            f"{self.float_bytes / mib:.2f} MiB float, {self.quantized_bytes / mib:.2f} MiB quantized"
        ]
        lines += [f"not covered: {part.name} ({part.what}): {part.reason}" for part in self.uncovered]
        return escape("\n".join(lines))

    def __str__(self) -> str:
        console = Console(width=140, color_system=None)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get()


def _width(bits: int | None, letter: str) -> str:
    return "float" if bits is None else f"{letter}{bits}"


def _weight_cell(layer: LayerPlan) -> str:
    width = _width(layer.weights, "W")
    return f"{width} affine" if layer.weight_levels == "affine" else width


def _why(layer: LayerPlan) -> str:
    if layer.why_weights == layer.why_activations:
        return layer.why_weights
    return f"weights: {layer.why_weights}; input: {layer.why_activations}"
