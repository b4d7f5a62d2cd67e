"""Learning pieces of a network: what comes out, on which pieces, and that it is the same every time."""

from __future__ import annotations

import pytest
import torch
from function_net import Net, layer
from residual_net import METHODS, PIECES, Block, error, same
from torch import Tensor, nn

import bitsplit
from bitsplit.errors import CalibrationError


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
