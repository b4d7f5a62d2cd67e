"""The precision in which convolutions and matrix products compute, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "tf32", "bf16"]

_BF16 = ("avx512_bf16", "amx_bf16", "bf16")  # what processors call their instructions for it
_TF32_SWITCHES = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)


def chosen_precision(precision: Precision, device: torch.device) -> Precision:
    """What ``auto`` means on ``device``: ``bf16`` on processors that have instructions for it, else ``fp32``.

    Raises:
        ValueError: the device cannot compute so.
    """
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(
            f"precision='tf32' needs a CUDA device, got {device.type}: use 'fp32', 'bf16' or 'auto'"
        )
    if precision != "auto":
        return precision
    # torch releases without this function cannot tell
    abilities = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return "bf16" if any(abilities.get(name) for name in _BF16) else "fp32"


@contextmanager
def computing_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """``bf16`` rounds what goes into convolutions and products and what comes out, ``tf32`` what goes in."""
    precision = chosen_precision(precision, device)
    before = [switch.fp32_precision for switch in _TF32_SWITCHES]
    for switch in _TF32_SWITCHES:
        switch.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        # no cache: inside another autocast it would keep rounded weights after these have changed
        with torch.autocast(device.type, torch.bfloat16, precision == "bf16", cache_enabled=False):
            yield
    finally:
        for switch, value in zip(_TF32_SWITCHES, before, strict=True):
            switch.fp32_precision = value
