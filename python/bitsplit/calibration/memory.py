"""Memory for tensors that are read again: on a card, pinned (which is never paged out), pageable."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bitsplit.device import free_memory

Room = Literal["pinned", "pageable"]

SMALL = 1 << 20  # bytes
LEFT_FREE = 0.4  # of a card, for the networks that run there


def bytes_of(tensor: Tensor) -> int:
    """Of its elements."""
    return tensor.numel() * tensor.element_size()


def pinned_size(size: int) -> int:
    """What torch takes for ``size`` bytes of pinned memory: the next power of two."""
    return 1 << max(0, size - 1).bit_length()


def held(tensor: Tensor) -> int:
    """Bytes that a tensor with memory of its own holds."""
    size = bytes_of(tensor)
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


class Slabs:
    """Places for small tensors, many in one piece of memory.

    Between large tensors that come and go, each small one that stays would keep the hole beside it from being
    used again, so that memory would grow with the number of batches.
    """

    size = 4 * SMALL

    def __init__(self, room: Room) -> None:
        self._room = room
        self._slab = torch.empty(0, dtype=torch.uint8)

    def place(self, tensor: Tensor) -> Tensor:
        """A dense copy with the tensor's order of elements."""
        size = bytes_of(tensor)
        if size > self._slab.numel():
            self._slab = host_memory(self.size, torch.uint8, self._room)
        place = dense_copy(tensor, self._slab[:size].view(tensor.dtype))
        self._slab = self._slab[-(-size // 64) * 64 :]
        return place


def room_on_card(device: torch.device) -> int:
    """Bytes that may be taken on ``device``, if it is a card, so that its share stays free."""
    if device.type != "cuda":
        return 0
    total = torch.cuda.get_device_properties(device).total_memory
    return max(0, free_memory(device) - int(LEFT_FREE * total))


def card_memory(count: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """Tensor[count], uninitialised, on a card that has room for it."""
    if device.type != "cuda" or count * dtype.itemsize > room_on_card(device):
        return None
    try:
        return torch.empty(count, dtype=dtype, device=device)
    except torch.OutOfMemoryError:  # what is free there lies in pieces
        return None
