"""Arguments at the ends of what numbers can hold: an error or the right result, never another one."""

from __future__ import annotations

import pytest
import torch

from bitsplit.ops.gram import GramSums
from bitsplit.ops.loss import reconstruction_loss
from bitsplit.ops.ranges import histogram, lp_search
from bitsplit.ops.split import fwa, polish
from bitsplit.ops.steps import learned_quantize

OPS = torch.ops.bitsplit


@pytest.mark.parametrize(
    ("x", "low", "high"),
    [
        (torch.tensor([1.0]), -1e300, 1e300),
        (torch.tensor([1e308, -1.0], dtype=torch.float64), -1e308, 1e308),
        (torch.tensor([float("inf")]), 0.0, 1e300),
        (torch.tensor([1.0]), 0.0, 1e-44),
    ],
)
def test_cells_of_a_histogram_that_no_number_tells_apart(device, x, low, high):
    with pytest.raises(RuntimeError, match="low < high must be finite and told apart"):
        histogram(x.to(device), low, high, 4)


def test_infinite_values_go_to_the_ends_of_a_histogram(device):
    x = torch.tensor([-torch.inf, 0.5, torch.inf, torch.nan], device=device)
    assert histogram(x, 0.0, 1.0, 4).tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize("rounds", [2**31, 2**32, 2**63 - 1])
def test_more_rounds_than_int32_counts_are_as_many_as_it_takes(device, rounds):
    torch.manual_seed(0)
    weight, x = torch.randn(1, 4, 20, device=device), torch.randn(20, 60, device=device)
    gram = (x @ x.T)[None]
    cross = gram @ weight.transpose(1, 2)
    codes, scale = fwa(weight, 3)
    levels = torch.tensor([-3, 3], dtype=torch.int8, device=device).expand(1, 4, 2)
    enough, many = (polish(codes, scale, gram, cross, levels, most) for most in (1000, rounds))
    assert torch.equal(enough.codes, many.codes) and torch.equal(enough.scale, many.scale)


def test_autograd_sees_what_operators_write():
    weight, x = torch.full((3,), 2.0), torch.ones(3, requires_grad=True)
    loss = (x * weight).sum()
    state = [torch.zeros(3) for _ in range(3)]
    base, scale = torch.zeros(3, dtype=torch.int16), torch.ones(1)
    schedule = torch.tensor([0.1, 1.0, 0.0, 2.0])
    OPS.rounding_step([weight], [torch.ones(3)], *([s] for s in state), [base], [scale], [-1], schedule)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    sums = GramSums.zeros(1, 4, 2, torch.device("cpu"))
    before = sums.G._version
    sums.add(torch.randn(2, 4, 3, 3), torch.randn(2, 2, 3, 3), kernel=(1, 1), stride=(1, 1), padding=(0, 0),
             dilation=(1, 1))  # fmt: skip
    assert sums.G._version > before and sums.C._version > 0


def test_geometry_beyond_all_images():
    sums = GramSums.zeros(1, 25, 1, torch.device("cpu"))
    options = {"kernel": (5, 5), "stride": (1, 1), "padding": (0, 0)}
    with pytest.raises(RuntimeError, match=r"dilation must lie in \[1, 1073741824\]"):
        sums.add(torch.randn(1, 1, 4, 4), None, dilation=(2**62, 2**62), **options)
    x, weight = torch.ones(1, 1, 4, 4).short(), torch.ones(1, 1, 5, 5).short()
    with pytest.raises(RuntimeError, match=r"dilation must be two numbers in \[1, 1073741824\]"):
        OPS.integer_conv(x, weight, None, [1, 1], [0, 0], [2**62, 2**62], 1)
    with pytest.raises(RuntimeError, match="the kernel must have 1 element or more, got 0"):
        OPS.integer_conv(x, torch.ones(1, 1, 0, 1).short(), None, [1, 1], [0, 0], [1, 1], 1)


@pytest.mark.parametrize(("p", "scale"), [(1e39, 1.0), (2.0, 1e39), (3.0, 2e38)])
def test_powers_beyond_float32_are_refused(device, p, scale):
    with pytest.raises(RuntimeError, match="must be (positive and )?finite"):
        reconstruction_loss(torch.ones(3, device=device), torch.zeros(3, device=device), p=p, scale=scale)
    wide = torch.ones(3, device=device, dtype=torch.float64)
    assert reconstruction_loss(wide, wide, p=p, scale=scale).loss == 0


@pytest.mark.parametrize(
    ("low", "high", "dtype"), [(-3e38, 3e38, torch.float32), (-1.2e308, 1.2e308, torch.float64)]
)
def test_scales_of_the_widest_ranges_are_finite(device, low, high, dtype):
    ends = torch.tensor([low, high], dtype=dtype, device=device)
    found = lp_search(ends, -1, 0, 15, ends[:1], ends[1:], 4)
    assert found.scale.isfinite().all() and 0 <= found.zero_point.item() <= 15


def test_second_derivatives_are_refused():
    scale, x = torch.tensor([0.3], requires_grad=True), torch.randn(20)
    step = (torch.zeros(1, dtype=torch.int32), -7, 7, 0.0, torch.tensor([0, 0]))
    loss = learned_quantize(x, scale, *step).square().sum()
    (slope,) = torch.autograd.grad(loss, scale, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        slope.backward()
