"""Whatever has weights or multiplies and is not quantized is listed, by name and reason."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from function_net import Net, images, layer
from torch import Tensor, nn

from bitsplit.network import Network, observe


def reasons(network: Network) -> dict[str, str]:
    return {entry.name: entry.reason for entry in network.uncovered}


def test_packed_attention_is_listed_with_its_parts() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.attention(x, x, x, need_weights=False)[0])

    network = observe(Attention().eval(), torch.randn(2, 5, 8))
    found = {entry.name: entry for entry in network.uncovered}
    assert list(network.layers) == ["linear"]
    assert found["attention.in_proj_weight"].what == "matrix product"
    assert found["attention.in_proj_weight"].macs == 5 * 8 * 24
    assert "never called" in found["attention.out_proj"].reason and found["attention.out_proj"].macs == 5 * 64
    assert found["attention"].what == "product of activations" and found["attention"].macs == 2 * 25 * 8


def test_functional_products_on_parameters_are_listed() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(4, 4, 3, 3))
            self.matrix = nn.Parameter(torch.randn(6, 6))
            self.conv = layer()
            self.unused = nn.Parameter(torch.randn(3, 3))
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(F.conv2d(x, self.kernel, padding=1)) @ self.matrix * self.scale.view(1, 4, 1, 1)

    network = observe(Functional(), images())
    found = {entry.name: (entry.what, entry.reason) for entry in network.uncovered}
    assert found.keys() == {"kernel", "matrix", "unused"}
    assert found["kernel"][0] == "functional convolution" and found["matrix"][0] == "matrix product"
    assert found["unused"][1] == "never read by the forward"


def test_layers_never_reached_and_layers_bypassed_are_listed() -> None:
    model = Net(
        lambda m, x: F.conv2d(m.used(x), m.bypassed.weight),
        used=layer(), bypassed=layer(), never=nn.Linear(3, 3), embedding=nn.Embedding(3, 2),
    )  # fmt: skip
    found = reasons(observe(model, images()))
    assert found["never"] == "never reached by the forward"
    assert "never called" in found["bypassed"]
    assert found["embedding.weight"] == "never read by the forward"


def test_embeddings_and_deformable_convolutions_are_listed() -> None:
    deform = pytest.importorskip("torchvision.ops").DeformConv2d(4, 4, 3, padding=1)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.deform(m.conv(x), m.offsets(x)) + m.table(torch.tensor([1])).view(1, 4, 1, 1)

    model = Net(forward, conv=layer(), offsets=layer(4, 18), deform=deform, table=nn.Embedding(3, 4))
    network = observe(model, images())
    assert list(network.layers) == ["conv", "offsets"]
    assert {e.name: e.what for e in network.uncovered} == {
        "deform.weight": "deformable convolution",
        "table.weight": "embedding",
    }


class Gated(nn.Conv2d):
    """A weight that depends on the input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * x.mean().sigmoid(), self.bias, padding=1)


class WithActivation(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class Squaring(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * x)


class Twice(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(super().forward(x))


class OtherStride(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, stride=2, padding=1)


@pytest.mark.parametrize(
    "odd, reason",
    [
        (Gated(4, 4, 3), "its weight depends on the input"),
        (WithActivation(4, 4, 3), "its forward changes the output after the product (relu)"),
        (Squaring(6, 6), "its forward changes the input before the product (mul)"),
        (Twice(4, 4, 1), "its forward runs 2 products, a plain layer one"),
        (OtherStride(4, 4, 3), "its convolution has another geometry than its attributes say"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_with_odd_forwards_are_refused_by_name(odd: nn.Module, reason: str) -> None:
    network = observe(nn.Sequential(layer(), odd), images())
    assert list(network.layers) == ["0"]
    (entry,) = network.uncovered
    assert (entry.name, entry.reason) == ("1", reason) and entry.macs > 0


def test_a_layer_that_computes_a_constant_is_refused() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("positions", torch.randn(36, 2))
            self.bias, self.conv = nn.Linear(2, 4), layer()

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + self.bias(self.positions).t().reshape(1, 4, 6, 6)

    network = observe(Table(), images())
    assert list(network.layers) == ["conv"]
    assert reasons(network) == {"bias": "its input does not depend on the images"}


def test_inference_mode_is_named_where_it_hides_products() -> None:
    @torch.inference_mode()
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.fc(m.up(m.conv(x)).mean((2, 3)))

    model = Net(forward, conv=layer(), up=nn.ConvTranspose2d(4, 4, 2), fc=nn.Linear(4, 3))
    found = reasons(observe(model, images()))
    assert all("inference_mode" in found[name] for name in ("conv", "up"))
