#!/usr/bin/env python
"""Write docs/models.md: the classification models of torchvision and many of timm, taken through bitsplit.

Every model has random weights and random norm statistics.  It is observed, its computed weights are baked,
its norms folded, a plan is made, and a few of its layers are quantized.  The page says what was found;
nothing is known about any model beforehand but its name and, where it insists on one, its input size.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import traceback
import warnings
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import timm
import torch
import torchvision
from torch import nn

import bitsplit
from bitsplit.network import Network, bake_effective_weights, fold_norms, observe

SIZE = 96  # pixels, where a model takes any size
SIZES = {"vit_": 224, "maxvit_": 224, "bat_": 256}  # by the start of the name, where it does not
_TIMM = """
resnet18 resnet50d seresnet50 ecaresnet26t resnext50_32x4d res2net50_26w_4s res2next50 resnest26d skresnet18
resnetv2_50 resnetv2_50x1_bit legacy_seresnet18 bat_resnext26ts gcresnext26ts gernet_s regnetx_002 regnety_004
regnetz_b16 mobilenetv2_100 mobilenetv3_large_100 mobilenetv4_conv_small mobilenetv4_hybrid_medium lcnet_050
efficientnet_b0 tf_efficientnet_b0 tf_efficientnetv2_b0 efficientnet_lite0 efficientnet_cc_b0_4e mnasnet_100
mixnet_s tf_mixnet_s spnasnet_100 fbnetc_100 hardcorenas_a rexnet_100 tinynet_a convnext_atto convnextv2_atto
inception_next_atto hrnet_w18_small dla34 dla60_res2net repvgg_b0 mobileone_s0 fastvit_t8 ghostnet_100
ghostnetv2_100 ghostnetv3_050 repghostnet_050 densenet121 densenetblur121d dpn68 inception_v3 inception_v4
inception_resnet_v2 xception41 nasnetalarge pnasnet5large nfnet_f0 dm_nfnet_f0 eca_nfnet_l0 nf_resnet50
nf_regnet_b0 cspresnet50 cspdarknet53 darknet53 vovnet39a ese_vovnet19b_dw selecsls42 hgnet_tiny hgnetv2_b0
vgg11_bn tresnet_m starnet_s1 repvit_m0_9 edgenext_xx_small poolformer_s12 focalnet_tiny_srf levit_128s
mobilevit_xxs efficientformer_l1 efficientvit_b0 coatnet_0_rw_224 vit_tiny_patch16_224 mixer_s32_224
resmlp_12_224
"""
TIMM = _TIMM.split()


@dataclass(frozen=True)
class Row:
    """What one model showed; ``failure`` is empty when all went well."""

    name: str
    size: int
    layers: int = 0
    quantizable: int = 0
    blocks: int = 0
    units: int = 0
    norms: int = 0
    folded: int = 0
    fold_error: float = 0.0
    covered: float = 0.0
    stays: str = ""
    norms_stay: str = ""
    quantized: int = 0
    seconds: float = 0.0
    failure: str = ""

    def markdown(self) -> str:
        """The row of the table."""
        folding = f"{self.folded}/{self.norms} | {self.fold_error:.0e}" if self.norms else "– | –"
        cells = (
            self.name, self.size, self.layers, self.quantizable, f"{self.covered:.1%}",
            f"{self.units} ({self.blocks})", folding, self.quantized, self.stays, self.norms_stay,
        )  # fmt: skip
        return "| " + " | ".join(map(str, cells)) + " |"


def all_models() -> list[str]:
    """All names, as the command line of bitsplit writes them."""
    names = torchvision.models.list_models(module=torchvision.models)
    return [f"torchvision:{name}" for name in names] + [f"timm:{name}" for name in TIMM]


def build(name: str) -> tuple[nn.Module, int]:
    """The model with random weights, and the side of its input."""
    torch.manual_seed(0)
    library, _, model_name = name.partition(":")
    if library == "timm":
        model = timm.create_model(model_name, pretrained=False)
        config = model.default_cfg
        return model, config["input_size"][-1] if config.get("fixed_input_size") else _size_of(model_name)
    slow_start = {"init_weights": False} if model_name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(model_name, weights=None, **slow_start)
    return model, _size_of(model_name)


def _size_of(name: str) -> int:
    return next((size for start, size in SIZES.items() if name.startswith(start)), SIZE)


@torch.no_grad()
def pretend_training(model: nn.Module) -> nn.Module:
    """Norm statistics, scales and shifts that differ from channel to channel."""
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            if module.weight is not None:
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
    return model


def survey(name: str) -> Row:
    """Take one model all the way; raises what bitsplit raises."""
    start = time.perf_counter()
    model, size = build(name)
    pretend_training(model).eval()
    images = torch.randn(1, 3, size, size)
    plan = bitsplit.plan(model, images, "nearest")
    quantized = quantize_some(model, images, [layer.name for layer in plan.layers])
    network = bake_effective_weights(observe(model, images))
    report = fold_norms(network)
    if [layer.name for layer in plan.layers] != list(network.layers):
        raise AssertionError("the plan's layers are not the network's")
    norms = [norm for norm in network.norms if norm.has_statistics]
    done = sum(layer.macs for layer in network.layers.values())
    return Row(
        name=name,
        size=size,
        layers=len(network.layers) + sum(part.what != "product of activations" for part in network.uncovered),
        quantizable=len(network.layers),
        blocks=sum(unit.kind == "block" for unit in network.units),
        units=len(network.units),
        norms=len(norms),
        folded=len(report.folded),
        fold_error=max([report.output_error, *report.errors.values()]),
        covered=done / (done + sum(part.macs for part in network.uncovered)),
        stays=_what_stays(network),
        norms_stay=_grouped((_shortened(norm.reason), norm.name) for norm in norms if not norm.folded),
        quantized=quantized,
        seconds=time.perf_counter() - start,
    )


def quantize_some(model: nn.Module, images: torch.Tensor, names: list[str]) -> int:
    """Quantize the first two layers and the last one of a copy; how many were."""
    wanted = dict.fromkeys([*names[:2], names[-1]], {"weights": 4, "activations": 8})
    layers = {"*": {"weights": None, "activations": None}} | wanted
    quantized = bitsplit.quantize(model, images, "nearest", layers=layers)
    with torch.no_grad():
        if not bool(torch.isfinite(quantized(images)).all()):
            raise AssertionError("the quantized model gives NaN or Inf")
    codes = bitsplit.codes(quantized)
    if codes.keys() != wanted.keys() or any(int(c.codes.abs().max()) > 7 for c in codes.values()):
        raise AssertionError(f"quantized {list(codes)} instead of {list(wanted)}")
    return len(codes)


def _what_stays(network: Network) -> str:
    return _grouped((f"{part.what}: {_shortened(part.reason)}", part.name) for part in network.uncovered)


def _shortened(reason: str) -> str:
    """A reason without the names of modules in it."""
    if reason.startswith("the output of "):
        return "the layer's output is needed elsewhere too"
    if reason.startswith(("never called:", "the parameter is used by ")):
        return "used directly, not through a layer"
    for end in (", not ", " is called ", "(as in"):
        reason = reason.partition(end)[0]
    return reason.strip()


def _grouped(entries: Iterable[tuple[str, str]]) -> str:
    names: dict[str, list[str]] = defaultdict(list)
    for reason, name in entries:
        names[reason].append(name)
    return "; ".join(f"{len(found)} × {reason} (`{found[0]}`)" for reason, found in names.items())


PAGE = """# Models

