"""Where a model lies, what is free there, and how data come to it."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bitsplit.errors import BitsplitError, first_line


def device_of(model: nn.Module) -> torch.device:
    """Where the parameters of ``model`` lie; the CPU where it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def checked_device(name: torch.device | str) -> torch.device:
    """The device of that name; ``BitsplitError`` when there is none to work on."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BitsplitError(f"device {str(name)!r}: {first_line(error)}") from error
    if device.type == "meta":
        raise BitsplitError("a model on the meta device has no values; load its weights first")
    return device


def free_memory(device: torch.device | None = None) -> int:
    """Bytes that can be used on a device; of host memory without swapping."""
    if device is not None and device.type == "cuda":
        kept_by_torch = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept_by_torch
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def fresh(batch: Any) -> Any:
    """A copy of ``batch``, whose tensors and arrays a model may change in place."""
    return pytree.tree_map_only((Tensor, np.ndarray), _copied, batch)


def _copied(values: Tensor | np.ndarray) -> Tensor | np.ndarray:
    return values.clone() if isinstance(values, Tensor) else values.copy()  # not all that a view looks at


def to_device(batch: Any, device: torch.device) -> Any:
    """``batch`` with all its tensors on ``device``."""
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), batch)
