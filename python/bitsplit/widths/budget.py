"""What the widths of all layers may cost: bytes, bit operations, or time."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError, model_validator

from bitsplit.document import Document, explain, nearest
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

    @classmethod
    def asked(cls, **limits: Any) -> Budget:
        """From what a user gave."""
        try:
            return cls(**limits)
        except ValidationError as error:
            raise RecipeError(explain(error)) from None

    @model_validator(mode="after")
    def _has_readable_times(self) -> Budget:
        if self.times is not None:
            read_times(self.times)
        return self

    @property
    def _kind(self) -> str:
        return next(name for name in UNITS if getattr(self, name) is not None)

    @property
    def unit(self) -> str:
        """In what the limit is counted."""
        return UNITS[self._kind]

    @property
    def limit(self) -> float:
        return getattr(self, self._kind)

    def costs(self, found: Sensitivities) -> tuple[list[list[float]], float]:
        """Of every layer at every width, and of all that has no choice."""
        if self.bits is not None:
            total = sum(row.layer.count for row in found.layers)
            return [[row.layer.count * w / total for w in found.widths] for row in found.layers], 0
        if self.bytes is not None:
            costs = [[row.at(width).weight_bytes for width in found.widths] for row in found.layers]
            return costs, found.other_bytes
        if self.operations is not None:
            costs = [[bit_operations(row.at(w), row.macs) for w in found.widths] for row in found.layers]
            return costs, found.other_operations
        times = read_times(self.times)
        return [
            [_time(self.times, times, row.layer.name, w) for w in found.widths] for row in found.layers
        ], 0


def bit_operations(layer: LayerPlan, macs: int) -> int:
    """For one image."""
    return macs * (layer.weights or FLOAT_BITS) * (layer.activations or FLOAT_BITS)


def read_times(path: Path) -> dict[tuple[str, int], float]:
    """Milliseconds by layer and width."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read {path}: {error}") from error
    times: dict[tuple[str, int], float] = {}
    for number, row in enumerate(rows, start=2):
        try:
            key, milliseconds = (row["layer"], int(row["width"])), float(row["milliseconds"])
        except (KeyError, TypeError, ValueError):
            raise RecipeError(f"{path}, line {number}: needs {', '.join(COLUMNS)}, got {row}") from None
        if not 0 <= milliseconds < float("inf"):
            raise RecipeError(f"{path}, line {number}: a time is 0 or more milliseconds, got {milliseconds}")
        if key in times:
            raise RecipeError(f"{path}, line {number}: {key[0]} at {key[1]} bits stands there twice")
        times[key] = milliseconds
    if not times:
        raise RecipeError(f"{path} has no times; its lines need {', '.join(COLUMNS)}")
    return times


def _time(path: Path, times: dict[tuple[str, int], float], layer: str, width: int) -> float:
    if (layer, width) in times:
        return times[layer, width]
    known = sorted({name for name, _ in times})
    hint = "" if layer in known else f"; {nearest(layer, known)}"
    raise RecipeError(f"{path} has no time for {layer} at {width} bits{hint}")
