"""Which units hang together so that they can be learned as one stage."""

from __future__ import annotations

import pytest
import torch
import torchvision
from function_net import Net, layer
from residual_net import Block
from torch import Tensor, nn

import bitsplit
from bitsplit.errors import CalibrationError
from bitsplit.network import observe
from bitsplit.network.joined import joined_units


def names(model: nn.Module, batch: Tensor) -> list[list[str]]:
    return [[unit.name for unit in units] for units in joined_units(observe(model.eval(), batch))]


def test_the_stages_of_a_residual_network():
    found = names(torchvision.models.resnet18(weights=None), torch.randn(1, 3, 64, 64))
    stages = [[f"layer{stage}.{block}" for block in range(2)] for stage in range(1, 5)]
    assert found == [["conv1"], *stages, ["fc"]]


@pytest.mark.parametrize(
    "between",
    [
        lambda m, x: m.second(torch.relu(m.first(x))),  # computed outside of the blocks
        lambda m, x: m.second(m.first(m.first(x))),  # called twice
        lambda m, x: m.second(nn.functional.max_pool2d(m.first(x), 2)),  # another resolution
    ],
)
def test_what_breaks_a_stage(between):
    net = Net(lambda m, x: between(m, m.stem(x)), stem=layer(3, 8), first=Block(), second=Block())
    assert ["first", "second"] not in names(net, torch.randn(2, 3, 8, 8))


class Up(nn.Module):
    """Two tensors in, as in the way up of a U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = layer(16, 8), layer(8, 8)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return torch.relu(self.two(torch.relu(self.one(torch.cat([x, skip], 1)))))


def test_a_stage_may_begin_with_two_tensors(images):
    net = Net(lambda m, x: m.block(m.up(torch.relu(m.low(x)), torch.relu(m.stem(x)))),
              stem=layer(3, 8), low=layer(3, 8), up=Up(), block=Block()).eval()  # fmt: skip
    method = bitsplit.Brecq(unit="stage", iterations=20, rate=0.02, step_iterations=0)
    pieces = bitsplit.report_of(bitsplit.quantize(net, images, method, weights=3)).pieces
    assert pieces[-1].name == "up to block" and pieces[-1].after < pieces[-1].before


def test_blocks_that_share_their_input_are_no_stage():
    net = Net(lambda m, x: m.first(x) + m.second(x), first=Block(3), second=Block(3))
    assert names(net, torch.randn(2, 3, 8, 8)) == [["first"], ["second"]]


def test_memory_is_freed_when_a_stage_is_done():
    """What a stage reads and gives inside is kept until it is learned (the stem too), no longer."""
    blocks = [Block() for _ in range(8)]
    net = nn.Sequential(layer(3, 8), *blocks[:4], nn.AvgPool2d(2), *blocks[4:]).eval()
    network = observe(net, torch.randn(2, 3, 8, 8))
    from bitsplit.calibration.schedule import unit_schedule

    schedule = unit_schedule(network, joined_units(network))
    ends = [position for position in range(len(schedule.calls)) if schedule.dead_after(position)]
    assert [schedule.calls[position][0] for position in ends] == [
        "4",
        "5",
        "9",
    ]


def test_a_network_with_several_outputs_is_not_learned_at_once():
    net = Net(lambda m, x: (m.one(x), m.two(x)), one=layer(3, 4), two=layer(3, 4)).eval()
    with pytest.raises(CalibrationError, match="must give one tensor, got tuple"):
        bitsplit.quantize(net, torch.randn(8, 3, 8, 8), bitsplit.Brecq(unit="net", iterations=3), weights=4)
