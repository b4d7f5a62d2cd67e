"""What the widths of all layers may cost: bytes, bit operations, or time."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from bitsplit.document import Document, nearest
from bitsplit.errors import RecipeError
from bitsplit.plan import FLOAT_BITS, LayerPlan

if TYPE_CHECKING:
    from bitsplit.widths.sensitivities import Sensitivities

COLUMNS = ("layer", "width", "milliseconds")
UNITS = {"bits": "bits a weight", "bytes": "bytes", "operations": "bit operations", "milliseconds": "ms"}


class Budget(Document):
    """One of four limits.

    Attributes:
        bits: mean bits of the weights that have a choice, so that 3 allows what 3 bits everywhere take.
        bytes: size of the whole model: packed weights, scales, all else as it is.
        operations: bit operations of the whole network for one image: multiplications times the bits of
            weight and input, 32 where float.
        milliseconds: time of the layers that have a choice, by ``times``.
        times: a CSV file with the columns layer, width, milliseconds.
    """

    bits: float | None = Field(None, gt=0)
    bytes: float | None = Field(None, gt=0)
    operations: float | None = Field(None, gt=0)
    milliseconds: float | None = Field(None, gt=0)
    times: Path | None = None

    @model_validator(mode="after")
    def _says_one_thing(self) -> Budget:
        given = [name for name in UNITS if getattr(self, name) is not None]
        if len(given) != 1:
            said = " and ".join(given) or "none"
            raise ValueError(f"a budget is one of {', '.join(UNITS)}, got {said}")
        if (self.times is None) != (self.milliseconds is None):
            raise ValueError("milliseconds and times (a CSV file) belong together")
        return self

    @property
    def unit(self) -> str:
        """In what the limit is counted."""
        return next(unit for name, unit in UNITS.items() if getattr(self, name) is not None)

    def costs(self, found: Sensitivities) -> tuple[list[list[float]], float]:
        """Of every layer at every width, and the limit of their sum."""
        if self.bits is not None:
            total = sum(row.layer.count for row in found.layers)
            return [[row.layer.count * w / total for w in found.widths] for row in found.layers], self.bits
        if self.bytes is not None:
            costs = [[row.at(width).weight_bytes for width in found.widths] for row in found.layers]
            return costs, _left(self.bytes, found.other_bytes, self.unit)
        if self.operations is not None:
            costs = [[bit_operations(row.at(w), row.macs) for w in found.widths] for row in found.layers]
            return costs, _left(self.operations, found.other_operations, self.unit)
        names = [row.layer.name for row in found.layers]
        times = read_times(self.times, names, found.widths)
        return [[times[name, width] for width in found.widths] for name in names], self.milliseconds


def bit_operations(layer: LayerPlan, macs: int) -> int:
    """For one image."""
    return macs * (layer.weights or FLOAT_BITS) * (layer.activations or FLOAT_BITS)


def _left(limit: float, others: int, unit: str) -> float:
    if limit <= others:
        raise RecipeError(
            f"a budget of {limit:g} {unit} cannot be met: what has no choice takes {others:g} already"
        )
    return limit - others


def read_times(path: Path, names: list[str], widths: tuple[int, ...]) -> dict[tuple[str, int], float]:
    """Milliseconds by layer and width; the table must tell all that are asked for."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read {path}: {error}") from error
    times: dict[tuple[str, int], float] = {}
    for number, row in enumerate(rows, start=2):
        try:
            layer, width, milliseconds = (row[column] for column in COLUMNS)
            times[layer, int(width)] = float(milliseconds)
        except (KeyError, TypeError, ValueError):
            raise RecipeError(f"{path}, line {number}: needs {', '.join(COLUMNS)}, got {row}") from None
    missing = [(name, width) for name in names for width in widths if (name, width) not in times]
    if missing:
        name, width = missing[0]
        hint = nearest(name, sorted({layer for layer, _ in times}))
        raise RecipeError(f"{path} has no time for {name} at {width} bits ({len(missing)} missing); {hint}")
    return times
