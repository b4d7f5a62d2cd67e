"""Recipes: validation at construction, YAML and JSON both ways, schema, messages."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bitsplit.errors import RecipeError
from bitsplit.methods import registry
from bitsplit.policies import AFTER_FIRST, FIRST, LAST, POLICIES
from bitsplit.recipe import LayerOverride, Recipe

CONFIGS = Path(__file__).parents[1] / "configs"
EFFORTS = ["fast", "normal", "best"]

BITS = st.none() | st.integers(2, 8)
OVERRIDES = st.fixed_dictionaries({}, optional={"weights": BITS, "activations": BITS}).filter(bool)
RECIPES = st.builds(
    Recipe,
    method=st.sampled_from(["bitsplit", "minmax", "mse", [{"name": "bitsplit", "rounds": 7}], ["nearest"]]),
    weights=st.integers(2, 8),
    activations=BITS,
    policy=st.sampled_from(["paper", "brecq", "qdrop", "all"]),
    layers=st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1), OVERRIDES
    ),
    seed=st.integers(0, 2**63 - 1),
)


@settings(max_examples=60)
@given(RECIPES)
def test_yaml_and_json_give_the_recipe_back(recipe: Recipe) -> None:
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert Recipe.from_yaml(recipe.to_yaml()).fingerprint() == recipe.fingerprint()


def test_files_are_read_and_written(tmp_path: Path) -> None:
    recipe = Recipe(method="mse", weights=3, layers={"fc": {"weights": None}})
    recipe.to_yaml(tmp_path / "recipe.yaml")
    recipe.to_json(tmp_path / "recipe.json")
    assert Recipe.from_yaml(tmp_path / "recipe.yaml") == recipe
    assert Recipe.from_yaml(str(tmp_path / "recipe.yaml")) == recipe
    assert Recipe.from_json(str(tmp_path / "recipe.json")) == recipe
    for name in ("recipe.yaml", "recipe.json"):
        assert Recipe.from_file(tmp_path / name) == recipe


def test_every_option_of_a_method_is_written_down() -> None:
    chain = yaml.safe_load(Recipe(method="bitsplit").to_yaml())["method"]
    assert chain[0]["name"] == "bitsplit"
    assert set(chain[0]) == {"name", *registry.get("bitsplit").model_fields}


@pytest.mark.parametrize("name", registry.names())
def test_every_registered_method_survives_yaml(name: str) -> None:
    recipe = Recipe(method=name)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert type(recipe.method[0]) is registry.get(name)


def test_a_method_is_a_name_a_config_a_mapping_or_a_list_of_them() -> None:
    config = registry.get("bitsplit")(rounds=5)
    given = {"name": "bitsplit", "rounds": 5}
    assert Recipe(method=config) == Recipe(method=given) == Recipe(method=[config]) == Recipe(method=[given])
    assert Recipe(method=["equalize", config]).method == (registry.get("equalize")(), config)


def test_an_override_keeps_apart_what_is_float_and_what_is_not_given() -> None:
    override = Recipe(layers={"fc": {"weights": None}}).layers["fc"]
    assert override.given == {"weights": None}
    assert LayerOverride(weights=None) != LayerOverride(activations=None)
    assert LayerOverride(weights=4) == LayerOverride(weights=4, activations="policy")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": 1}, "weights.*greater than or equal to 2"),
        ({"weights": 9}, "weights.*less than or equal to 8"),
        ({"weights": True}, "weights.*valid integer"),
        ({"weights": 4.0}, "weights.*valid integer"),
        ({"activations": "8"}, "activations.*valid integer"),
        ({"policy": "papr"}, "policy.*'paper'"),
        ({"seed": -1}, "seed"),
        ({"wieghts": 4}, "unknown field 'wieghts'; did you mean 'weights'"),
        ({"method": "bitspilt"}, "unknown method 'bitspilt'; did you mean .*bitsplit"),
        ({"method": []}, "chain is empty"),
        ({"method": ["bitsplit", "equalize", "minmax"]}, "bitsplit and minmax each set all weights"),
        ({"method": 4}, "a method is"),
        ({"method": ["brecq", "bias_correction"]}, "bias_correction acts on a layer before brecq learns"),
        ({"method": {"name": "brecq", "start": ["mse", "bias_correction"]}}, "start.*a name, a config"),
        (
            {"method": {"name": "brecq", "start": {"name": "bitsplit", "paper": True}}},
            "start.*fits inputs when",
        ),
        ({"method": ["nearest", "norms"], "power_of_two": True}, "norms needs scales of any value"),
        (
            {"method": {"name": "rapq", "start": {"name": "bitsplit", "starts": "planes"}}},
            "rapq needs scales of any value",
        ),
        ({"method": {"name": "bitsplit", "round": 4}}, "round"),
        ({"method": {"rounds": 4}}, "'name'"),
        ({"layers": {"fc": {}}}, "layers.fc.*needs 'weights', 'activations' or both"),
        ({"layers": {"fc": {"bits": 4}}}, "unknown field 'bits'"),
        ({"layers": {"fc": {"weights": 12}}}, "layers.fc.weights"),
        ({"weights": None}, "nothing to quantize"),
    ],
)
def test_mistakes_are_refused_with_a_reason(fields: dict, message: str) -> None:
    with pytest.raises(ValidationError, match="(?s)" + message):
        Recipe(**fields)
    with pytest.raises(RecipeError, match=message) as raised:
        Recipe.from_yaml(yaml.safe_dump(fields))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold fields"),
        ("- 4\n- 5\n", "must hold fields"),
        ("weights: [4", "not valid YAML"),
        ("weights: 4\nweights: 5\n", "'weights' is written twice"),
        ('{"weights": 4, "weights": 5}', "'weights' is written twice"),
        ("method: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("missing.yaml", "cannot read missing.yaml"),
    ],
)
def test_bad_text_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as raised:
        Recipe.from_yaml(text)
    assert "\n" not in str(raised.value)
    with pytest.raises(RecipeError):
        Recipe.from_json(text.replace(".yaml", ".json"))


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValidationError):
        Recipe().weights = 8


def test_the_schema_lists_fields_and_methods() -> None:
    schema = Recipe.json_schema()
    assert set(schema["properties"]) == {*Recipe.model_fields, "effort"}
    assert schema["properties"]["effort"]["enum"] == ["fast", "normal", "best"]
    names, *configs, chain = schema["properties"]["method"]["anyOf"]
    assert names["enum"] == registry.names()
    assert {item["$ref"] for item in configs} == {f"#/$defs/{name}" for name in registry.names()}
    assert chain["type"] == "array"
    assert schema["$defs"]["bitsplit"]["properties"]["name"] == {"const": "bitsplit"}
    text = json.dumps(schema)
    for reference in {part.split('"')[0] for part in text.split('"#/$defs/')[1:]}:
        assert reference in schema["$defs"]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path: Path) -> None:
    recipe = Recipe.from_yaml(path)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_there_are_shipped_recipes() -> None:
    assert len(list(CONFIGS.glob("*.yaml"))) >= 5


def test_the_table_of_the_documentation_is_what_the_policies_do() -> None:
    text = (CONFIGS.parent / "docs" / "recipes.md").read_text()
    rows = [
        [cell.strip(" `*") for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line
    ]
    documented = {row[0]: row[1:] for row in rows if row[0] in POLICIES}
    documented["bitsplit"] = next(row[1:] for row in rows if row[0] == "– Bit-Split's rule")
    assert documented.keys() == POLICIES.keys()
    for name, policy in POLICIES.items():
        first, second, other, last = ([place] for place in (FIRST, AFTER_FIRST, None, LAST))
        told = [
            policy.choose_weights(first, 3), policy.choose_activations(first, 3),
            policy.choose_activations(second, 3), policy.choose_weights(other, 3),
            policy.choose_weights(last, 3), policy.choose_activations(last, 3),
        ]  # fmt: skip
        words = {3: "given", 8: "8", None: "float"}
        shortcuts = "quantized" if policy.quantized_shortcuts else "float"
        assert documented[name] == [*(words[choice.bits] for choice in told), shortcuts], name


class TestEffort:
    def test_every_effort_is_a_chain_that_is_written_down(self) -> None:
        fast, normal, best = (Recipe(effort=name, weights=2, activations=4) for name in EFFORTS)
        assert [method.name for method in fast.method] == ["bitsplit"]
        assert [method.name for method in normal.method] == ["bitsplit", "global"]
        assert [method.name for method in best.method] == ["bitsplit", "qdrop", "global"]
        assert Recipe.from_yaml(best.to_yaml()) == best
        assert fast.policy == "qdrop"

    def test_without_method_and_effort_it_is_fast(self) -> None:
        assert Recipe() == Recipe(effort="fast") == Recipe.from_yaml("weights: 4")
        assert "method" not in Recipe.json_schema().get("required", [])

    def test_bits_decide_too(self) -> None:
        assert Recipe(effort="fast", weights=8).method[0].levels == "symmetric"
        assert Recipe(effort="fast", weights=4).method[0].levels == "affine"
        assert Recipe(effort="best", weights=4).method[1].name == "brecq"

    def test_method_or_effort(self) -> None:
        with pytest.raises(ValueError, match="'effort' chooses the method; leave out one of the two"):
            Recipe(effort="fast", method="mse")
        with pytest.raises(ValueError, match="effort is one of fast, normal, best, got 'slow'"):
            Recipe(effort="slow")
