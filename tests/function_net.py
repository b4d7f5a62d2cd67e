"""The smallest way to write down a model: its modules, and how they are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class Net(nn.Module):
    """``function(model, input)`` with ``modules`` as attributes of the model."""

    def __init__(self, function: Callable[[nn.Module, Any], Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Any) -> Any:
        return self.function(self, x)
