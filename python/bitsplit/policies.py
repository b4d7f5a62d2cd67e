"""The rules for first and last layers, by name: how many bits a layer gets for its place in the network.

A rule is data: for each place, the bits it fixes.  A rule never quantizes what the recipe leaves float: with
``activations=None`` no input is quantized anywhere, unless an override says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

PolicyName = Literal["paper", "brecq", "qdrop", "adaround", "all"]

Place = Literal["first layer", "last layer", "reads the first layer's output"]
FIRST: Final[Place] = "first layer"
LAST: Final[Place] = "last layer"
AFTER_FIRST: Final[Place] = "reads the first layer's output"


@dataclass(frozen=True)
class Choice:
    """Bits (None: float) and the reason for them."""

    bits: int | None
    why: str


@dataclass(frozen=True)
class Policy:
    """The bits that a rule fixes by place; every other layer gets what the recipe says.

    A layer at several places (a network of one layer is first and last) takes the place that is listed first.
    quantized_shortcuts: what a block is called with is quantized before anything in it reads it, so that a
    residual branch carries the quantized tensor too; else a quantizer acts on its layers alone.
    """

    name: str
    weights: dict[Place, int] = field(default_factory=dict)
    activations: dict[Place, int | None] = field(default_factory=dict)
    quantized_shortcuts: bool = False

    def choose_weights(self, places: Sequence[Place], bits: int | None) -> Choice:
        """Bits of the weights of a layer at ``places`` when the recipe asks for ``bits``."""
        return self._choose(self.weights, places, bits)

    def choose_activations(self, places: Sequence[Place], bits: int | None) -> Choice:
        """Bits of the input of a layer at ``places`` when the recipe asks for ``bits``."""
        return self._choose(self.activations, places, bits)

    def _choose(self, fixed: dict[Place, int | None], places: Sequence[Place], bits: int | None) -> Choice:
        if bits is None:
            return Choice(None, "recipe")
        for place, fixed_bits in fixed.items():
            if place in places:
                return Choice(fixed_bits, place)
        return Choice(bits, "recipe")


_EIGHT_BIT_ENDS: Final[dict[Place, int]] = {FIRST: 8, LAST: 8}

# "paper" is no rule of its own: it stands for the rule that the method names.
POLICIES: Final[dict[str, Policy]] = {
    "bitsplit": Policy("bitsplit", weights=_EIGHT_BIT_ENDS, activations={FIRST: None, LAST: 8}),
    "brecq": Policy(
        "brecq",
        weights=_EIGHT_BIT_ENDS,
        activations={FIRST: None, LAST: 8, AFTER_FIRST: 8},
        quantized_shortcuts=True,
    ),
    # Differs from brecq in the output of the first layer, which stays at the recipe's bits.
    "qdrop": Policy(
        "qdrop", weights=_EIGHT_BIT_ENDS, activations={FIRST: None, LAST: 8}, quantized_shortcuts=True
    ),
    "adaround": Policy(
        "adaround", weights=_EIGHT_BIT_ENDS, activations={FIRST: None, LAST: 8}, quantized_shortcuts=True
    ),
    "all": Policy("all"),
}
