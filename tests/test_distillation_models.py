"""Images are made for every model that real data work with; where they cannot be, the error says why."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bitsplit
from bitsplit.errors import DataError, ModelError

SIZE = (3, 6, 6)
FEW = bitsplit.Distilled(images=4, size=SIZE, iterations=2, batch=4)


class Small(nn.Module):
    """Two convolutions with a batch norm between them."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).relu()).mean((2, 3))


@pytest.fixture
def small() -> nn.Module:
    return Small().eval()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_the_old_weight_norm_after_a_run(small):
    expected = FEW.make(small, 0)
    nn.utils.weight_norm(small.first)
    small(torch.zeros(1, *SIZE))  # its weight has a history now
    torch.testing.assert_close(FEW.make(small, 0), expected)
    bitsplit.quantize(small, FEW, "mse")


def test_images_have_the_dtype_of_the_parameters(small):
    expected = FEW.make(small, 0)
    made = FEW.make(small.double(), 0)
    assert made.dtype == torch.float64
    torch.testing.assert_close(made.float(), expected)
    bitsplit.quantize(small, FEW, "mse")


def test_half_precision_is_refused_as_with_real_images(small):
    for data in (FEW, torch.randn(4, *SIZE).half()):
        with pytest.raises(ModelError, match=r"first.weight is torch.float16: .* pass model.float\(\)"):
            bitsplit.quantize(small.half(), data)


class ByKeyword(Small):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(input=self.first(x)).relu()).mean((2, 3))


class InPlace(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(1))


@pytest.mark.parametrize("kind", [ByKeyword, InPlace])
def test_forwards_that_give_the_same_images(small, kind):
    other = kind().eval()
    other.load_state_dict(small.state_dict())
    assert torch.equal(FEW.make(other, 0), FEW.make(small, 0))


def test_a_size_that_does_not_fit(monkeypatch):
    monkeypatch.setattr("bitsplit.distillation.USUAL_SIZE", SIZE)
    with (
        pytest.warns(UserWarning, match="images of 3 x 6 x 6 are distilled"),
        pytest.raises(ModelError, match=r"here 4 x 3 x 6 x 6, .*channels.*Distilled\(size=\.\.\.\), --input"),
    ):
        bitsplit.quantize(Small(channels=1), FEW.model_copy(update={"size": None}))
    flat = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(9, 2))
    with pytest.raises(ModelError, match=r"here 4 x 3 x 6 x 6, and the forward failed: .*4x64 and 9x2"):
        bitsplit.quantize(flat, FEW)


class TwoInputs(nn.Module):
    """Takes more than one tensor of images."""

    def __init__(self, small: nn.Module) -> None:
        super().__init__()
        self.small = small

    def forward(self, batch: dict[str, Tensor], factor: float) -> Tensor:
        return self.small(batch["image"]) * factor


def both(model: nn.Module, images: Tensor) -> Tensor:
    return model({"image": images}, 2.0)


def test_a_step_makes_of_the_images_what_the_network_takes(small):
    model = TwoInputs(small)
    made = FEW.make(model, 0, step=both)
    assert torch.equal(made, FEW.make(small, 0))
    quantized = bitsplit.quantize(model, FEW, "mse", step=both)
    expected = bitsplit.quantize(model, made, "mse", step=both)
    assert torch.equal(both(quantized, made), both(expected, made))
    with pytest.raises(ModelError, match="one tensor of images a call, .* needs a step="):
        bitsplit.quantize(model, FEW)


def test_a_step_without_gradients(small):
    with pytest.raises(ModelError, match="the forward pass has none; take torch.no_grad"):
        FEW.make(small, 0, step=torch.no_grad()(lambda model, images: model(images)))


def test_a_file_belongs_to_its_step(small, tmp_path: Path):
    options = FEW.model_copy(update={"file": tmp_path / "made.safetensors"})
    made = options.make(small, 0, step=lambda model, images: model(images * 2))
    assert torch.equal(options.make(small, 0, step=lambda model, images: model(images * 2)), made)
    for other in (None, lambda model, images: model(images * 3)):
        with pytest.raises(DataError, match="of another network, step"):
            options.make(small, 0, step=other)


def test_one_value_has_no_spread(small):
    one = FEW.model_copy(update={"images": 1})
    assert one.make(small, 0).isfinite().all()  # of maps of 4 x 4
    with pytest.raises(
        ModelError, match="batch norm norm: .* at least two values, got an input of 1 x 4 x 1 x 1"
    ):
        bitsplit.quantize(small, one.model_copy(update={"size": (3, 3, 3)}))
    flat = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    with pytest.raises(ModelError, match="batch norm 1: .* input of 1 x 4; .* with 2 images or more"):
        one.model_copy(update={"size": (6,)}).make(flat, 0)


def test_the_modes_of_the_caller_change_nothing(small):
    expected = FEW.make(small, 0)
    with torch.inference_mode():
        made = FEW.make(small, 0)
    assert torch.equal(made, expected) and not made.is_inference()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(FEW.make(small, 0), expected)


def test_a_missing_folder_is_told_before_the_work(small, tmp_path: Path):
    nowhere = FEW.model_copy(update={"file": tmp_path / "none" / "made.safetensors"})
    small.register_forward_pre_hook(lambda *_: pytest.fail("images were distilled"))
    with pytest.raises(DataError, match="cannot write .*: there is no folder .*none"):
        nowhere.make(small, 0)
