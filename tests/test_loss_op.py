"""The reconstruction loss against tables worked out by hand, plain PyTorch and autograd."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitsplit.ops.loss import class_divergence, reconstruction_loss

OP = torch.ops.bitsplit.reconstruction_loss
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
NAN, INF = math.nan, math.inf


def slow(
    output: Tensor, target: Tensor, weight: Tensor | None, p: float, scale: float
) -> tuple[Tensor, Tensor]:
    """In float64, the gradient by autograd, which has none where values are equal and p < 1."""
    wide = output.detach().double().requires_grad_()
    terms = (wide - target.double()).abs().pow(p)
    loss = scale * (terms if weight is None else weight.double() * terms).sum()
    (grad,) = torch.autograd.grad(loss, wide)
    return loss.detach(), grad.where(output != target, 0)


def assert_equals_the_slow_one(output: Tensor, target: Tensor, weight: Tensor | None, p: float, scale: float):
    found = reconstruction_loss(output, target, weight, p, scale)
    loss, grad = slow(output, target, weight, p, scale)
    precision = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 2e-5, torch.float64: 1e-12}
    assert found.loss.dtype == torch.float64 and found.loss.shape == ()
    assert found.grad.dtype == output.dtype and found.grad.stride() == torch.empty_like(output).stride()
    torch.testing.assert_close(found.loss, loss, rtol=min(precision[output.dtype], 2e-5), atol=0)
    # float32 differences of numbers around 1 are exact to about 1e-7
    torch.testing.assert_close(found.grad.double(), grad, rtol=precision[output.dtype], atol=1e-6)


# output, target, weight, p, scale, loss, grad
TABLE = [
    (3.0, 1.0, 1.0, 2.0, 1.0, 4.0, 4.0),
    (1.0, 3.0, 1.0, 2.0, 1.0, 4.0, -4.0),
    (1.0, 3.0, 0.5, 2.0, 10.0, 20.0, -20.0),
    (1.0, 3.0, 0.0, 2.0, 1.0, 0.0, 0.0),
    (1.0, 1.0, 1.0, 2.0, 1.0, 0.0, 0.0),
    (5.0, 1.0, 1.0, 1.0, 1.0, 4.0, 1.0),
    (1.0, 5.0, 2.0, 1.0, 1.0, 8.0, -2.0),
    (5.0, 1.0, 1.0, 0.5, 1.0, 2.0, 0.25),  # 4^0.5, 0.5 * 4^-0.5
    (5.0, 1.0, 1.0, 3.0, 0.5, 32.0, 24.0),  # 4^3 / 2, 3 * 4^2 / 2
    (1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0),  # equal values: no gradient for any p
    (1.0, 1.0, 1.0, 0.5, 1.0, 0.0, 0.0),
    (1.0, 1.0, 1.0, 2.4, 1.0, 0.0, 0.0),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("output", "target", "weight", "p", "scale", "loss", "grad"), TABLE)
def test_table(device, dtype, output, target, weight, p, scale, loss, grad):
    output, target, weight = (torch.tensor([x], device=device, dtype=dtype) for x in (output, target, weight))
    found = reconstruction_loss(output, target, weight, p, scale)
    assert found.loss.item() == pytest.approx(loss, rel=1e-5)
    assert found.grad.item() == pytest.approx(grad, rel=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.7, 1.0, 2.0, 2.4, 4.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_autograd(device, dtype, p, weighted):
    output, target = torch.randn(2, 3, 31, 47).to(device, dtype), torch.randn(2, 3, 31, 47).to(device, dtype)
    weight = torch.rand(output.shape).to(device, dtype) if weighted else None
    assert_equals_the_slow_one(output, target, weight, p, 0.01)


@pytest.mark.parametrize("numel", [1, 2, 255, 256, 257, 2047, 2048, 2049, 4096, 9000])
def test_sizes(device, numel):
    assert_equals_the_slow_one(torch.randn(numel).to(device), torch.randn(numel).to(device), None, 2.0, 1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("p", [2.0, 2.4])
@pytest.mark.parametrize("weighted", [False, True])
def test_an_output_in_half_precision_may_have_exact_targets(device, dtype, p, weighted):
    """As if it had been made float32 first, and the gradient rounded."""
    output = torch.randn(3, 5, 31, 17).to(device, dtype)
    target = torch.randn(3, 31, 5, 17, device=device).transpose(1, 2)
    weight = torch.rand(target.shape, device=device) if weighted else None
    found, wide = (reconstruction_loss(x, target, weight, p, 0.01) for x in (output, output.float()))
    assert torch.equal(found.loss, wide.loss)
    assert found.grad.dtype == dtype and torch.equal(found.grad, wide.grad.to(dtype))


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The values of x (4 dimensions) in many memory formats."""
    return {
        "contiguous": x,
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.transpose(0, 3).contiguous().transpose(0, 3),
        "strided": torch.stack([x, -x], 4)[..., 0],
        "expanded": x[:1].expand_as(x),
    }


