"""The tutorial, typed: its commands in their order, as a reader with an empty home."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.pages import ROOT, blocks
from tests.fixtures.ports import free_port

pytestmark = [
    pytest.mark.prefect,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]
SAID = {
    "lobstertrap doctor": "ok      repository",
    "lobstertrap serve --background": "running",
    "lobstertrap logs hello": "start number 1",
    "lobstertrap snapshots hello": "asked for",
    "lobstertrap migrate hello --to server --dry-run": "pre-copy",
    "lobstertrap logs hello -n 1": "start number",
    "lobstertrap history hello": "server -> desk",
    "lobstertrap diff 1a2b3c4d latest": "M state/starts",
    "lobstertrap cat 1a2b3c4d state/starts": "1",
}
"""What a reader looks for in the answers."""

DONE_ALREADY = {"git", "make", "."}
"""This checkout and its .venv are what the reader made."""


class Reader:
    """Somebody who types what the page says."""

    def __init__(self, home: Path) -> None:
        self.home = self.directory = home
        self.port = free_port()
        self.environment = {
            "HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "LANG": "C.UTF-8",
        }

    def type(self, command: str) -> str:
        """Run a command as a shell does and return what it printed."""
        if command.startswith("cd "):
            [place] = command.split()[1:]
            self.directory = Path(place.replace("~", str(self.home)))
            return ""
        done = subprocess.run(
            ["bash", "-ec", command],
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def take_podman_out(self) -> None:
        """Do what the page says where Podman is installed."""
        file = self.home / "trap" / "lobstertrap.toml"
        text = re.sub(
            r"\[targets\.laptop\].*?\n\n", "", file.read_text(), flags=re.DOTALL
        )
        file.write_text(text)

    def first_snapshot(self) -> str:
        """Return the id that a reader takes from the table."""
        table = self.type("lobstertrap snapshots hello").splitlines()
        return table[1].split()[0]


@pytest.fixture
def reader(tmp_path) -> Iterator[Reader]:
    """Return a reader; what still runs at the end is ended as the page says."""
    made = Reader(tmp_path)
    yield made
    if (tmp_path / "trap").exists():
        made.directory = tmp_path / "trap"
        for command in ("lobstertrap stop hello", "lobstertrap serve --stop"):
            made.type(f"{command} || true")


def commands() -> list[str]:
    """Return the page's commands in order; a here-document belongs to its command."""
    found: list[str] = []
    end = None
    for line in "".join(blocks(ROOT / "docs" / "tutorial.md", "sh")).splitlines():
        if end is not None:
            found[-1] += f"\n{line}"
            end = None if line == end else end
        else:
            found.append(line)
            end = "END" if "<<'END'" in line else None
    return found


def test_what_the_tutorial_says_happens(reader: Reader) -> None:
    typed: dict[str, list[str]] = {}
    for command in commands():
        if command.split()[0] in DONE_ALREADY or command == "cd lobstertrap":
            continue
        if command == "lobstertrap doctor":
            reader.take_podman_out()
        meant = command
        if "1a2b3c4d" in command:
            meant = command.replace("1a2b3c4d", reader.first_snapshot())
        if command.endswith("serve --background"):
            meant += f" --port {reader.port}"
        said = reader.type(meant)
        assert SAID.get(command, "") in said, (command, said)
        typed.setdefault(command, []).append(said)

    assert SAID.keys() <= typed.keys()
    after_the_moves, after_the_restore = typed["lobstertrap logs hello -n 1"]
    assert "start number 4" in after_the_moves
    assert "start number 2" in after_the_restore
    assert "server" in typed["lobstertrap status"][1]
