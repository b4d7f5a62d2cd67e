"""The element-wise quantization operators against tables worked out by hand and a plain PyTorch reference."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitsplit.ops import reference
from bitsplit.ops.quantize import dequantize, fake_quantize, quantize

OPS = torch.ops.bitsplit
GRIDS = [(-1, 1), (-7, 7), (-8, 7), (-127, 127), (-128, 127), (0, 3), (0, 15), (0, 255)]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
NAN, INF = math.nan, math.inf


def grid(qmin: int, qmax: int, channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random scales and zero points of a grid; symmetric grids have none."""
    scale = (torch.rand(channels) + 0.05).to(device)
    zero_point = torch.randint(qmin, qmax + 1, (channels,), dtype=torch.int32)
    return scale, (zero_point * (qmin != -qmax)).int().to(device)


# x, scale, zero_point, (qmin, qmax), code, value
TABLE = [
    (0.5, 1.0, 0, (-7, 7), 0, 0.0),  # ties go to the even level
    (1.5, 1.0, 0, (-7, 7), 2, 2.0),
    (2.5, 1.0, 0, (-7, 7), 2, 2.0),
    (-0.5, 1.0, 0, (-7, 7), 0, 0.0),
    (-1.5, 1.0, 0, (-7, 7), -2, -2.0),
    (0.75, 0.5, 0, (-7, 7), 2, 1.0),
    (6.5, 1.0, 0, (-7, 7), 6, 6.0),
    (7.5, 1.0, 0, (-7, 7), 7, 7.0),  # saturation
    (100.0, 1.0, 0, (-7, 7), 7, 7.0),
    (-100.0, 1.0, 0, (-7, 7), -7, -7.0),
    (-100.0, 1.0, 0, (-8, 7), -8, -8.0),
    (3e38, 1e-30, 0, (-7, 7), 7, 7e-30),  # x / scale overflows
    (INF, 0.25, 0, (0, 15), 15, 3.75),
    (-INF, 0.25, 0, (0, 15), 0, 0.0),
    (-1.0, 1.0, 0, (0, 15), 0, 0.0),
    (-1.0, 1.0, 3, (0, 15), 2, -1.0),  # zero points: zero stays exact, the range moves
    (0.0, 0.1, 3, (0, 15), 3, 0.0),
    (20.0, 1.0, 3, (0, 15), 15, 12.0),
    (-20.0, 1.0, 3, (0, 15), 0, -3.0),
    (2.5, 1.0, 3, (0, 15), 5, 2.0),  # the level is rounded to even, not the code
    (255.4, 1.0, 0, (0, 255), 255, 255.0),
    (1e-40, 1e-38, 0, (-1, 1), 0, 0.0),  # a subnormal number
]


@pytest.mark.parametrize(("x", "scale", "zero_point", "levels", "code", "value"), TABLE)
def test_table(device, x, scale, zero_point, levels, code, value):
    args = (
        torch.tensor([scale], device=device),
        torch.tensor([zero_point], dtype=torch.int32, device=device),
        -1,
    )
    values = torch.tensor([x], device=device)
    assert quantize(values, *args, *levels).item() == code
    assert fake_quantize(values, *args, *levels).item() == torch.tensor(value).item()


def test_zero_is_never_negative(device):
    x, scale = torch.tensor([-0.0, -0.3, 0.3], device=device), torch.ones(1, device=device)
    y = fake_quantize(x, scale, torch.zeros(1, dtype=torch.int32, device=device), -1, -7, 7)
    assert not y.signbit().any()


def test_nan(device):
    x = torch.tensor([NAN, 1.0], device=device)
    args = torch.ones(1, device=device), torch.tensor([5], dtype=torch.int32, device=device), -1, 0, 15
    assert fake_quantize(x, *args).isnan().tolist() == [True, False]
    assert quantize(x, *args).tolist() == [5, 6]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("qmin", "qmax"), GRIDS)
