"""Host memory for tensors that a GPU reads again: pinned, that is never paged out, where there is room."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Room = Literal["pinned", "pageable"]


def pinned_size(size: int) -> int:
    """What torch takes for ``size`` bytes of pinned memory: the next power of two."""
    return 1 << max(0, size - 1).bit_length()


def held(tensor: Tensor) -> int:
    """Bytes that a tensor with memory of its own holds."""
    size = tensor.numel() * tensor.element_size()
    return pinned_size(size) if tensor.is_pinned() else size


def host_memory(count: int, dtype: torch.dtype, room: Room) -> Tensor:
    """Tensor[count], uninitialised; pageable, too, where the system gives no more to be pinned."""
    if room == "pinned":
        try:
            return torch.empty(count, dtype=dtype, pin_memory=True)
        except RuntimeError:
            pass
    return torch.empty(count, dtype=dtype)


def dense_copy(tensor: Tensor, memory: Tensor) -> Tensor:
    """``tensor`` in ``memory``, as many elements, without gaps, in the order that they have."""
    stride = torch.empty_like(tensor, device="meta").stride()
    return memory.as_strided(tensor.shape, stride).copy_(tensor)
