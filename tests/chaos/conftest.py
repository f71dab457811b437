"""A real tally on host targets, somebody who talks to it all the time, and a driver."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from lobstertrap import config, lifecycle
from lobstertrap.errors import LobsterTrapError
from lobstertrap.lease import AgentRecord, read_record
from lobstertrap.targets.podman_engine import PodmanEngine
from tests.fixtures.podman import BUILD_ARGS
from tests.fixtures.tally import AGENT, TOKEN, Answered, TallyClient, entries, rows

TARGETS = ("laptop", "server")
INTERVAL = 0.02


@dataclass
class Talker:
    """Sends tally a message every 20 ms, wherever it is, and remembers what it said."""

    loaded: config.Config
    acknowledged: list[tuple[str, int, int]] = field(default_factory=list)
    """Text, epoch and sequence number, in the order of the answers."""
    two_running: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Talk until told to stop."""
        spec, number = self.loaded.agent("tally"), 0
        targets = [self.loaded.target(name) for name in TARGETS]
        while not self._stop.is_set():
            running = []
            for target in targets:
                with suppress(LobsterTrapError):
                    status = target.status(spec)
                    if status.phase == "running":
                        running.append(status.addresses["http"])
            self.two_running += len(running) > 1
            for address in running:
                with suppress(OSError, Answered, HTTPException, ValueError):
                    while not self._stop.wait(INTERVAL):
                        number += 1
                        self._say(TallyClient(address=address), f"message {number}")

    def _say(self, client: TallyClient, text: str) -> None:
        answer = client.post("/message", {"text": text})
        self.acknowledged.append((text, answer["epoch"], answer["sequence"]))

    def forget(self, epoch: int) -> None:
        """Forget what was acknowledged under that epoch."""
        self.acknowledged = [said for said in self.acknowledged if said[1] != epoch]

    def stop(self) -> None:
        """Fall silent."""
        self._stop.set()


@dataclass
class Ended:
    """How a process of the driver ended."""

    status: int
    receipt: dict[str, Any] | None


class Driver:
    """The program tests/chaos/driver.py."""

    def __init__(self, directory: Path, log: str = "driver.log") -> None:
        self.log = (directory / log).open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.driver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            cwd=directory,
        )

    def migrate(
        self,
        to: str,
        *,
        kill: tuple[str, str] | None = None,
        kill_when: Callable[[], bool] | None = None,
        abort: bool = False,
        suspend: bool = False,
        started: Callable[[int], None] = lambda pid: None,
    ) -> Ended:
        """Run a migration; kill it at a step's boundary, or when that becomes true."""
        assert self._process.stdin
        request = {"agent": "tally", "to": to, "abort": abort, "kill": kill}
        request["suspend"] = suspend
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        started(answer["pid"])
        ended = threading.Event()
        killer = threading.Thread(
            target=_kill, args=(answer["pid"], kill_when or (lambda: False), ended)
        )
        killer.start()
        receipt = None
        while "status" not in (answer := self._answer()):
            receipt = answer.get("receipt", receipt)
        ended.set()
        killer.join()
        return Ended(status=answer["status"], receipt=receipt)

    def errors(self) -> str:
        """Return what its processes wrote on standard error."""
        self.log.flush()
        return Path(self.log.name).read_text()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.kill()
        self._process.wait(20)
        for stream in (self._process.stdin, self._process.stdout, self.log):
            stream.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, self.errors()
        return dict(json.loads(line))


def _kill(pid: int, when: Callable[[], bool], ended: threading.Event) -> None:
    while not ended.wait(0.005):
        if when():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return


