"""Files: what is saved comes back bit for bit, and the file says what it holds."""

import copy
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from artifact_models import MODELS, Computed, Odd, quantized
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import bitsplit
from bitsplit.artifact import load, read_manifest, save
from bitsplit.network import FoldedNorm
from bitsplit.quantizers import attach_weight_quantizer, set_weight
from bitsplit.quantizers.grid import Grid
from bitsplit.report import summary


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *itertools.product(["odd", "computed", "linear"], ["bitsplit", "minmax"]),
        ("resnet18", "bitsplit"),
        ("mobilenet_v3_small", "minmax"),
    ],
)
def test_a_loaded_model_gives_the_same_bits(name: str, method: str, tmp_path: Path) -> None:
    model, images = quantized(name, method=method)
    save(model, tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors", MODELS[name]().train())
    assert not any(module.training for module in loaded.modules())
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))
    mine, theirs = model.state_dict(), loaded.state_dict()
    assert mine.keys() == theirs.keys()
    for key, value in mine.items():
        assert torch.equal(value, theirs[key]), key
        assert value.dtype == theirs[key].dtype, key
    assert bitsplit.report_of(loaded) == bitsplit.report_of(model)
    assert {n for n, m in loaded.named_modules() if isinstance(m, FoldedNorm)} == {
        n for n, m in model.named_modules() if isinstance(m, FoldedNorm)
    }


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_width(bits: int, tmp_path: Path) -> None:
    model, images = quantized("odd", weights=bits, activations=10 - bits, policy="all")
    save(model, tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors", Odd())
    assert torch.equal(loaded(images), model(images))
    packed = load_file(tmp_path / "model.safetensors")["grouped.weight_quantizer.codes"]
    assert packed.numel() == (8 * 2 * 9 * bits + 7) // 8


def test_float_and_activation_only_layers(tmp_path: Path) -> None:
    layers = {"grouped": {"weights": None}, "head": {"weights": None, "activations": None}}
    model, images = quantized("odd", layers=layers)
    save(model, tmp_path / "model.safetensors")
    assert torch.equal(load(tmp_path / "model.safetensors", Odd())(images), model(images))


def test_unsigned_weights_with_zero_points(tmp_path: Path) -> None:
    model, images = quantized("linear", activations=None, policy="all")
    del model.weight_quantizer
    attach_weight_quantizer(model, Grid.unsigned(4))
    codes = torch.randint(0, 16, model.weight.shape)
    set_weight(model, codes, torch.rand(4) + 0.1, torch.tensor([3, 0, 15, 8]))
    save(model, tmp_path / "model.safetensors")
    assert torch.equal(load(tmp_path / "model.safetensors", nn.Linear(3, 4))(images), model(images))


def test_shared_input_quantizers_stay_shared(tmp_path: Path) -> None:
    model, _ = quantized("resnet10")
    save(model, tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors", MODELS["resnet10"]())
    assert loaded.layer2[0].conv1.input_quantizer is loaded.layer2[0].downsample[0].input_quantizer
    stored = load_file(tmp_path / "model.safetensors")
    assert "layer2.0.downsample.0.input_quantizer.scale" not in stored


def test_the_file_is_small_and_equal_models_give_equal_files(tmp_path: Path) -> None:
    model, _ = quantized("resnet10")
    save(model, tmp_path / "one.safetensors")
    save(copy.deepcopy(model), tmp_path / "two.safetensors")
    save(load(tmp_path / "one.safetensors", MODELS["resnet10"]()), tmp_path / "three.safetensors")
    content = (tmp_path / "one.safetensors").read_bytes()
    assert content == (tmp_path / "two.safetensors").read_bytes()
    assert content == (tmp_path / "three.safetensors").read_bytes()
    assert len(content) < 1.05 * bitsplit.report_of(model).plan.quantized_bytes + 100_000


def test_a_loaded_model_can_be_summarised_and_described(tmp_path: Path) -> None:
    model, _ = quantized("mobilenet_v3_small")
    save(model, tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors", MODELS["mobilenet_v3_small"]())
    assert str(summary(loaded)) == str(summary(model))
    manifest = read_manifest(tmp_path / "model.safetensors")
    assert manifest.model_class == "MobileNetV3"
    assert manifest.report.plan.recipe.weights == 3
    assert manifest.report.data["fingerprint"] == "abc"
    assert manifest.report.versions["torch"] == torch.__version__


def test_the_codes_in_the_file_can_be_read_without_bitsplit(tmp_path: Path) -> None:
    model, _ = quantized("linear", activations=None, policy="all")
    save(model, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="np") as file:
        stored = json.loads(file.metadata()["bitsplit"])["manifest"]["layers"][0]
        stream = int.from_bytes(file.get_tensor("weight_quantizer.codes").tobytes(), "little")
        scale = file.get_tensor("weight_quantizer.scale")
    bits, low, shape = stored["weight"]["bits"], stored["weight"]["low"], stored["shape"]
    codes = [(stream >> (bits * i)) % 2**bits + low for i in range(np.prod(shape))]
    weight = np.array(codes, np.float32).reshape(shape) * scale[:, None]
    np.testing.assert_array_equal(weight, model.weight.detach().numpy())


def test_computed_weights_are_stored_as_they_were_used(tmp_path: Path) -> None:
    model, images = quantized("computed", policy="all")
    assert {"normed", "standardised"} <= {layer.name for layer in bitsplit.report_of(model).plan.layers}
    save(model, tmp_path / "model.safetensors")
    assert read_manifest(tmp_path / "model.safetensors").plain_layers == {
        "normed": "plain",
        "standardised": "same",
    }
    other = Computed()
    loaded = load(tmp_path / "model.safetensors", other)
    assert loaded is other and type(other.normed) is nn.Conv2d
    assert torch.equal(other(images), model(images))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_into_a_model_with_the_old_weight_norm(tmp_path: Path) -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()

    images = torch.randn(8, 3, 8, 8)
    model = bitsplit.quantize(net(), images, "minmax", policy="all")
    save(model, tmp_path / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "model.safetensors", net())(images), model(images))
