"""Secrets are nowhere but where they belong: canaries, and a search of everything.

Every secret is a value that exists once in the world. An agent is launched, moved,
snapshotted, rotated, rolled back and removed, with debug logging and tracebacks, and
dies printing its own token; then files, journals, objects, messages, and what every
process showed of itself meanwhile, are searched.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import logging
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from lobstertrap import binding, config, lifecycle, migration
from lobstertrap.errors import LobsterTrapError
from lobstertrap.lifecycle import AgentHandle
from lobstertrap.redaction import SecretValue
from lobstertrap.repository import Owners, restore
from tests.fixtures.canary import Canaries, Watch
from tests.fixtures.tally import AGENT

pytestmark = pytest.mark.slow


class Yard:
    """A configuration whose every secret is a canary, and what was said in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        names = ("variable", "rotated", "file", "program", "block", "key")
        self.canaries = Canaries.named(*names)
        values = self.canaries.values
        self.sources = directory / "sources"
        self.said = io.StringIO()
        self.environ = {
            "CANARY_VARIABLE": values["variable"],
            "CANARY_KEY": values["key"],
            "PATH": os.environ["PATH"],
        }
        self._write_sources(values)
        self._write_agent()
        (directory / config.FILE_NAME).write_text(_toml(self.sources))

    @property
    def config(self) -> config.Config:
        """Load the configuration as a command does."""
        blocks = {"prefect": lambda _: self.canaries.values["block"]}
        return config.load(self.directory, self.environ, blocks)

    @contextmanager
    def hold(self, kind: str) -> Iterator[AgentHandle]:
        """Hold the agent for one operation."""
        with self.config.hold("tally", kind) as handle:
            yield handle

    @contextmanager
    def fails(self) -> Iterator[None]:
        """Keep the traceback of what must fail."""
        with pytest.raises(LobsterTrapError) as caught:
            yield
        self.said.writelines(traceback.format_exception(caught.value))

    def _write_sources(self, values: Mapping[str, str]) -> None:
        self.sources.mkdir(mode=0o700)
        file, program = self.sources / "secrets.json", self.sources / "resolver"
        file.write_text(json.dumps({"file": values["file"]}))
        file.chmod(0o600)
        answer = {"protocolVersion": 1, "values": {"program": values["program"]}}
        program.write_text(f"#!/bin/sh\ncat >/dev/null\necho '{json.dumps(answer)}'\n")
        program.chmod(0o700)

    def _write_agent(self) -> None:
        directory = self.directory / "agents" / "tally"
        directory.mkdir(parents=True)
        (directory / "tally.py").write_bytes((AGENT / "tally.py").read_bytes())
        text = (AGENT / "agent.yaml").read_text()
        assert "  TALLY_TOKEN: ${TALLY_TOKEN}\n" in text
        text = text.replace(
            "  TALLY_TOKEN: ${TALLY_TOKEN}\n",
            "  TALLY_TOKEN: ${CANARY_VARIABLE}\n"
            "  FROM_FILE: {source: file, provider: vault, id: /file}\n"
            "  FROM_PROGRAM: {source: exec, provider: program, id: program}\n"
            "  FROM_BLOCK: {source: prefect, id: block}\n",
        )
        (directory / "agent.yaml").write_text(text.replace("start: 30s", "start: 2m"))

    def break_on(self, place: str) -> None:
        """Let tally die at `place`, printing its token first."""
        program = self.directory / "agents" / "tally" / "tally.py"
        text, sign = program.read_text(), "from __future__ import annotations\n"
        last = (
            f"import os\nif '/{place}/' in os.environ['TALLY_STATE']:\n"
            "    print('my token is', os.environ['TALLY_TOKEN'], flush=True)\n"
            "    os._exit(9)\n"
        )
        assert sign in text
        program.write_text(text.replace(sign, sign + last, 1))


def _toml(sources: Path) -> str:
    return f"""
[store]
url = "file://{sources.parent}/store"
[repository]
key = "${{CANARY_KEY}}"
[secrets.providers.vault]
source = "file"
path = "{sources}/secrets.json"
timeoutMs = 60000
[secrets.providers.program]
source = "exec"
command = "{sources}/resolver"
passEnv = ["PATH"]
timeoutMs = 60000
[targets.laptop]
kind = "host"
root = "{sources.parent}/laptop"
[targets.server]
kind = "host"
root = "{sources.parent}/server"
"""


