"""Learning pieces of a network: what comes out, on which pieces, and that it is the same every time."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from function_net import Net, layer
from programs import run_program
from residual_net import METHODS, Block, Residual, error, same
from torch import Tensor, nn

import bitsplit
from bitsplit.calibration.forecast import row_bytes
from bitsplit.data import as_batches
from bitsplit.errors import CalibrationError
from bitsplit.network import observe
from bitsplit.report import summary

PIECES = {
    "layer": ["stem", "first.one", "first.two", "second.one", "second.two", "fc"],
    "block": ["stem", "first", "second", "fc"],
    "stage": ["stem", "first to second", "fc"],
    "net": ["network"],
}


@pytest.mark.parametrize("activations", [None, 4])
@pytest.mark.parametrize("name", METHODS)
def test_learning_lowers_the_error_of_its_pieces(model, images, name, activations):
    method = METHODS[name]
    learned = bitsplit.quantize(model, images, method, weights=3, activations=activations)
    pieces = bitsplit.report_of(learned).pieces
    assert [piece.name for piece in pieces] == PIECES[method.granularity]
    assert all(piece.after <= piece.before for piece in pieces)
    assert sum(piece.after for piece in pieces) < 0.9 * sum(piece.before for piece in pieces)
    start = bitsplit.quantize(
        model, images, method.start, weights=3, activations=activations, policy=method.policy
    )
    assert error(learned, model, images) < error(start, model, images)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.scale_rate == 0])
def test_integers_are_within_one_step_of_the_float_weight(model, images, name):
    learned = bitsplit.quantize(model, images, METHODS[name], weights=3, activations=4)
    for path, found in bitsplit.codes(learned).items():
        weight = model.get_submodule(path).weight.detach()
        scale = found.scale.view(-1, *[1] * (weight.dim() - 1))
        zero = found.zero_point.view(scale.shape)
        low, high = (0 - zero) * scale, (2**found.bits - 1 - zero) * scale
        reachable = torch.minimum(torch.maximum(weight, low), high)
        assert (((found.codes - zero) * scale - reachable).abs() <= 1.001 * scale).all()


@pytest.mark.parametrize("name", METHODS)
def test_any_memory_and_number_of_threads_give_the_same_bits(model, images, name):
    results = []
    for memory, threads in ((None, 1), (0, 2), (20_000, 2)):
        torch.set_num_threads(threads)
        results.append(
            bitsplit.quantize(model, images, METHODS[name], weights=3, activations=4, memory=memory, seed=3)
        )
    assert same(results[0], results[1])
    assert same(results[0], results[2])


def test_what_was_remembered_before_learning_is_not_read_afterwards(model, images):
    chain = [METHODS["brecq with scales"], METHODS["brecq fisher"], METHODS["brecq by stages"]]
    results = [bitsplit.quantize(model, images, chain, weights=3, memory=memory) for memory in (None, 0)]
    assert same(*results)


def test_the_seed_decides(model, images):
    results = [
        bitsplit.quantize(model, images, METHODS["qdrop"], weights=3, activations=4, seed=seed)
        for seed in (0, 1)
    ]
    assert not same(*results)


KILLED = """
import os, signal, sys, torch
sys.path.insert(0, {tests!r})
import bitsplit
from bitsplit.calibration.checkpoint import Checkpoint
from residual_net import METHODS, Residual
save = Checkpoint.save
def dying(self, key, *rest):
    if key == {at!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, key, *rest)
