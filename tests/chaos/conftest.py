"""A real tally on host targets, somebody who talks to it all the time, and a driver."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from lobstertrap import config, lifecycle
from lobstertrap.agent import AgentSpec
from lobstertrap.errors import LobsterTrapError
from lobstertrap.lease import AgentRecord, read_record
from lobstertrap.stores import StoreSettings
from lobstertrap.targets.base import Target
from lobstertrap.targets.kubernetes_spec import DATA
from lobstertrap.targets.podman_engine import PodmanEngine
from tests.chaos.driver import MARK
from tests.fixtures.cluster import Namespace
from tests.fixtures.flaky_s3 import flaky_s3
from tests.fixtures.needs import missing
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
            running = self._running(spec, targets)
            if len(running) > 1:  # the first may have ended before the second began
                self.two_running += len(self._running(spec, targets)) > 1
            if not any(running):
                self._stop.wait(INTERVAL)
            for address in filter(None, running):
                with suppress(OSError, Answered, HTTPException, ValueError):
                    while not self._stop.wait(INTERVAL):
                        number += 1
                        self._say(TallyClient(address=address), f"message {number}")

    def _running(self, spec: AgentSpec, targets: Iterable[Target]) -> list[str]:
        """Return the address of each copy that runs; "" for one that has none yet."""
        found = []
        for target in targets:
            with suppress(LobsterTrapError):
                status = target.status(spec)
                if status.phase == "running":
                    found.append(status.addresses.get("http", ""))
        return found

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

    def __init__(
        self,
        directory: Path,
        log: str = "driver.log",
        path: Path | None = None,
        agent: str = "tally",
    ) -> None:
        self._agent = agent
        self.log = (directory / log).open("w+")
        self._mark = directory / MARK
        paths = [str(p) for p in (path, Path(__file__).parents[2]) if p]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.driver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
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
        machine: str | None = None,
        mark: str | None = None,
        hide: Path | None = None,
        started: Callable[[int], None] = lambda pid: None,
    ) -> Ended:
        """Run a migration; kill it at a step's boundary, or when that becomes true.

        Before the step `mark` it makes a file, which `marked` looks for, and renames
        the file `hide`; `machine` makes it a process of another one.
        """
        assert self._process.stdin
        request = {"agent": self._agent, "to": to, "abort": abort, "kill": kill}
        request |= {"suspend": suspend, "machine": machine, "mark": mark}
        request |= {"hide": str(hide) if hide else None}
        self._mark.unlink(missing_ok=True)
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

    def marked(self) -> float:
        """Return for how many seconds the step `mark` has begun; 0.0 for not yet."""
        try:
            return max(time.time() - self._mark.stat().st_mtime, 1e-9)
        except FileNotFoundError:
            return 0.0

    def errors(self) -> str:
        """Return what its processes wrote on standard error."""
        self.log.flush()
        return Path(self.log.name).read_text()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.kill()
        self._process.wait(120)
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
    engines: dict[str, PodmanEngine] = field(default_factory=dict)
    """By target, where it is Podman."""

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


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """Keep the steps from saying what they do: it takes half of the time."""
    steps = logging.getLogger("lobstertrap.steps")
    before = steps.level
    steps.setLevel(logging.WARNING)
    yield
    steps.setLevel(before)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Return a place with two host targets."""
    targets = {name: f'kind = "host"\nroot = "{tmp_path / name}"' for name in TARGETS}
    with _place(tmp_path, monkeypatch, targets, state=_on_host(tmp_path)) as made:
        yield made


@pytest.fixture
def small_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Place, Path]]:
    """Return a place with two host targets, the second on a small disk, and that."""
    small = tmp_path / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "small", str(small)]
    if os.geteuid() != 0 or subprocess.run(command, check=False).returncode:
        missing("a disk of one's own needs root")
    where = {"laptop": tmp_path / "laptop", "server": small / "server"}
    targets = {n: f'kind = "host"\nroot = "{path}"' for n, path in where.items()}
    try:
        with _place(
            tmp_path,
            monkeypatch,
            targets,
            state=lambda name: where[name] / "tally" / "volumes" / "state",
        ) as made:
            yield made, small
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.fixture
def flaky_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Place, Weather]]:
    """Return a place with two host targets whose store is as bad as it is told."""
    targets = {name: f'kind = "host"\nroot = "{tmp_path / name}"' for name in TARGETS}
    with flaky_s3() as flaky:
        weather = flaky.faults = Weather()
        flaky.slow_seconds, flaky.page = 1.0, 1000
        with _place(
            tmp_path,
            monkeypatch,
            targets,
            state=_on_host(tmp_path),
            store=_s3(flaky.settings, monkeypatch),
        ) as made:
            yield made, weather
            weather.now = lambda: None


