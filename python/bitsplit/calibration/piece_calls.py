"""What the calls of a piece of the network got and gave in one forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bitsplit.calibration.replay import Stop
from bitsplit.errors import CalibrationError


@dataclass
class PieceCall:
    """What one call got and gave."""

    args: tuple
    kwargs: dict[str, Any]
    output: Tensor | None = None


class CallRecorder:
    """Notes the calls of a piece in one forward, which ends with the last of them unless ``whole``."""

    def __init__(self, count: int, whole: bool) -> None:
        self._count, self._whole = count, whole
        self.calls: list[PieceCall] = []

    @contextmanager
    def watching(self, first: nn.Module, last: nn.Module, outputs: bool) -> Iterator[None]:
        """While active, what ``first`` is called with is noted, and what ``last`` gives.

        Without ``outputs`` the last call does not compute any more.
        """

        def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            # copies, because what comes next may change them in place
            self.calls.append(PieceCall(*pytree.tree_map(_copy, (args, kwargs))))
            if not outputs and len(self.calls) == self._count:
                raise Stop

        def after(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            if not isinstance(output, Tensor):
                kind = type(output).__name__
                raise CalibrationError(f"what is learned must give one tensor, got {kind}: use unit='block'")
            follows = len(self.calls) > 1 and output.requires_grad  # perhaps from an earlier call
            noted = output.clone() if follows else _copy(output).requires_grad_(torch.is_grad_enabled())
            self.calls[-1].output = noted
            if not self._whole and len(self.calls) == self._count:
                raise Stop
            return noted.clone()

        # before the hook that quantizes the input: that belongs to the piece
        hooks = [first.register_forward_pre_hook(before, with_kwargs=True, prepend=True)]
        if outputs:
            hooks.append(last.register_forward_hook(after))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _copy(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf
