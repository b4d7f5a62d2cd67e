"""The precision in which convolutions compute while something is learned."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from residual_net import Residual, error
from torch import Tensor, nn

import bitsplit
from bitsplit.errors import CalibrationError
from bitsplit.ops.precision import chosen_precision, computing_in, forward_in

CPU = torch.device("cpu")


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_convolutions_compute_in_it(precision, dtype):
    conv, x = nn.Conv2d(3, 4, 3), torch.randn(1, 3, 5, 5)
    with torch.autocast("cpu", torch.bfloat16), forward_in(precision, CPU):
        assert conv(x).dtype == dtype
    assert conv(x).dtype == torch.float32


def test_rounded_weights_follow_their_changes_inside_of_another_autocast():
    conv, x = nn.Conv2d(3, 4, 3), torch.randn(1, 3, 5, 5)
    results = []
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            with forward_in("bf16", CPU):
                results.append(conv(x))
            conv.weight.data.mul_(2)
    assert not torch.equal(*results)


def test_settings_of_the_user_come_back():
    switch, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = switch.fp32_precision, cudnn.deterministic, cudnn.benchmark
    with computing_in("fp32", CPU):
        assert (switch.fp32_precision, cudnn.deterministic, cudnn.benchmark) == ("ieee", True, False)
    assert (switch.fp32_precision, cudnn.deterministic, cudnn.benchmark) == before


def test_auto_is_what_the_processor_or_card_has_instructions_for(monkeypatch):
    for abilities, expected in (({"avx512_bf16": True}, "bf16"), ({"avx512_f": True}, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=abilities: found, raising=False)
        assert chosen_precision("auto", CPU) == expected
    for capability, expected in (((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp32")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda card, found=capability: found)
        assert chosen_precision("auto", torch.device("cuda")) == expected


def test_tf32_is_for_cards():
    with pytest.raises(CalibrationError, match="brecq failed: precision='tf32' needs a CUDA device"):
        method = bitsplit.Brecq(iterations=3, precision="tf32")
        bitsplit.quantize(Residual().eval(), torch.randn(8, 3, 8, 8), method, weights=4)


@pytest.mark.parametrize(
    ("method", "rate"), [(bitsplit.QDrop, 0.02), (bitsplit.Brecq, 0.02), (bitsplit.FlexRound, 5e-3)]
)
def test_what_is_learned_in_bf16_is_as_good(method, rate):
    """Within a tenth of what is gained in float32, on images that were learned from.

    The ends have 8 bits: of a classifier of 40 weights with three a single rounding decides about the error.
    """
    model, images = Residual().eval(), torch.randn(40, 3, 8, 8)

    def reached(**options) -> float:
        chain = method(rate=rate, **options)
        return error(bitsplit.quantize(model, images, chain, weights=3, policy="qdrop"), model, images)

    start = reached(iterations=0)
    exact, rounded = (reached(iterations=150, precision=precision) for precision in ("fp32", "bf16"))
    assert exact < start
    assert start - rounded > 0.9 * (start - exact)


@pytest.mark.parametrize(("activations", "enters_rounded"), [(None, True), (4, False)])
def test_only_pieces_of_weights_alone_are_called_in_half_precision(activations, enters_rounded):
    """Where inputs are quantized, rounding them first would move some to other levels."""
    model, seen = Residual().eval(), set()
    model.second.register_forward_pre_hook(lambda _, args: seen.add(args[0].dtype) or None)
    method = bitsplit.Brecq(iterations=5, step_iterations=0, precision="bf16")
    bitsplit.quantize(model, torch.randn(40, 3, 8, 8), method, weights=3, activations=activations)
    assert (torch.bfloat16 in seen) == enters_rounded


class Scattering(nn.Module):
    """Adds up in a tensor of float32, whatever comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(torch.zeros(x.shape).index_add(1, torch.arange(8), x))


def test_code_that_takes_no_half_precision_is_told_what_helps():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), Scattering()).eval()

    def learned(precision: str) -> nn.Module:
        method = bitsplit.Brecq(iterations=5, step_iterations=0, precision=precision)
        return bitsplit.quantize(model, torch.randn(16, 3, 8, 8), method, weights=3)

    with pytest.raises(CalibrationError, match=r"2: brecq failed: .*try precision='fp32'"):
        learned("bf16")
    assert [piece.name for piece in bitsplit.report_of(learned("fp32")).pieces] == ["0", "2"]


@pytest.fixture
def tf32_switches() -> Iterator[list]:
    """All on, as the user may have set them."""
    switches = [torch.backends.cudnn.conv, torch.backends.cuda.matmul]
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "tf32"
    yield switches
    for switch, precision in zip(switches, before, strict=True):
        switch.fp32_precision = precision


@pytest.mark.parametrize("verb", [bitsplit.plan, bitsplit.quantize])
def test_networks_compute_exactly_on_cards_whatever_the_user_has_set(verb, tf32_switches):
    """TF32, torch's default for convolutions on cards, is too coarse to tell whether folding was right."""
    seen, model = set(), Residual().eval()
    model.register_forward_pre_hook(
        lambda *_: seen.add(tuple(switch.fp32_precision for switch in tf32_switches)) or None
    )
    verb(model, torch.randn(8, 3, 8, 8), "minmax", weights=4)
    assert seen == {("ieee", "ieee")}
    assert [switch.fp32_precision for switch in tf32_switches] == ["tf32", "tf32"]
