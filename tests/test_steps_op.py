"""Learned steps and dropped elements against tables, the plain quantizer and straight-through autograd."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from step_cases import dropped_of, key, layouts, memory_of, step
from torch import Tensor

from bitsplit.ops.quantize import fake_quantize
from bitsplit.ops.steps import learned_quantize, mix

OPS = torch.ops.bitsplit
GRIDS = [(-1, 1), (-8, 7), (-128, 127), (0, 3), (0, 15), (0, 255)]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
NAN, INF = math.nan, math.inf


def straight_through(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, dropped: Tensor
) -> Tensor:
    """LSQ spelled out for autograd: rounding passes gradients, clamping does not."""
    ratio = x / scale
    low, high = qmin - zero_point, qmax - zero_point
    rounded = ratio + (ratio.round() - ratio).detach()
    inside = (rounded >= low) & (rounded <= high)
    level = torch.where(inside, rounded, rounded.detach().clamp(low, high))
    return torch.where(dropped, x, level * scale)


# x, level, gradient of x, gradient of scale; scale 0.5, zero_point 1, codes -1..2: levels -2..1
TABLE = [
    (0.0, 0, 1, 0.0),
    (0.125, 0, 1, -0.25),
    (0.375, 1, 1, 0.25),
    (0.5, 1, 1, 0.0),
    (0.625, 1, 1, -0.25),
    (0.75, 1, 0, 1.0),  # 1.5 rounds to 2, beyond the range
    (9.0, 1, 0, 1.0),
    (INF, 1, 0, 1.0),
    (-0.875, -2, 1, -0.25),
    (-1.25, -2, 1, 0.5),  # -2.5 rounds to -2, inside
    (-1.375, -2, 0, -2.0),
    (-INF, -2, 0, -2.0),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("x", "level", "grad_x", "grad_scale"), TABLE)
def test_table(device, dtype, x, level, grad_x, grad_scale):
    scale, zero_point = step(0.5, 1, device)
    scale.requires_grad_()
    values = torch.tensor([x], device=device, dtype=dtype, requires_grad=True)
    y = learned_quantize(values, scale, zero_point, -1, 2, 0.0, key(device=device))
    y.backward(torch.full_like(y, 2))
    assert y.dtype == dtype and y.item() == level * 0.5
    assert values.grad.item() == 2 * grad_x
    assert scale.grad.item() == 2 * grad_scale


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("qmin", "qmax"), GRIDS)
@pytest.mark.parametrize("drop", [0.0, 0.5, 1.0])
def test_equals_the_plain_quantizer(device, dtype, qmin, qmax, drop):
    x = (torch.randn(3, 5, 24, 16) * 20).to(device, dtype)
    args = *step(0.37, max(qmin, 1), device), qmin, qmax, drop, key(3, 4, device)
    plain = fake_quantize(x, *args[:2], -1, qmin, qmax)
    dropped = dropped_of(x, drop, args[-1])
    assert torch.equal(learned_quantize(x, *args), torch.where(dropped, x, plain))


@pytest.mark.parametrize("drop", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("qmin", "qmax"), GRIDS)
def test_gradients_equal_autograd(device, qmin, qmax, drop):
    args = step(0.37, max(qmin, 1), device)
    x = (torch.randn(5, 7, 61) * 3).to(device, torch.float64).requires_grad_()
    scale = args[0].double().requires_grad_()
    grad = torch.randn(x.shape).to(x)
    y = learned_quantize(x, scale, args[1], qmin, qmax, drop, key(1, 2, device))
    slow = straight_through(x, scale, args[1], qmin, qmax, dropped_of(x.detach(), drop, key(1, 2, device)))
    torch.testing.assert_close(y, slow)
    found, expected = (torch.autograd.grad(result, (x, scale), grad) for result in (y, slow))
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale_dtype", DTYPES)
def test_dtypes_of_x_and_scale(device, dtype, scale_dtype):
    x = (torch.randn(3000) * 3).to(device, dtype).requires_grad_()
    scale = torch.tensor([0.5], device=device, dtype=scale_dtype, requires_grad=True)
    zero_point = torch.zeros(1, dtype=torch.int32, device=device)
    learned_quantize(x, scale, zero_point, -7, 7, 0.5, key(device=device)).sum().backward()
    assert x.grad.dtype == dtype and scale.grad.dtype == scale_dtype and scale.grad.shape == (1,)
    wide, step_ = x.detach().double().requires_grad_(), scale.detach().double().requires_grad_()
    dropped = dropped_of(x.detach(), 0.5, key(device=device))
    straight_through(wide, step_, zero_point, -7, 7, dropped).sum().backward()
    assert torch.equal(x.grad.double(), wide.grad)
    torch.testing.assert_close(scale.grad.double(), step_.grad, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("grad_name", ["contiguous", "channels_last", "expanded"])
def test_memory_formats(device, grad_name):
    shape = 2, 3, 5, 7
    args = *step(0.3, 0, device), -7, 7, 0.5, key(5, 6, device)
    grad = layouts(torch.randn(shape).to(device))[grad_name]
    for name, x in layouts(torch.randn(shape).to(device)).items():
        y = learned_quantize(x, *args)
        assert y.stride() == torch.empty_like(x).stride(), name
        assert torch.equal(memory_of(y), learned_quantize(memory_of(x), *args)), name
        grad_x, grad_scale = OPS.step_quantize_backward(grad, x, *args)
        assert grad_x.stride() == y.stride(), name
        like_x = torch.empty_like(x).copy_(grad)
        flat = OPS.step_quantize_backward(memory_of(like_x), memory_of(x), *args)
        assert torch.equal(memory_of(grad_x), flat[0]) and torch.equal(grad_scale, flat[1]), name


def test_the_key_is_not_looked_at_without_drop(device):
    x, nothing = torch.randn(5, device=device), torch.empty(0)
    args = *step(0.3, 0, device), -7, 7, 0.0
    y = learned_quantize(x, *args, nothing)
    assert torch.equal(y, learned_quantize(x, *args, key(1, 2, device)))
    assert torch.equal(mix(x, -x, 0.0, nothing), x)


@given(
    x=st.lists(st.floats(width=32), min_size=1, max_size=40),
    scale=st.floats(2.0**-60, 2.0**60, width=32),
    levels=st.sampled_from(GRIDS),
    drop=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(-(2**63), 2**63 - 1),
)
@settings(max_examples=200)
def test_properties(x, scale, levels, drop, seed):
    values, args = torch.tensor(x, dtype=torch.float32), (*step(scale, max(levels[0], 0)), *levels)
    dropped = dropped_of(values, drop, key(seed))
    y = learned_quantize(values, *args, drop, key(seed))
    assert torch.equal(y[dropped].nan_to_num(), values[dropped].nan_to_num())
    assert torch.equal(y.isnan(), values.isnan())
    ones = torch.ones_like(values)
    grad_x, grad_scale = OPS.step_quantize_backward(ones, values, *args, drop, key(seed))
    assert (grad_x[dropped] == 1).all() and ((grad_x == 0) | (grad_x == 1)).all()
    plain = OPS.fake_quantize_backward(ones, values, *args[:2], -1, *levels)
    assert torch.equal(grad_x[~dropped], plain[~dropped])
    assert grad_scale.isnan().item() == values[~dropped].isnan().any().item()


def test_nan(device):
    x = torch.tensor([NAN, 1.0], device=device)
    args = *step(1.0, 0, device), -7, 7, 0.0, key(device=device)
    assert learned_quantize(x, *args).isnan().tolist() == [True, False]
    grad_x, grad_scale = OPS.step_quantize_backward(torch.ones_like(x), x, *args)
    assert grad_x.tolist() == [0, 1] and grad_scale.isnan().all()


@pytest.mark.parametrize("shape", [(0,), (4, 0, 3)])
def test_empty(device, shape):
    x = torch.empty(shape, device=device)
    args = *step(1.0, 0, device), -7, 7, 0.5, key(device=device)
    assert learned_quantize(x, *args).shape == shape
    grad_x, grad_scale = OPS.step_quantize_backward(x, x, *args)
    assert grad_x.shape == shape and grad_scale.tolist() == [0]
    assert mix(x, x, 0.5, args[-1]).shape == shape


def test_scalar_tensors(device):
    scale = torch.tensor(1.0, device=device, requires_grad=True)
    zero_point = torch.zeros((), dtype=torch.int32, device=device)
    y = learned_quantize(torch.tensor(2.75, device=device), scale, zero_point, -7, 7, 0.0, key(device=device))
    y.backward()
    assert y.item() == 3 and y.shape == () and scale.grad.item() == 0.25 and scale.grad.shape == ()


def test_threads_change_nothing():
    x, grad = torch.randn(2, 8, 6, 50, 51)
    args = *step(0.3, 2), -7, 7, 0.5, key(1, 2)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        backward = OPS.step_quantize_backward(grad, x, *args)
        results.append((learned_quantize(x, *args), *backward, mix(x, grad, 0.5, key(1, 2))))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("name", ["contiguous", "channels_last", "transposed", "strided"])
@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_opcheck(device, name, drop):
    x = layouts(torch.randn(2, 3, 4, 5).to(device))[name]
    scale, zero_point = step(0.3, 2, device)
    rest = zero_point, -8, 7, drop, key(1, 2, device)
    torch.library.opcheck(OPS.step_quantize, (x.clone().requires_grad_(), scale.requires_grad_(), *rest))
    torch.library.opcheck(OPS.step_quantize_backward, (torch.randn_like(x), x, scale.detach(), *rest))
    torch.library.opcheck(OPS.mix, (x, torch.randn_like(x), drop, rest[-1]))


def test_compiles_without_a_graph_break():
    x, (scale, zero_point) = torch.randn(2, 3, 8, 8, requires_grad=True), step(0.3, 2)
    scale.requires_grad_()

    def loss(x: Tensor, scale: Tensor) -> Tensor:
        return (learned_quantize(x * 2, scale, zero_point, -7, 7, 0.5, key(1, 2)) ** 2).sum()

    expected = torch.autograd.grad(loss(x, scale), (x, scale))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(x, scale), (x, scale))
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.cuda
def test_cpu_and_gpu_give_the_same_bits():
    x, grad = torch.randn(2, 7, 5, 50, 51)
    args = *step(0.3, 2), -7, 7, 0.5, key(1, 2)
    on_gpu = [arg.cuda() if isinstance(arg, Tensor) else arg for arg in args]
    assert torch.equal(learned_quantize(x, *args), learned_quantize(x.cuda(), *on_gpu).cpu())
    ours = OPS.step_quantize_backward(grad, x, *args)
    theirs = OPS.step_quantize_backward(grad.cuda(), x.cuda(), *on_gpu)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(ours, theirs, strict=True))
    assert torch.equal(mix(x, grad, 0.5, args[-1]), mix(x.cuda(), grad.cuda(), 0.5, on_gpu[-1]).cpu())


@pytest.mark.cuda(graph=True)
def test_a_captured_graph_draws_anew():
    x, iteration = torch.randn(5000).cuda(), key(1, 2, "cuda")
    args = *step(0.3, 2, "cuda"), -7, 7, 0.5, iteration
    learned_quantize(x, *args)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = learned_quantize(x, *args)
    for number in (3, 4):
        iteration[1] = number
        graph.replay()
        assert torch.equal(y, learned_quantize(x, *args[:-1], key(1, number, "cuda")))


@pytest.mark.cuda
@pytest.mark.parametrize("scale", [0.0, -1.0, NAN, INF])
def test_bad_scales_are_nan_on_the_gpu(scale):
    x = torch.ones(1000, device="cuda")
    args = *step(scale, 0, "cuda"), -7, 7, 0.5, key(device="cuda")
    dropped = dropped_of(x, 0.5, args[-1])
    assert torch.equal(learned_quantize(x, *args).isnan(), ~dropped)
    assert OPS.step_quantize_backward(x, x, *args)[1].isnan().all()


def ones(*shape: int) -> Tensor:
    return torch.ones(shape)


ZERO = torch.zeros(1, dtype=torch.int32)
MISTAKES = [
    ((ones(3).int(), ones(1), ZERO, -7, 7, 0.5, key()), "x must be float32, float64.* got Int"),
    ((ones(3), ones(1).int(), ZERO, -7, 7, 0.5, key()), "scale must be float32, float64.* got Int"),
    ((ones(3), ones(3), ZERO, -7, 7, 0.5, key()), "scale must have 1 element on the device of x, cpu, got 3"),
    ((ones(3), ones(1), ZERO.repeat(3), -7, 7, 0.5, key()), "zero_point must have 1 element"),
    ((ones(3), ones(1), ZERO.long(), -7, 7, 0.5, key()), "zero_point must be int32, got Long"),
    (
        (ones(3), ones(1), ZERO + 8, -7, 7, 0.5, key()),
        r"zero_point must lie in \[qmin, qmax\] = \[-7, 7\], got 8",
    ),
    ((ones(3), ones(1), ZERO, 7, 7, 0.5, key()), "qmin < qmax must both lie in"),
    ((ones(3), ones(1), ZERO, -1, 200, 0.5, key()), "qmin < qmax must both lie in"),
    ((ones(3), ones(1), ZERO, -7, 7, 1.5, key()), r"drop must lie in \[0, 1\], got 1.5"),
    ((ones(3), ones(1), ZERO, -7, 7, -0.5, key()), r"drop must lie in \[0, 1\], got -0.5"),
    ((ones(3), ones(1), ZERO, -7, 7, NAN, key()), r"drop must lie in \[0, 1\], got nan"),
    ((ones(3), ones(1), ZERO, -7, 7, 0.5, key().int()), r"key must be int64 \[2\] .*, got Int \[2\] cpu"),
    ((ones(3), ones(1), ZERO, -7, 7, 0.5, key()[:1]), r"key must be int64 \[2\] .*, got Long \[1\] cpu"),
    *(
        ((ones(3), ones(1) * bad, ZERO, -7, 7, 0.5, key()), "scale must be positive and finite")
        for bad in (0.0, -1.0, NAN, INF)
    ),
]


@pytest.mark.parametrize(("args", "message"), MISTAKES)
def test_mistakes(args, message):
    with pytest.raises(RuntimeError, match=message):
        learned_quantize(*args)
    with pytest.raises(RuntimeError, match=message):
        OPS.step_quantize_backward(ones(3), *args)


def test_mistakes_of_backward_and_mix():
    with pytest.raises(RuntimeError, match="grad must have the shape, dtype and device of x"):
        OPS.step_quantize_backward(ones(2), ones(3), ones(1), ZERO, -7, 7, 0.0, key())
    with pytest.raises(RuntimeError, match="a must be float32, float64.* got Int"):
        mix(ones(3).int(), ones(3).int(), 0.5, key())
    with pytest.raises(RuntimeError, match="b must have the shape, dtype and device of a"):
        mix(ones(3), ones(3).half(), 0.5, key())
    with pytest.raises(RuntimeError, match=r"share must lie in \[0, 1\], got 2"):
        mix(ones(3), ones(3), 2.0, key())
    with pytest.raises(RuntimeError, match=r"key must be int64 \[2\]"):
        mix(ones(3), ones(3), 0.5, torch.empty(0))
