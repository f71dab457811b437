"""docs/security.md names tests as its proof: they are there, and run in CI."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEFT_OUT = {"long", "skip", "skipif", "xfail"}
"""Marks of tests that `make test` does not run, or whose failure is no failure."""


def test_every_test_that_the_security_page_names_is_there_and_runs() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    files = set(re.findall(r"`(?:tests/\w+/)?(test_\w+\.py)`", page))

    paths = [*(ROOT / "tests").rglob("test_*.py")]
    run = {name for path in paths for name, marks in found_in(path) if not marks}

    assert len(named) > 10
    assert named - run == set()
    assert files - {path.name for path in paths} == set()


def test_a_test_that_is_left_out_is_no_proof(tmp_path: Path) -> None:
    file = tmp_path / "test_some.py"
    file.write_text(
        "pytestmark = [pytest.mark.podman]\n"
        "@pytest.mark.long\ndef test_later(): ...\n"
        "@pytest.mark.skipif(True, reason='x')\ndef test_never(): ...\n"
        "@pytest.mark.parametrize('a', [1])\ndef test_now(): ...\n"
    )
    whole = tmp_path / "test_whole.py"
    whole.write_text("pytestmark = pytest.mark.long\ndef test_later(): ...\n")

    assert [name for name, marks in found_in(file) if not marks] == ["test_now"]
    assert dict(found_in(whole)) == {"test_later": {"long"}}


def found_in(path: Path) -> Iterator[tuple[str, set[str]]]:
    """Yield a file's tests, each with the marks for which it is left out."""
    module = ast.parse(path.read_text())
    every = [
        mark
        for node in module.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
        for mark in (
            node.value.elts if isinstance(node.value, ast.List) else [node.value]
        )
    ]
    for node in module.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            marks = map(ast.unparse, [*every, *node.decorator_list])
            names = (re.match(r"pytest\.mark\.(\w+)", mark) for mark in marks)
            yield node.name, {name[1] for name in names if name} & LEFT_OUT
