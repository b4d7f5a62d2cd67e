"""Plans: policies by place, overrides, shared input quantizers, levels, sizes."""

import pytest
import torch
import torchvision
from pydantic import ValidationError
from torch import Tensor, nn

import bitsplit
from bitsplit.errors import RecipeError
from bitsplit.methods import registry
from bitsplit.methods.base import Method
from bitsplit.network import observe
from bitsplit.plan import Plan
from bitsplit.planning import make_plan
from bitsplit.recipe import Recipe


class Block(nn.Module):
    """Two convolutions and a downsampling one that reads what the first reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.downsample = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv2(torch.relu(self.conv1(x))) + self.downsample(x))


class Net(nn.Module):
    """conv1 -> block -> up (its input may be negative) -> a product with a bare parameter -> fc."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.block = Block()
        self.up = nn.ConvTranspose2d(8, 6, 2)
        self.mix = nn.Parameter(torch.rand(6, 6))
        self.fc = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(torch.relu(self.conv1(x)))
        x = torch.relu(self.up(x - 0.1)).mean((2, 3))
        return self.fc(torch.relu(x @ self.mix))


NAMES = ["conv1", "block.conv1", "block.conv2", "block.downsample", "up", "fc"]


def plan_of(model: nn.Module | None = None, size: int = 16, **fields: object) -> Plan:
    return make_plan(observe(model or Net(), torch.randn(2, 3, size, size)), Recipe(**fields))


def widths(plan: Plan) -> list[tuple[int | None, int | None]]:
    return [(layer.weights, layer.activations) for layer in plan.layers]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("paper", [(8, None), (3, 4), (3, 4), (3, 4), (3, 4), (8, 8)]),
        ("brecq", [(8, None), (3, 8), (3, 4), (3, 8), (3, 4), (8, 8)]),
        ("qdrop", [(8, None), (3, 4), (3, 4), (3, 4), (3, 4), (8, 8)]),
        ("all", [(3, 4), (3, 4), (3, 4), (3, 4), (3, 4), (3, 4)]),
    ],
)
def test_policies_by_hand(policy: str, expected: list) -> None:
    assert widths(plan_of(weights=3, activations=4, policy=policy)) == expected


@pytest.mark.parametrize("policy", ["paper", "brecq", "qdrop", "all"])
def test_a_policy_never_quantizes_what_the_recipe_leaves_float(policy: str) -> None:
    assert {activations for _, activations in widths(plan_of(weights=3, policy=policy))} == {None}
    assert {weights for weights, _ in widths(plan_of(weights=None, activations=4, policy=policy))} == {None}


def test_reasons_are_given() -> None:
    plan = plan_of(weights=3, activations=4, policy="brecq", layers={"block.c*": {"weights": 5}})
    assert {layer.name: (layer.why_weights, layer.why_activations) for layer in plan.layers} == {
        "conv1": ("first layer", "first layer"),
        "block.conv1": ('override "block.c*"', "reads the first layer's output"),
        "block.conv2": ('override "block.c*"', "recipe"),
        "block.downsample": ("recipe", "reads the first layer's output"),
        "up": ("recipe", "recipe"),
        "fc": ("last layer", "last layer"),
    }


def test_later_overrides_win_field_by_field() -> None:
    layers = {
        "*": {"weights": 5, "activations": 6},
        "block.*": {"weights": 8},
        "fc": {"weights": None, "activations": None},
    }
    assert widths(plan_of(weights=3, activations=4, layers=layers)) == [
        (5, 6), (8, 6), (8, 6), (8, 6), (5, 6), (None, None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("block.conv3", "did you mean 'block.conv"),
        ("block", "did you mean 'block.\\*'"),
        ("FC", "known: conv1, block.conv1"),
        ("Conv1", "'conv1'"),
        ("zzz", "known: conv1, block.conv1"),
    ],
)
def test_a_pattern_without_a_match_names_the_nearest(pattern: str, hint: str) -> None:
    with pytest.raises(RecipeError, match=f"override '{pattern}' matches no layer; .*{hint}"):
        plan_of(layers={pattern: {"weights": 8}})


def test_nothing_to_quantize_is_an_error() -> None:
    with pytest.raises(RecipeError, match="every layer float"):
        plan_of(weights=4, layers={"*": {"weights": None}})


def test_layers_that_read_the_same_tensor_share_a_quantizer() -> None:
    plan = plan_of(weights=4, activations=8)
    assert plan.quantizer_owner(plan.layer("block.downsample")) == "block.conv1"
    assert plan.quantizer_owner(plan.layer("block.conv1")) == "block.conv1"
    assert plan.quantizer_owner(plan.layer("conv1")) is None
    assert "unsigned, shared with block.conv1" in str(plan)


def test_an_override_of_one_reader_ends_the_sharing() -> None:
    plan = plan_of(weights=4, activations=8, layers={"*.downsample": {"activations": 4}})
    keys = [plan.layer(name).input_key for name in ("block.conv1", "block.downsample")]
    assert keys[0] != keys[1]
    assert plan.quantizer_owner(plan.layer("block.downsample")) == "block.downsample"


