"""One forward tells what a network is: layers, shared inputs, signs, order; and leaves no trace."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from function_net import Net, images, layer
from torch import Tensor, nn

from bitsplit.errors import BitsplitError, ModelError
from bitsplit.network import observe
from bitsplit.network.recorder import record_forward

# What the model is left like


def test_training_flags_buffers_and_random_state_are_as_before() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("last", None)

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.last = x.mean()
            return x + torch.rand(())

    model = nn.Sequential(
        layer(), nn.BatchNorm2d(4), Counting(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3)
    )
    model[1].eval()
    batch = images()
    before, flags = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    random = torch.get_rng_state()
    observe(model, batch)
    assert [module.training for module in model.modules()] == flags
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), random)
    assert model[2].last is None
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_forward_that_fails_leaves_no_trace_either() -> None:
    model = nn.Sequential(layer(), nn.Linear(7, 3))
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(ModelError, match="failed: RuntimeError"):
        observe(model, images())
    assert model.training and not model[0]._forward_hooks and not model[0]._forward_pre_hooks
    assert torch.backends.mha.get_fastpath_enabled() == fast_path


def test_no_activation_is_kept_alive() -> None:
    import gc
    import weakref

    alive: list[weakref.ref] = []
    most = 0

    def watch(module: nn.Module, args: tuple, output: Tensor) -> None:
        nonlocal most
        alive.append(weakref.ref(output))
        most = max(most, sum(ref() is not None for ref in alive))

    model = nn.Sequential(*(layer() for _ in range(20)))
    for module in model:
        module.register_forward_hook(watch)
    network = observe(model, images())
    gc.collect()
    assert most <= 2
    assert sum(ref() is not None for ref in alive) == 0
    assert len(network.layers) == 20


def test_batch_norm_in_training_mode_does_not_learn_from_the_observation() -> None:
    model = nn.Sequential(layer(), nn.BatchNorm2d(4)).train()
    observe(model, images())
    assert torch.equal(model[1].running_mean, torch.zeros(4)) and model[1].num_batches_tracked == 0


# Layers and their facts


def test_order_shapes_macs_first_and_last() -> None:
    model = Net(
        lambda m, x: m.head(F.adaptive_avg_pool2d(F.relu(m.late(F.relu(m.early(x)))), 1).flatten(1)),
        head=nn.Linear(8, 3),
        late=nn.Conv2d(6, 8, 3, stride=2, groups=2),
        early=nn.Conv2d(4, 6, 3, padding=1),
    )
    network = observe(model, images(2, 4, 9, 9))
    assert list(network.layers) == ["early", "late", "head"]
    early, late, head = network.layers.values()
    assert (early.is_first, late.is_first, head.is_first) == (True, False, False)
    assert (early.is_last, late.is_last, head.is_last) == (False, False, True)
    assert early.input_shape == (2, 4, 9, 9) and late.output_shape == (2, 8, 4, 4)
    assert (early.macs, late.macs, head.macs) == (81 * 6 * 36, 16 * 8 * 27, 24)
    assert late.kind.name == "Conv2d" and early.module is model.early


def test_macs_of_transposed_grouped_and_token_layers() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.tokens(m.up(x).flatten(2).transpose(1, 2))

    up, tokens = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), nn.Linear(6, 5)
    found = observe(Net(forward, up=up, tokens=tokens), images(3, 4, 5, 5)).layers
    assert found["up"].macs == 4 * 25 * 3 * 4 and found["tokens"].macs == 100 * 6 * 5


def test_layers_that_read_one_tensor_share_a_key() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = F.relu(x)
        return m.a(y) + m.b(y) + m.c(y.clone()) + m.d(F.relu(x))

    keys = {
        name: found.input_key
        for name, found in observe(
            Net(forward, a=layer(), b=layer(), c=layer(), d=layer()), images()
        ).layers.items()
    }
    assert keys["a"] == keys["b"]
    assert len(set(keys.values())) == 3


def test_layers_share_a_key_only_when_they_read_the_same_tensors_in_all_calls() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y, z = F.relu(x), torch.sigmoid(x)
        return m.shared(y) + m.shared(z) + m.on_y(y) + m.also_on_y(y) + m.on_z(z) + m.other(x)

    names = ("shared", "on_y", "also_on_y", "on_z", "other")
    network = observe(Net(forward, **{name: layer() for name in names}), images())
    keys = {name: found.input_key for name, found in network.layers.items()}
    assert keys["on_y"] == keys["also_on_y"]
    assert len({keys[name] for name in ("shared", "on_y", "on_z", "other")}) == 4
    assert network.layers["shared"].calls == 2 and network.layers["on_y"].calls == 1
    assert network.layers["shared"].macs == 2 * network.layers["on_y"].macs
    assert [unit.calls for unit in network.units if unit.name == "shared"] == [2]


def test_several_outputs_have_each_their_last_layer_and_a_residual_output_only_one() -> None:
    def heads(m: nn.Module, x: Tensor) -> dict[str, Any]:
        y = F.relu(m.body(x))
        return {"boxes": m.boxes(y), "scores": (m.scores(y),)}

    found = observe(Net(heads, body=layer(), boxes=layer(), scores=layer()), images()).layers
    assert [name for name in found if found[name].is_last] == ["boxes", "scores"]

    def residual(m: nn.Module, x: Tensor) -> Tensor:
        y = m.early(x)
        return F.relu(y + m.late(F.relu(y)))

    found = observe(Net(residual, early=layer(), late=layer()), images()).layers
    assert [name for name in found if found[name].is_last] == ["late"]


# The record


def test_writes_through_another_view_are_seen() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = F.relu(x)
        view = y.view(2, -1)
        m.conv(y)
        view.neg_()
        return m.conv(y)

    record = record_forward(Net(forward, conv=layer()), images())
    first, second = (record.calls[number].inputs[0] for number in record.calls_of("conv"))
    assert first != second
    assert record.ops[record.values[second].producer].name == "alias"


def test_calls_are_nested_and_numbered() -> None:
    block = nn.Sequential(layer(), nn.ReLU(inplace=True))
    record = record_forward(Net(lambda m, x: m.block(m.block(x)), block=block), images())
    assert [(call.name, call.number) for call in record.calls] == [
        ("", 0), ("block", 0), ("block.0", 0), ("block.1", 0), ("block", 1), ("block.0", 1), ("block.1", 1)
    ]  # fmt: skip
    inner = record.calls[5]
    assert record.calls[inner.parent].name == "block" and record.calls[inner.parent].number == 1
    (convolution,) = (record.ops[number] for number in record.ops_in(inner))
    assert convolution.name == "convolution" and record.batch_size == 2


# Steps, batches and errors


def test_a_step_says_how_a_batch_runs() -> None:
    model = Net(lambda m, x: m.conv(x["image"]) * x["scale"], conv=layer())
    batch = [{"image": images(3, 4, 6, 6), "scale": torch.ones(())}]
    network = observe(model, batch, lambda model, batch: [model(entry) for entry in batch])
    assert network.layers["conv"].is_first and network.layers["conv"].is_last
    assert network.layers["conv"].macs == 36 * 4 * 36


def test_lazy_modules_are_named() -> None:
    model = nn.Sequential(layer(), nn.Flatten(), nn.LazyLinear(3), nn.LazyBatchNorm1d())
    with pytest.raises(ModelError, match="lazy modules.*: 2, 3"):
        observe(model, images())


def test_models_whose_modules_cannot_be_seen_are_refused() -> None:
    model = nn.Sequential(layer(), nn.ReLU())
    with pytest.raises(ModelError, match="the model itself"):
        observe(torch.jit.trace(model, images()), images())
    with pytest.raises(ModelError, match="hide their layers: 1"):
        observe(nn.Sequential(layer(), torch.jit.trace(layer(), images())), images())
    with pytest.raises(ModelError, match="compiled"):
        observe(torch.compile(model), images())


def test_models_without_layers_and_steps_without_modules_are_errors() -> None:
    with pytest.raises(ModelError, match="no convolution and no linear layer"):
        observe(nn.Sequential(nn.ReLU()), images())
    with pytest.raises(ModelError, match="ran no module"):
        observe(nn.Sequential(layer()), images(), lambda model, batch: batch)
    assert issubclass(ModelError, BitsplitError)
