"""Norms are folded where the data flow allows it, checked by numbers, and nowhere else."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from function_net import Net
from torch import Tensor, nn

from bitsplit.errors import FoldError
from bitsplit.network import FoldedNorm, Network, fold_norms, observe
from bitsplit.network.fold import relative_error


def with_statistics(model: nn.Module) -> nn.Module:
    """Norms as after training, some channels negative or dead."""
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.2, 2)
            if module.weight is not None:
                module.weight.data.uniform_(-1.5, 1.5)
                module.weight.data[0] = 0
                module.bias.data.normal_()
    return model


def conv(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1, **options)


def images() -> Tensor:
    return torch.randn(2, 4, 6, 6)


def folded(model: nn.Module, batch: Tensor) -> Network:
    """Fold all norms of a model and check that its output stays."""
    with_statistics(model).eval()
    with torch.no_grad():
        before = model(batch)
        network = observe(model, batch)
        report = fold_norms(network)
        assert relative_error(model(batch), before) < 1e-5
    assert report.output_error < 1e-5 and all(error < 1e-5 for error in report.errors.values())
    assert set(report.folded) == {norm.name for norm in network.norms if norm.folded}
    return network


def reason(network: Network, name: str = "norm") -> str:
    (norm,) = (norm for norm in network.norms if norm.name == name)
    assert norm.layer is None and not norm.folded
    return norm.reason


PAIRS = {
    "conv1d": (nn.Conv1d(3, 5, 3), nn.BatchNorm1d(5), (2, 3, 9)),
    "conv2d": (nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), (2, 3, 9, 9)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (2, 4, 9, 9)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.BatchNorm2d(4), (2, 4, 9, 9)),
    "conv3d": (nn.Conv3d(3, 5, 3), nn.BatchNorm3d(5), (2, 3, 5, 5, 5)),
    "reflect": (nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(5), (2, 3, 9, 9)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    "transposed grouped": (nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    "linear": (nn.Linear(7, 5), nn.BatchNorm1d(5), (8, 7)),
    "without affine": (nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, affine=False), (2, 3, 9, 9)),
    "synchronised": (nn.Conv2d(3, 5, 3), nn.SyncBatchNorm(5), (2, 3, 9, 9)),
    "instance norm with statistics": (
        nn.Conv2d(3, 5, 3), nn.InstanceNorm2d(5, affine=True, track_running_stats=True), (2, 3, 9, 9)
    ),
}  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS)
def test_every_kind_of_layer_takes_its_norm(pair: str) -> None:
    layer, norm, shape = copy.deepcopy(PAIRS[pair])
    had_bias = layer.bias is not None
    model = nn.Sequential(layer, norm, nn.ReLU(inplace=True))
    keys = set(model.state_dict())
    network = folded(model, torch.randn(shape))
    assert [(n.layer, n.folded) for n in network.norms] == [("0", True)]
    assert isinstance(model[1], FoldedNorm) and isinstance(model[1], type(PAIRS[pair][1]))
    assert set(model.state_dict()) == keys | (set() if had_bias else {"0.bias"})
    x = torch.randn(3, 5)
    assert model[1](x) is x


def test_frozen_norms_of_torchvision() -> None:
    frozen = pytest.importorskip("torchvision.ops").FrozenBatchNorm2d(4)
    frozen.weight.uniform_(0.5, 2)
    frozen.running_var.uniform_(0.5, 2)
    network = observe(nn.Sequential(conv(), frozen), images())
    assert fold_norms(network).folded == {"1": "0"}


@pytest.mark.parametrize("name", ["BatchNormAct2d", "FrozenBatchNormAct2d"])
def test_timms_norms_keep_their_activation(name: str) -> None:
    norm = getattr(pytest.importorskip("timm.layers"), name)(4)
    network = folded(nn.Sequential(conv(bias=False), norm, conv()), images())
    assert network.model[1](torch.tensor([-1.0, 2.0])).tolist() == [0.0, 2.0]
    assert network.layers["2"].nonnegative


def test_views_between_a_linear_layer_and_its_norm() -> None:
    model = Net(
        lambda m, x: m.norm(m.layer(x).flatten(0, 1)).view(2, 3, 5),
        layer=nn.Linear(7, 5), norm=nn.BatchNorm1d(5),
    )  # fmt: skip
    assert folded(model, torch.randn(2, 3, 7)).norms[0].folded


def test_what_training_knew_stays_known() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(4, eps=0.1))
    norm = folded(model, images()).model[1]
    spread = (norm.running_var / (norm.running_var + 0.1)).sqrt()
    assert torch.equal(norm.reference_mean, norm.bias.detach())
    torch.testing.assert_close(norm.reference_std, norm.weight.detach().abs() * spread)
    bare = nn.Sequential(conv(), nn.BatchNorm2d(4, affine=False))
    norm = folded(bare, images()).model[1]
    assert torch.equal(norm.reference_mean, torch.zeros(4)) and norm.reference_std.max() <= 1


def test_a_folded_model_can_be_copied_pickled_and_reloaded() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(), nn.SyncBatchNorm(4))
    folded(model, images())
    x = images()
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(again[1]) is type(model[1]) and again[1] is not model[1]
        assert torch.equal(again(x), model(x))
        again.load_state_dict(model.state_dict())


def test_folding_twice_does_nothing_more() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(4))
    network = folded(model, images())
    weight = model[0].weight.clone()
    assert fold_norms(network).folded == {}
    assert fold_norms(observe(model, images())).folded == {}
    assert torch.equal(model[0].weight, weight)


def test_a_shared_pair_called_twice_is_folded_once() -> None:
    model = Net(
        lambda m, x: F.relu(m.norm(m.conv(F.relu(m.norm(m.conv(x)))))), conv=conv(), norm=nn.BatchNorm2d(4)
    )
    network = folded(model, images())
    assert network.norms[0].folded and network.layers["conv"].calls == 2


# What must stay


def two_readers(m: nn.Module, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.norm(y) + y


def viewed_by_another(m: nn.Module, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.norm(y) + y[:, :1]


def given_out(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
    y = m.conv(x)
    return {"raw": y, "normal": m.norm(y)}


STAYS = {
    "read by two": (two_readers, "has other readers (add)"),
    "read by a view": (viewed_by_another, "has other readers (slice)"),
    "an output too": (given_out, "is an output of the network too"),
    "before the layer": (lambda m, x: m.conv(m.norm(x)), "comes from an input"),
    "behind an activation": (lambda m, x: m.norm(F.relu(m.conv(x))), "comes from the operation relu"),
    "activation in place": (lambda m, x: m.norm(m.conv(x).relu_()), "comes from the operation relu"),
    "behind an addition": (lambda m, x: m.norm(m.conv(x) + x), "comes from the operation add"),
    "layer called twice": (lambda m, x: m.norm(m.conv(m.conv(x))), "is called 2 times, the norm 1 times"),
    "norm called twice": (lambda m, x: m.norm(m.norm(m.conv(x))), "behind several layers"),
    "never called": (lambda m, x: m.conv(x), "never reached"),
}


@pytest.mark.parametrize("name", STAYS)
def test_norms_that_cannot_be_folded_say_why(name: str) -> None:
    function, expected = STAYS[name]
    model = with_statistics(Net(function, conv=conv(), norm=nn.BatchNorm2d(4)))
    network = observe(model, images())
    assert fold_norms(network).folded == {}
    assert expected in reason(network)
    assert type(model.norm) is nn.BatchNorm2d


def test_one_norm_behind_two_layers() -> None:
    shared = Net(
        lambda m, x: m.norm(m.first(x)) + m.norm(m.second(x)),
        first=conv(), second=conv(), norm=nn.BatchNorm2d(4),
    )  # fmt: skip
    assert "several layers" in reason(observe(shared, images()))


def test_two_norms_behind_one_layer() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.conv(x)
        return m.norm(y) + m.other(y)

    model = Net(forward, conv=conv(), norm=nn.BatchNorm2d(4), other=nn.BatchNorm2d(4))
    network = observe(model, images())
    assert "has other readers" in reason(network) and "has other readers" in reason(network, "other")


def test_shared_layers_with_a_norm_for_each_call() -> None:
    model = Net(
        lambda m, x: m.norm(m.conv(x)) + m.other(m.conv(2 * x)),
        conv=conv(), norm=nn.BatchNorm2d(4), other=nn.BatchNorm2d(4),
    )  # fmt: skip
    network = observe(model, images())
    assert "called 2 times" in reason(network) and "called 2 times" in reason(network, "other")


def test_layers_that_share_a_weight_keep_their_norms() -> None:
    model = Net(lambda m, x: m.other(m.norm(m.conv(x))), conv=conv(), other=conv(), norm=nn.BatchNorm2d(4))
    model.other.weight = model.conv.weight
    assert "shares its weight" in reason(observe(model, images()))


def test_norms_without_statistics() -> None:
    model = Net(
        lambda m, x: m.group(m.c(m.instance(m.b(m.norm(m.a(x)))))),
        a=conv(), b=conv(), c=conv(), norm=nn.BatchNorm2d(4, track_running_stats=False),
        instance=nn.InstanceNorm2d(4), group=nn.GroupNorm(2, 4),
    )  # fmt: skip
    network = observe(model, images())
    assert "no running statistics" in reason(network)
    assert "each image" in reason(network, "instance") and "each image" in reason(network, "group")
    assert not any(norm.has_statistics for norm in network.norms)


def test_a_norm_that_does_something_else_is_refused_by_its_numbers() -> None:
    class Shifted(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    model = with_statistics(Net(lambda m, x: m.norm(m.conv(x)), conv=conv(), norm=Shifted(4)))
    x = images()
    before = model.eval()(x)
    network = observe(model, x)
    report = fold_norms(network)
    assert report.folded == {} and "conv" in report.refused["norm"] and report.errors["norm"] > 1e-3
    assert reason(network) == report.refused["norm"]
    assert torch.equal(model(x), before)


def test_nan_in_the_statistics_is_an_error_that_names_the_norm() -> None:
    model = Net(lambda m, x: m.norm(m.conv(x)), conv=conv(), norm=nn.BatchNorm2d(4))
    model.norm.running_mean[1] = float("nan")
    with pytest.raises(FoldError, match="NaN or Inf.* norm$"):
        fold_norms(observe(model, images()))
    assert type(model.norm) is nn.BatchNorm2d


def test_a_changed_output_undoes_everything() -> None:
    """A network that looks at its own norm's class: no single norm changes, but the whole does."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.norm(m.conv(x))
        return y if type(m.norm) is nn.BatchNorm2d else 2 * y

    model = with_statistics(Net(forward, conv=conv(bias=False), norm=nn.BatchNorm2d(4)))
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(FoldError, match="norm into conv"):
        fold_norms(observe(model, images()))
    assert type(model.norm) is nn.BatchNorm2d and model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_training_mode_and_hooks_are_left_alone() -> None:
    model = with_statistics(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.Dropout(0.5))).train()
    statistics = model[1].running_mean.clone()
    network = observe(model, images())
    assert fold_norms(network).folded == {"1": "0"}
    assert model.training and model[1].training and not model[0]._forward_hooks
    assert torch.equal(model[1].running_mean, statistics)
