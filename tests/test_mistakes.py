"""Mistakes that are told before any work is done or anything is lost, by name and in one line."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from function_net import Net, layer, three_layers
from torch import Tensor, nn

import bitsplit
from bitsplit.errors import BitsplitError, CalibrationError, CheckpointError, ModelError, RecipeError


@pytest.fixture
def model() -> nn.Module:
    return three_layers()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(8, 3, 8, 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_of_low_precision_are_refused_at_once(
    model: nn.Module, images: Tensor, dtype: torch.dtype
) -> None:
    with pytest.raises(ModelError, match=r"0\.weight is torch\.b?float16.*model\.float\(\)"):
        bitsplit.plan(model.to(dtype), images.to(dtype))


def test_a_forward_that_fails_is_told_with_the_shapes(model: nn.Module, images: Tensor) -> None:
    with pytest.raises(ModelError, match=r"\(8, 1, 8, 8\).*failed: RuntimeError"):
        bitsplit.plan(model, images[:, :1])


def test_a_compiled_part_is_refused_by_name(images: Tensor) -> None:
    net = nn.Sequential(layer(3, 6), torch.compile(layer(6, 6)))
    with pytest.raises(ModelError, match="^1 is compiled"):
        bitsplit.plan(net, images)


def test_a_model_without_any_layer_that_can_be_quantized_says_why(images: Tensor) -> None:
    net = Net(lambda m, x: nn.functional.conv2d(x, m.holder.weight), holder=layer(3, 6))
    with pytest.raises(RecipeError, match="no layer of the model can be; holder"):
        bitsplit.plan(net, images)


def test_a_recipe_and_other_arguments_contradict(model: nn.Module, images: Tensor) -> None:
    with pytest.raises(RecipeError, match="leave out weights, policy"):
        bitsplit.quantize(model, images, bitsplit.Recipe(), weights=2, policy="all")


@pytest.mark.parametrize(
    "said", [{"weights": 4}, {"activations": None}, {"policy": "paper"}, {"seed": 0}, {"effort": "fast"}]
)
def test_so_do_arguments_that_are_what_a_recipe_has_anyway(model, images, said: dict) -> None:
    with pytest.raises(RecipeError, match=f"leave out {next(iter(said))} or the recipe"):
        bitsplit.plan(model, images, bitsplit.Recipe(weights=2, activations=4), **said)


def test_a_policy_that_is_said_counts_without_a_method_too(model: nn.Module, images: Tensor) -> None:
    assert bitsplit.plan(model, images).rule == "qdrop"
    assert bitsplit.plan(model, images, policy="paper").rule == "bitsplit"


def test_a_model_that_cannot_be_copied(model: nn.Module, images: Tensor) -> None:
    model.lock = threading.Lock()
    with pytest.raises(ModelError, match="copied"):
        bitsplit.quantize(model, images, "minmax")


@pytest.mark.parametrize("change", ["trained", "half"])
def test_weights_that_left_their_codes_are_not_saved(
    model: nn.Module, images: Tensor, tmp_path: Path, change: str
) -> None:
    quantized = bitsplit.quantize(model, images, "minmax", policy="all")
    if change == "half":
        quantized.half()
    else:
        with torch.no_grad():
            quantized[2].weight.mul_(2)
    with pytest.raises(BitsplitError, match="no longer what its codes stand for"):
        bitsplit.save(quantized, tmp_path / "net.safetensors")
    assert not (tmp_path / "net.safetensors").exists()


def test_float64_networks_are_not_saved(model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    quantized = bitsplit.quantize(model.double(), images.double(), "minmax")
    with pytest.raises(BitsplitError, match="float64: files hold float32 networks"):
        bitsplit.save(quantized, tmp_path / "net.safetensors")


@pytest.mark.parametrize("chain", [["equalize"], ["norms"], ["equalize", "norms"]])
def test_a_chain_that_fits_no_weights_is_refused(model: nn.Module, images: Tensor, chain: list[str]) -> None:
    with pytest.raises(RecipeError, match="no method of the chain"):
        bitsplit.quantize(model, images, chain)


@pytest.mark.parametrize("chain", [["bias_correction"], ["bias_correction", "bitsplit"]])
def test_bias_correction_in_front_is_refused(model: nn.Module, images: Tensor, chain: list[str]) -> None:
    with pytest.raises(BitsplitError, match="after a weight method"):
        bitsplit.quantize(model, images, chain)


@pytest.mark.parametrize("options", [{"scales": ()}, {"scales": (0.9, -1.0)}, {"polish": False}])
def test_options_that_cannot_be_followed_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"scales|polish"):
        bitsplit.BitSplit(**options)


@pytest.mark.parametrize("activations", [None, 8])
def test_a_quantized_model_is_not_quantized_again(
    model: nn.Module, images: Tensor, activations: int | None
) -> None:
    quantized = bitsplit.quantize(model, images, activations=activations)
    with pytest.raises(ModelError, match="already"):
        bitsplit.quantize(quantized, images)


def test_a_layer_too_large_for_the_memory_is_named_before_anything_runs(monkeypatch) -> None:
    net = nn.Sequential(
        nn.Linear(6, 600), nn.ReLU(), nn.Linear(600, 600), nn.ReLU(), nn.Linear(600, 3)
    ).eval()
    monkeypatch.setattr("bitsplit.calibration.engine.free_memory", lambda device: 2 * 8 * 600**2)
    inputs = torch.randn(16, 6)
    with pytest.raises(CalibrationError, match=r"^2: fitting it takes about .* GiB of memory"):
        bitsplit.quantize(net, inputs, weights=4)
    for remedy in ({"layers": {"[24]": {"weights": None}}}, {"method": "mse"}):
        assert bitsplit.codes(bitsplit.quantize(net, inputs, weights=4, **remedy))


def test_a_checkpoint_folder_that_cannot_be_made(model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file"):
        bitsplit.quantize(model, images, "minmax", checkpoint=tmp_path / "file")