@pytest.mark.parametrize(
    ("method", "levels"),
    [(bitsplit.BitSplit(paper=True), "signed"), ("bitsplit", "affine"), ("minmax", "affine")],
)
def test_levels_follow_what_is_proven_and_what_the_method_can(method: object, levels: str) -> None:
    plan = plan_of(method=method, weights=4, activations=8)
    assert [layer.levels for layer in plan.layers] == [None, *["unsigned"] * 3, levels, "unsigned"]
    assert plan.layer("up").signed == (levels == "signed")


def test_sizes_by_hand() -> None:
    plan = plan_of(weights=3)
    counts = [3 * 8 * 9, 8 * 4 * 9, 8 * 8 * 9, 8 * 8, 8 * 6 * 4, 60]
    assert [layer.count for layer in plan.layers] == counts
    assert [layer.channels for layer in plan.layers] == [8, 8, 8, 8, 6, 10]
    others = 8 + 8 + 8 + 8 + 6 + 10 + 36  # biases and the bare parameter
    assert plan.float_bytes == 4 * (sum(counts) + others)
    packed = 216 + 108 + 216 + 24 + 72 + 60
    assert plan.quantized_bytes == packed + 8 * 48 + 4 * others
    assert plan.average_bits == pytest.approx((8 * (216 + 60) + 3 * (288 + 576 + 64 + 192)) / sum(counts))
    everything = plan_of(weights=None, activations=8)
    assert everything.average_bits == 32 and everything.quantized_bytes == everything.float_bytes


def test_units_and_uncovered_are_kept() -> None:
    plan = plan_of()
    block = plan.units[1]
    assert (block.name, block.kind, block.layers) == ("block", "block", tuple(NAMES[1:4]))
    (part,) = plan.uncovered
    assert part.name == "mix" and part.reason
    assert f"not covered: mix ({part.what}): {part.reason}" in str(plan)


class Dense(nn.Module):
    """What reads the first layer's output alone, and what reads it beside another's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.one = nn.Conv2d(4, 4, 3, padding=1)
        self.two = nn.Conv2d(8, 4, 3, padding=1)
        self.late = nn.Conv2d(4, 4, 1)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        stem = torch.relu(self.norm(self.stem(x)))
        one = self.one(torch.max_pool2d(stem, 3, 1, 1))
        return self.last((self.two(torch.cat([stem, one], 1)) + self.late(stem)).mean((2, 3)))


def test_what_reads_the_first_output_is_told_by_the_flow_of_data() -> None:
    plan = plan_of(Dense(), weights=4, activations=4, policy="brecq")
    bits = {layer.name: layer.activations for layer in plan.layers}
    assert bits == {"stem": None, "one": 8, "two": 4, "late": 8, "last": 8}
    assert plan.layer("one").why_activations == "reads the first layer's output"


def test_the_first_output_of_a_residual_network() -> None:
    """The first block reads it; the second block reads a sum that holds it, which is another tensor."""
    plan = plan_of(torchvision.models.resnet50(), 64, weights=4, activations=4, policy="brecq")
    eight = [layer.name for layer in plan.layers if layer.activations == 8]
    assert eight == ["layer1.0.conv1", "layer1.0.downsample.0", "fc"]
    plan = plan_of(torchvision.models.resnet18(), 64, weights=4, activations=4, policy="brecq")
    assert [layer.name for layer in plan.layers if layer.activations == 8] == ["layer1.0.conv1", "fc"]
    assert len(plan.layers) == 21 and plan.layer("fc").why_weights == "last layer"


class Blockwise(Method):
    """A method with a rule of its own."""

    name = "blockwise"
    policy = "brecq"


def test_paper_means_the_last_own_rule_of_the_chain() -> None:
    step, blockwise = registry.get("equalize")(), Blockwise()
    for chain, rule in (
        ([step, "bitsplit"], "bitsplit"),
        (["bitsplit", blockwise], "brecq"),
        ([blockwise, "bias_correction"], "brecq"),
    ):
        plan = plan_of(method=chain, weights=3, activations=4)
        assert plan.rule == rule
        assert plan.layer("block.conv1").activations == (8 if rule == "brecq" else 4)


def test_a_network_of_one_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    (layer,) = plan_of(model, weights=4, activations=4).layers
    assert (layer.weights, layer.activations, layer.why_weights) == (8, None, "first layer")


def test_the_table_names_every_layer_and_its_bits() -> None:
    text = str(plan_of(weights=3, activations=4))
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if line.count("│") > 4}
    assert set(NAMES) <= set(rows)
    assert "W3" in rows["block.conv2"] and "A4" in rows["block.conv2"]
    assert "float" in rows["conv1"] and "first layer" in rows["conv1"]


def test_yaml_and_json_give_the_plan_back() -> None:
    plan = plan_of(weights=3, activations=4, layers={"fc": {"weights": None}})
    assert Plan.from_yaml(plan.to_yaml()) == plan
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_json(plan.to_json()).fingerprint() == plan.fingerprint()
    other = plan_of(weights=4, activations=4, layers={"fc": {"weights": None}})
    assert other.fingerprint() != plan.fingerprint()


def test_a_plan_is_checked_when_read() -> None:
    text = plan_of(weights=3).to_json()
    with pytest.raises(RecipeError, match="weights"):
        Plan.from_json(text.replace('"weights": 3', '"weights": 33'))
    with pytest.raises(ValidationError):
        plan_of(weights=3).layer("fc").weights = 2
    with pytest.raises(KeyError, match="did you mean 'fc'"):
        plan_of().layer("fcc")
