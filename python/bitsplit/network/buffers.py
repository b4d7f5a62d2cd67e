"""Buffers that a model's own forward changes (a counter, a running average), and what they were before."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class _Kept:
    """A buffer, its content, and torch's count of the writes to it when it had that content."""

    module: nn.Module
    name: str
    buffer: Tensor | None
    content: Tensor | None
    writes: int


class KeptBuffers:
    """The buffers that ``model`` has now; those of modules that it gets later are not among them."""

    def __init__(self, model: nn.Module) -> None:
        self._kept = [
            _Kept(module, name, buffer, *((None, 0) if buffer is None else (buffer.clone(), buffer._version)))
            for module in model.modules()
            for name, buffer in module._buffers.items()
        ]

    @torch.no_grad()
    def restore(self, look: bool = False) -> None:
        """Undo what has been done to them; costs nothing for those that nobody wrote to.

        Torch does not count what is written through ``.data``: ``look`` compares the contents too.
        """
        for kept in self._kept:
            kept.module._buffers[kept.name] = kept.buffer
            if kept.buffer is None:
                continue
            written = kept.buffer._version != kept.writes
            if written or (look and not torch.equal(kept.buffer, kept.content)):
                kept.buffer.copy_(kept.content)
                kept.writes = kept.buffer._version