Checkpoint.save = dying
model, images = torch.load({inputs!r}, weights_only=False)
bitsplit.quantize(model, images, METHODS[{name!r}], weights=3, activations=4, checkpoint={folder!r})
"""


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
def test_a_killed_run_goes_on_to_the_same_bits(model, images, tmp_path, name, at):
    whole = bitsplit.quantize(model, images, METHODS[name], weights=3, activations=4)
    inputs, folder, tests = tmp_path / "inputs.pt", tmp_path / "run", Path(__file__).parent
    torch.save((model, images), inputs)
    code = KILLED.format(inputs=str(inputs), folder=str(folder), tests=str(tests), name=name, at=at)
    killed = run_program(code)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = bitsplit.quantize(model, images, METHODS[name], weights=3, activations=4, checkpoint=folder)
    assert same(resumed, whole)
    assert [piece.name for piece in bitsplit.report_of(resumed).pieces] == PIECES[METHODS[name].granularity]


class TestChains:
    def test_learning_starts_from_bit_splits_integers(self, model, images):
        chain = ["bitsplit", bitsplit.Brecq(iterations=0)]
        learned = bitsplit.quantize(model, images, chain, weights=2)
        assert same(learned, bitsplit.quantize(model, images, "bitsplit", weights=2))

    def test_and_improves_on_them(self, model, images):
        chain = ["bitsplit", bitsplit.Brecq(iterations=300, rate=0.01)]
        learned = bitsplit.quantize(model, images, chain, weights=2)
        pieces = {piece.name: piece for piece in bitsplit.report_of(learned).pieces}
        assert any(piece.after < piece.before for piece in pieces.values())
        alone = bitsplit.quantize(model, images, METHODS["brecq"], weights=2)
        (first,) = (piece for piece in bitsplit.report_of(alone).pieces if piece.name == "first")
        assert pieces["first"].before < first.before


class TestUnusualPieces:
    def test_a_block_that_is_called_twice(self, images):
        net = Net(lambda m, x: m.fc(m.block(m.block(m.stem(x))).mean((2, 3))),
                  stem=layer(3, 8), block=Block(), fc=nn.Linear(8, 3)).eval()  # fmt: skip
        learned = bitsplit.quantize(net, images, METHODS["brecq"], weights=3, activations=4)
        (piece,) = [piece for piece in bitsplit.report_of(learned).pieces if piece.name == "block"]
        assert piece.after < piece.before

    def test_a_layer_without_batch_axis_in_front(self):
        """Rows of sequence-first tokens depend on each other in attention: whole batches are drawn."""

        class Attention(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

            def forward(self, x: Tensor) -> Tensor:
                q, k, v = self.qkv(x).chunk(3, dim=-1)
                mixed = torch.softmax(q.transpose(0, 1) @ k.permute(1, 2, 0), -1) @ v.transpose(0, 1)
                return self.out(mixed.transpose(0, 1)) + x

        net = Net(
            lambda m, x: m.fc(m.attention(m.stem(x).flatten(2).permute(2, 0, 1)).mean(0)),
            stem=layer(3, 8), attention=Attention(), fc=nn.Linear(8, 4),
        ).eval()  # fmt: skip
        tokens = torch.randn(16, 3, 4, 4)
        learned = bitsplit.quantize(net, tokens, METHODS["brecq"], weights=3, activations=8, batch_size=8)
        (piece,) = [piece for piece in bitsplit.report_of(learned).pieces if piece.name == "attention"]
        assert piece.after < piece.before

    def test_images_of_different_sizes(self, model):
        sizes = [torch.randn(6, 3, 8, 8), torch.randn(6, 3, 12, 8), torch.randn(4, 3, 8, 8)]
        learned = bitsplit.quantize(model, sizes, METHODS["qdrop"], weights=3, activations=4)
        blocks = [piece for piece in bitsplit.report_of(learned).pieces if piece.name in ("first", "second")]
        assert all(piece.after < piece.before for piece in blocks) and len(blocks) == 2

    def test_a_block_with_two_inputs(self, images):
        class Gate(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two = layer(8, 8), layer(8, 8)

            def forward(self, x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
                return self.one(x) * scale + self.two(y)

        net = Net(
            lambda m, x: m.fc(m.gate(torch.relu(m.a(x)), y=torch.tanh(m.b(x)), scale=0.5).mean((2, 3))),
            a=layer(3, 8), b=layer(3, 8), gate=Gate(), fc=nn.Linear(8, 3),
        ).eval()  # fmt: skip
        learned = bitsplit.quantize(net, images, METHODS["qdrop"], weights=3, activations=4)
        (piece,) = [piece for piece in bitsplit.report_of(learned).pieces if piece.name == "gate"]
        assert piece.after < piece.before

    def test_float_layers_are_left_alone(self, model, images):
        layers = {"second.*": {"weights": None, "activations": None}}
        learned = bitsplit.quantize(model, images, METHODS["brecq"], weights=3, activations=4, layers=layers)
        assert [piece.name for piece in bitsplit.report_of(learned).pieces] == ["stem", "first", "fc"]
        assert torch.equal(learned.second.one.weight, model.second.one.weight)

    @pytest.mark.parametrize("groups", [1, 2])
    def test_transposed_convolutions(self, images, groups):
        net = Net(
            lambda m, x: m.fc(torch.relu(m.up(torch.relu(m.stem(x)))).mean((2, 3))),
            stem=layer(3, 8), up=nn.ConvTranspose2d(8, 6, 2, stride=2, groups=groups), fc=nn.Linear(6, 3),
        ).eval()  # fmt: skip
        method = bitsplit.Brecq(iterations=300, rate=0.01, step_iterations=0)
        learned = bitsplit.quantize(net, images, method, weights=3, activations=4)
        (piece,) = [piece for piece in bitsplit.report_of(learned).pieces if piece.name == "up"]
        assert piece.after < piece.before


def test_the_summary_shows_what_was_learned(model, images):
    learned = bitsplit.quantize(model, images, METHODS["brecq"], weights=3)
    text = str(bitsplit.summary(learned))
    assert "undecided" in text
    assert "second" in text
    assert "undecided" not in str(bitsplit.summary(bitsplit.quantize(model, images, "mse", weights=3)))


def test_a_terminal_shows_iterations_and_loss(model, images, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    bitsplit.quantize(model, images, [METHODS["brecq"], bitsplit.Global(epochs=40)], weights=3)
    shown = capsys.readouterr().err
    for learned in ("first", "global"):
        assert any(f"learning {learned}" in line and "loss " in line for line in shown.splitlines())


def test_requirements_of_gradients_are_as_before(model, images):
    model.first.one.weight.requires_grad_(False)
    learned = bitsplit.quantize(model, images, METHODS["brecq with scales"], weights=3)
    for name, parameter in learned.named_parameters():
        assert parameter.requires_grad == (name != "first.one.weight")
        assert parameter.grad is None


def test_fisher_needs_class_scores(images):
    net = nn.Sequential(layer(3, 4), nn.ReLU(), layer(4, 2)).eval()
    with pytest.raises(CalibrationError, match="loss='fisher' needs a network that gives class scores"):
        bitsplit.quantize(net, images, METHODS["brecq fisher"], weights=3)


@pytest.mark.parametrize(
    ("classes", "scores", "message"),
    [
        (1, lambda y: y.mean((2, 3)), r"two classes or more, got \[40, 1\]; use loss='mse'"),
        (3, lambda y: y.argmax(3).float().mean(2), "stem: .* gradients that are all zero; use loss='mse'"),
    ],
)
def test_fisher_weights_that_say_nothing_are_refused(images, classes, scores, message):
    """The probability of the only class is 1 whatever the network does."""
    net = Net(lambda m, x: m.fc(scores(m.stem(x))), stem=layer(3, 8), fc=nn.Linear(8, classes)).eval()
    with pytest.raises(CalibrationError, match=message):
        bitsplit.quantize(net, images, METHODS["brecq fisher"], weights=3)


def test_a_collapse_is_learned_again_and_said(model, images):
    chain = ["bitsplit", bitsplit.Brecq(iterations=40, rate=0.01, bias_rate=5.0)]
    with pytest.warns(UserWarning, match="collapsed"):
        learned = bitsplit.quantize(model, images, chain, weights=4)
    assert all(piece.after <= piece.before for piece in bitsplit.report_of(learned).pieces)
    assert any("learned again" in piece.remark for piece in bitsplit.report_of(learned).pieces)


class TestShortcuts:
    def test_the_shortcut_carries_the_quantized_tensor(self, model, images):
        quantized = bitsplit.quantize(model, images, "mse", weights=8, activations=2, policy="qdrop")
        seen = []
        quantized.first.one.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        x = torch.rand(2, 8, 4, 4)
        output = quantized.first(x)
        assert len(seen[0].unique()) <= 4
        inner = quantized.first.two(torch.relu(quantized.first.one(seen[0])))
        assert torch.equal(output, torch.relu(inner + seen[0]))

    def test_the_plan_says_where(self, model, images):
        plan = bitsplit.plan(model, images, "qdrop", weights=4, activations=4)
        assert plan.layer("first.one").argument == 0
        assert plan.layer("first.two").argument is None
        assert "at the input of first" in str(plan)
        plain = bitsplit.plan(model, images, "bitsplit", weights=4, activations=4)
        assert plain.layer("first.one").argument is None

    def test_saved_and_loaded(self, model, images, tmp_path):
        quantized = bitsplit.quantize(model, images, METHODS["qdrop"], weights=4, activations=4)
        bitsplit.save(quantized, tmp_path / "net.safetensors")
        loaded = bitsplit.load(tmp_path / "net.safetensors", Residual().eval())
        assert torch.equal(loaded(images), quantized(images))
        assert bitsplit.report_of(loaded).pieces == bitsplit.report_of(quantized).pieces

    def test_in_place(self, model, images):
        expected = bitsplit.quantize(model, images, METHODS["qdrop"], weights=4, activations=4)
        bitsplit.quantize(model, images, METHODS["qdrop"], weights=4, activations=4, inplace=True)
        assert torch.equal(model(images), expected(images))

    def test_scales_in_weights_stay_at_layers(self, model, images):
        plan = bitsplit.plan(
            model, images, bitsplit.BitSplit(ecaq=True), weights=4, activations=4, policy="qdrop"
        )
        assert plan.layer("first.one").argument is None


@pytest.mark.parametrize("memory", [None, 0])
def test_what_features_took_stands_beside_the_forecast(model, images, memory):
    def features(method) -> dict[str, int]:
        quantized = bitsplit.quantize(model, images, method, weights=3, activations=4, memory=memory)
        found = bitsplit.report_of(quantized).features
        assert f"features {found['used'] / 2**20:.1f} MiB" in str(summary(quantized))
        return found

    two_outputs_of_both_models = 2 * 2 * 40 * 8 * 8 * 8 * 4
    assert features("minmax") == {"forecast": two_outputs_of_both_models, "used": two_outputs_of_both_models}
    for name in ("brecq", "brecq by stages", "brecq at once", "qdrop", "brecq fisher"):
        found = features(METHODS[name])
        assert found["forecast"] / 2 < found["used"] <= found["forecast"]


@pytest.mark.parametrize("name", ["brecq", "brecq fisher", "qdrop"])
def test_the_forecast_knows_the_rows(model, images, name):
    """What is kept of the largest unit: 8 channels of 8x8 in (for qdrop twice) and out (for fisher twice)."""
    network = observe(model, images)
    expected = {"brecq": 2, "brecq fisher": 3, "qdrop": 3}[name]
    batches = as_batches(images, 8, inputs_only=True, device=torch.device("cpu"))
    assert row_bytes(network, [METHODS[name]], batches) == expected * 40 * 8 * 8 * 8 * 4


class Wide(nn.Module):
    """A block whose layers hold more than it gets and gives."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.reduce = layer(8, 96), layer(96, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.reduce(torch.relu(self.expand(x)))