def test_memory_formats(device):
    shape = 3, 5, 8, 7
    outputs, targets, weights = (layouts(torch.randn(shape).to(device)) for _ in range(3))
    for output in outputs.values():
        for target in targets.values():
            assert_equals_the_slow_one(output, target, weights["transposed"], 2.0, 1.0)
    for weight in weights.values():
        assert_equals_the_slow_one(outputs["channels_last"], targets["contiguous"], weight, 2.4, 1.0)


@given(
    pairs=st.lists(st.tuples(*[st.floats(-100, 100, width=32)] * 2), max_size=30),
    p=st.floats(0.5, 4),
    scale=st.floats(2.0**-20, 10),  # below, doubling a result of subnormal size rounds
)
@settings(max_examples=100)
def test_properties(pairs, p, scale):
    output, target = torch.tensor(pairs).reshape(-1, 2).unbind(1)
    loss, grad = reconstruction_loss(output, target, None, p, scale)
    assert loss >= 0
    assert (grad * (output - target) >= 0).all()  # downhill is towards the target
    assert (grad[output == target] == 0).all()
    mirrored = reconstruction_loss(target, output, None, p, scale)
    assert torch.equal(mirrored.loss, loss) and torch.equal(mirrored.grad, -grad)
    twice = reconstruction_loss(output, target, torch.full_like(output, 2), p, scale)
    assert torch.equal(twice.loss, 2 * loss) and torch.equal(twice.grad, 2 * grad)


def test_many_terms_are_added_up_exactly(device):
    numel = 2**24 + 3  # where a sum in float32 would stand still
    loss, _ = reconstruction_loss(torch.ones(numel, device=device), torch.zeros(numel, device=device))
    assert loss.item() == numel


@pytest.mark.parametrize("p", [2.0, 2.4])
def test_nan_and_infinity(device, p):
    output, target = torch.tensor([1.0, NAN, 2.0], device=device), torch.zeros(3, device=device)
    for args in [(output, target), (target, output)]:
        loss, grad = reconstruction_loss(*args, None, p)
        assert loss.isnan() and grad.isnan().tolist() == [False, True, False]
    weight = torch.tensor([NAN, 0.0, 0.0], device=device)
    assert reconstruction_loss(target, target, weight, p).loss.isnan()
    assert reconstruction_loss(output.new_tensor([INF]), target[:1], None, p).loss.item() == INF


@pytest.mark.parametrize("shape", [(0,), (4, 0, 3)])
def test_empty(device, shape):
    x = torch.empty(shape, device=device)
    loss, grad = reconstruction_loss(x, x, x, 2.4)
    assert loss.item() == 0 and loss.dtype == torch.float64 and grad.shape == shape


def test_scalar_tensor(device):
    loss, grad = reconstruction_loss(torch.tensor(3.0, device=device), torch.tensor(1.0, device=device))
    assert loss.item() == 4 and grad.item() == 4 and grad.shape == ()


@pytest.mark.parametrize("p", [2.0, 2.4])
def test_threads_change_nothing(p):
    output, target, weight = torch.randn(3, 8, 6, 50, 51)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(reconstruction_loss(output, target, weight, p))
    assert torch.equal(results[0].loss, results[1].loss) and torch.equal(results[0].grad, results[1].grad)


