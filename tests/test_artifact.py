"""Files: packing, save and load, damage, other architectures, full disk."""

import copy
import itertools
import json
import os
import pickle
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.layers import ScaledStdConv2dSame
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torchvision.models.resnet import BasicBlock, ResNet

from bitsplit.artifact import load, read_manifest, save
from bitsplit.artifact.manifest import FORMAT
from bitsplit.artifact.packing import pack, packed_size, unpack
from bitsplit.errors import ArtifactError
from bitsplit.network import FoldedNorm, bake_effective_weights, fold_norms, kind_of, observe
from bitsplit.plan import make_plan
from bitsplit.quantizers import attach_weight_quantizer, prepare, quantized_layers, set_weight
from bitsplit.quantizers.grid import Grid
from bitsplit.recipe import Recipe
from bitsplit.report import LayerResult, QuantizationReport, summary

# Packing ----------------------------------------------------------------------------------------------------


def slow_pack(values: list[int], bits: int) -> bytes:
    """From the definition: code i at bits i * bits of one large number, lowest byte first."""
    stream = sum(value << (index * bits) for index, value in enumerate(values))
    return stream.to_bytes((len(values) * bits + 7) // 8, "little")


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9, 63, 65, 1000])
@pytest.mark.parametrize("signed", [True, False])
def test_packing_agrees_with_the_definition(bits: int, count: int, signed: bool) -> None:
    grid = Grid.symmetric(bits) if signed else Grid.unsigned(bits)
    codes = torch.randint(grid.low, grid.high + 1, (count,)).to(grid.dtype)
    packed = pack(codes, bits, grid.low)
    assert packed.dtype == torch.uint8 and packed.shape == (packed_size(count, bits),)
    assert packed.numpy().tobytes() == slow_pack([int(code) - grid.low for code in codes], bits)
    assert torch.equal(unpack(packed, bits, grid.low, (count,)), codes)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 8), st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_packing_keeps_values_and_shape(bits: int, shape: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, shape, generator=generator, dtype=torch.uint8)
    assert torch.equal(unpack(pack(codes, bits, 0), bits, 0, tuple(shape)), codes)


@pytest.mark.parametrize("bits", [3, 7])
def test_packing_in_several_chunks(bits: int) -> None:
    count = (1 << 20) * 2 + 13
    codes = torch.randint(0, 2**bits, (count,), dtype=torch.uint8)
    packed = pack(codes, bits, 0)
    assert torch.equal(unpack(packed, bits, 0, (count,)), codes)
    start = (1 << 20) - 8
    piece = pack(codes[start : start + 16], bits, 0)
    assert torch.equal(packed[start * bits // 8 :][: piece.numel()], piece)


def test_packing_takes_any_memory_layout() -> None:
    codes = torch.arange(24, dtype=torch.uint8).reshape(4, 6)
    assert torch.equal(pack(codes.t(), 5, 0), pack(codes.t().contiguous(), 5, 0))


def test_packing_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\[-3, 4\]"):
        pack(torch.tensor([5]), 3, -3)
    with pytest.raises(ValueError, match=r"\[0, 7\]"):
        pack(torch.tensor([-1]), 3, 0)
    with pytest.raises(ValueError, match="5 codes of 3 bits are 2 bytes, got 3"):
        unpack(torch.zeros(3, dtype=torch.uint8), 3, 0, (5,))


# Saving and loading -----------------------------------------------------------------------------------------


def quantize_by_rounding(model: nn.Module, images: Tensor, recipe: Recipe) -> nn.Module:
    """A quantized model by the simplest means: codes by nearest rounding, fixed activation scales."""
    network = bake_effective_weights(observe(model.eval(), images))
    fold_norms(network)
    plan = make_plan(network, recipe)
    prepare(model, plan)
    results = []
    for number, (name, layer) in enumerate(quantized_layers(model)):
        if hasattr(layer, "weight_quantizer"):
            matrix = kind_of(layer).matrix(layer, layer.weight.detach())
            high = layer.weight_quantizer.grid.high
            scale = matrix.abs().amax(2).clamp(min=1e-6) / high
            codes = torch.round(matrix / scale.unsqueeze(2)).clamp(-high, high)
            set_weight(layer, kind_of(layer).unmatrix(layer, codes), scale)
        if hasattr(layer, "input_quantizer") and not layer.input_quantizer.is_fitted:
            zero = 0 if layer.input_quantizer.grid.is_signed else number % 3
            layer.input_quantizer.set(torch.tensor([0.02 + 0.001 * number]), torch.tensor([zero]))
        facts = plan.layer(name).model_dump(include={"kind", "unit", "weights", "activations"})
        results.append(LayerResult(name=name, **facts, error=0.01 * number, seconds=0.5))
    data = {"images": len(images), "fingerprint": "abc"}
    model._bitsplit = QuantizationReport(plan=plan, layers=tuple(results), seconds=3, data=data)
    return model


class Odd(nn.Module):
    """One of everything: groups, transposed, linear, tied names, parameters, buffers, norms that stay."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, groups=4, padding=1)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2)
        self.alias = self.up
        self.lonely_norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 5)
        self.gain = nn.Parameter(torch.rand(1) + 1)
        self.register_buffer("offset", torch.rand(5))
        self.register_buffer("counter", torch.tensor(3))
        self.register_buffer("scratch", torch.full((5,), 0.25), persistent=False)
        self.register_buffer("nothing", None)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = self.alias(self.grouped(x)) * self.gain
        x = self.lonely_norm(x + 1).mean((2, 3))
        return self.head(x) + self.offset + self.counter + self.scratch


class Computed(nn.Module):
    """Layers that compute their weights: parametrised, and standardised by the layer's own class."""

    def __init__(self) -> None:
        super().__init__()
        self.normed = weight_norm(nn.Conv2d(3, 8, 3))
        self.standardised = ScaledStdConv2dSame(8, 8, 3, stride=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.standardised(torch.relu(self.normed(x))))
        return self.head(x.mean((2, 3)))


def train_norms(model: nn.Module) -> nn.Module:
    """Norm statistics that are not the initial ones."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model


MODELS = {
    "odd": Odd,
    "computed": Computed,
    "resnet10": lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=7),
    "resnet18": lambda: torchvision.models.resnet18(num_classes=7),
    "mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(num_classes=7),
    "linear": lambda: nn.Linear(3, 4),
}


def images_for(name: str) -> Tensor:
    return torch.randn(2, 3) if name == "linear" else torch.randn(2, 3, 32, 32)


def quantized(name: str, **fields: object) -> tuple[nn.Module, Tensor]:
    images = images_for(name)
    recipe = Recipe(**{"weights": 3, "activations": 5, **fields})
    return quantize_by_rounding(train_norms(MODELS[name]()), images, recipe), images


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
    assert loaded._bitsplit == model._bitsplit
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
    assert len(content) < 1.05 * model._bitsplit.plan.quantized_bytes + 100_000


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


# Mistakes and damage ----------------------------------------------------------------------------------------


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


def test_computed_weights_are_stored_as_they_were_used(tmp_path: Path) -> None:
    model, images = quantized("computed", policy="all")
    assert {"normed", "standardised"} <= {layer.name for layer in model._bitsplit.plan.layers}
    save(model, tmp_path / "model.safetensors")
    assert read_manifest(tmp_path / "model.safetensors").plain_layers == {
        "normed": "plain",
        "standardised": "same",
    }
    other = Computed()
    loaded = load(tmp_path / "model.safetensors", other)
    assert loaded is other and type(other.normed) is nn.Conv2d
    assert torch.equal(other(images), model(images))


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
