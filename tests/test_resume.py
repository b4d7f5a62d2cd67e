"""Runs with a checkpoint: what is refused, and that a killed one goes on to the same bits."""

from __future__ import annotations

import signal
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from programs import run_program
from residual_net import METHODS, PIECES, same
from small_net import same_codes, small_net
from torch import Tensor, nn

import bitsplit
from bitsplit.errors import CheckpointError


@pytest.fixture
def small() -> nn.Module:
    return small_net()


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(
    small: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    bitsplit.quantize(small, images, weights=4, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match="recipe"):
        bitsplit.quantize(small, images, weights=3, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match="data"):
        bitsplit.quantize(small, images + 1, weights=4, checkpoint=tmp_path)
    with torch.no_grad():
        small.fc.weight.add_(1)
    with pytest.raises(CheckpointError, match="model"):
        bitsplit.quantize(small, images, weights=4, checkpoint=tmp_path)


def test_a_damaged_checkpoint_file_is_named(small: nn.Module, images: Tensor, tmp_path: Path) -> None:
    bitsplit.quantize(small, images, weights=4, checkpoint=tmp_path)
    file = tmp_path / "down.layer.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="down"):
        bitsplit.quantize(small, images, weights=4, checkpoint=tmp_path)


def test_layer_names_may_be_longer_than_names_of_files(images: Tensor, tmp_path: Path) -> None:
    path = [letter * 90 for letter in "abc"]
    model = nn.Sequential(
        OrderedDict({name: nn.Conv2d(3, 3, 1) for name in ("o" * 180 + "1", "o" * 180 + "2")})
    )
    for name in path:
        model = nn.Sequential(OrderedDict({name: model}))
    fitted = bitsplit.quantize(model, images, "mse", weights=4, checkpoint=tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert same_codes(bitsplit.quantize(model, images, "mse", weights=4, checkpoint=tmp_path), fitted)


KILLED = """
import os, signal, sys, torch
sys.path.insert(0, {tests!r})
import bitsplit
from bitsplit.calibration.checkpoint import Checkpoint
from residual_net import METHODS
save = Checkpoint.save
def dying(self, key, *rest):
    if key == {at!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, key, *rest)
Checkpoint.save = dying
model, images = torch.load({inputs!r}, weights_only=False)
bitsplit.quantize(model, images, {method}, weights=3, activations=4, checkpoint={folder!r})
"""


def kill(model: nn.Module, images: Tensor, tmp_path: Path, method: str, at: str) -> Path:
    """The folder of a run that was killed when it was about to write ``at``."""
    inputs, folder, tests = tmp_path / "inputs.pt", tmp_path / "run", Path(__file__).parent
    torch.save((model, images), inputs)
    code = KILLED.format(inputs=str(inputs), folder=str(folder), tests=str(tests), method=method, at=at)
    killed = run_program(code)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    return folder


def test_a_killed_run_goes_on_to_the_same_bits(small: nn.Module, images: Tensor, tmp_path: Path) -> None:
    whole = bitsplit.quantize(small, images, weights=3, activations=4)
    folder = kill(small, images, tmp_path, "None", "down")
    saved = {path.name for path in folder.glob("*.safetensors")}
    assert saved == {"stem.0.layer.safetensors", "depthwise.layer.safetensors"}
    resumed = bitsplit.quantize(small, images, weights=3, activations=4, checkpoint=folder)
    assert same_codes(resumed, whole)
    assert torch.equal(resumed(images), whole(images))


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("qdrop", "second learned 0"),
        ("qdrop", "second.two"),
        ("brecq by stages", "first to second learned 0"),
        ("brecq by stages", "fc"),
        ("brecq at once", "network learned 0"),
    ],
)
def test_killed_learning_goes_on_to_the_same_bits(model, images, tmp_path, name, at):
    whole = bitsplit.quantize(model, images, METHODS[name], weights=3, activations=4)
    folder = kill(model, images, tmp_path, f"METHODS[{name!r}]", at)
    resumed = bitsplit.quantize(model, images, METHODS[name], weights=3, activations=4, checkpoint=folder)
    assert same(resumed, whole)
    assert [piece.name for piece in bitsplit.report_of(resumed).pieces] == PIECES[METHODS[name].granularity]
