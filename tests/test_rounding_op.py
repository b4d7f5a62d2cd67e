"""The learned-rounding operator against autograd of its definition and torch's Adam."""

import pytest
import torch
from torch import Tensor

from bitsplit.ops.rounding import inverse_soft_bit, rounding_schedule, rounding_step, soft_bit

OPS = torch.ops.bitsplit


class State:
    """Weights of one layer with everything that the operator changes."""

    def __init__(self, shape: tuple[int, ...], axis: int, device: torch.device, dtype=torch.float32):
        empty = torch.empty(shape, dtype=dtype, device=device)
        if len(shape) == 4:
            empty = empty.contiguous(memory_format=torch.channels_last)
        like = {"memory_format": torch.preserve_format}
        self.axis = axis
        self.v = torch.randn_like(empty, **like) * 3
        self.base = torch.randint_like(empty, -3, 3, dtype=torch.int16, **like)
        self.scale = torch.rand(1 if axis < 0 else shape[axis], dtype=dtype, device=device) + 0.1
        self.mean, self.square = torch.zeros_like(empty), torch.zeros_like(empty)
        self.weight = self.soft(self.v)
        self.target = torch.randn_like(empty, **like)

    def soft(self, v: Tensor) -> Tensor:
        shape = [1] * v.dim()
        if self.axis >= 0:
            shape[self.axis] = -1
        return self.scale.view(shape) * (self.base + soft_bit(v))

    def loss(self, v: Tensor, weight: float, exponent: float) -> Tensor:
        fit = (self.soft(v) - self.target).square().sum()
        return fit + weight * (1 - (2 * soft_bit(v) - 1).abs().pow(exponent)).sum()


def step(states: list[State], grads: list[Tensor], schedule: Tensor) -> None:
    rounding_step(
        [s.weight for s in states], grads, [s.v for s in states], [s.mean for s in states],
        [s.square for s in states], [s.base for s in states], [s.scale for s in states],
        [s.axis for s in states], schedule,
    )  # fmt: skip


SHAPES = [((7, 3, 3, 3), 0), ((5, 33), 0), ((4, 6, 2, 2), 1), ((70,), -1), ((2, 130), 1), ((1, 1), 0)]


def test_soft_bits_and_their_inverse():
    h = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert torch.allclose(soft_bit(inverse_soft_bit(h)), h, atol=1e-12)
    assert soft_bit(torch.tensor([-50.0, 0.0, 50.0])).tolist() == [0.0, 0.5, 1.0]


def test_schedule():
    rows = rounding_schedule(10, 0.1, 0.01, warm_up=0.2)
    assert rows.shape == (10, 4)
    assert rows[0, 0] == pytest.approx(0.1 / 0.1)
    assert rows[0, 1] == pytest.approx(1 / 0.001, rel=1e-4)
    assert rows[:, 2].tolist() == pytest.approx([0, 0, *[0.01] * 8])
    assert rows[:, 3].tolist() == pytest.approx([20, 20, 20, 17.75, 15.5, 13.25, 11, 8.75, 6.5, 4.25])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_autograd_and_torchs_adam(device, dtype):
    states = [State(shape, axis, device, dtype) for shape, axis in SHAPES]
    slow = [s.v.clone().requires_grad_() for s in states]
    optimizer = torch.optim.Adam(slow, lr=0.05)
    schedule = rounding_schedule(30, 0.05, 0.3, warm_up=0.1).to(device)
    for row in schedule:
        step(states, [2 * (s.weight - s.target) for s in states], row)
        optimizer.zero_grad()
        weight, exponent = row[2:].tolist()
        sum(s.loss(v, weight, exponent) for s, v in zip(states, slow, strict=True)).backward()
        optimizer.step()
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-3}
    for s, v in zip(states, slow, strict=True):
        assert torch.allclose(s.v, v, **tolerance)
        assert torch.allclose(s.weight, s.soft(s.v), **tolerance)


def test_table(device):
    """One weight, worked out by hand: h(0) = 1/2 with slope 0.3; the first step of Adam has the size lr."""
    state = State((1,), -1, device)
    for name, value in (("v", 0.0), ("base", 1), ("scale", 0.5), ("weight", 0.75)):
        getattr(state, name).fill_(value)
    step([state], [torch.tensor([2.0], device=device)], rounding_schedule(1, 0.1, 0.0).to(device)[0])
    gradient = 2.0 * 0.5 * 0.3
    assert state.v.item() == pytest.approx(-0.1, rel=1e-6)
    assert state.mean.item() == pytest.approx(0.1 * gradient)
    assert state.square.item() == pytest.approx(0.001 * gradient**2)
    assert state.weight.item() == pytest.approx(0.5 * (1 + soft_bit(torch.tensor(-0.1)).item()))


