"""Imports go only the way that the table in docs/architecture.md draws."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "python" / "bitsplit"
FILES = sorted(PACKAGE.rglob("*.py"))
ROOM = re.compile(r"`([\w.]+?)(?:\.py|/)?`")


def table() -> dict[str, set[str]]:
    """Room -> rooms it may import, as the page says."""
    rows: dict[str, set[str]] = {}
    for line in (ROOT / "docs" / "architecture.md").read_text().splitlines():
        if not line.startswith("| `") or line.count("|") != 4:
            continue
        first, _, last = (cell.strip() for cell in line.strip("|").split("|"))
        allowed = set(rows) if last == "everything above" else set(ROOM.findall(last))
        rows |= dict.fromkeys(ROOM.findall(first), allowed)
    return rows


def room_of(module: str) -> str:
    """The room of ``bitsplit.x.y``: x."""
    return module.split(".")[1] if "." in module else "__init__"


def imports(path: Path) -> set[str]:
    """Rooms that a file imports when it is loaded (not those for type checking only)."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "bitsplit":
            modules |= {f"bitsplit.{name.name}" for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
        elif isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
    return {room_of(module) for module in modules if module.split(".")[0] == "bitsplit"}


def test_the_table_names_every_room() -> None:
    files = {path.stem for path in PACKAGE.glob("*.py")}
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert files | folders == set(table())


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_a_file_imports_only_what_its_room_may(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    room = relative.parts[0].removesuffix(".py")
    forbidden = imports(path) - table()[room] - {room, "_C"}
    assert not forbidden, f"{relative} imports {sorted(forbidden)}"
