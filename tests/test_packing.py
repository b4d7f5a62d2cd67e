"""Codes packed to their width: against the definition, any layout, what does not fit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitsplit.artifact.packing import pack, packed_size, unpack
from bitsplit.quantizers.grid import Grid


def slow_pack(values: list[int], bits: int) -> bytes:
    """From the definition: code i at bits i * bits of one large number, lowest byte first."""
    stream = sum(value << (index * bits) for index, value in enumerate(values))
    return stream.to_bytes((len(values) * bits + 7) // 8, "little")


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9, 63, 65, 1000])
@pytest.mark.parametrize("signed", [True, False])
def test_packing_agrees_with_the_definition(bits: int, count: int, signed: bool) -> None:
    grid = Grid.symmetric(bits) if signed else Grid.unsigned(bits)
    codes = torch.randint(grid.low, grid.high + 1, (count,)).to(grid.dtype)
    packed = pack(codes, bits, grid.low)
    assert packed.dtype == torch.uint8 and packed.shape == (packed_size(count, bits),)
    assert packed.numpy().tobytes() == slow_pack([int(code) - grid.low for code in codes], bits)
    assert torch.equal(unpack(packed, bits, grid.low, (count,)), codes)


@settings(max_examples=50)
@given(st.integers(2, 8), st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_packing_keeps_values_and_shape(bits: int, shape: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, shape, generator=generator, dtype=torch.uint8)
    assert torch.equal(unpack(pack(codes, bits, 0), bits, 0, tuple(shape)), codes)


@pytest.mark.parametrize("bits", [3, 7])
def test_packing_in_several_chunks(bits: int) -> None:
    count = (1 << 20) * 2 + 13
    codes = torch.randint(0, 2**bits, (count,), dtype=torch.uint8)
    packed = pack(codes, bits, 0)
    assert torch.equal(unpack(packed, bits, 0, (count,)), codes)
    start = (1 << 20) - 8
    piece = pack(codes[start : start + 16], bits, 0)
    assert torch.equal(packed[start * bits // 8 :][: piece.numel()], piece)


def test_packing_takes_any_memory_layout() -> None:
    codes = torch.arange(24, dtype=torch.uint8).reshape(4, 6)
    assert torch.equal(pack(codes.t(), 5, 0), pack(codes.t().contiguous(), 5, 0))


def test_packing_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\[-3, 4\]"):
        pack(torch.tensor([5]), 3, -3)
    with pytest.raises(ValueError, match=r"\[0, 7\]"):
        pack(torch.tensor([-1]), 3, 0)
    with pytest.raises(ValueError, match="5 codes of 3 bits are 2 bytes, got 3"):
        unpack(torch.zeros(3, dtype=torch.uint8), 3, 0, (5,))
