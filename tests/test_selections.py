"""Networks that keep some of their rows: the quantized one is fitted on those that the float one keeps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from function_net import Net, layer
from residual_net import METHODS, same
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

import bitsplit
from bitsplit.errors import CalibrationError, FoldError
from bitsplit.network import observe

NEAR = (
    0.02  # relative squared error of what W4A4 makes of rows that belong together; others give 0.1 and more
)


def above_median(score: Tensor) -> Tensor:
    return score > score.median()


def written(rows: Tensor, score: Tensor) -> Tensor:
    """Some rows are computed again under a mask that is made twice."""
    rows = rows.clone()
    rows[above_median(score)] = rows[above_median(score)].flip(1)
    return rows


def above(score: Tensor) -> Tensor:
    return score > -0.16967804729938507  # about the median of the float network's


def counted_first(rows: Tensor, mask: Tensor) -> Tensor:
    return rows.new_zeros(int(mask.sum()), 8).copy_(rows[mask])


def again(rows: Tensor) -> Tensor:
    return rows[rows[:, 0].topk(len(rows) // 2)[1]]


def sorted_into(score: Tensor) -> Tensor:
    values, places = torch.empty_like(score), torch.empty(len(score), dtype=torch.long)
    torch.sort(score, descending=True, out=(values, places))
    return places


WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "topk": lambda rows, score: rows[score.topk(40).indices],
    "topk of the last axis but one": lambda rows, score: rows[score[:, None].topk(40, 0)[1][:, 0]],
    "sort": lambda rows, score: rows[score.argsort(descending=True)[:40]],
    "mask": lambda rows, score: rows[above_median(score)],
    "expanded mask": lambda rows, score: rows[above_median(score)[:, None].expand_as(rows)].view(-1, 8),
    "where": lambda rows, score: rows[torch.where(above_median(score))[0]],
    "masked_select": lambda rows, score: rows.masked_select(above_median(score)[:, None]).view(-1, 8),
    "written": written,
    "unique": lambda rows, score: rows[: (score * 20).long().unique().numel()],
    "nms": lambda rows, score: rows[torchvision.ops.nms(boxes(rows), score, 0.5)],
    "place of the largest": lambda rows, score: rows[
        score.view(-1, 8).max(1)[1] + torch.arange(0, len(score), 8)
    ],
    "sort into a tensor": lambda rows, score: rows[sorted_into(score)[:40]],
    "counted first": lambda rows, score: counted_first(rows, above(score)),
    "selected again": lambda rows, score: again(rows[score.argsort()[: int(above(score).sum())]]),
    "argmax": lambda rows, score: rows[score.view(-1, 8).argmax(1) + torch.arange(0, len(score), 8)],
}


def boxes(rows: Tensor) -> Tensor:
    return torch.cat([rows[:, :2], rows[:, :2] + rows[:, 2:4] + 0.1], 1)


def keeping(way: Callable[[Tensor, Tensor], Tensor]) -> nn.Module:
    """Positions of feature maps are its rows; one of its layers scores them, others work on those kept."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        rows = torch.relu(m.mid(torch.relu(m.stem(x)))).permute(0, 2, 3, 1).flatten(0, 2)
        return m.head(torch.relu(m.hidden(way(rows, m.score(rows)[:, 0]))))

    torch.manual_seed(0)
    return Net(
        forward, stem=layer(3, 8), mid=layer(8, 8), score=nn.Linear(8, 1), hidden=nn.Linear(8, 16),
        head=nn.Linear(16, 4),
    ).eval()  # fmt: skip


def errors(quantized: nn.Module) -> dict[str, float]:
    return {layer.name: layer.error for layer in bitsplit.report_of(quantized).layers}


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", ["minmax", "bitsplit", "brecq"])
def test_rows_that_belong_together_are_compared(photos, way, method):
    quantized = bitsplit.quantize(
        keeping(WAYS[way]), photos, METHODS.get(method, method), weights=4, activations=4, batch_size=8
    )
    found = errors(quantized)
    assert max(found["hidden"], found["head"]) < NEAR, found


