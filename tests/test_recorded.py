"""What an iteration depends on lies in tensors, so that a GPU can record it once and replay it."""

from __future__ import annotations

import contextlib
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from residual_net import METHODS, same
from torch import nn

import bitsplit
from bitsplit.calibration.draws import RowDraws
from bitsplit.methods import recorded
from bitsplit.methods.clock import Clock
from bitsplit.methods.learning import Adam
from bitsplit.methods.recorded import WARM_UP, Recorded

CPU = torch.device("cpu")


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_a_clock_tells_rows_and_keys_of_its_iteration():
    clock = Clock(3, CPU)
    table = torch.arange(6.0).view(3, 2)
    first = clock.key(7)
    for iteration in range(3):
        clock.begin()
        assert torch.equal(clock.row(table), table[iteration])
        assert clock.key(7) is first and first.tolist() == [7, iteration]
        assert clock.key(100 + iteration).tolist() == [100 + iteration, iteration]
        assert [clock.key(7).tolist()[0] for _ in range(2)] == [7 + (1 << 32), 7 + (2 << 32)]
        clock.advance()


def test_a_rate_falls_along_half_a_cosine():
    rates = Clock(4, CPU).falling(2.0).tolist()
    assert rates == pytest.approx([2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5)])


def test_adam_is_that_of_torch():
    start, gradients = torch.randn(6), torch.randn(5, 6)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    clock = Clock(5, CPU)
    adam = Adam([ours], 0.1, clock)
    optimizer = torch.optim.Adam([theirs], lr=0.1)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        adam.step()
        clock.advance()
        optimizer.step()
        rates.step()
        assert ours.grad is None
    torch.testing.assert_close(ours, theirs)
    Adam([], 0.1, clock).step()


def test_draws_are_rows_without_repeats_and_follow_from_the_seed():
    def draws() -> list[list[int]]:
        draw = RowDraws([10], [CPU], 4, 6, generator(), lambda group, rows: rows.tolist())
        assert draw.card is None
        return [draw() for _ in range(6)]

    drawn = draws()
    assert drawn == draws()
    assert all(len(set(rows)) == 4 and set(rows) <= set(range(10)) for rows in drawn)
    assert len({tuple(rows) for rows in drawn}) > 1


def test_groups_are_drawn_in_proportion_and_small_ones_whole():
    draw = RowDraws([90, 3], [CPU, CPU], 8, 2000, generator(), lambda group, rows: (group, rows.tolist()))
    drawn = [draw() for _ in range(2000)]
    assert all(len(rows) == (8, 3)[group] for group, rows in drawn)
    small = sum(group for group, _ in drawn) / 2000
    assert abs(small - 3 / 93) < 0.015


class FakeGraph:
    """Counts how often it is replayed."""

    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


class FakeCuda:
    """As much of ``torch.cuda`` as ``Recorded`` needs, without a GPU."""

    CUDAGraph = FakeGraph

    def __init__(self) -> None:
        self.graphs: list[FakeGraph] = []
        self.mode = "default"
        self._stream = SimpleNamespace(device=CPU, wait_stream=lambda other: None)

    def Stream(self, device: torch.device) -> SimpleNamespace:  # noqa: N802
        return self._stream

    def current_stream(self, device: torch.device) -> SimpleNamespace:
        return self._stream

    def stream(self, stream: SimpleNamespace) -> contextlib.nullcontext:
        return contextlib.nullcontext()

    def get_sync_debug_mode(self) -> str:
        return self.mode

    def set_sync_debug_mode(self, mode: str) -> None:
        self.mode = mode

    @contextlib.contextmanager
    def graph(self, graph: FakeGraph, stream: SimpleNamespace):
        try:
            yield
        except RuntimeError as error:
            raise RuntimeError("operation failed due to a previous error during capture") from error
        self.graphs.append(graph)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(recorded.torch, "cuda", fake)
    monkeypatch.setattr(Recorded, "possible", True)
    return fake


def test_an_iteration_is_recorded_after_a_warm_up_and_replayed(cuda):
    calls = []

    def iteration() -> torch.Tensor:
        calls.append(len(calls))
        return torch.tensor(float(len(calls)))

    run = Recorded("block", iteration, torch.device("cuda"))
    results = [float(run()) for _ in range(WARM_UP + 4)]
    assert len(calls) == WARM_UP + 1
    assert [graph.replays for graph in cuda.graphs] == [4]
    assert results == [*range(1, WARM_UP + 1), *[WARM_UP + 1] * 4]


def test_what_waits_for_the_gpu_is_named_and_called(cuda):
    calls = []

    def iteration() -> torch.Tensor:
        calls.append(0)
        if cuda.mode == "warn":
            warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)
        return torch.tensor(1.0)

    run = Recorded("layer4.0", iteration, torch.device("cuda"))
    with pytest.warns(UserWarning, match=r"layer4\.0: .*by kernel \(called a synchronizing") as caught:
        for _ in range(WARM_UP + 5):
            run()
    assert len(caught) == 1 and len(calls) == WARM_UP + 5
    assert cuda.graphs == [] and cuda.mode == "default" and Recorded.possible


def test_what_fails_to_be_recorded_is_named_with_the_reason_and_called(cuda):
    calls = []

    def iteration() -> torch.Tensor:
        calls.append(0)
        if len(calls) == WARM_UP + 1:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return torch.tensor(1.0)

    run = Recorded("layer4.0", iteration, torch.device("cuda"))
    with pytest.warns(UserWarning, match=r"layer4\.0: .*by kernel \(operation not permitted") as caught:
        for _ in range(WARM_UP + 5):
            run()
        again = Recorded("fc", lambda: torch.tensor(2.0), torch.device("cuda"))
        for _ in range(WARM_UP + 5):
            again()
    assert len(caught) == 1 and len(calls) == WARM_UP + 5 + 1
    assert cuda.graphs == [] and not Recorded.possible


def test_elsewhere_every_call_is_a_call():
    calls = []
    run = Recorded("block", lambda: calls.append(0) or torch.tensor(0.0), None)
    for _ in range(10):
        run()
    assert len(calls) == 10


@pytest.mark.cuda(graph=True)
@pytest.mark.parametrize("name", list(METHODS))
def test_recorded_iterations_learn_what_called_ones_do(model, images, monkeypatch, name):
    def learned() -> nn.Module:
        return bitsplit.quantize(model.cuda(), images, METHODS[name], weights=3, activations=4)

    graphs: list[Recorded] = []
    monkeypatch.setattr(Recorded, "possible", True)
    record = Recorded._record
    monkeypatch.setattr(Recorded, "_record", lambda self: (record(self), graphs.append(self)))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*cannot be recorded")
        replayed = learned()
    assert graphs and all(run._graph is not None for run in graphs)
    monkeypatch.setattr(recorded, "WARM_UP", 1 << 30)
    assert same(replayed, learned())
