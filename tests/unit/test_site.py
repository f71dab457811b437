"""The pages as a site: every link leads somewhere, and nothing comes from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lobstertrap.cli.checkout import find_checkout

ROOT = find_checkout()
PAGES = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"]
FETCHED = re.compile(
    r"<(?:script|img|iframe|source)[^>]*\ssrc=\"(?:https?:)?//[^\"]+"
    r"|<link[^>]*rel=\"(?:stylesheet|preconnect|icon)\"[^>]*href=\"(?:https?:)?//[^\"]+"
    r"|url\((?:https?:)?//[^)]+|@import[^;]+//[^;]+"
)


def build(into: Path) -> subprocess.CompletedProcess[str]:
    mkdocs = Path(sys.executable).with_name("mkdocs")
    return subprocess.run(
        [mkdocs, "build", "-f", ROOT / "mkdocs.yml", "-d", into],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )


def test_the_site_is_built_and_no_link_leads_nowhere(tmp_path) -> None:
    done = build(tmp_path)

    assert done.returncode == 0, done.stderr
    shown = [*tmp_path.rglob("*.html"), *tmp_path.rglob("*.css")]
    assert len(shown) > 20
    assert [f for page in shown for f in FETCHED.findall(page.read_text())] == []


def slugs(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    plain = [re.sub(r"[`*]", "", head).lower() for head in heads]
    return {re.sub(r"[^\w\- ]", "", head).replace(" ", "-") for head in plain}


@pytest.mark.parametrize("name", PAGES)
def test_the_links_of_pages_outside_of_the_site_lead_somewhere(name) -> None:
    text = (ROOT / name).read_text()
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", text)

    for path, anchor in links:
        target = ROOT / path if path else ROOT / name
        assert target.exists(), path
        assert not anchor or anchor in slugs(target), (path, anchor)
