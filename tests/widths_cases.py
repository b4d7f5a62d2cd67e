"""What the tests of mixed precision measure, on the small residual network."""

from __future__ import annotations

from torch import Tensor, nn

import bitsplit

WIDTHS = (2, 4, 8)
NAMES = ["stem", "first.one", "first.two", "second.one", "second.two", "fc"]


def measured(model: nn.Module, images: Tensor) -> bitsplit.Sensitivities:
    """By the quickest method, every layer with a choice."""
    return bitsplit.sensitivities(model, images, "minmax", policy="all", widths=WIDTHS, batch_size=16)
