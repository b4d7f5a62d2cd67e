"""Integers at their own width: 2 to 8 bits a code, no gaps."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_CHUNK = 1 << 20  # codes worked on at a time; a multiple of 8, so that every chunk ends at a byte


def pack(codes: Tensor, bits: int, low: int) -> Tensor:
    """Pack integer codes of any shape into uint8 Tensor[ceil(codes.numel() * bits / 8)].

    Code i, taken in row-major order, is stored as the unsigned number ``code - low`` in the bits i * bits
    up to (i + 1) * bits of the stream; bit 0 of a byte is its lowest.  Left-over bits are zero.
    """
    values = codes.detach().cpu().reshape(-1).to(torch.int16).numpy() - low
    if values.size and not 0 <= int(values.min()) <= int(values.max()) < 1 << bits:
        raise ValueError(f"codes must lie in [{low}, {low + (1 << bits) - 1}] to be packed to {bits} bits")
    chunks = [_pack_chunk(values[start : start + _CHUNK], bits) for start in range(0, values.size, _CHUNK)]
    return torch.from_numpy(np.concatenate([np.empty(0, np.uint8), *chunks]))


def unpack(packed: Tensor, bits: int, low: int, shape: tuple[int, ...]) -> Tensor:
    """The inverse of ``pack``: int8 codes, or uint8 ones when ``low`` is 0, of the given shape."""
    count = int(np.prod(shape, dtype=np.int64))
    if packed.dtype != torch.uint8 or packed.numel() != packed_size(count, bits):
        raise ValueError(
            f"{count} codes of {bits} bits are {packed_size(count, bits)} bytes, "
            f"got {packed.numel()} values of {packed.dtype}"
        )
    stream = packed.cpu().reshape(-1).numpy()
    step = _CHUNK // 8 * bits
    chunks = [_unpack_chunk(stream[start : start + step], bits) for start in range(0, stream.size, step)]
    values = np.concatenate([np.empty(0, np.uint8), *chunks])[:count].astype(np.int16) + low
    return torch.from_numpy(values).to(torch.uint8 if low == 0 else torch.int8).reshape(shape)


def packed_size(count: int, bits: int) -> int:
    """Bytes that ``count`` codes take."""
    return (count * bits + 7) // 8


def _pack_chunk(values: np.ndarray, bits: int) -> np.ndarray:
    planes = np.unpackbits(values.astype(np.uint8)[:, None], axis=1, bitorder="little")
    return np.packbits(planes[:, :bits].reshape(-1), bitorder="little")


def _unpack_chunk(stream: np.ndarray, bits: int) -> np.ndarray:
    planes = np.unpackbits(stream, bitorder="little")
    planes = planes[: planes.size // bits * bits].reshape(-1, bits)
    return np.packbits(planes, axis=1, bitorder="little")[:, 0]
