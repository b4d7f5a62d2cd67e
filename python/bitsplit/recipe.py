"""What the user asks for: which method, how many bits, where."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator, model_validator

from bitsplit.document import Document
from bitsplit.methods.base import Method, WeightMethod
from bitsplit.methods.presets import Effort, preset
from bitsplit.methods.registry import get, names, resolve
from bitsplit.policies import PolicyName

EFFORT_POLICY: PolicyName = "qdrop"  # integer networks throughout: shortcuts are quantized too

Bits = Annotated[int, Field(strict=True, ge=2, le=8)]


class LayerOverride(Document):
    """Bits of the layers that a pattern matches; a field that is not given leaves the policy's choice alone.

    Attributes:
        weights: 2 to 8, None for float weights, "policy" for what the policy says.
        activations: the same for the layer's input.
    """

    weights: Bits | None | Literal["policy"] = "policy"
    activations: Bits | None | Literal["policy"] = "policy"

    @model_validator(mode="after")
    def _says_something(self) -> LayerOverride:
        if not self.given:
            raise ValueError("an override needs 'weights', 'activations' or both")
        return self

    @property
    def given(self) -> dict[str, int | None]:
        """The fields that override the policy."""
        return {name: bits for name, bits in self if bits != "policy"}


class Recipe(Document):
    """Everything that decides what quantization does, apart from the model and the data.

    >>> recipe = Recipe(method="bitsplit", weights=4, activations=8, layers={"layer1.*": {"weights": 8}})
    >>> Recipe.from_yaml(recipe.to_yaml()) == recipe
    True

    Attributes:
        method: a chain of configs, given as name, config, ``{"name": ..., option: value}`` or list of them.
        weights: bits of the weights, 2 to 8, or None to leave them float.
        activations: bits of the layers' inputs, 2 to 8, or None to leave them float.
        policy: the rule for first and last layers (``bitsplit.policies``).
        power_of_two: every scale, of weights and activations, is 2^k; the network's input is quantized too.
            Methods that are about such scales set it.
        layers: overrides by wildcard on layer names; where several match, the later one wins, field by field.
        seed: of everything that is drawn at random.

    Instead of a method ``effort`` may be given: "fast" (default), "normal" or "best"
    (``bitsplit.methods.presets``).  The recipe then holds the chain that this stands for.
    """

    method: tuple[SerializeAsAny[Method], ...]
    weights: Bits | None = 4
    activations: Bits | None = None
    policy: PolicyName = "paper"
    power_of_two: bool = Field(default=False, validate_default=True)
    layers: dict[str, LayerOverride] = Field(default_factory=dict)
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)] = 0

    @model_validator(mode="before")
    @classmethod
    def _method_of_effort(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        effort = fields.get("effort")
        fields = {name: value for name, value in fields.items() if name != "effort"}
        if "method" in fields:
            if effort is not None:
                raise ValueError("'effort' chooses the method; leave out one of the two")
            return fields
        bits = {name: fields.get(name, cls.model_fields[name].default) for name in ("weights", "activations")}
        return {"method": preset(effort or "fast", **bits), "policy": EFFORT_POLICY, **fields}

    @field_validator("method", mode="before")
    @classmethod
    def _resolve_chain(cls, method: Any) -> tuple[Method, ...]:
        return tuple(resolve(method))

    @field_validator("power_of_two")
    @classmethod
    def _as_the_methods_need(cls, asked: bool, fields: ValidationInfo) -> bool:
        return asked or any(method.makes_powers_of_two for method in fields.data.get("method", ()))

    @model_validator(mode="after")
    def _one_method_sets_the_weights(self) -> Recipe:
        setting = [method.name for method in self.method if isinstance(method, WeightMethod)]
        if len(setting) > 1:
            raise ValueError(f"{' and '.join(setting)} each set all weights; a chain takes one of them")
        learns = [method.granularity is not None for method in self.method]
        sets = [isinstance(method, WeightMethod) for method in self.method]
        if any(learns) and any(sets) and learns.index(True) < sets.index(True):
            raise ValueError(f"{setting[0]} sets all weights; in a chain it stands before methods that learn")
        return self

    @model_validator(mode="after")
    def _layers_come_before_larger_pieces(self) -> Recipe:
        learner = None
        for method in self.method:
            if method.granularity not in (None, "layer"):
                learner = method
            acts_on_layers = type(method).fit_layer is not Method.fit_layer
            if learner is not None and method.granularity is None and acts_on_layers:
                raise ValueError(
                    f"{method.name} acts on a layer before {learner.name} learns the piece that it is in: "
                    "let it stand before"
                )
        return self

    @model_validator(mode="after")
    def _can_keep_to_powers_of_two(self) -> Recipe:
        free = [method.name for method in self.method if method.needs_free_scales]
        if self.power_of_two and free:
            raise ValueError(f"power_of_two: with these options {free[0]} needs scales of any value")
        return self

    @model_validator(mode="after")
    def _can_keep_to_one_scale(self) -> Recipe:
        free = [method.name for method in self.method if method.needs_free_scales]
        if self.starting is not None and self.starting.per_tensor and free:
            raise ValueError(f"per_tensor: with these options {free[0]} needs a scale for every channel")
        return self

    @property
    def starting(self) -> WeightMethod | None:
        """What gives layers their first weights and input scales."""
        return next((method.starting for method in self.method if method.starting is not None), None)

    @model_validator(mode="after")
    def _asks_for_something(self) -> Recipe:
        overrides = [bits for layer in self.layers.values() for bits in layer.given.values()]
        if all(bits is None for bits in (self.weights, self.activations, *overrides)):
            raise ValueError(
                "nothing to quantize: 'weights' and 'activations' are both None, here and in 'layers'"
            )
        return self

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """JSON schema of recipe files, with the options of every registered method."""
        schema = cls.model_json_schema()
        for name in names():
            schema["$defs"][name] = _method_schema(name, schema["$defs"])
        one: dict[str, Any] = {
            "anyOf": [{"enum": names()}, *({"$ref": f"#/$defs/{name}"} for name in names())]
        }
        schema["properties"]["effort"] = {
            "title": "Effort",
            "enum": list(get_args(Effort)),
            "description": "In place of a method: the best chain for this time.",
        }
        schema["$defs"].pop("Method", None)
        schema.pop("required")
        schema["properties"]["method"] = {
            "title": "Method",
            "anyOf": [*one["anyOf"], {"type": "array", "items": one, "minItems": 1}],
        }
        return schema


def _method_schema(name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """Schema of one method's mapping form; what it refers to is added to ``definitions``."""
    schema = get(name).model_json_schema()
    definitions.update(schema.pop("$defs", {}))
    schema["properties"] = {"name": {"const": name}, **schema.get("properties", {})}
    schema["required"] = ["name", *schema.get("required", [])]
    return schema
