"""Arguments for the tests of learned steps and mixing, and what the operators drop."""

import torch
from torch import Tensor

from bitsplit.ops.steps import learned_quantize


def key(seed: int = 0, iteration: int = 0, device: torch.device | str = "cpu") -> Tensor:
    return torch.tensor([seed, iteration], device=device)


def step(scale: float, zero_point: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    return (
        torch.tensor([scale], device=device),
        torch.tensor([zero_point], dtype=torch.int32, device=device),
    )


def dropped_of(x: Tensor, drop: float, key: Tensor) -> Tensor:
    """Which elements are dropped: those that a scale that makes everything zero leaves alone."""
    ones = torch.ones_like(x)
    return learned_quantize(ones, *step(1e6, 0, x.device), -1, 1, drop, key) == 1


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The values of x (4 dimensions) in many memory formats."""
    return {
        "contiguous": x,
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.transpose(0, 3).contiguous().transpose(0, 3),
        "strided": torch.stack([x, -x], 4)[..., 0],
        "expanded": x[:1].expand_as(x),
    }


def memory_of(x: Tensor) -> Tensor:
    """The elements of x in the order of a dense tensor of its format."""
    dense = torch.empty_like(x).copy_(x)
    return dense.as_strided((x.numel(),), (1,))