def test_the_gradient_drives_autograd():
    weight, x, target = torch.randn(4, 3, requires_grad=True), torch.randn(5, 4), torch.randn(5, 3)
    (expected,) = torch.autograd.grad((x @ weight - target).square().sum(), weight)
    output = x @ weight
    loss, grad = reconstruction_loss(output, target)
    assert not loss.requires_grad and not grad.requires_grad
    torch.autograd.backward(output, grad)
    torch.testing.assert_close(weight.grad, expected)


@pytest.mark.cuda
@pytest.mark.parametrize("p", [2.0, 2.4])
def test_cpu_and_gpu_give_the_same_bits(p):
    output, target, weight = torch.randn(3, 7, 5, 50, 51)
    ours = reconstruction_loss(output, target, weight, p)
    theirs = reconstruction_loss(output.cuda(), target.cuda(), weight.cuda(), p)
    assert torch.equal(ours.loss, theirs.loss.cpu()) and torch.equal(ours.grad, theirs.grad.cpu())


@pytest.mark.cuda(graph=True)
def test_a_captured_graph_computes_anew():
    output, target = torch.randn(5000).cuda(), torch.randn(5000).cuda()
    reconstruction_loss(output, target)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = reconstruction_loss(output, target)
    output.mul_(3)
    graph.replay()
    expected = reconstruction_loss(output, target)
    assert torch.equal(captured.loss, expected.loss) and torch.equal(captured.grad, expected.grad)


@pytest.mark.parametrize("name", ["contiguous", "channels_last", "strided"])
def test_opcheck(device, name):
    output, target = (layouts(torch.randn(2, 3, 4, 5).to(device))[name] for _ in range(2))
    torch.library.opcheck(OP, (output, target, None, 2.0, 0.5))
    torch.library.opcheck(OP, (output, target, target.abs(), 2.4, 0.5))


class TestClassDivergence:
    def test_by_hand(self):
        """Probabilities 1/2, 1/2 against 1/4, 3/4: ln 2 / 2 + ln(2 / 3) / 2; twice that for two rows."""
        wanted, got = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, math.log(3)]])
        expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
        assert class_divergence(got, wanted).item() == pytest.approx(expected, abs=1e-6)
        assert class_divergence(got.repeat(2, 1), wanted.repeat(2, 1)).item() == pytest.approx(2 * expected)
        assert class_divergence(wanted + 5, wanted).item() == pytest.approx(0, abs=1e-6)

    def test_its_gradient_is_the_difference_of_probabilities(self):
        got, wanted = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
        class_divergence(got, wanted).backward()
        torch.testing.assert_close(got.grad, (got.softmax(1) - wanted.softmax(1)).detach())


def ones(*shape: int) -> Tensor:
    return torch.ones(shape)


MISTAKES = [
    ((ones(3).int(), ones(3).int()), "output must be float32, float64.* got Int"),
    (
        (ones(3), ones(1)),
        r"target must have the shape, dtype and device of output, \[3\] Float cpu, got \[1\]",
    ),
    ((ones(3), ones(3).half()), "target must have the shape.* got .3. Half"),
    ((ones(3).half(), ones(3).bfloat16()), r"dtype \(or Float\) and device of output, .3. Half .*BFloat16"),
    ((ones(3), ones(3), ones(1, 3)), "weight must have the shape.* of target"),
    ((ones(3), ones(3), None, 0.0), "p must be positive and finite, got 0"),
    ((ones(3), ones(3), None, -1.0), "p must be positive"),
    ((ones(3), ones(3), None, INF), "p must be positive and finite, got inf"),
    ((ones(3), ones(3), None, NAN), "p must be positive and finite, got nan"),
    ((ones(3), ones(3), None, 2.0, INF), "scale, and p times it, must be finite, got inf"),
]


@pytest.mark.parametrize(("args", "message"), MISTAKES)
def test_mistakes(args, message):
    with pytest.raises(RuntimeError, match=message):
        reconstruction_loss(*args)