class Weather(list[Any]):
    """What FlakyS3 does to its next request: whatever `now` says when it comes."""

    now: Callable[[], Any] = staticmethod(lambda: None)

    def __bool__(self) -> bool:
        """Never run out."""
        return True

    def pop(self, *_: Any) -> Any:
        """Return what happens to this request."""
        return self.now()


@pytest.fixture
def cluster_place(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    podman_laptop: PodmanEngine,
    namespace: Namespace,
    pod_store: StoreSettings,
) -> Iterator[Place]:
    """Return a place with a Podman engine and a cluster."""
    base = f'build_args = {{ BASE = "{BUILD_ARGS["BASE"]}" }}'
    cluster = namespace.cluster
    cluster.require_own()  # its volumes are directories of this machine
    targets = {
        "laptop": f'kind = "podman"\nurl = "{podman_laptop.url}"\n{base}',
        "server": f"""kind = "kubernetes"
            kubeconfig = "{cluster.layout.path("operator.conf")}"
            namespace = "{namespace.name}"
            registry = "{cluster.registry}/agents"
            insecure_registry = true
            engine = "{podman_laptop.url}"
            {base}""",
    }

    def state(name: str) -> Path:
        if name == "laptop":
            return _on_podman(podman_laptop)
        claim = namespace.get("pvc", "lobstertrap-tally-state")
        volume = cluster.get("pv", claim["spec"]["volumeName"])
        return Path(volume["spec"]["local"]["path"], DATA)

    section = _s3(pod_store, monkeypatch)
    with _place(tmp_path, monkeypatch, targets, state=state, store=section) as made:
        yield made
    _forget_fence(podman_laptop)


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
        return _on_podman(engines[name])

    with _place(tmp_path, monkeypatch, targets, state=state) as made:
        made.engines.update(engines)
        yield made
    for engine in engines.values():
        _forget_fence(engine)


def _on_host(directory: Path) -> Callable[[str], Path]:
    return lambda name: directory / name / "tally" / "volumes" / "state"


def _on_podman(engine: PodmanEngine) -> Path:
    ask = (
        "volume",
        "inspect",
        "lobstertrap-tally-state",
        "--format",
        "{{.Mountpoint}}",
    )
    return Path(engine.run(*ask).strip())


def _forget_fence(engine: PodmanEngine) -> None:
    """Remove it: others have a tally on this engine, in a store of its own."""
    for name in engine.run("secret", "ls", "--format", "{{.Name}}").split():
        if name.startswith("lobstertrap-tally.fence"):
            engine.run("secret", "rm", name)


def _s3(settings: StoreSettings, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the configuration's section of that store; its keys are put aside."""
    assert settings.access_key is not None
    assert settings.secret_key is not None
    monkeypatch.setenv("TEST_ACCESS_KEY", settings.access_key.reveal())
    monkeypatch.setenv("TEST_SECRET_KEY", settings.secret_key.reveal())
    return f"""url = "{settings.url}"
endpoint = "{settings.endpoint}"
region = "us-east-1"
access_key = {{ source = "env", id = "TEST_ACCESS_KEY" }}
secret_key = {{ source = "env", id = "TEST_SECRET_KEY" }}"""


@contextmanager
def _place(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    targets: Mapping[str, str],
    *,
    state: Callable[[str], Path],
    store: str | None = None,
) -> Iterator[Place]:
    shutil.copytree(AGENT, directory / "agents" / "tally")
    sections = [f"[targets.{name}]\n{text}\n" for name, text in targets.items()]
    text = "\n".join(
        [CONFIG.format(store=store or f'url = "file://{directory}/store"'), *sections]
    )
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
{store}

[repository]
key = "${{TEST_REPOSITORY_KEY}}"
"""


def wait_for_messages(talker: Talker, count: int = 5) -> None:
    """Return when so many more messages were acknowledged."""
    wanted = len(talker.acknowledged) + count
    wait_until(lambda: len(talker.acknowledged) >= wanted)


def wait_until(holds: Callable[[], bool], seconds: float = 120) -> None:
    """Return when it holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.02)
