"""A mover as a child: what it says is passed on, and it never outlives the call."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lobstertrap.errors import NoSpace, Unavailable
from lobstertrap.job import Progress
from lobstertrap.redaction import SecretValue, redactor
from lobstertrap.targets.mover_child import run_mover_child

PROGRESS = """echo '{"event": "progress", "phase": "read", "done_bytes": 5}'"""
RESULT = """echo '{"event": "result", "result": {"files": 3}}'"""


def run(script: str, on_progress: Callable[[Progress], None] = lambda _: None) -> Any:
    """Run a shell script in the mover's place; it gets the request as a mover does."""
    return run_mover_child(
        '{"a": "request"}', on_progress, prefix=["sh", "-c", script, "sh"]
    )


def gone(pid: int) -> bool:
    for _ in range(200):
        try:
            os.kill(pid, 0)
            text = Path(f"/proc/{pid}/stat").read_text()
            if text.rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


def test_it_is_asked_on_standard_input_and_answers_by_lines(tmp_path: Path) -> None:
    seen: list[Progress] = []

    script = f"read -r line; echo $line > {tmp_path}/request; {PROGRESS}; {RESULT}"
    result = run(script, seen.append)

    assert result == {"files": 3}
    assert seen == [Progress(phase="read", done_bytes=5)]
    assert (tmp_path / "request").read_text() == '{"a": "request"}\n'


def test_an_error_of_the_mover_is_raised_here() -> None:
    line = '{"event": "error", "kind": "NoSpace", "message": "m", "hint": "h"}'

    with pytest.raises(NoSpace, match="m") as caught:
        run(f"echo '{line}'; exit 1")

    assert caught.value.hint == "h"


def test_a_mover_that_dies_is_explained_by_its_complaints_without_secrets() -> None:
    redactor.add(SecretValue("swordfish-9"))

    with pytest.raises(Unavailable, match=r"cannot open \*{10}"):
        run("echo 'cannot open swordfish-9' >&2; kill -9 $$")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError])
def test_whatever_ends_the_call_ends_the_mover_and_its_children(
    tmp_path: Path, interruption: type[BaseException]
) -> None:
    def interrupt(_: Progress) -> None:
        raise interruption

    script = f"sleep 600 & echo $$ $! > {tmp_path}/pids; {PROGRESS}; wait"
    with pytest.raises(interruption):
        run(script, interrupt)

    assert all(gone(int(pid)) for pid in (tmp_path / "pids").read_text().split())


def test_a_mover_that_ignores_a_kind_word_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lobstertrap.targets.mover_child._GRACE_SECONDS", 0.2)

    result = run(f"trap '' TERM; echo $$ > {tmp_path}/pid; {RESULT}; sleep 600")

    assert result == {"files": 3}
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_mover_that_does_not_read_its_request_is_no_broken_pipe() -> None:
    with pytest.raises(Unavailable, match="ended without a result"):
        run_mover_child("x" * 2**20, lambda _: None, prefix=["true"])
