"""Any classification model goes all the way: observed, folded, planned, partly quantized, nothing silent."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("timm")


def load_script() -> ModuleType:
    """The script that writes docs/models.md, which does the same for its table."""
    path = Path(__file__).parents[1] / "scripts" / "make_models_page.py"
    spec = importlib.util.spec_from_file_location("make_models_page", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


PAGE = load_script()

# name: layers, quantizable, norms, folded, units; counted by hand from the papers or the sources
KNOWN = {
    "torchvision:resnet18": (21, 21, 20, 20, 10),
    "torchvision:mobilenet_v3_small": (54, 54, 34, 34, 15),
    "torchvision:shufflenet_v2_x0_5": (57, 57, 56, 56, 19),
    "torchvision:squeezenet1_1": (26, 26, 0, 0, 10),
    "torchvision:regnet_y_400mf": (86, 86, 53, 53, 18),
    "torchvision:densenet121": (121, 121, 121, 59, 63),
    "torchvision:googlenet": (64, 58, 59, 57, 13),
    "torchvision:swin_t": (53, 29, 0, 0, 17),
    "timm:tf_efficientnet_b0": (82, 82, 49, 49, 19),
    "timm:nf_regnet_b0": (87, 87, 0, 0, 19),
    "timm:repvgg_b0": (57, 57, 79, 56, 29),
    "timm:ghostnet_100": (96, 96, 80, 80, 20),
    "timm:mobilenetv4_conv_small": (47, 47, 46, 46, 20),
}


@pytest.mark.parametrize("name", KNOWN)
def test_representative_models(name: str) -> None:
    row = PAGE.survey(name)
    assert (row.layers, row.quantizable, row.norms, row.folded, row.units) == KNOWN[name]
    assert row.fold_error < 1e-4 and row.quantized == 3
    assert bool(row.stays) == (row.layers > row.quantizable)
    assert bool(row.norms_stay) == (row.norms > row.folded)


def test_the_page_counts_and_names_failures() -> None:
    good = PAGE.Row("timm:a", 96, layers=3, quantizable=2, units=2, norms=2, folded=1, fold_error=2e-7)
    page = PAGE.page([good, PAGE.Row("timm:b", 0, failure="ModelError: odd")])
    assert "**1 of 2 models**" in page and "2 of 3 places" in page and "1 of 2 norms" in page
    assert "| timm:a | 96 | 3 | 2 |" in page and "**timm:b failed**: ModelError: odd" in page


def test_the_survey_is_wide_enough() -> None:
    names = PAGE.all_models()
    assert sum(name.startswith("torchvision:") for name in names) >= 80
    assert len(set(PAGE.TIMM)) == len(PAGE.TIMM) >= 40
    assert KNOWN.keys() <= set(names)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGE.all_models())
def test_all_models(name: str) -> None:
    row = PAGE.survey(name)
    assert row.fold_error < 1e-3 and row.quantized == 3
    assert bool(row.stays) == (row.layers > row.quantizable)
