"""docs/security.md names tests as its proof: they have to be there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_the_security_page_names_is_there() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    files = set(re.findall(r"`(?:tests/\w+/)?(test_\w+\.py)`", page))

    written = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    there = set(re.findall(r"def (test_\w+)", written))

    assert len(named) > 10
    assert named - there == set()
    assert files - {path.name for path in (ROOT / "tests").rglob("*.py")} == set()
