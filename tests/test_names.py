"""Every public name stands on the page that lists them, and that page names no other."""

from __future__ import annotations

import re
from pathlib import Path

import bitsplit

PAGE = Path(__file__).resolve().parents[1] / "docs" / "names.md"


def test_the_page_lists_the_public_names() -> None:
    rows = [line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(bitsplit.__all__)
