"""The demo: its files, its run, its table and chart."""

import sys
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from bitsplit.data import JpegArchive
from bitsplit.demo import Result, Widths, comparison, run
from bitsplit.demo.assets import (
    CALIBRATION,
    TEST,
    WEIGHTS,
    load_calibration_images,
    load_test_images,
    trained_network,
)
from bitsplit.demo.chart import draw_chart
from bitsplit.demo.table import print_table
from bitsplit.errors import BitsplitError
from bitsplit.evaluation import evaluate

RESULTS = [
    Result("float", None, 80.0, 100.0, 700_000, 0.0),
    Result("mse", Widths(4), 78.0, 95.0, 100_000, 1.0),
    Result("bitsplit", Widths(4), 79.5, 98.0, 100_000, 2.0),
    Result("mse", Widths(2), 20.0, 25.0, 50_000, 1.0),
    Result("bitsplit", Widths(2), 76.0, 90.0, 50_000, 2.0),
    Result("kl", Widths(4, 4), 70.0, 80.0, 100_000, 1.5),
]


def recorder() -> Console:
    return Console(width=120, record=True, file=open("/dev/null", "w"))


def test_the_embedded_files_are_small_and_whole() -> None:
    assert sum(path.stat().st_size for path in (WEIGHTS, CALIBRATION, TEST)) <= 4_000_000
    assert len(load_calibration_images()) == 500 and len(load_test_images()) == 2_000
    assert set(load_calibration_images().labels) == set(load_test_images().labels) == set(range(10))


def test_calibration_and_test_images_are_what_they_say(shared_data: Path) -> None:
    for embedded, name in ((load_calibration_images(), "train"), (load_test_images(), "test")):
        source = JpegArchive(shared_data / f"cifar10/{name}.npz")
        files = {source.read(index): source.labels[index] for index in range(len(source))}
        found = [embedded.read(index) for index in range(len(embedded))]
        assert len(set(found)) == len(found)
        assert [files[content] for content in found] == embedded.labels


def test_the_network_is_as_good_as_published() -> None:
    assert evaluate(trained_network(), load_test_images()).top1 == pytest.approx(82.30, abs=0.11)


def test_the_demo_runs_and_shows_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(comparison, "CALIBRATED", 100)
    monkeypatch.setattr(comparison, "TESTED", 500)
    console = recorder()
    results = run(tmp_path / "demo.png", widths=[Widths(3), Widths(4, 4)], console=console)

    named = {(result.method, str(result.widths)): result for result in results}
    assert list(named) == [
        ("float", "None"),
        *((method, "W3") for method in ("minmax", "mse", "bitsplit", "learned")),
        *((method, "W4A4") for method in ("minmax", "mse", "kl", "bitsplit")),
    ]
    best, plain = named["bitsplit", "W3"], named["minmax", "W3"]
    original = named["float", "None"]
    assert best.accuracy > plain.accuracy and best.same_class > plain.same_class
    assert best.accuracy > original.accuracy - 3
    assert best.size < original.size / 6
    text = console.export_text()
    assert f"{best.accuracy:.2f}/{best.same_class:.0f}" in text
    assert Image.open(tmp_path / "demo.png").size[0] > 1000


def test_the_table_has_a_row_for_each_width_and_a_gap_where_nothing_was_tried() -> None:
    console = recorder()
    print_table(RESULTS, console)
    text = console.export_text()
    rows = {line.split()[0]: line for line in text.splitlines() if line.lstrip().startswith("W")}
    assert list(rows) == ["W4", "W2", "W4A4"]
    assert "78.00/95  1s" in rows["W4"] and "79.50/98  2s" in rows["W4"]
    assert rows["W4A4"].count("/") == 1
    assert "float: 80.00 %" in text and "684 KiB" in text


@pytest.mark.parametrize("shown", [RESULTS, RESULTS[:5], [RESULTS[0], RESULTS[5]]])
def test_the_chart_is_a_picture(tmp_path: Path, shown: list[Result]) -> None:
    pytest.importorskip("matplotlib")
    draw_chart(shown, tmp_path / "chart.png")
    image = Image.open(tmp_path / "chart.png")
    panels = len({result.widths.activations is None for result in shown[1:]})
    assert image.format == "PNG" and image.size == (825 * panels, 600)


def test_a_missing_matplotlib_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BitsplitError, match=r"needs matplotlib: pip install 'bitsplit-ptq\[plot\]'"):
        run(tmp_path / "demo.png", widths=[])
    assert not (tmp_path / "demo.png").exists()
