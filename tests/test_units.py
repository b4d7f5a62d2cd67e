"""Units: the blocks of well-known networks, and of networks with odd shapes."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from bitsplit.models.cifar import resnet20
from bitsplit.network import Network, observe


def conv(stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, stride=stride, padding=1)


def images(size: int = 8) -> Tensor:
    return torch.randn(2, 4, size, size)


class Residual(nn.Module):
    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(stride), nn.ReLU(), conv())
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.stride == 1 else self.body(x)


def torchvision_network(name: str, size: int = 64) -> Network:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return observe(torchvision.models.get_model(name, weights=None, **options), torch.randn(1, 3, size, size))


def check(network: Network) -> None:
    """Every layer in one unit, units in execution order, names that lead to modules."""
    assert Counter(layer for unit in network.units for layer in unit.layers) == Counter(list(network.layers))
    order = {layer: number for number, layer in enumerate(network.layers)}
    firsts = [min(order[layer] for layer in unit.layers) for unit in network.units]
    assert firsts == sorted(firsts)
    for unit in network.units:
        assert list(unit.layers) == sorted(unit.layers, key=order.__getitem__)
        assert all(network.layers[layer].unit == unit.name for layer in unit.layers)
        if unit.kind == "layer":
            assert unit.layers == (unit.name,)
        else:
            assert all(layer.startswith(f"{unit.name}.") for layer in unit.layers)
    stages = [unit.stage for unit in network.units]
    assert stages == sorted(stages) and set(stages) == set(range(stages[-1] + 1))


def shape_of(network: Network) -> list[tuple[str, int]]:
    return [(unit.name, len(unit.layers)) for unit in network.units]


def test_resnet18_is_a_stem_eight_blocks_and_a_head() -> None:
    network = torchvision_network("resnet18")
    check(network)
    blocks = [(f"layer{i}.{j}", 3 if i > 1 and j == 0 else 2) for i in (1, 2, 3, 4) for j in (0, 1)]
    assert shape_of(network) == [("conv1", 1), *blocks, ("fc", 1)]
    assert [unit.kind for unit in network.units] == ["layer", *["block"] * 8, "layer"]
    assert [unit.stage for unit in network.units] == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]


def test_resnet20_for_small_images() -> None:
    network = observe(resnet20(), torch.randn(1, 3, 32, 32))
    check(network)
    assert len(network.units) == 11 and sum(unit.kind == "block" for unit in network.units) == 9


@pytest.mark.parametrize(
    "name, units, blocks, size",
    [
        ("resnet50", 18, 16, 64),  # stem, 16 bottlenecks, head
        ("regnet_y_400mf", 18, 16, 64),
        ("mobilenet_v2", 20, 17, 64),  # the blocks without addition too
        ("mobilenet_v3_small", 15, 11, 64),  # two layers in the classifier
        ("mnasnet0_5", 21, 16, 64),  # the separable stem is a row of single layers
        ("efficientnet_b0", 19, 16, 64),
        ("efficientnet_v2_s", 43, 40, 64),
        ("shufflenet_v2_x0_5", 19, 16, 64),
        ("squeezenet1_1", 10, 8, 64),
        ("densenet121", 63, 58, 64),  # every dense layer a block; transitions between
        ("googlenet", 13, 9, 64),
        ("inception_v3", 17, 11, 75),
        ("convnext_tiny", 23, 18, 64),
        ("swin_t", 17, 12, 64),
        ("alexnet", 8, 0, 64),
    ],
)
def test_blocks_of_well_known_networks(name: str, units: int, blocks: int, size: int) -> None:
    network = torchvision_network(name, size)
    check(network)
    assert (len(network.units), sum(unit.kind == "block" for unit in network.units)) == (units, blocks)


def test_units_give_again_what_they_gave_in_the_whole_network() -> None:
    model = torchvision.models.get_model("mobilenet_v3_small", weights=None).eval()
    x = torch.randn(1, 3, 64, 64)
    network = observe(model, x)
    seen: dict[str, tuple[tuple, Tensor]] = {}

    def keep(name: str):
        return lambda module, args, output: seen.update({name: (copy.deepcopy(args), output.clone())})

    handles = [
        model.get_submodule(unit.name).register_forward_hook(keep(unit.name)) for unit in network.units
    ]
    with torch.no_grad():
        model(x)
        for handle in handles:
            handle.remove()
        for unit in network.units:
            arguments, output = seen[unit.name]
            assert output.shape == unit.output_shape
            assert torch.equal(model.get_submodule(unit.name)(*arguments), output)


def test_numbers_that_become_tensors_are_no_data() -> None:
    """A mask written by pieces, as in windowed attention, and a factor: the block stays closed."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = conv(), conv()

        def forward(self, x: Tensor) -> Tensor:
            mask = torch.zeros(x.shape[-2:])
            mask[:4] = 1
            mask[4:, 4:] = 2
            return x + self.second(self.first(x) * mask) * torch.tensor(0.5)

    network = observe(nn.Sequential(Masked(), nn.Sequential(conv(), conv())), images())
    check(network)
    assert shape_of(network) == [("0", 2), ("1.0", 1), ("1.1", 1)]


