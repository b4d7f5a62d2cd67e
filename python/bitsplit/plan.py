"""What will be done to every layer: the recipe, resolved against a network."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bitsplit.document import Document, nearest
from bitsplit.errors import RecipeError
from bitsplit.methods.base import Method, WeightLevels
from bitsplit.network.sources import fed_only_by
from bitsplit.policies import AFTER_FIRST, FIRST, LAST, POLICIES, Choice, Place, Policy
from bitsplit.recipe import Bits, Recipe

if TYPE_CHECKING:
    from bitsplit.network import Layer, Network

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
        return (self.count * self.weights + 7) // 8 + 8 * self.channels


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
        """Mean number of bits over the weights of all layers, float ones counted as 32."""
        total = sum(layer.count for layer in self.layers)
        return sum(layer.count * (layer.weights or 32) for layer in self.layers) / max(total, 1)

    def table(self) -> Table:
        """One row per layer, for ``rich.print``."""
        methods = " + ".join(method.name for method in self.recipe.method)
        table = Table(title=f"{methods}, policy {self.rule}", caption=self._caption(), caption_justify="left")
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


def make_plan(network: Network, recipe: Recipe) -> Plan:
    """Resolve ``recipe`` for ``network``: policy, then overrides, then shared quantizers and input levels.

    Raises:
        RecipeError: an override matches no layer, or nothing would be quantized.
    """
    policy = POLICIES[own_policy(recipe.method) if recipe.policy == "paper" else recipe.policy]
    overrides = _overrides_by_layer(recipe, list(network.layers))
    places = _places(network)
    weight_levels = _weight_levels(recipe.method)
    keys: dict[tuple[Any, ...], int] = {}
    in_weights = any(method.scales_in_weights for method in recipe.method)
    layers = []
    for name, layer in network.layers.items():
        weights, activations = _choose(policy, recipe, places[name], overrides[name])
        weight = layer.module.weight.detach()
        levels = None if activations.bits is None else _levels(layer, recipe.method)
        sharing = (layer.input_key, activations.bits, levels)
        if in_weights:  # a quantizer's scales lie in the weights that read it, channel by channel
            sharing = (*sharing, weights.bits is None, layer.kind.spatial)
        input_key = keys.setdefault(sharing, len(keys))
        layers.append(
            LayerPlan(
                name=name,
                kind=layer.kind.name,
                unit=layer.unit,
                weights=weights.bits,
                activations=activations.bits,
                why_weights=weights.why,
                why_activations=activations.why,
                input_key=input_key,
                levels=levels,
                weight_levels=None if weights.bits is None else weight_levels,
                count=weight.numel(),
                float_bytes=weight.numel() * weight.element_size(),
                channels=layer.kind.matrix(layer.module, weight).shape[:2].numel(),
            )
        )
    if all(layer.weights is None and layer.activations is None for layer in layers):
        raise RecipeError(f"nothing would be quantized: {_why_nothing(network)}")
    if policy.quantized_shortcuts and not in_weights:
        layers = _at_arguments(network, layers)
    return Plan(
        recipe=recipe,
        rule=policy.name,
        layers=tuple(layers),
        units=tuple(UnitPlan(name=unit.name, kind=unit.kind, layers=unit.layers) for unit in network.units),
        uncovered=tuple(UncoveredPart(name=p.name, what=p.what, reason=p.reason) for p in network.uncovered),
        float_bytes=_float_bytes(network),
    )


def _at_arguments(network: Network, layers: list[LayerPlan]) -> list[LayerPlan]:
    """Let quantizers act on what blocks are called with where all layers that read it there have the same."""
    wanted: dict[tuple[str, int], set[int | None]] = {}
    for row in layers:
        for block, argument in network.layers[row.name].arguments.items():
            key = None if row.activations is None else row.input_key
            wanted.setdefault((block, argument), set()).add(key)
    return [
        row.model_copy(update={"argument": argument})
        if (argument := network.layers[row.name].arguments.get(row.unit)) is not None
        and wanted[row.unit, argument] == {row.input_key}
        else row
        for row in layers
    ]


def _why_nothing(network: Network) -> str:
    if network.layers:
        return "policy and overrides leave every layer float"
    reasons = [f"{part.name} ({part.what}): {part.reason}" for part in network.uncovered]
    return f"no layer of the model can be; {'; '.join(reasons[:3])}"


def own_policy(chain: tuple[Method, ...]) -> str:
    """What "paper" means for a chain: the rule of its last method that has one beyond Bit-Split's."""
    return next((method.policy for method in reversed(chain) if method.policy != "bitsplit"), "bitsplit")


def _choose(
    policy: Policy, recipe: Recipe, places: list[Place], overrides: list[tuple[str, str, int | None]]
) -> tuple[Choice, Choice]:
    choices = {
        "weights": policy.choose_weights(places, recipe.weights),
        "activations": policy.choose_activations(places, recipe.activations),
    }
    for pattern, field, bits in overrides:
        choices[field] = Choice(bits, f'override "{pattern}"')
    return choices["weights"], choices["activations"]


def _overrides_by_layer(recipe: Recipe, names: list[str]) -> dict[str, list[tuple[str, str, int | None]]]:
    """For each layer the overrides (pattern, field, bits) that match it, in the recipe's order."""
    matching: dict[str, list[tuple[str, str, int | None]]] = {name: [] for name in names}
    for pattern, override in recipe.layers.items():
        matched = [name for name in names if fnmatchcase(name, pattern)]
        if not matched:
            inside = any(name.startswith(f"{pattern}.") for name in names)
            hint = f"did you mean {pattern + '.*'!r}?" if inside else nearest(pattern, names)
            raise RecipeError(f"override {pattern!r} matches no layer; {hint}")
        for name in matched:
            matching[name] += [(pattern, field, bits) for field, bits in override.given.items()]
    return matching


def _places(network: Network) -> dict[str, list[Place]]:
    """Where each layer stands."""
    firsts = {name for name, layer in network.layers.items() if layer.is_first}
    second = fed_only_by(network, firsts)
    return {
        name: [
            place
            for place, holds in (
                (FIRST, layer.is_first),
                (LAST, layer.is_last),
                (AFTER_FIRST, name in second),
            )
            if holds
        ]
        for name, layer in network.layers.items()
    }


def _weight_levels(chain: tuple[Method, ...]) -> WeightLevels:
    """What the first method that sets weights asks for."""
    return next((method.levels for method in chain if hasattr(method, "levels")), "symmetric")


def _levels(layer: Layer, chain: tuple[Method, ...]) -> Levels:
    """Unsigned where the input is proven nonnegative; else a zero point where the method can place one."""
    if layer.nonnegative:
        return "unsigned"
    activation_methods = [method.activations for method in chain if hasattr(method, "activations")]
    can_place_zero = bool(activation_methods) and activation_methods[0].zero_point
    return "affine" if can_place_zero else "signed"


def _float_bytes(network: Network) -> int:
    model = network.model
    tensors = [*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point())]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _width(bits: int | None, letter: str) -> str:
    return "float" if bits is None else f"{letter}{bits}"


def _weight_cell(layer: LayerPlan) -> str:
    width = _width(layer.weights, "W")
    return f"{width} affine" if layer.weight_levels == "affine" else width


def _why(layer: LayerPlan) -> str:
    if layer.why_weights == layer.why_activations:
        return layer.why_weights
    return f"weights: {layer.why_weights}; input: {layer.why_activations}"