def test_equals_the_reference(device, qmin, qmax, dtype):
    x = (torch.randn(3, 5, 4, 6) * 40).to(device, dtype)
    for axis in range(-1, 4):
        args = *grid(qmin, qmax, 1 if axis < 0 else x.shape[axis], device), axis
        assert torch.equal(fake_quantize(x, *args, qmin, qmax), reference.fake_quantize(x, *args, qmin, qmax))
        codes = quantize(x, *args, qmin, qmax)
        assert codes.dtype == (torch.int8 if qmin < 0 else torch.uint8)
        assert torch.equal(codes, reference.quantize(x, *args, qmin, qmax))
        assert torch.equal(dequantize(codes, *args), reference.dequantize(codes, *args))


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The values of x (4 dimensions) in many memory formats."""
    wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], device=x.device)
    wide[..., ::2] = x
    return {
        "contiguous": x,
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.transpose(0, 3).contiguous().transpose(0, 3),
        "strided": wide[..., ::2],
        "expanded": x[:1].expand_as(x),
        "offset": torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    }


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 70, 1, 3), (3, 1, 9, 1), (2, 40, 8, 8), (5, 2, 3, 1)])
def test_memory_formats(device, shape):
    for name, x in layouts(torch.randn(shape).to(device)).items():
        for axis in range(-1, 4):
            args = *grid(-8, 7, 1 if axis < 0 else x.shape[axis], device), axis, -8, 7
            y = fake_quantize(x, *args)
            assert torch.equal(y, reference.fake_quantize(x, *args)), (name, axis)
            assert y.stride() == torch.empty_like(x).stride(), (name, axis)
            assert quantize(x, *args).stride() == y.stride(), (name, axis)


@given(
    x=st.lists(st.floats(width=32), min_size=1, max_size=40),
    scale=st.floats(2.0**-100, 2.0**100, width=32),
    levels=st.sampled_from(GRIDS),
    position=st.floats(0, 1),
)
@settings(max_examples=200)
def test_properties(x, scale, levels, position):
    qmin, qmax = levels
    zero_point = 0 if qmin == -qmax else round(qmin + position * (qmax - qmin))
    args = torch.tensor([scale]), torch.tensor([zero_point], dtype=torch.int32), -1
    values = torch.tensor(x, dtype=torch.float32)
    y = fake_quantize(values, *args, *levels)
    codes = quantize(values, *args, *levels)
    assert ((codes.int() >= qmin) & (codes.int() <= qmax)).all()
    known = ~values.isnan()
    assert torch.equal(y.isnan(), ~known)
    assert torch.equal(dequantize(codes, *args)[known], y[known])  # the same bits
    assert torch.equal(fake_quantize(y, *args, *levels)[known], y[known])  # nothing happens twice
    order = values[known].argsort()
    assert (y[known][order].diff() >= 0).all()  # monotone
    low, high = (qmin - zero_point) * scale, (qmax - zero_point) * scale
    inside = known & (values.double() >= low) & (values.double() <= high)
    assert ((y - values).double().abs()[inside] <= scale * 0.500001).all()


@pytest.mark.parametrize("bits", range(2, 9))
def test_round_trip_of_all_codes(device, bits):
    for qmin, qmax in [(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1), (0, 2**bits - 1)]:
        dtype = torch.int8 if qmin < 0 else torch.uint8
        codes = torch.arange(qmin, qmax + 1, device=device).to(dtype)
        args = torch.tensor([0.037], device=device), torch.tensor([1], dtype=torch.int32, device=device), -1
        assert torch.equal(quantize(dequantize(codes, *args), *args, qmin, qmax), codes)


@pytest.mark.parametrize("shape", [(0,), (0, 4, 3), (4, 0, 3)])
def test_empty(device, shape):
    x = torch.empty(shape, device=device)
    args = torch.ones(1, device=device), torch.zeros(1, dtype=torch.int32, device=device), -1
    assert fake_quantize(x, *args, 0, 15).shape == shape
    codes = quantize(x, *args, 0, 15)
    assert codes.shape == shape
    assert dequantize(codes, *args).shape == shape


def test_scalar_tensor(device):
    args = torch.ones(1, device=device), torch.zeros(1, dtype=torch.int32, device=device), -1, -7, 7
    assert fake_quantize(torch.tensor(2.6, device=device), *args).item() == 3.0


def test_threads_change_nothing():
    x = torch.randn(8, 6, 50, 50)
    scale, zero_point = grid(-7, 7, 6, torch.device("cpu"))
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(fake_quantize(x, scale, zero_point, 1, -7, 7))
    assert torch.equal(*results)


def test_equals_torch_fake_quantize():
    x = torch.randn(4, 6, 9, 9) * 3
    scale, zero_point = grid(0, 15, 6, x.device)
    ours = fake_quantize(x, scale, zero_point, 1, 0, 15)
    # torch multiplies by the rounded inverse of scale, so values next to a tie may move by one level
    torchs = torch.fake_quantize_per_channel_affine(x, scale, zero_point, 1, 0, 15)
    different = ours != torchs
    wide = scale.double().view(1, -1, 1, 1).expand_as(x)
    distance_to_tie = ((x.double() / wide) % 1 - 0.5).abs()
    assert (distance_to_tie[different] < 1e-5).all()
    assert different.float().mean() < 1e-3


class TestGradient:
    # x, level range -2..1 with scale 0.5: representable from -1.0 to 0.5
    X = (-2.0, -1.3, -1.25, -1.2, -1.0, 0.0, 0.5, 0.7, 0.75, 0.8, NAN, INF)
    PASSES = (0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0)  # -1.25 / 0.5 = -2.5 rounds to -2, 0.75 / 0.5 = 1.5 to 2

    def test_table(self, device):
        x = torch.tensor(self.X, device=device, requires_grad=True)
        args = torch.tensor([0.5], device=device), torch.tensor([1], dtype=torch.int32, device=device), -1
        weights = torch.arange(1.0, 13, device=device)
        (fake_quantize(x, *args, -1, 2) * weights).sum().backward()
        assert torch.equal(x.grad, weights * torch.tensor(self.PASSES, device=device))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_equals_the_reference(self, device, dtype):
        x = (torch.randn(2, 3, 8, 8) * 4).to(device, dtype).contiguous(memory_format=torch.channels_last)
        args = *grid(-7, 7, 3, device), 1, -7, 7
        grad = torch.randn(2, 3, 8, 8).to(device, dtype)
        ours, slow = x.clone().requires_grad_(), x.clone().requires_grad_()
        fake_quantize(ours, *args).backward(grad)
        reference.fake_quantize(slow, *args).backward(grad)
        assert torch.equal(ours.grad, slow.grad)

    def test_second_derivative_of_the_incoming_gradient(self):
        x = torch.randn(5, 4, dtype=torch.float64)
        args = *grid(-1, 1, 4, x.device), 1, -1, 1
        grad = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda g: OPS.fake_quantize_backward(g, x, *args), grad)

    def test_scale_gets_none(self):
        scale = torch.ones(1, requires_grad=True)
        x = torch.randn(4, requires_grad=True)
        fake_quantize(x, scale, torch.zeros(1, dtype=torch.int32), -1, -7, 7).sum().backward()
        assert scale.grad is None


@pytest.mark.parametrize("name", ["contiguous", "channels_last", "transposed", "strided"])
@pytest.mark.parametrize("axis", [-1, 1])
def test_opcheck(device, name, axis):
    x = layouts(torch.randn(2, 3, 4, 5).to(device))[name]
    args = *grid(-8, 7, 1 if axis < 0 else 3, device), axis, -8, 7
    torch.library.opcheck(OPS.fake_quantize, (x.clone().requires_grad_(), *args))
    torch.library.opcheck(OPS.fake_quantize_backward, (torch.randn_like(x), x, *args))
    torch.library.opcheck(OPS.quantize, (x, *args))
    torch.library.opcheck(OPS.dequantize, (quantize(x, *args), *args[:3]))


def test_compiles_without_a_graph_break():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    args = *grid(-7, 7, 3, x.device), 1, -7, 7

    def loss(x: Tensor) -> Tensor:
        return (fake_quantize(x * 2, *args) ** 2).sum()

    expected = torch.autograd.grad(loss(x), x)[0]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(torch.autograd.grad(compiled(x), x)[0], expected)


def ones(*shape: int) -> Tensor:
    return torch.ones(shape)


ZERO = torch.zeros(1, dtype=torch.int32)
MISTAKES = [
    ((ones(3).int(), ones(1), ZERO, -1, -7, 7), "x must be float32, float64"),
    ((ones(3), ones(1), ZERO, 1, -7, 7), "axis must be -1 .* or a dimension of x, got 1"),
    ((ones(3), ones(1), ZERO, -2, -7, 7), "axis must be"),
    ((ones(3), ones(2), ZERO.repeat(2), 0, -7, 7), "scale must have 1 element or one per channel .3 along"),
    ((ones(3), ones(3), ZERO.repeat(3), -1, -7, 7), "scale must have 1 element"),
    ((ones(3), ones(3), ZERO, 0, -7, 7), "zero_point must have as many elements as scale, 3, got 1"),
    ((ones(3), ones(1), ZERO.long(), -1, -7, 7), "zero_point must be int32, got Long"),
    ((ones(3), ones(1).int(), ZERO, -1, -7, 7), "scale must be float32, float64"),
    ((ones(3), ones(1), ZERO, -1, 7, 7), "qmin < qmax must both lie in"),
    ((ones(3), ones(1), ZERO, -1, -1, 200), "qmin < qmax must both lie in"),
    ((ones(3), ones(1), ZERO, -1, 0, 256), "qmin < qmax must both lie in"),
]


@pytest.mark.parametrize(("args", "message"), MISTAKES)
def test_mistakes(args, message):
    for operator in (fake_quantize, quantize):
        with pytest.raises(RuntimeError, match=message):
            operator(*args)


@pytest.mark.parametrize("scale", [0.0, -1.0, NAN, INF])
def test_bad_scales_are_errors_on_the_cpu(scale):
    scales = torch.tensor([1.0, scale, 1.0])
    with pytest.raises(RuntimeError, match="scale must be positive and finite, got .* for channel 1"):
        fake_quantize(ones(3), scales, ZERO.repeat(3), 0, -7, 7)


@pytest.mark.cuda
@pytest.mark.parametrize("scale", [0.0, -1.0, NAN, INF])
def test_bad_scales_are_nan_on_the_gpu(scale):
    x, scales = ones(3, 2).cuda(), torch.tensor([1.0, scale, 1.0]).cuda()
    y = fake_quantize(x, scales, ZERO.repeat(3).cuda(), 0, -7, 7)
    assert y.isnan().all(1).tolist() == [False, True, False]


def test_zero_point_outside_the_codes():
    with pytest.raises(RuntimeError, match=r"zero_point must lie in \[qmin, qmax\] = \[0, 15\], got 16"):
        fake_quantize(ones(3), ones(1), ZERO + 16, -1, 0, 15)


def test_mistakes_of_dequantize_and_backward():
    with pytest.raises(RuntimeError, match="codes must be int8 or uint8, got Float"):
        dequantize(ones(3), ones(1), ZERO, -1)
    with pytest.raises(RuntimeError, match="scale must be float32 or float64, got Half"):
        dequantize(ones(3).to(torch.int8), ones(1).half(), ZERO, -1)
    with pytest.raises(RuntimeError, match="grad must have the shape, dtype and device of x"):
        OPS.fake_quantize_backward(ones(2), ones(3), ones(1), ZERO, -1, -7, 7)
