"""The command line: widths for a budget, and images that are made."""

import json
from collections.abc import Callable
from pathlib import Path

from programs import NET, SMALL

import bitsplit
from bitsplit.artifact import read_manifest
from bitsplit.models.load import load_model
from bitsplit.recipe import Recipe


def test_mixed_widths_become_a_recipe(
    folder: Path, run: Callable[..., str], fail: Callable[..., str]
) -> None:
    common = ("mixed", *NET, "--data", "photos", *SMALL, "--method", "minmax", "--policy", "all")
    budget = ("--widths", "2,4,8", "--measured", "found.json", "--save", "mixed.yaml")
    text = run(*common, *budget, "--average", "4", "--curve", "curve.png")
    assert "3 layers: " in text and "of 4 bits a weight; expected loss" in text
    assert Path("curve.png").read_bytes()[:4] == b"\x89PNG"
    points = json.loads(Path("curve.json").read_text())["points"]
    assert [point["kind"] for point in points].count("uniform") == 3
    recipe, found = Recipe.from_yaml(Path("mixed.yaml")), bitsplit.Sensitivities.from_json("found.json")
    assert recipe == found.choose(bits=4).recipe
    run("quantize", *NET, "--data", "photos", *SMALL, "--recipe", "mixed.yaml", "--save", "q.safetensors")
    quantized = bitsplit.load("q.safetensors", load_model("net.py:net"))
    assert {name: codes.bits for name, codes in bitsplit.codes(quantized).items()} == found.choose(
        bits=4
    ).widths
    Path("photos").rename("gone")  # what has been measured is enough
    run(*common, *budget[:-1], "mixed.json", "--bytes", str(found.other_bytes + 400))
    assert Recipe.from_file("mixed.json").layers
    assert "measured with another recipe" in fail(*common, *budget, "--average", "4", "--activations", "4")
    again = ("mixed", *NET, "--save", "again.yaml", "--measured", "found.json", "--widths", "2,4,8")
    run(*again, "--average", "4", "--solver", "genetic")
    found.model_copy(update={"network": "0" * 64}).to_json("other.json")
    other = ("--measured", "other.json", "--average", "4")
    assert "of another network: its weights" in fail(*common, *budget, *other)
    assert "has the widths (2, 4, 8)" in fail(*common, *budget, "--average", "4", "--widths", "2,8")
    assert "written twice" in fail(*common, *budget, "--average", "4", "--curve", "found.png")


def test_mixed_widths_for_a_recipe(folder: Path, run: Callable[..., str], fail: Callable[..., str]) -> None:
    """Its chain, policy and activations count; its own bits of weights do not."""
    Recipe(method="minmax", weights=3, activations=5, policy="all", seed=4).to_yaml(Path("given.yaml"))
    common = ("mixed", *NET, "--data", "photos", *SMALL, "--recipe", "given.yaml", "--widths", "2,8")
    run(*common, "--average", "4", "--save", "mixed.yaml")
    found = Recipe.from_yaml(Path("mixed.yaml"))
    assert (found.activations, found.policy, found.seed, found.weights) == (5, "all", 4, 8)
    assert [method.name for method in found.method] == ["minmax"]
    assert "leave out --activations" in fail(
        *common, "--activations", "4", "--average", "4", "--save", "m.yaml"
    )


def test_mistakes_about_mixed_widths(folder: Path, fail: Callable[..., str]) -> None:
    common = ("mixed", *NET, "--data", "photos", *SMALL, "--save", "mixed.yaml")
    assert "a budget is needed: --average, --bytes, --operations or --milliseconds" in fail(*common)
    assert "two or more numbers from 2 to 8" in fail(*common, "--average", "3", "--widths", "1,4")
    assert "activations" in fail(*common, "--average", "3", "--activations", "0")
    assert "solver is one of exact, genetic" in fail(*common, "--average", "3", "--solver", "best")
    assert "nothing has been measured yet" in fail("mixed", *NET, "--save", "m.yaml", "--average", "3")
    assert "--widths is written like 2,3,4" in fail(*common, "--average", "3", "--widths", "2;3")
    assert "belong together" in fail(*common, "--milliseconds", "3")
    assert "no folder" in fail("mixed", *NET, "--data", "photos", "--save", "none/m.yaml", "--average", "3")


def test_without_photos(folder: Path, run: Callable[..., str]) -> None:
    common = (*NET, "--input", "3x32x32", "--images", "8")
    text = run("distill", *common, "--iterations", "3", "--save", "made.safetensors", "--sheet", "made.png")
    assert "8 images of 3 x 32 x 32 in made.safetensors" in text
    assert Path("made.png").read_bytes()[:4] == b"\x89PNG"
    run("quantize", *NET, "--data", "made.safetensors", "--save", "q.safetensors")
    run("quantize", *common, "--data", "none", "--save", "none.safetensors")
    assert read_manifest(Path("none.safetensors")).report.data["images"] == 8
    run("mixed", *common, "--data", "none", "--method", "minmax", "--widths", "2,8", "--policy", "all",
        "--average", "4", "--save", "mixed.yaml")  # fmt: skip


def test_mistakes_without_photos(folder: Path, fail: Callable[..., str]) -> None:
    assert "saved as .safetensors files" in fail("distill", *NET, "--save", "made.npz")
    assert "--input is written like 3x224x224" in fail(
        "distill", *NET, "--save", "m.safetensors", "--input", "3;2"
    )
    assert "cannot read" in fail("quantize", *NET, "--data", "weights.safetensors", "--save", "q.safetensors")
