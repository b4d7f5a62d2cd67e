"""Where a model lies, and how data come to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def device_of(model: nn.Module) -> torch.device:
    """Where the parameters of ``model`` lie; the CPU where it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def to_device(batch: Any, device: torch.device) -> Any:
    """``batch`` with all its tensors on ``device``."""
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), batch)
