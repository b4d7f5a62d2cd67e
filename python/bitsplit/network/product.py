"""What reaches a layer's product: its input once it is padded, its weight as it is multiplied."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_PLAIN_FORWARDS = {
    kind.forward
    for kind in (
        nn.Conv1d,
        nn.Conv2d,
        nn.Conv3d,
        nn.ConvTranspose1d,
        nn.ConvTranspose2d,
        nn.ConvTranspose3d,
        nn.Linear,
    )
}


def has_plain_forward(module: nn.Module) -> bool:
    """Whether the module's class leaves the forward of torch's own layer as it is."""
    return type(module).forward in _PLAIN_FORWARDS


def padded_input(module: nn.Module, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """``x`` with every padding that is not symmetric zeros applied, and the symmetric zeros that remain.

    A subclass that pads in its own ``forward`` is asked: what reaches its convolution is what it padded.
    """
    none = (0,) * len(module.kernel_size)
    if not has_plain_forward(module):
        reached = reached_product(module, x)
        return reached.x, reached.padding
    if module.padding_mode != "zeros":
        return F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode), none
    if module.padding == "valid":
        return x, none
    if module.padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        if all(n % 2 == 0 for n in total):
            return x, tuple(n // 2 for n in total)
        ends = [end for n in reversed(total) for end in (n // 2, n - n // 2)]
        return F.pad(x, ends), none
    return x, tuple(module.padding)


class _Reached(Exception):
    """Ends a forward at its product."""


@dataclass(frozen=True)
class ReachedProduct:
    """The tensors that meet in a layer's product.

    x: what the layer made of its input.  weight: in the shape of the parameter.  padding: the symmetric
    zeros left.
    """

    x: Tensor
    weight: Tensor
    padding: tuple[int, ...]


class _UntilProduct(TorchDispatchMode):
    """Keeps the operands of the first convolution or matrix product and ends the forward there."""

    found: ReachedProduct | None = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.found = ReachedProduct(args[0], args[1], tuple(args[4]))
        elif func is torch.ops.aten.mm.default:
            self.found = ReachedProduct(args[0], args[1].t(), ())
        elif func is torch.ops.aten.addmm.default:
            self.found = ReachedProduct(args[1], args[2].t(), ())
        if self.found is not None:
            raise _Reached
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def reached_product(module: nn.Module, x: Tensor) -> ReachedProduct:
    """What a layer multiplies when it is called with ``x``; its own forward is asked, hooks do not run."""
    mode = _UntilProduct()
    with suppress(_Reached), mode:
        module.forward(x)
    if mode.found is None:
        raise RuntimeError(f"{type(module).__name__} ran no product")
    return mode.found