What bitsplit finds in the classification models of torchvision and in models of timm, without knowing any of
them: it runs each once and looks. Weights and norm statistics are random, the input is one random image.
Written by `scripts/make_models_page.py`.

* **{good} of {all} models** observed, folded, planned and partly quantized.
* {quantizable:,} of {layers:,} places with weights can be quantized.
* {folded:,} of {norms:,} norms with statistics were folded; the largest relative error of a norm's or a
  network's output is {error:.0e}.
* {units:,} units, {blocks:,} of them blocks of several layers.
* torch {torch}, torchvision {torchvision}, timm {timm}.

*Layers*: convolutions, linear layers and other places with weights. *Covered*: the share of all
multiplications, products of activations included, that quantizable layers do. *Units*: how many, in brackets
how many of them are blocks. *Error*: the largest relative change of any norm's or the network's output by
folding. *Quantized*: layers that this survey quantized to 4 bits (the first two and the last). In the last
two columns one name is given for each reason.

| {heading} |
|{rule}
{rows}
"""
HEADING = (
    "model", "pixels", "layers", "quantizable", "covered", "units", "norms folded", "error", "quantized",
    "what stays float and why", "norms that stay and why",
)  # fmt: skip


def page(rows: list[Row]) -> str:
    """The whole page."""
    good = [row for row in rows if not row.failure]
    fields = ("layers", "quantizable", "units", "blocks", "norms", "folded")
    totals = {field: sum(getattr(row, field) for row in good) for field in fields}
    table = [row.markdown() for row in good]
    failed = [f"* **{row.name} failed**: {row.failure}" for row in rows if row.failure]
    return PAGE.format(
        good=len(good),
        all=len(rows),
        error=max((row.fold_error for row in good), default=0.0),
        torch=torch.__version__,
        torchvision=torchvision.__version__,
        timm=timm.__version__,
        heading=" | ".join(HEADING),
        rule="---|" * len(HEADING),
        rows="\n".join([*table, *([""] if failed else []), *failed]),
        **totals,
    )


def main() -> int:
    """Survey the models and write the page; 1 when one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="*", help="a wildcard over names such as timm:resnet*")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "models.md")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    names = [name for name in all_models() if fnmatch(name, arguments.only)]
    rows = []
    for name in names:
        try:
            rows.append(survey(name))
        except Exception as error:  # noqa: BLE001  the page shall list every failure
            traceback.print_exc()
            rows.append(Row(name, 0, failure=f"{type(error).__name__}: {error}"))
        gc.collect()
        print(f"{rows[-1].name}: {rows[-1].failure or f'{rows[-1].seconds:.1f} s'}", flush=True)
    arguments.output.write_text(page(rows), encoding="utf-8")
    return 1 if any(row.failure for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
