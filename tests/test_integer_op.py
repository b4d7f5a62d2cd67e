"""The operators of networks in integers against plain arithmetic on Python's own numbers."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bitsplit.ops.integer import integer_conv, requantize

ONES, NONE = (1, 1), (0, 0)


def on(device: torch.device, *values: int, dtype=torch.int32) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


class TestRequantize:
    @given(st.integers(-(2**31), 2**31 - 1), st.integers(-50, 80), st.integers(1, 2**20 - 1) | st.just(1))
    def test_one_rounding_half_to_even(self, value, shift, divisor):
        exact = round(Fraction(value) / divisor / Fraction(2) ** shift)
        found = requantize(torch.tensor([value]).int(), torch.tensor([shift]).int(), divisor, -300, 400)
        assert found.dtype == torch.int16
        assert found.item() == max(-300, min(400, exact))

    def test_by_hand(self, device):
        values = on(device, 5, 6, 7, 10, -5, -6, -7, -10)
        assert requantize(values, on(device, 2), 1, -9, 9).tolist() == [1, 2, 2, 2, -1, -2, -2, -2]
        assert requantize(values, on(device, -1), 1, -20, 13).tolist() == [10, 12, 13, 13, -10, -12, -14, -20]
        assert requantize(values, on(device, 0), 3, -9, 9).tolist() == [2, 2, 2, 3, -2, -2, -2, -3]

    def test_a_shift_for_every_channel(self, device):
        values = torch.full((2, 3, 2, 2), 24, dtype=torch.int32, device=device)
        found = requantize(values, on(device, 0, 2, 4).view(3, 1, 1), 1, -99, 99)
        assert found[1, :, 0, 1].tolist() == [24, 6, 2]
        strided = requantize(values.transpose(0, 1), on(device, 1), 1, -99, 99)
        assert strided.shape == (3, 2, 2, 2)

    def test_nothing(self, device):
        assert requantize(on(device), on(device), 1, 0, 1).shape == (0,)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"values": torch.zeros(1)}, "values must be Int"),
            ({"shift": torch.zeros(1)}, "shift must be Int"),
            ({"shift": torch.zeros(2, dtype=torch.int32)}, "expand"),
            ({"divisor": 0}, "divisor must be 1 to"),
            ({"divisor": 2**20}, "divisor must be 1 to"),
            ({"low": 3, "high": 2}, "low and high"),
            ({"high": 2**15}, "low and high"),
        ],
    )
    def test_arguments(self, change, message):
        good = {"values": torch.zeros(1).int(), "shift": torch.zeros(1).int(), "divisor": 1}
        with pytest.raises(RuntimeError, match=message):
            requantize(**{**good, "low": -1, "high": 1, **change})


class TestConv:
    @pytest.mark.parametrize("groups", [1, 2, 6])
    @pytest.mark.parametrize(
        ("kernel", "stride", "padding", "dilation"),
        [((3, 3), ONES, ONES, ONES), ((1, 1), (2, 1), NONE, ONES), ((2, 3), (1, 2), (0, 2), (2, 1))],
    )
    def test_is_a_convolution(self, device, groups, kernel, stride, padding, dilation):
        x = torch.randint(-255, 256, (3, 6, 7, 9), dtype=torch.int16)
        weight = torch.randint(-255, 256, (12, 6 // groups, *kernel), dtype=torch.int16)
        bias = torch.randint(-(10**6), 10**6, (12,), dtype=torch.int32)
        wanted = F.conv2d(x.double(), weight.double(), bias.double(), stride, padding, dilation, groups)
        given = (tensor.to(device) for tensor in (x, weight, bias))
        found = integer_conv(*given, stride, padding, dilation, groups)
        assert found.dtype == torch.int32
        assert torch.equal(found.cpu().double(), wanted)

    def test_threads_and_layout_change_nothing(self):
        x = torch.randint(-9, 9, (5, 4, 6, 6)).short().to(memory_format=torch.channels_last)
        weight = torch.randint(-9, 9, (8, 4, 3, 3)).short().to(memory_format=torch.channels_last)
        torch.set_num_threads(1)
        one = integer_conv(x, weight, None, ONES, ONES, ONES, 1)
        torch.set_num_threads(2)
        assert torch.equal(integer_conv(x.contiguous(), weight, None, ONES, ONES, ONES, 1), one)

    def test_sums_up_to_the_end_of_int32(self, device):
        x = torch.full((1, 2, 1, 1), 2**15 - 1, dtype=torch.int16, device=device)
        weight = torch.full((1, 2, 1, 1), 2**14, dtype=torch.int16, device=device)
        found = integer_conv(x, weight, on(device, 2**31 - 1 - 2**30 + 2**15), ONES, NONE, ONES, 1)
        assert found.item() == 2**31 - 1

    @pytest.mark.parametrize("shape", [(0, 4, 5, 5), (2, 4, 5, 5)])
    def test_no_images_no_filters(self, device, shape):
        filters = 3 if shape[0] == 0 else 0
        x = torch.zeros(shape, dtype=torch.int16, device=device)
        weight = torch.zeros(filters, 4, 3, 3, dtype=torch.int16, device=device)
        assert integer_conv(x, weight, None, ONES, NONE, ONES, 1).shape == (shape[0], filters, 3, 3)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"x": torch.zeros(1, 4, 5, 5)}, "input must be Short"),
            ({"x": torch.zeros(4, 5, 5).short()}, "input must have 4 axes"),
            ({"weight": torch.zeros(2, 3, 3, 3).short()}, "does not fit weight"),
            ({"groups": 3}, "does not fit weight"),
            ({"bias": torch.zeros(3).int()}, "bias must have 2 elements"),
            ({"bias": torch.zeros(2)}, "bias must be Int"),
            ({"stride": (0, 1)}, "stride must be"),
            ({"padding": (0, -1)}, "padding must be"),
            ({"dilation": (1,)}, "dilation must be"),
            ({"dilation": (3, 1)}, "does not fit into the input"),
        ],
    )
    def test_arguments(self, change, message):
        good = {"x": torch.zeros(1, 4, 5, 5).short(), "weight": torch.zeros(2, 4, 3, 3).short(), "bias": None}
        good |= {"stride": ONES, "padding": NONE, "dilation": ONES, "groups": 1}
        with pytest.raises(RuntimeError, match=message):
            integer_conv(**{**good, **change})


@pytest.mark.parametrize("name", ["integer_conv", "requantize"])
def test_operators_pass_opcheck(name, device):
    x = torch.randint(-9, 9, (2, 4, 5, 5), dtype=torch.int16, device=device)
    weight = torch.randint(-9, 9, (6, 2, 3, 3), dtype=torch.int16, device=device)
    values = torch.randint(-99, 99, (2, 3, 4), dtype=torch.int32, device=device)
    arguments = {
        "integer_conv": (x, weight, None, (2, 1), (1, 0), (1, 2), 2),
        "requantize": (values, on(device, 1, 2, 3, 4), 3, -7, 7),
    }
    torch.library.opcheck(getattr(torch.ops.bitsplit, name).default, arguments[name])
