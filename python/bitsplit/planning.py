"""From a recipe and a network to the plan: policy, overrides, shared quantizers, levels."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from bitsplit.document import nearest
from bitsplit.errors import RecipeError
from bitsplit.methods.base import Method, WeightMethod
from bitsplit.network.sources import fed_only_by
from bitsplit.plan import LayerPlan, Levels, Plan, UncoveredPart, UnitPlan
from bitsplit.policies import AFTER_FIRST, FIRST, LAST, POLICIES, Choice, Place, Policy
from bitsplit.recipe import Recipe

if TYPE_CHECKING:
    from bitsplit.network import Layer, Network

INPUT_BITS = 8  # of what a rule leaves float where every scale is a power of two


def make_plan(network: Network, recipe: Recipe) -> Plan:
    """Resolve ``recipe`` for ``network``: policy, then overrides, then shared quantizers and input levels.

    Raises:
        RecipeError: an override matches no layer, or nothing would be quantized.
    """
    policy = POLICIES[_own_policy(recipe.method) if recipe.policy == "paper" else recipe.policy]
    overrides = _overrides_by_layer(recipe, list(network.layers))
    places = _places(network)
    starting = recipe.starting
    weight_levels = "symmetric" if starting is None else starting.levels
    keys: dict[tuple[Any, ...], int] = {}
    in_weights = any(method.scales_in_weights for method in recipe.method)
    layers = []
    for name, layer in network.layers.items():
        weights, activations = _choose(policy, recipe, places[name], overrides[name])
        weight = layer.module.weight.detach()
        levels = None if activations.bits is None else _levels(layer, starting)
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
    if policy.quantized_shortcuts:
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


def _own_policy(chain: tuple[Method, ...]) -> str:
    """What "paper" means for a chain: the rule of the last method that has one."""
    return next((method.policy for method in reversed(chain) if method.policy is not None), "bitsplit")


def _choose(
    policy: Policy, recipe: Recipe, places: list[Place], overrides: list[tuple[str, str, int | None]]
) -> tuple[Choice, Choice]:
    choices = {
        "weights": policy.choose_weights(places, recipe.weights),
        "activations": policy.choose_activations(places, recipe.activations),
    }
    if recipe.power_of_two and recipe.activations is not None and choices["activations"].bits is None:
        choices["activations"] = Choice(INPUT_BITS, "power of two: no float from the input on")
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


def _levels(layer: Layer, starting: WeightMethod | None) -> Levels:
    """Unsigned where the input is proven nonnegative; else a zero point where the method can place one."""
    if layer.nonnegative:
        return "unsigned"
    can_place_zero = starting is not None and starting.activations.zero_point
    return "affine" if can_place_zero else "signed"


def _float_bytes(network: Network) -> int:
    model = network.model
    tensors = [*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point())]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
