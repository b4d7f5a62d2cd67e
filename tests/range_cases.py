"""What the tests of ranges and of the search for them share."""

import math

import torch
from hypothesis import strategies as st
from torch import Tensor

OPS = torch.ops.bitsplit
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
GRIDS = [(-1, 1), (-7, 7), (-127, 127), (-8, 7), (0, 3), (0, 255)]
FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
NAN, INF = math.nan, math.inf


def layouts(x: Tensor) -> list[Tensor]:
    """The values of x (4 dimensions) in several memory formats."""
    return [x, x.contiguous(memory_format=torch.channels_last), x.transpose(0, 3), x[:, :, ::2]]


def with_threads(threads: int, function, *args):
    torch.set_num_threads(threads)
    return function(*args)
