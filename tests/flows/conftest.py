"""A world to move in: tally, two host targets and a real S3 store, for real flows."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from lobstertrap import config
from lobstertrap.errors import LobsterTrapError
from lobstertrap.lease import AgentRecord, read_record
from lobstertrap.stores.settings import StoreSettings
from lobstertrap.targets.base import AgentStatus
from tests.fixtures.tally import AGENT, TOKEN, TallyClient


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One lobstertrap.toml and what is at the places that it names."""

    directory: Path

    @property
    def config(self) -> config.Config:
        """Load what lobstertrap.toml says now."""
        return config.load(self.directory, os.environ)

    @property
    def record(self) -> AgentRecord:
        """Read the agent's record."""
        found = read_record(self.config.open_store(), "tally")
        assert found is not None
        return found

    def status(self, target: str) -> AgentStatus:
        """Say what a target really shows of tally."""
        loaded = self.config
        return loaded.target(target).status(loaded.agent("tally"))

    def running(self) -> list[str]:
        """Name the targets where tally runs."""
        return [n for n in ("laptop", "server") if self.status(n).phase == "running"]

    def tally(self, target: str) -> TallyClient:
        """Return a client of the tally that runs on a target."""
        return TallyClient(address=self.status(target).addresses["http"])

    def break_tally_on(self, target: str) -> Callable[[], object]:
        """Let tally's program end at once on a target; returns what mends it."""
        program = self.directory / "agents" / "tally" / "tally.py"
        text = program.read_text("utf-8")
        sign = "from __future__ import annotations\n"
        check = (
            f'import os\nif "/{target}/" in os.environ["TALLY_STATE"]: os._exit(9)\n'
        )
        assert sign in text
        program.write_text(text.replace(sign, sign + check, 1), "utf-8")
        return partial(program.write_text, text, "utf-8")

    def suspend_tally(self) -> int:
        """Let tally's stop take its whole grace: ten seconds to do something in.

        Returns its pid; SIGCONT lets it end earlier.
        """
        program = os.fsencode(self.directory / "agents/tally/tally.py")
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if path.read_bytes().split(b"\0")[1:2] == [program]:
                    os.kill(int(path.parent.name), signal.SIGSTOP)
                    found.append(int(path.parent.name))
        assert len(found) == 1
        return found[0]

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """Start the `lobstertrap` command, in a session of its own."""
        return subprocess.Popen(
            [str(Path(sys.executable).with_name("lobstertrap")), *arguments],
            cwd=self.directory,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def settle_on(self, target: str) -> None:
        """Wait until no migration is open and nobody holds tally, which runs there."""
        deadline = time.monotonic() + 180
        while self.record.migration is not None or self.record.operation is not None:
            assert time.monotonic() < deadline, self.record
            time.sleep(0.1)
        assert self.running() == [target]
        assert self.record.target == target

    def wait_for(self, step: str, seconds: float = 60) -> None:
        """Return when the journal of the open migration shows the step."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            journal = self.record.migration
            if journal is not None and journal.step == step:
                return
            time.sleep(0.02)
        raise TimeoutError(step)


@pytest.fixture
def world(
    tmp_path: Path,
    seaweedfs_settings: StoreSettings,
    prefect_environment: dict[str, str],
) -> Iterator[World]:
    """Return a fresh world; its agents are stopped and removed at the end."""
    with _made(tmp_path, seaweedfs_settings, prefect_environment) as made:
        yield made


@pytest.fixture(scope="module")
def shared_world(
    tmp_path_factory: pytest.TempPathFactory,
    seaweedfs_settings: StoreSettings,
    prefect_environment: dict[str, str],
) -> Iterator[World]:
    """Return a world that a module's tests use one after the other."""
    directory = tmp_path_factory.mktemp("world")
    with _made(directory, seaweedfs_settings, prefect_environment) as made:
        yield made


@contextmanager
def _made(
    directory: Path, bucket: StoreSettings, prefect: dict[str, str]
) -> Iterator[World]:
    store = replace(bucket, url=f"{bucket.url}/{secrets.token_hex(6)}")
    assert store.access_key is not None
    assert store.secret_key is not None
    _copy_tally(directory / "agents" / "tally")
    (directory / config.FILE_NAME).write_text(_config_text(store), "utf-8")
    variables = {
        config.VARIABLE: str(directory / config.FILE_NAME),
        "TEST_ACCESS_KEY": store.access_key.reveal(),
        "TEST_SECRET_KEY": store.secret_key.reveal(),
        "TEST_REPOSITORY_KEY": "a key for tests",
        "TALLY_TOKEN": TOKEN,
        **{k: v for k, v in prefect.items() if k.startswith("PREFECT_")},
    }
    made = World(directory=directory)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield made
        loaded = made.config
        for name in ("laptop", "server"):
            with suppress(LobsterTrapError):
                loaded.target(name).stop(loaded.agent("tally"))
                loaded.target(name).remove(loaded.agent("tally"), volumes=True)


def _copy_tally(directory: Path) -> None:
    directory.mkdir(parents=True)
    for name in ("agent.yaml", "tally.py"):
        (directory / name).write_bytes((AGENT / name).read_bytes())
    spec = directory / "agent.yaml"
    text = spec.read_text("utf-8")
    assert "start: 30s" in text
    spec.write_text(text.replace("start: 30s", "start: 10s"), "utf-8")


def _config_text(store: StoreSettings) -> str:
    return "\n".join(
        [
            "[store]",
            f"url = {json.dumps(store.url)}",
            f"endpoint = {json.dumps(store.endpoint)}",
            'region = "us-east-1"',
            'access_key = "${TEST_ACCESS_KEY}"',
            'secret_key = "${TEST_SECRET_KEY}"',
            "[repository]",
            'key = "${TEST_REPOSITORY_KEY}"',
            *('[targets.laptop]\nkind = "host"\nroot = "laptop"',),
            *('[targets.server]\nkind = "host"\nroot = "server"',),
        ]
    )
