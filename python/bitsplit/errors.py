"""The exceptions bitsplit raises for mistakes its user can mend; all derive from ``BitsplitError``.

Configs and ``Recipe(...)`` themselves raise pydantic's ``ValidationError``, a ``ValueError``.
"""

from __future__ import annotations


class BitsplitError(Exception):
    """Something about the model, the data, the recipe or a file is not as required; the message says what."""


class ModelError(BitsplitError):
    """The model cannot be observed or changed as asked (lazy modules, a failed forward, no layers)."""


class FoldError(ModelError):
    """Folding a norm into its layer changed what the network computes."""


class RecipeError(BitsplitError, ValueError):
    """What was asked is invalid: bits, patterns that match nothing, unknown methods or policies."""


class DataError(BitsplitError):
    """The images or labels are not as required."""


class CalibrationError(BitsplitError):
    """Calibration cannot go on: no data, NaN or Inf, a layer that was never reached."""


class CheckpointError(BitsplitError):
    """A checkpoint belongs to another model, recipe or data, or is damaged."""


class ArtifactError(BitsplitError):
    """A saved network is damaged, altered, or does not fit the model it is loaded into."""


class IntegerError(BitsplitError):
    """A network cannot run in integers: something in it is float, has no such form, or would overflow."""


def first_line(error: Exception) -> str:
    """What ``error`` says in its first line, or its class where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
