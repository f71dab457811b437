"""A mover that stays: one request after another, and nothing held in between."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lobstertrap import job, lifecycle
from lobstertrap.config import load
from lobstertrap.errors import NotFound, Unavailable
from lobstertrap.redaction import SecretValue
from lobstertrap.repository import Repository
from lobstertrap.stores.directory import DirectoryStore
from lobstertrap.targets.mover_child import MoverChildren
from tests.fixtures.trees import describe

KEY = "a-repository-key-nobody-knows"
AGENT = "name: ada\nimage: x\nvolumes: [{name: state, path: /state}]\n"
CONFIG = """
[store]
url = "file://{}/store"
[repository]
key = "${{KEY}}"
[targets.desk]
kind = "host"
root = "desk"
"""


@pytest.fixture
def movers() -> Iterator[MoverChildren]:
    children = MoverChildren()
    yield children
    children.close()


@pytest.fixture
def request_for(tmp_path: Path) -> Callable[..., str]:
    Repository.create(DirectoryStore(tmp_path / "store"), SecretValue(KEY))

    def make(command: str, root: Path, **more: Any) -> str:
        return json.dumps(
            {
                "version": job.PROTOCOL_VERSION,
                "command": command,
                "agent": "ada",
                "volumes": {"state": str(root)},
                "local_owner": [os.getuid(), os.getgid()],
                "owner": [1000, 1000],
                "store": {"url": (tmp_path / "store").as_uri()},
                "key": KEY,
                "cache": False,
                **more,
            }
        )

    return make


def state(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "note").write_text("hello")
    return tmp_path / "in"


def pids() -> set[int]:
    """Return the movers that this process has started and that still run."""
    found = set()
    for children in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
        for pid in children.read_text().split():
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"lobstertrap.mover" in command:
                found.add(int(pid))
    return found


def gone(pid: int) -> bool:
    """Wait until a process that is nobody's zombie is no more."""
    for _ in range(1200):
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True
        if text.rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def waiting_for(file: Path) -> list[str]:
    """Return what starts a mover that shows progress, and is done when `file` is."""
    script = f"""
import os, pathlib, time
from lobstertrap import job, mover

def run(request, on_progress):
    file = pathlib.Path({str(file)!r})
    on_progress(job.Progress(phase="read"))
    while not file.exists():
        time.sleep(0.01)
    file.unlink()
    return {{}}

mover.PROGRESS_INTERVAL = 0
mover.run = run
os._exit(mover.main())
"""
    return [sys.executable, "-c", script]


def locked(path: Path) -> bool:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_the_next_request_goes_to_the_same_mover(
    movers: MoverChildren, request_for: Callable[..., str], tmp_path: Path
) -> None:
    source = state(tmp_path)

    taken = movers.run(request_for("snapshot", source), lambda _: None)
    first = pids()
    (source / "note").write_text("hello again")
    again = movers.run(request_for("snapshot", source), lambda _: None)
    movers.run(
        request_for("restore", tmp_path / "out", snapshot=again["snapshot"]),
        lambda _: None,
    )

    assert len(first) == 1
    assert pids() == first
    assert taken["tree_digest"] != again["tree_digest"]
    assert describe(tmp_path / "out") == describe(source)


def test_a_lock_is_the_movers_while_it_moves_and_nobodys_after(
    movers: MoverChildren, tmp_path: Path
) -> None:
    seen = []
    for _ in range(2):
        with (tmp_path / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

            def look(_: job.Progress, lock: Any = lock) -> None:
                lock.close()  # as the kernel does for one that is killed
                seen.append(locked(tmp_path / "lock"))
                (tmp_path / "go").touch()

            prefix = waiting_for(tmp_path / "go")
            movers.run("{}", look, prefix=prefix, locks=[lock.fileno()])

        seen.append(locked(tmp_path / "lock"))

    assert seen == [True, False, True, False]


def test_an_error_ends_it_and_the_next_request_starts_another(
    movers: MoverChildren, request_for: Callable[..., str], tmp_path: Path
) -> None:
    with pytest.raises(NotFound):
        movers.run(request_for("snapshot", tmp_path / "nothing"), lambda _: None)
    left = pids()
    taken = movers.run(request_for("snapshot", state(tmp_path)), lambda _: None)

    assert left == set()
    assert taken["files"] == 1


def test_one_that_was_killed_while_it_waited_is_replaced(
    movers: MoverChildren, request_for: Callable[..., str], tmp_path: Path
) -> None:
    request = request_for("snapshot", state(tmp_path))
    movers.run(request, lambda _: None)
    (first,) = pids()
    os.kill(first, signal.SIGKILL)
    assert gone(first)

    movers.run(request, lambda _: None)

    assert pids() != {first}


def test_one_that_is_killed_at_work_is_an_error_that_may_pass(
    movers: MoverChildren, tmp_path: Path
) -> None:
    prefix = waiting_for(tmp_path / "never")

    with pytest.raises(Unavailable, match="ended without a result"):
        movers.run("{}", lambda _: os.kill(min(pids()), signal.SIGKILL), prefix=prefix)

    assert pids() == set()


def test_it_goes_with_whoever_holds_it(
    request_for: Callable[..., str], tmp_path: Path
) -> None:
    children = MoverChildren()
    children.run(request_for("snapshot", state(tmp_path)), lambda _: None)
    assert pids()

    del children
    gc.collect()

    assert pids() == set()


def test_it_goes_when_its_process_is_killed(
    request_for: Callable[..., str], tmp_path: Path
) -> None:
    script = """
import sys, time
from lobstertrap.targets.mover_child import MoverChildren
movers = MoverChildren()
movers.run(sys.stdin.readline().strip(), lambda _: None)
print(movers._idle[0]._process.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdin
        assert owner.stdout
        owner.stdin.write(request_for("snapshot", state(tmp_path)) + "\n")
        owner.stdin.flush()
        waiting = int(owner.stdout.readline())
        owner.kill()

    assert gone(waiting)


def test_it_does_not_wait_for_ever() -> None:
    script = "import lobstertrap.mover as m; m.IDLE_SECONDS = 0.1; m.main()"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            [sys.executable, "-c", script, job.STAY],
            stdin=theirs.fileno(),
            capture_output=True,
            timeout=120,
            check=True,
        )

    assert done.stdout == done.stderr == b""


def test_an_operation_keeps_one_for_each_target_and_ends_it(tmp_path: Path) -> None:
    (tmp_path / "lobstertrap.toml").write_text(CONFIG.format(tmp_path))
    (tmp_path / "agents" / "ada").mkdir(parents=True)
    (tmp_path / "agents" / "ada" / "agent.yaml").write_text(AGENT)
    (tmp_path / "desk" / "ada" / "volumes" / "state").mkdir(parents=True)
    seen = []

    with load(tmp_path, {"KEY": KEY}).hold("ada", "snapshot") as handle:
        for _ in range(2):
            lifecycle.take_snapshot(handle, "desk", consistency="stopped")
            seen.append(pids())

    assert len(seen[0]) == 1
    assert seen[1] == seen[0]
    assert pids() == set()
