"""Networks by name, and weights from files of all forms."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bitsplit.errors import ModelError
from bitsplit.models.load import load_model, preprocessing_of


@pytest.mark.parametrize("spec", ["torchvision:squeezenet1_1", "timm:mobilenetv3_small_050"])
def test_models_of_libraries(spec: str) -> None:
    model = load_model(spec)
    assert not model.training
    assert preprocessing_of(spec, model).crop == 224


def test_models_of_importable_modules() -> None:
    assert isinstance(load_model("bitsplit.models.cifar:resnet20"), nn.Module)


@pytest.mark.parametrize("form", ["plain", "wrapped", "parallel", "safetensors"])
def test_weights_in_all_forms(folder: Path, form: str) -> None:
    state = torch.load("weights.pt", weights_only=True)
    path = "other.safetensors" if form == "safetensors" else "other.pt"
    if form == "safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    elif form == "wrapped":
        torch.save({"epoch": 3, "state_dict": state}, path)
    elif form == "parallel":
        torch.save({f"module.{name}": value for name, value in state.items()}, path)
    else:
        torch.save(state, path)
    loaded = load_model("net.py:net", path).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())


def test_weights_of_another_network(folder: Path) -> None:
    state = torch.load("weights.pt", weights_only=True)
    torch.save({**state, "fc.weight": torch.zeros(5, 8)}, "shape.pt")
    with pytest.raises(ModelError, match=r"fc.weight is \[4, 8\] in the model, \[5, 8\] in the file"):
        load_model("net.py:net", "shape.pt")
    state["extra"] = state.pop("fc.bias")
    torch.save(state, "names.pt")
    with pytest.raises(ModelError, match=r"1 names are missing \(fc.bias\), 1 are too many \(extra\)"):
        load_model("net.py:net", "names.pt")


def test_weights_that_would_run_code_are_refused(folder: Path) -> None:
    torch.save(load_model("net.py:net"), "whole.pt")
    with pytest.raises(ModelError, match="cannot be read as plain tensors"):
        load_model("net.py:net", "whole.pt")