def test_a_whole_network_is_tuned_on_them(photos):
    net = keeping(WAYS["mask"])
    chain = ["minmax", bitsplit.Global(epochs=3, outputs="values")]
    start, tuned = (
        bitsplit.quantize(net, photos, some, weights=4, activations=4, batch_size=8)
        for some in (["minmax"], chain)
    )
    with torch.no_grad():  # of scores and positions; which rows are kept is the network's own again
        wanted = net.mid(torch.relu(net.stem(photos)))
        before, after = (
            float((model.mid(torch.relu(model.stem(photos))) - wanted).square().sum())
            for model in (start, tuned)
        )
    assert after < before


def test_budget_and_checkpoint_change_nothing(photos, tmp_path):
    def quantized(**options: object) -> nn.Module:
        return bitsplit.quantize(
            keeping(WAYS["mask"]), photos, ["bitsplit", METHODS["brecq"]], weights=3, activations=4,
            batch_size=8, **options,
        )  # fmt: skip

    usual = quantized()
    assert same(usual, quantized(memory=0))
    assert same(usual, quantized(checkpoint=tmp_path / "run"))
    assert same(usual, quantized(checkpoint=tmp_path / "run"))


def test_values_that_become_zero_under_a_mask_are_the_networks_own(photos):
    """A ReLU of the user's own."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.stem(x)
        x[x < 0] = 0
        return m.head(x.mean((2, 3)))

    def with_relu(m: nn.Module, x: Tensor) -> Tensor:
        return m.head(F.relu(m.stem(x)).mean((2, 3)))

    torch.manual_seed(0)
    stem, head = layer(3, 8), nn.Linear(8, 4)
    masked, usual = (
        bitsplit.quantize(Net(way, stem=stem, head=head).eval(), photos, "bitsplit", weights=3)
        for way in (forward, with_relu)
    )
    assert same(masked, usual)


class Pruning(nn.Module):
    """A residual block that keeps some of its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.score, self.two = nn.Linear(8, 8), nn.Linear(8, 1), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.one(x)) + x
        x = x[self.score(x)[:, 0] > 0]
        return self.two(x) + x


def pruning() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.head(m.block(torch.relu(m.stem(x)).permute(0, 2, 3, 1).flatten(0, 2)))

    torch.manual_seed(0)
    return Net(forward, stem=layer(3, 8), block=Pruning(), head=nn.Linear(8, 4)).eval()


@pytest.mark.parametrize("method", ["brecq", "qdrop"])
def test_what_selects_is_no_block(photos, method):
    net = pruning()
    assert "block" not in [unit.name for unit in observe(net, photos).units]
    quantized = bitsplit.quantize(net, photos, METHODS[method], weights=4, activations=4, batch_size=8)
    assert all(piece.after <= piece.before < NEAR for piece in bitsplit.report_of(quantized).pieces)


def test_rows_of_a_whole_network_cannot_be_paired(photos):
    with pytest.raises(CalibrationError, match="use unit='block'"):
        bitsplit.quantize(pruning(), photos, METHODS["brecq at once"], weights=4)


def test_a_hook_that_selects_behind_a_unit_that_is_skipped(photos):
    net = pruning()
    net.block.two.register_forward_hook(lambda module, args, rows: rows.sort(0)[0])
    assert max(errors(bitsplit.quantize(net, photos, "minmax", weights=4, batch_size=8)).values()) < NEAR


def test_folding_is_checked_where_rows_are_selected(photos):
    """Folding gives the layer a bias, upon which this network computes something else."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.bn(m.a(x))
        y = m.b(y[y.mean((1, 2, 3)).argsort()].mean((2, 3)))
        return y * 3 if m.a.bias is not None else y

    net = Net(forward, a=layer(3, 8, bias=False), bn=nn.BatchNorm2d(8), b=nn.Linear(8, 6)).eval()
    with pytest.raises(FoldError, match="changes the network's output"):
        bitsplit.quantize(net, photos, "minmax", batch_size=8)


def test_a_layer_that_only_selects_costs_what_it_costs(photos):
    """The five best positions of every image are what its classes come from."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        rows = torch.relu(m.mid(torch.relu(m.stem(x)))).permute(0, 2, 3, 1).flatten(1, 2)
        best = m.score(rows)[..., 0].topk(5, 1)[1]
        return m.head(torch.relu(m.hidden(rows.gather(1, best[..., None].expand(-1, -1, 8)))).mean(1))

    net = Net(
        forward, stem=layer(3, 8), mid=layer(8, 8), score=nn.Linear(8, 1), hidden=nn.Linear(8, 16),
        head=nn.Linear(16, 4),
    ).eval()  # fmt: skip
    net.mid.weight.data *= 4
    net.head.weight.data *= 10
    measured = bitsplit.sensitivities(net, photos, "minmax", widths=(2, 8), policy="all", batch_size=8)
    found = {row.layer.name: row.losses[2] for row in measured.layers}
    assert found["score"] > 1e-3
    with pytest.warns(UserWarning, match="no width of score changes what the network gives"):
        paired = bitsplit.sensitivities(
            net, photos, "minmax", widths=(2, 8), policy="all", batch_size=8, outputs="values"
        )
    assert "score" not in [row.layer.name for row in paired.layers]


