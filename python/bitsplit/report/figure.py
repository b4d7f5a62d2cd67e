"""Whether pictures can be drawn."""

from __future__ import annotations

import importlib.util

from bitsplit.errors import BitsplitError


def require_matplotlib() -> None:
    """Raises ``BitsplitError`` where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise BitsplitError("the chart needs matplotlib: pip install 'bitsplit-ptq[plot]'")