def test_the_forecast_knows_the_rows_of_layers_inside_of_units(images):
    model = nn.Sequential(layer(3, 8), nn.ReLU(), Wide(), Wide()).eval()
    quantized = bitsplit.quantize(model, images, bitsplit.AdaRound(iterations=2), weights=3)
    found = bitsplit.report_of(quantized).features
    rows = (96 + 8) * 8 * 8 * 4 * len(images)
    assert rows < found["used"] <= found["forecast"] < 2 * rows


def test_the_error_of_a_layer_covers_all_of_its_calls(images):
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = torch.relu(m.stem(x))
        for _ in range(3):
            x = m.block(x)
        return m.fc(x.mean((2, 3)))

    model = Net(forward, stem=layer(3, 8), block=Block(), fc=nn.Linear(8, 3)).eval()
    quantized = bitsplit.quantize(model, images, "mse", weights=3, activations=4)
    seen: dict[nn.Module, list[Tensor]] = {model: [], quantized: []}
    for network, outputs in seen.items():
        network.block.two.register_forward_hook(lambda *call, kept=outputs: kept.append(call[-1].detach()))
        network(images)
    wanted, got = (torch.stack(outputs) for outputs in seen.values())
    expected = ((got - wanted).square().sum() / wanted.square().sum()).item()
    assert len(wanted) == 3
    assert bitsplit.report_of(quantized).layer("block.two").error == pytest.approx(expected, rel=1e-3)
