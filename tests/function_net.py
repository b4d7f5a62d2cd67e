"""The smallest way to write down a model: its modules and how they are called; layers and inputs for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """``function(model, input)`` with ``modules`` as attributes of the model."""

    def __init__(self, function: Callable[[nn.Module, Any], Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Any) -> Any:
        return self.function(self, x)


def layer(channels: int = 4, out: int = 4, **options: Any) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size of its input."""
    return nn.Conv2d(channels, out, 3, padding=1, **options)


def three_layers() -> nn.Module:
    """Three such layers, on three channels, with ReLUs between."""
    return nn.Sequential(layer(3, 6), nn.ReLU(), layer(6, 6), nn.ReLU(), layer(6, 4)).eval()


def images(*shape: int) -> Tensor:
    """Random ones for such layers."""
    return torch.randn(*(shape or (2, 4, 6, 6)))