@dataclass
class Place:
    """One lobstertrap.toml with two targets, and tally on the first."""

    directory: Path
    driver: Driver
    talker: Talker
    state: Callable[[str], Path]
    """Returns the directory of tally's volume on a target."""

    @property
    def record(self) -> AgentRecord:
        """Read the agent's record."""
        found = read_record(self.talker.loaded.open_store(), "tally")
        assert found
        return found

    def running(self) -> list[tuple[str, int | None]]:
        """Name the targets where tally runs, and the epochs."""
        spec = self.talker.loaded.agent("tally")
        found = []
        for name in TARGETS:
            status = self.talker.loaded.target(name).status(spec)
            if status.phase == "running":
                found.append((name, status.epoch))
        return found

    def assert_sound(self, home: str) -> None:
        """Check from outside that nothing is lost, doubled or running twice."""
        record = self.record
        assert record.target == home, self.driver.errors()
        assert record.migration is None
        assert self.running() == [(home, record.epoch)]
        assert self.talker.two_running == 0
        heard = list(self.talker.acknowledged)
        written = entries(self.state(home))
        by_text = {entry["text"]: entry for entry in written}
        assert len(by_text) == len(written), "a message is doubled"
        for text, epoch, sequence in heard:
            assert text in by_text, f"{text} was acknowledged and is lost"
            assert by_text[text]["sequence"] == sequence
            assert by_text[text]["epoch"] == epoch
        epochs = [entry["epoch"] for entry in written]
        assert epochs == sorted(epochs), "epochs interleave"
        stored = dict(rows(self.state(home)))
        assert all(stored[sequence] == text for text, _, sequence in heard)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Return a place with two host targets."""
    targets = {name: f'kind = "host"\nroot = "{tmp_path / name}"' for name in TARGETS}
    with _place(
        tmp_path,
        monkeypatch,
        targets,
        state=lambda name: tmp_path / name / "tally" / "volumes" / "state",
    ) as made:
        yield made


@pytest.fixture
def podman_place(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    podman_laptop: PodmanEngine,
    podman_server: PodmanEngine,
) -> Iterator[Place]:
    """Return a place with two Podman engines, each with storage of its own."""
    engines = dict(zip(TARGETS, (podman_laptop, podman_server), strict=True))
    base = f'build_args = {{ BASE = "{BUILD_ARGS["BASE"]}" }}'
    targets = {
        name: f'kind = "podman"\nurl = "{engine.url}"\n{base}'
        for name, engine in engines.items()
    }

    def state(name: str) -> Path:
        volume = "lobstertrap-tally-state"
        ask = ("volume", "inspect", volume, "--format", "{{.Mountpoint}}")
        return Path(engines[name].run(*ask).strip())

    with _place(tmp_path, monkeypatch, targets, state=state) as made:
        yield made
    for engine in engines.values():  # others have a tally there, in a store of its own
        for name in engine.run("secret", "ls", "--format", "{{.Name}}").split():
            if name.startswith("lobstertrap-tally.fence"):
                engine.run("secret", "rm", name)


@contextmanager
def _place(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    targets: Mapping[str, str],
    *,
    state: Callable[[str], Path],
) -> Iterator[Place]:
    shutil.copytree(AGENT, directory / "agents" / "tally")
    sections = [f"[targets.{name}]\n{text}\n" for name, text in targets.items()]
    text = "\n".join([CONFIG.format(root=directory), *sections])
    (directory / config.FILE_NAME).write_text(text)
    for name, value in {
        config.VARIABLE: str(directory / config.FILE_NAME),
        "TEST_REPOSITORY_KEY": "a key for tests",
        "TALLY_TOKEN": TOKEN,
        "XDG_CACHE_HOME": str(directory / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    loaded = config.load(directory, os.environ)
    talker, driver = Talker(loaded), Driver(directory)
    mouth = threading.Thread(target=talker.run)
    try:
        with loaded.hold("tally", "launch") as handle:
            lifecycle.launch(handle, "laptop")
        mouth.start()
        yield Place(directory=directory, driver=driver, talker=talker, state=state)
    finally:
        talker.stop()
        if mouth.ident:
            mouth.join(60)
        driver.close()
        for name in TARGETS:
            loaded.target(name).stop(loaded.agent("tally"))
            loaded.target(name).remove(loaded.agent("tally"), volumes=True)


CONFIG = """\
agents = "agents"

[store]
url = "file://{root}/store"

[repository]
key = "${{TEST_REPOSITORY_KEY}}"
"""


def wait_for_messages(talker: Talker, count: int = 5) -> None:
    """Return when so many more messages were acknowledged."""
    wanted = len(talker.acknowledged) + count
    wait_until(lambda: len(talker.acknowledged) >= wanted)


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Return when it holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.02)
