"""The command line: words, results, and mistakes that end in one line and status 2."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from programs import NET, SMALL

import bitsplit
from bitsplit.artifact import read_manifest
from bitsplit.cli import main
from bitsplit.cli.options import parse_bits, recipe_of
from bitsplit.errors import RecipeError
from bitsplit.models.load import load_model
from bitsplit.plan import Plan
from bitsplit.recipe import Recipe

# Commands ---------------------------------------------------------------------------------------------------


def test_help_lists_the_commands(run: Callable[..., str]) -> None:
    assert run("--help") == run()
    for command in ("quantize", "plan", "mixed", "distill", "evaluate", "demo", "info"):
        assert command in run("--help")
        assert "--help" in run(command, "--help")


def test_plan_as_table_and_as_yaml(folder: Path, run: Callable[..., str]) -> None:
    given = ("plan", *NET, "--bits", "W3A6", "--layer", "fc=float", "--input", "3x32x32")
    table = run(*given)
    assert "conv2" in table and "W3" in table and "A6" in table and 'override "fc"' in table
    plan = Plan.from_yaml(run(*given, "--yaml"))
    assert [(layer.name, layer.weights, layer.activations) for layer in plan.layers] == [
        ("conv1", 8, None),
        ("conv2", 3, 6),
        ("fc", None, None),
    ]


def test_quantize_evaluate_and_info(folder: Path, run: Callable[..., str]) -> None:
    table = run(
        "quantize", *NET, *SMALL, "--data", "photos", "--method", "minmax", "--bits", "W4A8", "--images", "6",
        "--save", "net.safetensors",
    )  # fmt: skip
    assert "conv2" in table and "W4" in table
    report = read_manifest(Path("net.safetensors")).report
    assert report.plan.recipe == Recipe(method="minmax", weights=4, activations=8)
    assert report.data["images"] == 6 and len(report.data["sample"]["images"]) == 6
    assert report.data["sample"]["preprocessing"]["crop"] == 32

    float_line = run("evaluate", *NET, *SMALL, "--data", "photos")
    quantized_line = run(
        "evaluate", "--model", "net.py:net", *SMALL, "--data", "photos", "--load", "net.safetensors"
    )
    assert "top-1" in float_line and "8 images" in float_line and "top-1" in quantized_line

    facts = run("info", "net.safetensors")
    assert "minmax" in facts and "Net" in facts and "conv2" in facts


def test_the_program_and_the_python_call_give_the_same_network(folder: Path, run: Callable[..., str]) -> None:
    run("quantize", *NET, *SMALL, "--data", "photos", "--save", "net.safetensors", "--seed", "3")
    loaded = bitsplit.load("net.safetensors", load_model("net.py:net"))
    preprocessing = bitsplit.data.Preprocessing(resize=32, crop=32)
    photos = bitsplit.data.ImageFolder("photos", preprocessing, labels=None)
    images = bitsplit.data.sample(photos, 8, seed=3)
    direct = bitsplit.quantize(load_model("net.py:net", "weights.pt"), images, weights=4, seed=3)
    for name, codes in bitsplit.codes(direct).items():
        assert torch.equal(codes.codes, bitsplit.codes(loaded)[name].codes), name


def test_a_recipe_file_says_everything(folder: Path, run: Callable[..., str]) -> None:
    Recipe(method="mse", weights=5, layers={"fc": {"weights": 8}}).to_yaml("recipe.yaml")
    Recipe.from_yaml("recipe.yaml").to_json("recipe.json")
    plans = [run("plan", *NET, "--recipe", f"recipe.{kind}", "--yaml") for kind in ("yaml", "json")]
    assert plans[0] == plans[1]
    assert Plan.from_yaml(plans[0]).recipe == Recipe.from_yaml("recipe.yaml")


def test_the_package_runs_as_a_program(monkeypatch: pytest.MonkeyPatch, run: Callable[..., str]) -> None:
    expected = run("info")
    program = [sys.executable, "-m", "bitsplit", "info"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    shown = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    assert shown.split() == expected.split()


def test_info_without_a_file(run: Callable[..., str]) -> None:
    facts = run("info")
    for word in ("bitsplit", "torch", "methods", "minmax", "brecq", "cards"):
        assert word in facts


# Mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quantise"], "quantise"),
        (["plan"], "--model"),
        (["plan", "--model", "net.py:net", "--wieghts", "x"], "--wieghts"),
        (["plan", "--model", "resnet18"], "named like torchvision:resnet18"),
        (["plan", "--model", "torchvision:resnet81"], "torchvision has no model 'resnet81'; did you mean"),
        (["plan", "--model", "timm:resnet81"], "timm has no model 'resnet81'; did you mean"),
        (["plan", "--model", "missing.py:net"], "missing.py: no such file"),
        (["plan", "--model", "no.such.package:net"], "no.such.package cannot be imported"),
        (["plan", "--model", "net.py:nte"], "there is no function 'nte'; did you mean 'net'"),
        (["plan", "--model", "net.py:number"], "must return a torch.nn.Module, it returned int"),
        (["plan", "--model", "net.py:net", "--weights", "pretrained"], "no other weights"),
        (["plan", "--model", "net.py:net", "--weights", "gone.pt"], "gone.pt: no such file"),
        (["plan", "--model", "net.py:net", "--weights", "4"], "weights 4: no such file; bits are --bits W4"),
        (["plan", "--model", "net.py:net", "--weights", "net.py"], "net.py cannot be read as plain tensors"),
        (["plan", *NET, "--bits", "4"], "bits are written like W4, A8, W4A8 or float, got '4'"),
        (["plan", *NET, "--bits", "W9"], "weights: Input should be less than or equal to 8"),
        (["plan", *NET, "--bits", "float"], "nothing to quantize"),
        (["plan", *NET, "--method", "bitspilt"], "unknown method 'bitspilt'; did you mean"),
        (["plan", *NET, "--method", "{name: bitsplit, round: 3}"], "round"),
        (["plan", *NET, "--method", "{name: ["], "--method '{name: [' is not valid"),
        (["plan", *NET, "--policy", "papr"], "policy"),
        (["plan", *NET, "--layer", "fc"], "--layer takes PATTERN=BITS"),
        (
            ["plan", *NET, "--layer", "conv3=W8", "--input", "3x32x32"],
            "'conv3' matches no layer; did you mean 'conv",
        ),
        (["plan", *NET, "--input", "3x0x32"], "--input is written like 3x224x224"),
        (["plan", *NET, "--recipe", "gone.yaml"], "cannot read gone.yaml"),
        (["plan", *NET, "--recipe", "gone.yaml", "--bits", "W4"], "leave out --bits or the recipe"),
        (["plan", *NET, "--device", "cuda:99"], "cuda:99"),
        (["plan", *NET, "--input", "1x12x12"], "failed: RuntimeError"),
        (["quantize", *NET, "--data", "photos", "--save", "photos"], "it is a folder"),
        (["plan", *NET, "--device", "gpu"], "device 'gpu'"),
        (["quantize", *NET, "--data", "gone", "--save", "x.safetensors"], "gone: no such folder"),
        (["quantize", *NET, "--data", "photos", "--save", "no/x.safetensors"], "there is no folder no"),
        (["quantize", *NET, "--data", "photos", "--save", "x", "--images", "9"], "cannot draw 9 images"),
        (["quantize", *NET, "--data", "gone.npz", "--save", "x"], "cannot read gone.npz"),
        (
            ["quantize", *NET, "--data", "photos", "--save", "x", "--preprocessing", "{corp: 3}"],
            "--preprocessing",
        ),
        (["quantize", *NET, "--data", "photos", "--save", "x", "--preprocessing", "{std: [0, 0, 0]}"], "std"),
        (["evaluate", *NET, "--data", "photos", "--load", "gone.st"], "cannot read gone.st"),
        (["evaluate", *NET, "--data", "photos", "--load", "net.py"], "truncated or no safetensors file"),
        (["evaluate", *NET, "--data", "photos", "--labels", "gone.txt"], "gone.txt"),
        (["info", "net.py"], "truncated or no safetensors file"),
    ],
    ids=lambda value: " ".join(value[:1] + value[-2:]) if isinstance(value, list) else "",
)
def test_mistakes_are_told_in_one_line(
    folder: Path, fail: Callable[..., str], arguments: list[str], message: str
) -> None:
    assert message in fail(*arguments)
    assert not list(folder.glob("x*"))


def test_bugs_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("bitsplit.cli.info.read_manifest", broken)
    with pytest.raises(ZeroDivisionError):
        main(["info", "anything"])


# Words ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("W4", {"weights": 4}),
        ("a8", {"activations": 8}),
        ("W4A8", {"weights": 4, "activations": 8}),
        ("W32A8", {"weights": None, "activations": 8}),
        ("w4a32", {"weights": 4, "activations": None}),
        ("float", {"weights": None, "activations": None}),
    ],
)
def test_bits_are_read(text: str, bits: dict[str, int | None]) -> None:
    assert parse_bits(text) == bits


@pytest.mark.parametrize("text", ["", "4", "W", "A", "A8W4", "W4 A8", "W4A8B2", "W-4"])
def test_unreadable_bits(text: str) -> None:
    with pytest.raises(RecipeError, match="bits are written like"):
        parse_bits(text)


def test_options_spell_a_recipe() -> None:
    assert recipe_of(None, None, None, None, None, False, None, None) == Recipe(effort="fast")
    assert recipe_of(None, "A8", None, "best", None, True, None, None) == Recipe(
        effort="best", weights=None, activations=8, power_of_two=True
    )
    chain = ["equalize", "{name: bitsplit, rounds: 7}"]
    spelled = recipe_of(None, "W3A4", chain, None, "brecq", False, ["layer1.*=W8", "fc=float"], 5)
    assert spelled == Recipe(
        method=["equalize", {"name": "bitsplit", "rounds": 7}],
        weights=3,
        activations=4,
        policy="brecq",
        layers={"layer1.*": {"weights": 8}, "fc": {"weights": None, "activations": None}},
        seed=5,
    )


def test_powers_of_two_on_the_command_line(folder: Path, run: Callable[..., str]) -> None:
    plan = yaml.safe_load(run("plan", *NET, "--bits", "W4A4", "--power-of-two", "--yaml"))
    assert plan["recipe"]["power_of_two"]
    assert plan["layers"][0]["activations"] == 8


def test_configs_are_what_the_program_takes(folder: Path, run: Callable[..., str]) -> None:
    configs = Path(__file__).parents[1] / "configs"
    plan = yaml.safe_load(run("plan", *NET, "--recipe", str(configs / "bitsplit-w4a8.yaml"), "--yaml"))
    assert plan["recipe"]["activations"] == 8
    assert json.loads(json.dumps(plan)) == plan
