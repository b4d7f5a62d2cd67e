"""Plans: policies by place, overrides, shared input quantizers, levels, sizes."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from pydantic import ValidationError
from torch import nn

from bitsplit.errors import RecipeError
from bitsplit.network.layers import LayerKind, kind_of
from bitsplit.plan import Plan, make_plan
from bitsplit.recipe import Recipe


@dataclass
class FakeLayer:
    """The facts about a layer that a plan is made from."""

    name: str
    module: nn.Module
    unit: str
    input_key: int
    nonnegative: bool = True
    is_first: bool = False
    is_last: bool = False

    @property
    def kind(self) -> LayerKind:
        return kind_of(self.module)


@dataclass
class FakeNetwork:
    """conv1 -> block1 (conv1, conv2, downsample of the same input) -> block2.conv1 (signed) -> fc."""

    model: nn.Module = field(default_factory=nn.Module)
    uncovered: tuple = (SimpleNamespace(name="attn", what="in_proj_weight", reason="packed projection"),)

    def __post_init__(self) -> None:
        self.layers = {layer.name: layer for layer in self._layers()}
        for layer in self.layers.values():
            self.model.add_module(layer.name.replace(".", "_"), layer.module)
        members: dict[str, list[str]] = {}
        for layer in self.layers.values():
            members.setdefault(layer.unit, []).append(layer.name)
        self.units = [
            SimpleNamespace(name=name, kind="block" if len(layers) > 1 else "layer", layers=tuple(layers))
            for name, layers in members.items()
        ]

    def _layers(self) -> list[FakeLayer]:
        return [
            FakeLayer("conv1", nn.Conv2d(3, 8, 3), "conv1", 10, nonnegative=False, is_first=True),
            FakeLayer("block1.conv1", nn.Conv2d(8, 8, 3, groups=2), "block1", 20),
            FakeLayer("block1.conv2", nn.Conv2d(8, 8, 3), "block1", 30),
            FakeLayer("block1.downsample", nn.Conv2d(8, 8, 1), "block1", 20),
            FakeLayer("block2.conv1", nn.ConvTranspose2d(8, 6, 2), "block2", 40, nonnegative=False),
            FakeLayer("fc", nn.Linear(6, 10), "fc", 50, is_last=True),
        ]


NAMES = ["conv1", "block1.conv1", "block1.conv2", "block1.downsample", "block2.conv1", "fc"]


def widths(recipe: Recipe) -> list[tuple[int | None, int | None]]:
    return [(layer.weights, layer.activations) for layer in make_plan(FakeNetwork(), recipe).layers]


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
    assert widths(Recipe(weights=3, activations=4, policy=policy)) == expected


@pytest.mark.parametrize("policy", ["paper", "brecq", "qdrop", "all"])
def test_a_policy_never_quantizes_what_the_recipe_leaves_float(policy: str) -> None:
    assert {activations for _, activations in widths(Recipe(weights=3, policy=policy))} == {None}
    assert {weights for weights, _ in widths(Recipe(weights=None, activations=4, policy=policy))} == {None}


def test_reasons_are_given() -> None:
    recipe = Recipe(weights=3, activations=4, policy="brecq", layers={"block1.c*": {"weights": 5}})
    reasons = {
        layer.name: (layer.why_weights, layer.why_activations)
        for layer in make_plan(FakeNetwork(), recipe).layers
    }
    assert reasons == {
        "conv1": ("first layer", "first layer"),
        "block1.conv1": ('override "block1.c*"', "reads the first layer's output"),
        "block1.conv2": ('override "block1.c*"', "recipe"),
        "block1.downsample": ("recipe", "reads the first layer's output"),
        "block2.conv1": ("recipe", "recipe"),
        "fc": ("last layer", "last layer"),
    }


def test_later_overrides_win_field_by_field() -> None:
    layers = {
        "*": {"weights": 5, "activations": 6},
        "block1.*": {"weights": 8},
        "fc": {"weights": None, "activations": None},
    }
    assert widths(Recipe(weights=3, activations=4, layers=layers)) == [
        (5, 6), (8, 6), (8, 6), (8, 6), (5, 6), (None, None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("block1.conv3", "did you mean 'block1.conv"),
        ("block1", "did you mean 'block1.\\*'"),
        ("FC", "known: conv1, block1.conv1"),
        ("Conv1", "'conv1'"),
        ("zzz", "known: conv1, block1.conv1"),
    ],
)
def test_a_pattern_without_a_match_names_the_nearest(pattern: str, hint: str) -> None:
    with pytest.raises(RecipeError, match=f"override '{pattern}' matches no layer; .*{hint}"):
        make_plan(FakeNetwork(), Recipe(layers={pattern: {"weights": 8}}))


def test_nothing_to_quantize_is_an_error() -> None:
    with pytest.raises(RecipeError, match="every layer float"):
        make_plan(FakeNetwork(), Recipe(weights=4, layers={"*": {"weights": None}}))


def test_layers_that_read_the_same_tensor_share_a_quantizer() -> None:
    plan = make_plan(FakeNetwork(), Recipe(weights=4, activations=8))
    assert plan.quantizer_owner(plan.layer("block1.downsample")) == "block1.conv1"
    assert plan.quantizer_owner(plan.layer("block1.conv1")) == "block1.conv1"
    assert plan.quantizer_owner(plan.layer("conv1")) is None
    assert "unsigned, shared with block1.conv1" in str(plan)


def test_an_override_of_one_reader_ends_the_sharing() -> None:
    plan = make_plan(
        FakeNetwork(), Recipe(weights=4, activations=8, layers={"*.downsample": {"activations": 4}})
    )
    keys = [plan.layer(name).input_key for name in ("block1.conv1", "block1.downsample")]
    assert keys[0] != keys[1]
    assert plan.quantizer_owner(plan.layer("block1.downsample")) == "block1.downsample"


@pytest.mark.parametrize(("method", "levels"), [("bitsplit", "signed"), ("minmax", "affine")])
def test_levels_follow_what_is_proven_and_what_the_method_can(method: str, levels: str) -> None:
    plan = make_plan(FakeNetwork(), Recipe(method=method, weights=4, activations=8))
    assert [layer.levels for layer in plan.layers] == [
        None,
        "unsigned",
        "unsigned",
        "unsigned",
        levels,
        "unsigned",
    ]
    assert plan.layer("block2.conv1").signed == (levels == "signed")


def test_sizes_by_hand() -> None:
    plan = make_plan(FakeNetwork(), Recipe(weights=3))
    counts = [3 * 8 * 9, 8 * 4 * 9, 8 * 8 * 9, 8 * 8, 8 * 6 * 4, 60]
    assert [layer.count for layer in plan.layers] == counts
    assert [layer.channels for layer in plan.layers] == [8, 8, 8, 8, 6, 10]
    biases = 8 + 8 + 8 + 8 + 6 + 10
    assert plan.float_bytes == 4 * (sum(counts) + biases)
    packed = 216 + 108 + 216 + 24 + 72 + 60
    assert plan.quantized_bytes == packed + 8 * 48 + 4 * biases
    assert plan.average_bits == pytest.approx((8 * (216 + 60) + 3 * (288 + 576 + 64 + 192)) / sum(counts))
    everything = make_plan(FakeNetwork(), Recipe(weights=None, activations=8))
    assert everything.average_bits == 32 and everything.quantized_bytes == everything.float_bytes


def test_units_and_uncovered_are_kept() -> None:
    plan = make_plan(FakeNetwork(), Recipe())
    assert [(unit.name, unit.kind, unit.layers) for unit in plan.units][1] == (
        "block1",
        "block",
        tuple(NAMES[1:4]),
    )
    assert plan.uncovered[0].name == "attn"
    assert "not covered: attn (in_proj_weight): packed projection" in str(plan)


def test_the_table_names_every_layer_and_its_bits() -> None:
    text = str(make_plan(FakeNetwork(), Recipe(weights=3, activations=4)))
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if line.count("│") > 4}
    assert set(NAMES) <= set(rows)
    assert "W3" in rows["block1.conv2"] and "A4" in rows["block1.conv2"]
    assert "float" in rows["conv1"] and "first layer" in rows["conv1"]


def test_yaml_and_json_give_the_plan_back() -> None:
    plan = make_plan(FakeNetwork(), Recipe(weights=3, activations=4, layers={"fc": {"weights": None}}))
    assert Plan.from_yaml(plan.to_yaml()) == plan
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_json(plan.to_json()).fingerprint() == plan.fingerprint()
    other = make_plan(FakeNetwork(), Recipe(weights=4, activations=4, layers={"fc": {"weights": None}}))
    assert other.fingerprint() != plan.fingerprint()


def test_a_plan_is_checked_when_read() -> None:
    text = make_plan(FakeNetwork(), Recipe(weights=3)).to_json()
    with pytest.raises(RecipeError, match="weights"):
        Plan.from_json(text.replace('"weights": 3', '"weights": 33'))
    with pytest.raises(ValidationError):
        make_plan(FakeNetwork(), Recipe(weights=3)).layer("fc").weights = 2
    with pytest.raises(KeyError, match="did you mean 'fc'"):
        make_plan(FakeNetwork(), Recipe()).layer("fcc")
