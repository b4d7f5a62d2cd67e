"""A replayed forward gives what the whole forward gives, without running finished units again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bitsplit
from bitsplit.calibration.features import FeatureStore
from bitsplit.calibration.replay import Replay
from bitsplit.calibration.schedule import unit_schedule
from bitsplit.network import observe


class Skipping(nn.Module):
    """Units with a long skip connection, an in-place function between them, and one unit called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.middle = nn.Conv2d(4, 4, 1)
        self.last = nn.Conv2d(8, 2, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        early = self.twice(x)
        y = self.middle(self.relu(self.twice(early * 0.5)))
        return self.last(torch.cat([early, y], 1))


class Branch(nn.Module):
    """Two layers behind a function that changes the branch's own input."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.LeakyReLU(0.2, inplace=True)
        self.down = nn.Conv2d(4, 4, 3, padding=1)
        self.up = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.relu(self.down(self.relu(x))))


class ChangedInput(nn.Module):
    """A U-Net's skip connection: what is concatenated has been changed by the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.branch = Branch()
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(torch.cat([x, self.branch(x)], 1))


class Accumulator(nn.Module):
    """Adds what it computes to its input, which it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x += self.conv2(F.relu(self.conv1(x)))
        return x


class IgnoredOutput(nn.Module):
    """Uses the changed input instead of the block's output."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.block = Accumulator()
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        self.block(x)
        return self.last(x)


class Putting(nn.Module):
    """A block that puts a tensor away, for somebody else to take."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.aside = F.relu(self.conv1(x))
        return x + self.conv2(self.aside)


class Taking(nn.Module):
    """Reads what its block has put away."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.block = Putting()
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.first(x))
        return self.last(x * self.block.aside)


def forward(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch)


@pytest.mark.parametrize("budget", [0, 1 << 30])
@pytest.mark.parametrize("network", [Skipping, ChangedInput, IgnoredOutput, Taking])
def test_every_step_of_a_walk_equals_the_whole_forward(
    network: type[nn.Module], budget: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = network().eval()
    batches = [torch.randn(2, 3, 6, 6), torch.randn(1, 3, 6, 6)]
    whole = [model(batch) for batch in batches]
    schedule = unit_schedule(observe(model, batches[0]))
    store = FeatureStore(budget, tmp_path)
    replay = Replay(model, forward, store, "it")
    with torch.no_grad():
        for position, call in enumerate(schedule.calls):
            replay.start(call)
            with replay.recording():
                for index, batch in enumerate(batches):
                    replay.record(index, batch)
            replay.finish()
            for dead in schedule.dead_after(position):
                replay.retire(dead, len(batches))
            with replay.skipping():
                for index in (1, 0):  # what a block has put away is of the batch before
                    if position + 1 < len(schedule.calls):
                        assert torch.equal(replay.run(index, batches[index]), whole[index]), (position, index)
    store.close()
    assert "forward" not in vars(model.first)


def test_outputs_are_freed_when_their_last_reader_is_done() -> None:
    model = Skipping().eval()
    schedule = unit_schedule(observe(model, torch.randn(1, 3, 6, 6)))
    assert [name for name, _ in schedule.calls] == ["first", "twice", "twice", "middle", "last"]
    # "twice" is read by its own second call and, through the concatenation, by "last"
    assert schedule.last_reader == [1, 4, 3, 4, 4]
    assert schedule.dead_after(1) == [("first", 0)]


def test_finished_units_do_not_compute(tmp_path: Path) -> None:
    model = Skipping().eval()
    batch = torch.randn(2, 3, 6, 6)
    replay = Replay(model, forward, FeatureStore(1 << 20, tmp_path), "it")
    replay.start(("first", 0))
    with torch.no_grad(), replay.recording():
        replay.record(0, batch)
    replay.finish()
    expected = model(batch)
    with torch.no_grad():
        model.first.weight.fill_(float("nan"))
        with replay.skipping():
            assert torch.equal(replay.run(0, batch), expected)


class Block(nn.Module):
    """One unit with a layer that is called twice and functions in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.conv1(x))
        return self.relu(self.conv2(self.conv1(y)) + x)


@pytest.mark.parametrize(("budget", "computed"), [(1 << 20, 2), (0, 4), (350, 3)])
def test_a_settled_layer_computes_once_a_batch_while_memory_lasts(
    budget: int, computed: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, batch = nn.Sequential(Block()).eval(), torch.randn(1, 4, 4, 4)  # 256 bytes an output
    calls: list[Tensor] = []
    original = model[0].conv1.forward
    model[0].conv1.forward = lambda x: (calls.append(x), original(x))[1]
    expected = model(batch)
    calls.clear()
    store = FeatureStore(budget, tmp_path)
    replay = Replay(model, forward, store, "it")
    replay.start(("0", 0))
    replay.settle("0.conv1")
    with torch.no_grad(), replay.skipping():
        assert torch.equal(replay.run(0, batch), expected)
        assert torch.equal(replay.run(0, batch), expected)
        assert len(calls) == computed
    with torch.no_grad(), replay.recording():
        assert replay.record(0, batch)
    replay.finish()
    assert torch.equal(replay.output(("0", 0), 0), expected)
    assert store.in_memory == (256 if budget > 1000 else 0)  # the unit's own output, in memory or on disk


def test_offers_leave_the_reserve_alone(tmp_path: Path) -> None:
    store, cpu, value = FeatureStore(1000, tmp_path), torch.device("cpu"), torch.arange(100.0)
    store.reserved = 600
    assert store.offer("fits", value, cpu) and not store.offer("does not", value, cpu)
    assert torch.equal(store.get("fits"), value)
    store.drop(["fits"])
    assert store.in_memory == 0 and store.offer("fits", value + 1, cpu)
    assert torch.equal(store.get("fits"), value + 1)
    store.close()


class CountingPool(nn.MaxPool2d):
    """Counts the forwards of all its objects."""

    count = 0

    def forward(self, x: Tensor) -> Tensor:
        CountingPool.count += 1
        return super().forward(x)


def test_a_pool_between_units_is_not_computed_again_for_every_layer_behind_it() -> None:
    counts = []
    for behind in (1, 5):
        CountingPool.count = 0
        layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), CountingPool(2)]
        layers += [nn.Conv2d(4, 4, 3, padding=1) for _ in range(behind)]
        bitsplit.quantize(nn.Sequential(*layers).eval(), torch.randn(20, 3, 8, 8), weights=4, batch_size=10)
        counts.append(CountingPool.count)
    assert counts[0] == counts[1]