def test_blocks_without_addition_of_a_class_with_it() -> None:
    network = observe(nn.Sequential(Residual(), Residual(2), Residual()), images())
    check(network)
    assert shape_of(network) == [("0", 2), ("1", 2), ("2", 2)]
    assert [unit.stage for unit in network.units] == [0, 1, 1]


def test_a_stage_of_residual_blocks_is_opened_even_when_it_adds() -> None:
    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(Residual(), Residual())
            self.last = conv()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.last(self.blocks(x))

    network = observe(nn.Sequential(Stage()), images())
    check(network)
    assert shape_of(network) == [("0.blocks.0", 2), ("0.blocks.1", 2), ("0.last", 1)]


def test_a_chain_of_layers_in_containers_is_one_unit_each() -> None:
    network = observe(
        nn.Sequential(nn.Sequential(conv(), conv()), nn.Sequential(conv(), nn.ReLU(), conv())), images()
    )
    check(network)
    assert shape_of(network) == [("0.0", 1), ("0.1", 1), ("1.0", 1), ("1.2", 1)]


def test_a_few_layers_in_a_class_of_their_own_are_a_block() -> None:
    class Separable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.depth, self.point = conv(), conv()

        def forward(self, x: Tensor) -> Tensor:
            return F.silu(self.point(F.silu(self.depth(x))))

    network = observe(nn.Sequential(conv(), Separable()), images())
    check(network)
    assert shape_of(network) == [("0", 1), ("1", 2)]


def test_a_network_that_adds_in_its_own_forward_falls_apart_into_layers() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = conv(), conv(), conv()

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.c(y + self.b(y))

    network = observe(Flat(), images())
    check(network)
    assert [unit.kind for unit in network.units] == ["layer"] * 3


def test_a_block_that_reads_what_it_was_not_given_is_opened() -> None:
    class Peeking(nn.Module):
        def __init__(self, owner: list[Tensor]) -> None:
            super().__init__()
            self.a, self.b, self.owner = conv(), conv(), owner

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)) + self.owner[-1]

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []
            self.stem, self.block = conv(), Peeking(self.seen)

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            self.seen[:] = [y]
            return self.block(y.relu())

    network = observe(Whole(), images())
    check(network)
    assert [unit.kind for unit in network.units] == ["layer"] * 3


def test_blocks_with_a_list_or_several_tensors_as_input() -> None:
    class Merge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(8, 4, 1), conv()

        def forward(self, xs: list[Tensor]) -> Tensor:
            return self.b(self.a(torch.cat(xs, 1)))

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(), conv()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.a(x) + self.b(y)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.merge, self.gate = Merge(), Gate()

        def forward(self, x: Tensor) -> Tensor:
            return self.gate(self.merge([x, x.relu()]), x)

    network = observe(Both(), images())
    check(network)
    assert shape_of(network) == [("merge", 2), ("gate", 2)]


def test_a_block_called_twice_is_one_unit_and_a_layer_used_elsewhere_too_is_its_own() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.tail = Residual(), conv()

        def forward(self, x: Tensor) -> Tensor:
            return self.tail(self.block(self.block(x)))

    network = observe(Twice(), images())
    check(network)
    assert [(unit.name, unit.calls, unit.call) for unit in network.units] == [("block", 2, 0), ("tail", 1, 0)]

    class Borrowing(Twice):
        def forward(self, x: Tensor) -> Tensor:
            return self.tail(self.block.body[2](self.block(x)))

    network = observe(Borrowing(), images())
    assert shape_of(network) == [("block", 1), ("block.body.2", 1), ("tail", 1)]
    assert network.layers["block.body.2"].calls == 2


def test_transformer_blocks_hold_their_quantizable_layers() -> None:
    network = torchvision_network("vit_b_16", 224)
    check(network)
    assert len(network.units) == 14
    block = network.units[1]
    assert block.name == "encoder.layers.encoder_layer_0"
    assert [layer.rsplit(".", 2)[1:] for layer in block.layers] == [["mlp", "0"], ["mlp", "3"]]
