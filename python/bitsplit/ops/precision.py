"""The precision in which convolutions and matrix products compute, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "tf32", "bf16"]

_BF16 = ("avx512_bf16", "amx_bf16", "bf16")  # what processors call their instructions for it
_BF16_CARDS = (8, 0)
_TF32_SWITCHES = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)


def chosen_precision(precision: Precision, device: torch.device) -> Precision:
    """What ``auto`` means on ``device``: ``bf16`` on processors and cards that have instructions for it, else
    ``fp32``.

    Raises:
        ValueError: the device cannot compute so.
    """
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(
            f"precision='tf32' needs a CUDA device, got {device.type}: use 'fp32', 'bf16' or 'auto'"
        )
    if precision != "auto":
        return precision
    return "bf16" if _multiplies_bf16(device) else "fp32"


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _BF16_CARDS
    # torch releases without this function cannot tell
    abilities = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return any(abilities.get(name) for name in _BF16)


@contextmanager
def computing_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """On a GPU in TF32 only if asked for, and by algorithms of cuDNN that give the same bits every time.

    For ``bf16``, ``forward_in`` around the forward passes does the rest.
    """
    switches = [(switch, "fp32_precision") for switch in _TF32_SWITCHES]
    switches += [(torch.backends.cudnn, "deterministic"), (torch.backends.cudnn, "benchmark")]
    before = [getattr(*switch) for switch in switches]
    tf32 = "tf32" if chosen_precision(precision, device) == "tf32" else "ieee"
    try:
        for switch, value in zip(switches, (tf32, tf32, True, False), strict=True):
            setattr(*switch, value)
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            setattr(*switch, value)


def forward_in(precision: Precision, device: torch.device) -> torch.autocast:
    """``bf16`` rounds what goes into convolutions and products and what comes out."""
    enabled = chosen_precision(precision, device) == "bf16"
    # no cache: inside another autocast it would keep rounded weights after these have changed
    return torch.autocast(device.type, torch.bfloat16, enabled, cache_enabled=False)
