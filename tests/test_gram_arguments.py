"""What the gram operator accepts and refuses, and that torch may rely on its declaration."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bitsplit.ops.gram import GramSums, gram


def call(**changes) -> None:
    arguments = {
        "x": torch.randn(2, 4, 5, 5),
        "y": torch.randn(2, 6, 5, 5),
        "kernel": [3, 3],
        "stride": [1, 1],
        "padding": [1, 1],
        "dilation": [1, 1],
        "groups": 2,
        "positions": None,
        "G": torch.zeros(2, 18, 18, dtype=torch.float64),
        "C": torch.zeros(2, 18, 3, dtype=torch.float64),
        "sum_x": torch.zeros(2, 18, dtype=torch.float64),
        "sum_y": torch.zeros(2, 3, dtype=torch.float64),
        "sum_yy": torch.zeros(2, 3, dtype=torch.float64),
    }
    gram(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.randn(2, 4, 5)}, "x must be .* 2 or 3 spatial axes"),
        ({"x": torch.randn(2, 4, 5, 5).half()}, "x must be float32 or float64, got Half"),
        ({"x": torch.randn(2, 4, 5, 5).double()}, "y must be Double"),
        ({"x": torch.randn(2, 5, 5, 5)}, "5 channels of x cannot be divided into 2 groups"),
        ({"groups": 0}, "cannot be divided into 0 groups"),
        ({"kernel": [3, 3, 3]}, "kernel needs one value for each of the 2 spatial axes"),
        ({"kernel": [0, 3]}, r"kernel must lie in \[1, 1073741824\]"),
        ({"stride": [1, 0]}, r"stride must lie in \[1, "),
        ({"dilation": [0, 1]}, r"dilation must lie in \[1, "),
        ({"padding": [-1, 0]}, r"padding must lie in \[0, "),
        ({"kernel": [8, 3]}, "the kernel does not fit the image"),
        ({"x": torch.randn(2, 4, 0, 5), "padding": [3, 1]}, "the kernel does not fit the image"),
        ({"y": torch.randn(2, 6, 5, 4)}, r"y must have shape \[2, 6, 5, 5\] .*, got \[2, 6, 5, 4\]"),
        ({"y": torch.randn(1, 6, 5, 5)}, "y must have shape"),
        ({"y": torch.randn(2, 5, 5, 5)}, "5 channels of y cannot be divided"),
        ({"positions": torch.zeros(2, 3)}, "positions must be int64"),
        ({"positions": torch.zeros(3, 3, dtype=torch.int64)}, "positions must be int64"),
        ({"positions": torch.full((2, 3), 25)}, r"positions must be in 0..24, got 25"),
        ({"positions": torch.full((2, 3), -1)}, r"positions must be in 0..24, got -1"),
        ({"G": torch.zeros(2, 18, 18)}, "G must be contiguous float64"),
        ({"G": torch.zeros(2, 18, 17, dtype=torch.float64)}, r"G must have shape \[2, 18, 18\]"),
        ({"C": torch.zeros(2, 3, 18, dtype=torch.float64).mT}, "C must be contiguous"),
        ({"sum_x": torch.zeros(36, dtype=torch.float64)}, "sum_x must have shape"),
        ({"sum_y": torch.zeros(2, 2, dtype=torch.float64)}, "sum_y must have shape"),
        ({"sum_yy": torch.zeros(2, 3, dtype=torch.int64)}, "sum_yy must be contiguous float64"),
    ],
)
def test_errors_say_what_is_wrong(changes: dict, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        call(**changes)


def test_errors_of_lifted_layers() -> None:
    with pytest.raises(ValueError, match="positions are for convolutions"):
        GramSums.zeros(1, 4, 0).add(torch.randn(2, 4), positions=torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="1-d kernel"):
        GramSums.zeros(1, 12, 0).add(torch.randn(2, 4), kernel=[3], stride=[1], padding=[1], dilation=[1])


@pytest.mark.parametrize("positions", [None, torch.tensor([[0, 3], [7, 7]])], ids=["all", "sampled"])
def test_opcheck(positions: Tensor | None) -> None:
    sums = GramSums.zeros(2, 18, 3)
    arguments = (
        torch.randn(2, 4, 5, 5),
        torch.randn(2, 6, 5, 5),
        [3, 3],
        [1, 1],
        [1, 1],
        [1, 1],
        2,
        positions,
    )
    torch.library.opcheck(
        torch.ops.bitsplit.gram, (*arguments, sums.G, sums.C, sums.sum_x, sums.sum_y, sums.sum_yy)
    )