def test_outputs_of_other_forms_are_not_compared_as_classes(photos):
    with pytest.raises(CalibrationError, match="outputs='values'"):
        bitsplit.sensitivities(pruning(), photos, "minmax", widths=(2, 8), policy="all", batch_size=8)


def detector() -> nn.Module:
    """A small Faster R-CNN whose boxes differ."""
    torch.manual_seed(0)
    backbone = nn.Sequential(layer(3, 8, stride=2), nn.ReLU(), layer(8, 16, stride=2), nn.ReLU())
    backbone.out_channels = 16
    anchors = torchvision.models.detection.rpn.AnchorGenerator(((8, 16, 32),), ((0.5, 1.0, 2.0),))
    model = torchvision.models.detection.FasterRCNN(
        backbone, min_size=64, max_size=64, rpn_anchor_generator=anchors, rpn_post_nms_top_n_test=30,
        box_roi_pool=torchvision.ops.MultiScaleRoIAlign(["0"], 3, 2), box_head=TwoMLPHead(16 * 9, 32),
        box_predictor=FastRCNNPredictor(32, 4), box_score_thresh=0.0, box_detections_per_img=10,
    ).eval()  # fmt: skip
    for predictor in (model.rpn.head.cls_logits, model.rpn.head.bbox_pred):
        predictor.weight.data.mul_(30)
    return model


@pytest.mark.parametrize("method", ["mse", "bitsplit", "brecq"])
def test_a_detector_with_regions(method, device):
    generator = torch.Generator().manual_seed(0)
    images = [list(torch.rand(2, 3, 64, 64, generator=generator)) for _ in range(4)]
    quantized = bitsplit.quantize(
        detector().to(device), images, METHODS.get(method, method), weights=4, activations=4,
        step=lambda m, x: m(x),
    )  # fmt: skip
    found = errors(quantized)
    assert max(error for name, error in found.items() if "roi_heads" in name) < NEAR, found


@pytest.mark.parametrize("way", ["topk", "expanded mask", "written"])
def test_the_forecast_knows_what_is_selected(photos, way):
    quantized = bitsplit.quantize(keeping(WAYS[way]), photos, "minmax", weights=4, batch_size=8)
    found = bitsplit.report_of(quantized).features
    assert found["forecast"] == found["used"]


def test_the_forecast_counts_the_images_of_a_list():
    images = [list(torch.rand(2, 3, 64, 64)) for _ in range(4)]
    found = bitsplit.report_of(
        bitsplit.quantize(detector(), images, "minmax", step=lambda m, x: m(x))
    ).features
    assert found["forecast"] == pytest.approx(found["used"], rel=0.01)


def test_what_counts_as_selecting(images):
    assert observe(keeping(WAYS["mask"]), images).selected
    assert observe(detector(), [list(torch.rand(1, 3, 64, 64))], lambda m, x: m(x[0])).selected
    assert observe(keeping(WAYS["place of the largest"]), images).selected

    def masked(x: Tensor) -> Tensor:
        x[x < 0] = 0
        return x

    for harmless in (lambda x: x[:, torch.tensor([0, 2])], lambda x: x.max(1)[0], masked):
        plain = Net(lambda m, x, then=harmless: then(m.stem(x)), stem=layer(3, 8)).eval()
        assert not observe(plain, images).selected
