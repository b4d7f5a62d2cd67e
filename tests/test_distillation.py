"""Calibration images out of batch norms: statistics, determinism, files, and nets that have none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from residual_net import same
from torch import Tensor, nn

import bitsplit
from bitsplit.calibration.norm_matching import distance
from bitsplit.errors import DataError, ModelError, RecipeError
from bitsplit.network.norms import has_statistics

SIZE = (3, 8, 8)
FEW = bitsplit.Distilled(images=20, size=SIZE, iterations=30, batch=16)
GOOD = bitsplit.Distilled(images=32, size=SIZE, batch=32)


class Few(bitsplit.Distilled):
    """The same options, but no size."""

    images: int = FEW.images
    iterations: int = FEW.iterations
    batch: int = FEW.batch


class Normed(nn.Module):
    """Three convolutions with batch norms that have seen data of another mean and spread."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        )  # fmt: skip
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


def smooth(count: int) -> Tensor:
    """Images whose neighbouring pixels are alike, brighter and with less contrast than noise."""
    return 2 + nn.functional.interpolate(torch.randn(count, 3, 3, 3), SIZE[1:], mode="bilinear") / 2


@pytest.fixture
def model() -> nn.Module:
    net = Normed().train()
    for _ in range(60):
        net(smooth(32))
    return net.eval()


def mean_distance(model: nn.Module, images: Tensor) -> float:
    found: list[float] = []
    hooks = [
        norm.register_forward_pre_hook(
            lambda norm, args: found.append(float(distance(args[0], norm.running_mean, norm.running_var)))
        )
        for norm in model.modules()
        if has_statistics(norm)
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return sum(found) / len(found)


def test_distance_by_hand():
    x = torch.tensor([[[[1.0, 3.0]]], [[[5.0, 7.0]]]])  # mean 4, spread sqrt(20 / 3)
    spread = (20 / 3) ** 0.5
    assert distance(x, torch.tensor([4.0]), torch.tensor([20 / 3])) == pytest.approx(0, abs=1e-12)
    assert distance(x, torch.tensor([2.0]), torch.tensor([20 / 3])) == pytest.approx(4 / (20 / 3))
    expected = (spread / 2 - 1) ** 2 + 1
    assert distance(x, torch.tensor([2.0]), torch.tensor([4.0])) == pytest.approx(expected)


def test_images_give_the_statistics_of_training(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = GOOD.make(model, 0)
    assert images.shape == (32, *SIZE) and not images.requires_grad
    assert mean_distance(model, images) < mean_distance(model, torch.randn(32, *SIZE)) / 100
    assert mean_distance(model, images) < 4 * mean_distance(model, smooth(32))  # as far as chance takes those
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("threads", [1, 2])
def test_the_seed_decides(model, threads):
    torch.set_num_threads(threads)
    assert torch.equal(FEW.make(model, 3), FEW.make(model, 3))
    assert not torch.equal(FEW.make(model, 3), FEW.make(model, 4))
    torch.set_num_threads(1)
    again = FEW.make(model, 3)
    torch.set_num_threads(threads)
    assert torch.equal(again, FEW.make(model, 3)) and torch.get_num_threads() == threads


def test_better_than_noise_for_quantization(model):
    test = smooth(64)
    scores = {}
    for name, images in {"made": GOOD.make(model, 0), "noise": torch.randn(32, *SIZE)}.items():
        quantized = bitsplit.quantize(model, images, "bitsplit", weights=4, activations=4)
        with torch.no_grad():
            scores[name] = float((quantized(test) - model(test)).square().mean())
    assert scores["made"] < scores["noise"]


def test_without_data(model):
    made = FEW.make(model, 0)
    assert same(bitsplit.quantize(model, FEW), bitsplit.quantize(model, made))
    found = bitsplit.sensitivities(model, FEW, "minmax", widths=(2, 8), policy="all")
    assert found == bitsplit.sensitivities(model, made, "minmax", widths=(2, 8), policy="all")
    assert str(bitsplit.plan(model, FEW)) == str(bitsplit.plan(model, made))
    assert not same(bitsplit.quantize(model, FEW, seed=1), bitsplit.quantize(model, made, seed=1))


def test_mistakes_are_told_before_images_are_made(model, monkeypatch):
    def made(self, model, seed, device, step):
        assert self.images <= FEW.batch and self.iterations <= 1, "all images were made"
        return torch.randn(self.images, *self.size)

    monkeypatch.setattr(bitsplit.Distilled, "_made", made)
    with pytest.raises(RecipeError, match="override 'nothing' matches no layer"):
        bitsplit.quantize(model, FEW, layers={"nothing": {"weights": 4}})
    assert bitsplit.plan(model, FEW).layers


def test_none_has_the_usual_size(model, monkeypatch):
    expected = bitsplit.quantize(model, FEW)
    monkeypatch.setattr("bitsplit.distillation.USUAL_SIZE", SIZE)
    monkeypatch.setattr("bitsplit.preparing.Distilled", Few)
    with pytest.warns(UserWarning, match=r"images of 3 x 8 x 8 are distilled; .*Distilled\(size=\.\.\.\)"):
        made = bitsplit.quantize(model, None)
    assert same(made, expected)
    model.default_cfg = {"input_size": SIZE}  # as timm's models have
    assert same(bitsplit.quantize(model, None), made)


def test_a_file_keeps_the_images(model, tmp_path: Path):
    options = FEW.model_copy(update={"file": tmp_path / "made.safetensors"})
    made = options.make(model, 0)
    changed = options.file.stat().st_mtime_ns
    assert torch.equal(options.make(model, 0), made) and options.file.stat().st_mtime_ns == changed
    for other, seed in ((options, 1), (options.model_copy(update={"iterations": 7}), 0)):
        with pytest.raises(DataError, match="holds images of another network, step, seed or options"):
            other.make(model, seed)
    options.file.write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot read"):
        options.make(model, 0)
    nowhere = FEW.model_copy(update={"file": tmp_path / "none" / "made.safetensors"})
    with pytest.raises(DataError, match="cannot write"):
        nowhere.make(model, 0)


def test_networks_without_statistics():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    with pytest.raises(ModelError, match="no batch norm with stored statistics .* pass calibration images"):
        bitsplit.quantize(plain, FEW)
    group = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4 * 36, 5))
    with pytest.raises(ModelError, match="no batch norm with stored statistics"):
        bitsplit.quantize(group, FEW)
    of_batches = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(ModelError, match="no batch norm with stored statistics"):
        bitsplit.quantize(of_batches, FEW)


def test_one_image_left_over_joins_the_others(model):
    options = FEW.model_copy(update={"images": 17, "iterations": 2})
    made = options.make(model, 0)
    assert made.shape == (17, *SIZE) and made.isfinite().all()


def test_contact_sheet(model, tmp_path: Path):
    bitsplit.contact_sheet(FEW.make(model, 0), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (8 * 10 + 2, 3 * 10 + 2)  # eight in a row, two pixels between
    bitsplit.contact_sheet(torch.randn(2, 1, 8, 8), tmp_path / "grey.png")


@pytest.mark.cuda
def test_on_a_card(model):
    made = FEW.make(model, 0, torch.device("cuda"))
    assert made.device.type == "cpu" and mean_distance(model, made) < mean_distance(
        model, torch.randn(20, *SIZE)
    )
    assert torch.equal(made, FEW.make(model, 0, torch.device("cuda")))
