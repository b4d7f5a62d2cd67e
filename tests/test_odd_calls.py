"""Layers and norms called in unusual ways, and models that change what they are given."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from function_net import Net, images, layer
from torch import Tensor, nn
from torch.nn.utils import weight_norm

import bitsplit


def norm(channels: int = 4) -> nn.BatchNorm2d:
    found = nn.BatchNorm2d(channels)
    found.running_mean.uniform_(-1, 1)
    found.running_var.uniform_(0.5, 2)
    return found


def up_and_down(m: nn.Module, x: Tensor) -> Tensor:
    return m.norm(m.up(m.down(x), output_size=x.shape[2:]))


UP = {"down": nn.Conv2d(4, 4, 3, stride=2, padding=1), "up": nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1)}
CALLS: dict[str, Callable[[], nn.Module]] = {
    "output size": lambda: Net(up_and_down, **UP, norm=norm()),
    "layer by keyword": lambda: Net(lambda m, x: m.norm(m.conv(input=x)), conv=layer(), norm=norm()),
    "norm by keyword": lambda: Net(lambda m, x: m.norm(input=m.conv(x)), conv=layer(), norm=norm()),
    "computed weight by keyword": lambda: Net(
        lambda m, x: m.last(m.conv(input=x)), conv=weight_norm(layer()), last=layer()
    ),
    "changed input": lambda: Net(
        lambda m, x: m.last(m.norm(m.conv(x.sub_(0.5).mul_(3)))), conv=layer(), norm=norm(), last=layer()
    ),
    "changed input, nothing to fold": lambda: Net(
        lambda m, x: m.last(m.conv(x.mul_(3))), conv=layer(), last=layer()
    ),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("method", ["bitsplit", ["minmax", "norms"]])
def test_unusual_calls_are_quantized_like_usual_ones(name: str, method: object) -> None:
    torch.manual_seed(0)
    model, x = CALLS[name]().eval(), images(8, 4, 6, 6)
    kept = x.clone()
    quantized = bitsplit.quantize(model, x, method, weights=8, activations=8, policy="all")
    assert torch.equal(x, kept)
    if method == "bitsplit":
        with torch.no_grad():
            target = model(x.clone())
            assert (quantized(x.clone()) - target).square().mean() < 1e-2 * target.square().mean()


@pytest.mark.parametrize("tokens", [8, 16])
def test_a_norm_over_tokens_stays(tokens: int) -> None:
    model = Net(
        lambda m, x: m.last(torch.relu(m.norm(m.first(x)))),
        first=nn.Linear(12, 16),
        norm=nn.BatchNorm1d(tokens),
        last=nn.Linear(16, 3),
    )
    model.norm.running_mean.uniform_(-1, 1)
    quantized = bitsplit.quantize(model.eval(), torch.randn(4, tokens, 12), weights=8)
    assert type(quantized.norm) is nn.BatchNorm1d


@pytest.mark.parametrize(
    ("build", "missing"),
    [
        (lambda: nn.LSTM(12, 16, batch_first=True), {"rest.weight_ih_l0", "rest.weight_hh_l0"}),
        (lambda: nn.GRU(12, 16, batch_first=True), {"rest.weight_ih_l0", "rest.weight_hh_l0"}),
    ],
)
def test_recurrent_weights_are_listed(build: Callable[[], nn.Module], missing: set[str]) -> None:
    model = Net(
        lambda m, x: m.last(m.rest(m.first(x))[0]),
        first=nn.Linear(12, 12),
        rest=build(),
        last=nn.Linear(16, 3),
    )
    network = bitsplit.network.observe(model.eval(), torch.randn(2, 5, 12))
    listed = {name for entry in network.uncovered for name in entry.name.split(", ")}
    assert missing <= listed
