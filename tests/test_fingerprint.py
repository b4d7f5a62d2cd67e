"""What a resumed run is checked against: everything that decides its result."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from programs import run_program
from torch import Tensor, nn

import bitsplit
from bitsplit.calibration.fingerprint import model_fingerprint, step_fingerprint
from bitsplit.data import as_batches, fingerprint
from bitsplit.errors import CheckpointError

IMAGES = torch.arange(7 * 3 * 2 * 2, dtype=torch.float32).view(7, 3, 2, 2)
LABELS = torch.arange(7)


@dataclass
class Settings:
    gain: float


class Shifted(nn.Module):
    """A network with an attribute and a buffer that no state dict holds."""

    def __init__(self, slope: float = 0.1, mean: float = 0.0, mode: str = "zeros") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("mean", torch.tensor([mean]), persistent=False)
        self.conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode)
        self.act = nn.LeakyReLU(slope)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.conv(x - self.mean)))


def test_a_model_is_told_from_others_by_values_attributes_and_classes() -> None:
    found = [
        model_fingerprint(m) for m in (Shifted(), Shifted(0.2), Shifted(mean=1.0), Shifted(mode="reflect"))
    ]
    assert len(set(found)) == len(found)
    assert model_fingerprint(Shifted()) == model_fingerprint(Shifted().train()) == found[0]


def with_forward(**methods: Callable[..., Tensor]) -> nn.Module:
    """``Shifted`` of a class of the same name with other methods."""
    return type("Shifted", (Shifted,), {"__qualname__": "Shifted", **methods})()


def test_a_model_is_told_from_others_by_settings_in_a_mapping_or_an_object() -> None:
    def model(settings: object) -> nn.Module:
        found = Shifted()
        found.settings = settings
        return found

    kinds = (lambda gain: {"gain": gain}, lambda gain: [{"gain": (gain, 1)}], Settings)
    prints = [model_fingerprint(model(kind(gain))) for kind in kinds for gain in (1.0, 5.0)]
    assert len(set(prints)) == len(prints)


def test_a_model_is_told_from_others_by_the_code_of_its_forward() -> None:
    def plain(self: nn.Module, x: Tensor) -> Tensor:
        return self.last(self.act(self.conv(x)))

    variants = [
        with_forward(),
        with_forward(forward=plain),
        with_forward(forward=torch.no_grad()(plain)),
        with_forward(forward=lambda self, x: self.last(self.conv(x))),
        with_forward(forward=torch.no_grad()(lambda self, x: self.last(self.conv(x)))),
        with_forward(forward=lambda self, x: self.last(sum([self.conv(part) for part in x]))),
        with_forward(forward=lambda self, x: self.last(sum([self.conv(part + 1) for part in x]))),
        with_forward(forward=lambda self, x: self.tail(x), tail=lambda self, x: self.last(self.conv(x))),
        with_forward(forward=lambda self, x: self.tail(x), tail=lambda self, x: self.last(-self.conv(x))),
        with_forward(forward=lambda self, x: self.tail(x), tail=staticmethod(lambda x: x)),
    ]
    for forward in (lambda x: x + 1, lambda x: x + 2):
        variants.append(Shifted())
        variants[-1].forward = forward
    assert len({model_fingerprint(model) for model in variants}) == len(variants)
    assert model_fingerprint(with_forward(forward=plain)) == model_fingerprint(variants[1])
    assert model_fingerprint(with_forward(__repr__=lambda self: "")) == model_fingerprint(variants[0])


def test_a_traced_model_is_told_from_others_by_its_code() -> None:
    layer = nn.Sequential(nn.Conv2d(3, 4, 1))
    other = torch.fx.symbolic_trace(layer)
    for node in list(other.graph.nodes):
        if node.op == "output":
            with other.graph.inserting_before(node):
                node.args = (other.graph.call_function(torch.relu, node.args),)
    other.recompile()
    found = [model_fingerprint(torch.fx.symbolic_trace(layer)) for _ in range(2)]
    assert found[0] == found[1] != model_fingerprint(other)


def test_the_fingerprint_of_a_model_is_the_same_in_another_process_and_after_runs() -> None:
    model = Shifted()
    before = model_fingerprint(model)
    for _ in range(20):  # Python rewrites the code that runs often
        model(torch.zeros(1, 3, 2, 2))
    assert model_fingerprint(model) == before
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from bitsplit.calibration.fingerprint import model_fingerprint\n"
        "from test_fingerprint import Shifted\n"
        "print(model_fingerprint(Shifted()))"
    )
    other = run_program(program, PYTHONHASHSEED="7")
    assert other.returncode == 0, other.stderr
    assert other.stdout.strip() == before


def scaled(factor: float) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda model, batch: model(batch * factor)


def times(model: nn.Module, batch: Tensor, factor: float) -> Tensor:
    return model(batch * factor)


def test_a_step_is_told_from_others_by_its_code_and_what_it_encloses() -> None:
    steps = [scaled(1.0), scaled(2.0), lambda m, batch: m(batch), lambda m, batch: m(batch + 1)]
    steps += [partial(times, factor=1), partial(times, factor=2)]
    assert len({step_fingerprint(step) for step in steps}) == len(steps)
    assert step_fingerprint(scaled(2.0)) == step_fingerprint(scaled(2.0))


def test_a_run_with_another_forward_is_refused(tmp_path: Path) -> None:
    images = torch.randn(4, 3, 6, 6)
    bitsplit.quantize(Shifted().eval(), images, checkpoint=tmp_path)
    other = with_forward(forward=lambda self, x: self.last(self.act(self.conv(x - self.mean)) * 2)).eval()
    with pytest.raises(CheckpointError, match="model"):
        bitsplit.quantize(other, images, checkpoint=tmp_path)


@pytest.mark.parametrize("change", ["slope", "step"])
def test_a_run_with_another_model_or_step_is_refused(change: str, tmp_path: Path) -> None:
    images = torch.randn(4, 3, 6, 6)
    bitsplit.quantize(Shifted().eval(), images, step=scaled(1.0), checkpoint=tmp_path)
    model = Shifted(0.9 if change == "slope" else 0.1).eval()
    with pytest.raises(CheckpointError, match="model" if change == "slope" else "step"):
        bitsplit.quantize(model, images, step=scaled(2.0 if change == "step" else 1.0), checkpoint=tmp_path)


class Item:
    """A batch of a class of its own."""

    def __init__(self, image: Tensor) -> None:
        self.image = image


@pytest.mark.parametrize(
    "wrap",
    [
        lambda image: {"img": image.numpy()},
        lambda image: UserDict(img=image),
        lambda image: Item(image),
        lambda image: UserDict(img=[{"a": image.numpy().astype(np.float16)}]),
    ],
)
def test_values_are_seen_inside_of_arrays_and_objects(wrap: Callable[[Tensor], object]) -> None:
    def of(image: Tensor) -> str:
        return as_batches([wrap(image)], inputs_only=False).fingerprint

    image = torch.randn(1, 3, 4, 4)
    assert of(image) == of(image.clone()) != of(image + 1)


def test_the_fingerprint_tells_data_apart() -> None:
    changed = IMAGES.clone()
    changed[6, 2, 1, 1] += 1e-3
    variants = {
        fingerprint(IMAGES),
        fingerprint(changed),
        fingerprint(IMAGES.flip(0)),
        fingerprint(IMAGES[:6]),
        fingerprint(IMAGES.double()),
        fingerprint(IMAGES.view(7, 3, 4, 1)),
        fingerprint(list(IMAGES.split(2))),
        as_batches([(IMAGES, LABELS)], inputs_only=False).fingerprint,
        as_batches([{"a": IMAGES}], inputs_only=False).fingerprint,
    }
    assert len(variants) == 9


def test_the_fingerprint_sees_values_not_storage() -> None:
    strided = IMAGES.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert not strided.is_contiguous() and fingerprint(strided) == fingerprint(IMAGES)
    assert fingerprint(IMAGES.bfloat16()) != fingerprint(IMAGES.half())


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    program = (
        "import torch; from types import SimpleNamespace; from bitsplit.data import as_batches;"
        "data = [{'x': torch.ones(2, 3), 'more': SimpleNamespace()}];"
        "print(as_batches(data, inputs_only=False).fingerprint)"
    )
    other = run_program(program, PYTHONHASHSEED="7")
    assert other.returncode == 0, other.stderr
    data = [{"x": torch.ones(2, 3), "more": SimpleNamespace()}]
    assert as_batches(data, inputs_only=False).fingerprint == other.stdout.strip()
