"""Files that are damaged, of other architectures, or cannot be written: clear errors, nothing lost."""

import copy
import itertools
import os
import pickle
import resource
import signal
from pathlib import Path

import pytest
import torch
import torchvision
from artifact_models import Odd, quantized
from safetensors.torch import save_file
from torch import nn

from bitsplit.artifact import load, save
from bitsplit.artifact.manifest import FORMAT
from bitsplit.errors import ArtifactError
from bitsplit.quantizers import quantized_layers
from bitsplit.quantizers.grid import Grid


@pytest.fixture
def odd_file(tmp_path: Path) -> Path:
    model, _ = quantized("odd")
    save(model, tmp_path / "odd.safetensors")
    return tmp_path / "odd.safetensors"


def test_loading_keeps_the_module_objects(odd_file: Path) -> None:
    model = Odd()
    head, modules = model.head, list(model.modules())
    assert load(odd_file, model) is model and model.head is head
    assert {id(module) for module in modules} <= {id(module) for module in model.modules()}
    assert model.alias is model.up


def test_only_quantized_models_are_saved(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="Linear is no result of bitsplit.quantize"):
        save(nn.Linear(2, 2), tmp_path / "x.safetensors")
    model, _ = quantized("odd")
    model.head.weight_quantizer = type(model.head.weight_quantizer)(Grid.symmetric(4), 0)
    with pytest.raises(ArtifactError, match="weight quantizer of head is not fitted"):
        save(model, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_missing_file_and_a_file_of_somebody_else(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot read .*nothing.safetensors"):
        load(tmp_path / "nothing.safetensors", Odd())
    save_file({"x": torch.ones(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ArtifactError, match="not written by bitsplit"):
        load(tmp_path / "other.safetensors", Odd())
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(ArtifactError, match="truncated or no safetensors file"):
        load(tmp_path / "text.safetensors", Odd())


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(odd_file: Path, share: float) -> None:
    content = odd_file.read_bytes()
    odd_file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ArtifactError, match="truncated or no safetensors file|cannot read"):
        load(odd_file, Odd())


def test_every_flipped_byte_is_noticed(odd_file: Path) -> None:
    content = odd_file.read_bytes()
    header = int.from_bytes(content[:8], "little") + 8
    before = Odd()
    state = copy.deepcopy(before.state_dict())
    places = itertools.chain(range(0, header, 97), range(header, len(content), 23))
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        odd_file.write_bytes(damaged)
        with pytest.raises(ArtifactError):
            load(odd_file, before)
    assert all(torch.equal(value, state[key]) for key, value in before.state_dict().items())


def test_a_newer_format_is_refused(odd_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = quantized("odd")
    monkeypatch.setattr("bitsplit.artifact.saving.FORMAT", 99)
    save(model, odd_file)
    with pytest.raises(ArtifactError, match=f"format 99; this bitsplit reads formats up to {FORMAT}"):
        load(odd_file, Odd())


def test_an_altered_recipe_is_noticed(odd_file: Path) -> None:
    content = odd_file.read_bytes()
    assert content.count(b'\\"weights\\": 3') > 1
    odd_file.write_bytes(content.replace(b'\\"weights\\": 3', b'\\"weights\\": 4'))
    with pytest.raises(ArtifactError, match="manifest does not match its hash"):
        load(odd_file, Odd())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: torchvision.models.resnet18(), "holds a Odd, which does not fit this ResNet: no layer"),
        (lambda: nn.Linear(3, 4), "no layer"),
        (lambda: odd_with(head=nn.Linear(6, 9)), r"head.weight is \[9, 6\], stored \[5, 6\]"),
        (
            lambda: odd_with(head=nn.Linear(6, 5, bias=False).double()),
            "head.weight is torch.float64, stored torch.float32",
        ),
        (lambda: odd_with(grouped=nn.Sequential()), "grouped is a Sequential"),
        (lambda: odd_with(norm=nn.Identity()), "no norm with statistics at norm"),
        (lambda: odd_with(lonely_norm=nn.Identity()), "the model has no lonely_norm.bias"),
        (lambda: odd_with(extra=nn.PReLU()), "extra.weight is not in the file"),
        (lambda: odd_with(lonely_norm=nn.BatchNorm2d(7)), r"lonely_norm.bias is \[7\], stored \[6\]"),
        (lambda: Odd().double(), "float64, stored torch.float32"),
    ],
)
def test_another_architecture_is_refused_and_left_alone(odd_file: Path, other, message: str) -> None:
    model = other()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ArtifactError, match=message):
        load(odd_file, model)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(quantized_layers(model)) and model.training


def odd_with(**modules: nn.Module) -> nn.Module:
    model = Odd()
    for name, module in modules.items():
        setattr(model, name, module)
    return model


def test_a_quantized_model_is_no_float_architecture(odd_file: Path) -> None:
    model = load(odd_file, Odd())
    with pytest.raises(ArtifactError, match="quantized already"):
        load(odd_file, model)


def test_extra_state_is_refused(tmp_path: Path) -> None:
    class Secret(nn.Identity):
        def get_extra_state(self) -> object:
            return {"anything": print}

    model, _ = quantized("odd")
    model.secret = Secret()
    with pytest.raises(ArtifactError, match="secret .Secret. keeps extra state"):
        save(model, tmp_path / "x.safetensors")


# Writing ----------------------------------------------------------------------------------------------------


def test_a_missing_folder_is_a_clear_error(tmp_path: Path) -> None:
    model, _ = quantized("linear")
    with pytest.raises(ArtifactError, match="cannot write .*No such file or directory"):
        save(model, tmp_path / "no" / "model.safetensors")


def test_a_full_disk_leaves_the_old_file_and_nothing_else(odd_file: Path) -> None:
    """The limit on file sizes stands in for a full disk: the write itself fails in the middle."""
    before = odd_file.read_bytes()
    model, _ = quantized("resnet10")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    try:
        with pytest.raises(ArtifactError, match="cannot write .*odd.safetensors.*unchanged"):
            save(model, odd_file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert odd_file.read_bytes() == before
    assert list(odd_file.parent.iterdir()) == [odd_file]


def test_saving_replaces_the_old_file_with_usual_permissions(odd_file: Path) -> None:
    before = odd_file.read_bytes()
    save(quantized("odd", weights=4)[0], odd_file)
    assert odd_file.read_bytes() != before
    mask = os.umask(0)
    os.umask(mask)
    assert odd_file.stat().st_mode & 0o777 == 0o666 & ~mask
    assert list(odd_file.parent.iterdir()) == [odd_file]


def test_loading_unpickles_nothing(odd_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("unpickling")

    model = Odd()
    for owner, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(owner, name, refuse)
    load(odd_file, model)
