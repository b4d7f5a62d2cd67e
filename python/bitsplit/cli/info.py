"""``bitsplit info``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import torch
import typer
from rich.table import Table

from bitsplit._build_info import build_info
from bitsplit.artifact import Manifest, read_manifest
from bitsplit.cli import options
from bitsplit.methods import registry
from bitsplit.ops.precision import chosen_precision
from bitsplit.policies import PolicyName
from bitsplit.report import versions


def info(
    file: Annotated[Path | None, typer.Argument(help="A network that quantize saved.")] = None,
) -> None:
    """Tell about this installation, or about a saved network: neither needs a model."""
    console = options.console()
    if file is None:
        console.print(_facts(_installation()))
        return
    manifest = read_manifest(file)
    console.print(_facts(_description(file, manifest)))
    console.print(manifest.report.plan.table())


def _installation() -> dict[str, str]:
    cards = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    build = {f"built: {key.replace('_', ' ')}": value for key, value in build_info().items()}
    return {
        **versions(),
        **build,
        "cards": ", ".join(cards) or "none",
        "learning on the processor computes in": chosen_precision("auto", torch.device("cpu")),
        "methods": ", ".join(registry.names()),
        "activation methods": ", ".join(registry.activation_names()),
        "policies": ", ".join(get_args(PolicyName)),
    }


def _description(file: Path, manifest: Manifest) -> dict[str, str]:
    report = manifest.report
    recipe = report.plan.recipe
    errors = [layer.error for layer in report.layers if layer.error is not None]
    return {
        "file": f"{file}, {file.stat().st_size / 2**20:.2f} MiB, format {manifest.format}",
        "model": manifest.model_class,
        "method": " + ".join(method.name for method in recipe.method),
        "policy": report.plan.rule,
        "seed": str(recipe.seed),
        "time": f"{report.seconds:.1f} s",
        "largest layer error": f"{max(errors):.2%}" if errors else "unknown",
        "calibration": ", ".join(f"{key} {value}" for key, value in report.data.items() if key != "sample"),
        "versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
        "folded norms": str(len(manifest.folded_norms)),
    }


def _facts(facts: dict[str, str]) -> Table:
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, value)
    return table