def test_decided_bits_rest(device):
    """Where h is 0 or 1 there is no slope, whatever the gradient says."""
    state = State((4,), -1, device)
    state.v.copy_(torch.tensor([-9.0, 9.0, -100.0, 100.0]))
    before = state.v.clone()
    for row in rounding_schedule(5, 0.1, 1.0, warm_up=0).to(device):
        step([state], [torch.full((4,), 7.0, device=device)], row)
    assert torch.equal(state.v, before)
    assert torch.equal(state.weight, state.scale * (state.base + torch.tensor([0, 1, 0, 1], device=device)))


def test_gradients_of_other_strides(device):
    """A gradient may come in any memory format."""
    states = [State((7, 3, 3, 3), 0, device) for _ in range(2)]
    for name in ("v", "base", "scale", "weight"):
        getattr(states[1], name).copy_(getattr(states[0], name))
    grad, row = torch.randn(7, 3, 3, 3, device=device), rounding_schedule(1, 0.1, 0.1).to(device)[0]
    step(states[:1], [grad], row)
    step(states[1:], [grad.contiguous(memory_format=torch.channels_last)], row)
    assert torch.equal(states[0].v, states[1].v)


def test_threads_change_nothing():
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        state = State((64, 300), 0, torch.device("cpu"))
        step([state], [torch.randn(64, 300)], rounding_schedule(2, 0.1, 0.1, warm_up=0)[1])
        results.append(state)
    assert torch.equal(results[0].v, results[1].v)
    assert torch.equal(results[0].weight, results[1].weight)


@pytest.mark.cuda
def test_cuda_equals_cpu():
    states = [State((33, 7, 3, 3), 0, torch.device("cpu")) for _ in range(2)]
    for name, value in vars(states[0]).items():
        setattr(states[1], name, value.cuda() if isinstance(value, Tensor) else value)
    for row in rounding_schedule(20, 0.1, 0.1):
        grad = torch.randn(33, 7, 3, 3)
        step(states[:1], [grad], row)
        step(states[1:], [grad.cuda()], row.cuda())
    assert torch.equal(states[0].v, states[1].v.cpu())
    assert torch.equal(states[0].weight, states[1].weight.cpu())


def test_empty(device):
    state = State((0, 3), 0, device)
    step([state], [torch.empty(0, 3, device=device)], rounding_schedule(1, 0.1, 0.1).to(device)[0])
    step([], [], rounding_schedule(1, 0.1, 0.1).to(device)[0])


def test_opcheck(device):
    s = State((3, 2, 3, 3), 0, device)
    arguments = [[t] for t in (s.weight, torch.randn_like(s.weight), s.v, s.mean, s.square, s.base, s.scale)]
    torch.library.opcheck(OPS.rounding_step, (*arguments, [0], rounding_schedule(1, 0.1, 0.1).to(device)[0]))


MISTAKES = [
    ("v", lambda t: t.double(), "v must have the shape and device of the weight.* and be Float"),
    ("mean", lambda t: t[:1], "mean must have the shape"),
    ("base", lambda t: t.float(), "base must .* be Short"),
    ("square", lambda t: t.t().contiguous().t(), "square must have the strides of the weight"),
    ("scale", lambda t: torch.ones(3), "scale must have 1 element or one per channel .4 along"),
    ("scale", lambda t: t.double(), "scale must have the dtype"),
    ("weight", lambda t: t.half(), "weights must be float32 or float64"),
    ("weight", lambda t: t.repeat(1, 2)[:, ::2], "weights must fill their memory without gaps"),
]


@pytest.mark.parametrize(("name", "change", "message"), MISTAKES)
def test_mistakes(name, change, message):
    state = State((4, 5), 0, torch.device("cpu"))
    setattr(state, name, change(getattr(state, name)))
    with pytest.raises(RuntimeError, match=message):
        step([state], [torch.randn(4, 5)], rounding_schedule(1, 0.1, 0.1)[0])


def test_lists_and_schedule_must_fit():
    state, row = State((4, 5), 0, torch.device("cpu")), rounding_schedule(1, 0.1, 0.1)[0]
    with pytest.raises(RuntimeError, match="all lists must be as long as weights, 1, got 0"):
        step([state], [], row)
    for wrong in (row[:3], row.double()):
        with pytest.raises(RuntimeError, match="schedule must be a contiguous float32 tensor of 4"):
            step([state], [torch.randn(4, 5)], wrong)