@pytest.fixture
def yard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Yard]:
    """Make a yard in which everything is that processes leave anywhere."""
    made = Yard(tmp_path)
    for variable in ("TMPDIR", "XDG_CACHE_HOME"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setattr(tempfile, "tempdir", None)
    handler = logging.StreamHandler(made.said)
    root, before = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield made
    root.removeHandler(handler)
    root.setLevel(before)
    for name in ("laptop", "server"):
        target, spec = made.config.target(name), made.config.agent("tally")
        target.stop(spec)
        target.remove(spec, volumes=True)


def move(handle: AgentHandle, to: str) -> None:
    """Migrate, or roll back and raise, as the flow does."""
    migration.begin(handle, migration.plan(handle, to))
    try:
        migration.stage(handle)
        migration.precopy(handle)
        migration.quiesce(handle)
        migration.transfer(handle)
        migration.launch(handle)
        migration.await_healthy(handle)
        source = migration.commit(handle, to)
        assert source.target == to
    except BaseException:
        migration.rollback(handle)
        raise


def snapshot_beside(handle: AgentHandle) -> None:
    taken = lifecycle.take_snapshot(handle, handle.home(), consistency="live")
    assert taken["warnings"] == []


def test_a_canary_is_only_where_it_belongs(yard: Yard) -> None:
    watch = Watch(canaries=yard.canaries)
    with watch.over():
        with yard.hold("launch") as handle:
            lifecycle.launch(handle, "laptop")
        with yard.hold("snapshot") as handle:
            snapshot_beside(handle)
        with yard.hold("migrate") as handle:
            move(handle, "server")
            migration.retire(handle, "laptop")
        yard.environ["CANARY_VARIABLE"] = yard.canaries.values["rotated"]
        with yard.hold("rotate") as handle:
            binding.rotate(handle)
        yard.break_on("laptop")
        with yard.hold("migrate") as handle, yard.fails():
            move(handle, "laptop")
        (yard.sources / "resolver").chmod(0o600)
        with yard.hold("rotate") as handle, yard.fails():
            binding.rotate(handle)
        with yard.hold("stop") as handle:
            running = handle.target("server").status(handle.spec).phase
            lifecycle.stop(handle, "server")
            lifecycle.remove(handle, "server", volumes=False)

    said = yard.said.getvalue()
    assert running == "running"
    assert "ended with status 9" in said
    assert "my token is **********" in said
    assert watch.looks > 5
    assert watch.arguments == set()
    agent_has = {"variable", "rotated", "file", "program", "block"}
    assert watch.environments == {(name, "agent") for name in agent_has}
    assert yard.canaries.within(said.encode()) == set()
    assert _left(yard) == []
    assert _in_objects(yard) == set()


def _left(yard: Yard) -> list[str]:
    """Return the files that hold a canary after all, and may not."""
    found = yard.canaries.in_files(yard.directory)
    printed = yard.directory / "laptop" / "tally"  # its log: it printed its own token
    return sorted(
        f"{path}: {name}"
        for path, name in found
        if not Path(path).is_relative_to(yard.sources)
        and not (Path(path).is_relative_to(printed) and "log" in Path(path).name)
    )


def _in_objects(yard: Yard) -> set[object]:
    """Search what the store holds, decrypted: manifests, and the files in them."""
    repo, found = yard.config.open_repository(), set[object]()
    me = (os.getuid(), os.getgid())
    snapshots = repo.snapshots()
    assert len(snapshots) >= 3
    for snapshot in snapshots:
        found |= yard.canaries.within(repr(snapshot).encode())
        root = yard.directory / "restored" / snapshot.id
        root.mkdir(parents=True)
        owners = Owners(local=me, canonical=(1000, 1000))
        restore(repo, snapshot, roots={"state": root}, owners=owners)
    return found | yard.canaries.in_files(yard.directory / "restored")


def test_the_search_finds_what_is_planted(tmp_path: Path) -> None:
    canaries = Canaries.named("one", other="a-value-of-somebody-else")
    value = canaries.values["one"]
    encoded = base64.b64encode(f"token: {value}.".encode())
    page = json.dumps({"text": "x" * 4060, "token": value, "more": "y" * 9000})
    (tmp_path / "plain").write_bytes(b"\0\xff" + value.encode() + b"\0")
    (tmp_path / "encoded").write_bytes(encoded)
    (tmp_path / "layer.tar.gz").write_bytes(gzip.compress(encoded))
    (tmp_path / "clean").write_text(value[:-1])
    with closing(sqlite3.connect(tmp_path / "database")) as database:
        database.execute("CREATE TABLE log (number INTEGER, line TEXT)")
        database.execute("INSERT INTO log VALUES (1, ?)", (page,))
        database.commit()
    watch = Watch(canaries=canaries)
    waiting = [sys.executable, "-c", "input()", value]
    shows = {**os.environ, "ANY": canaries.values["other"]}

    with subprocess.Popen(waiting, stdin=subprocess.PIPE, env=shows) as process:
        deadline = time.monotonic() + 120
        while not watch.environments and time.monotonic() < deadline:
            watch.look()
        process.kill()

    found = {Path(path).name for path, _ in canaries.in_files(tmp_path)}
    assert found - {"database"} == {"plain", "encoded", "layer.tar.gz"}
    assert canaries.in_database(tmp_path / "database") == {("log", "one")}
    assert {name for name, _ in watch.arguments} == {"one"}
    assert watch.environments == {("other", "somebody else")}
    assert canaries.within(SecretValue(value).__repr__().encode()) == set()
