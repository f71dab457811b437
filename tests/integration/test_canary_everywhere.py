"""Secrets are only where they belong: Podman and what it moves to, with Prefect.

Every secret is a value that exists once in the world: the agent's own, from every
source; the keys of store and repository; with a cluster, the registry's password and
the token of the kubeconfig. An agent is launched, moved, snapshotted and rotated; a
move of it fails after it has printed its token; it is moved back and removed: by
commands, with --debug and debug logging. Then everything is searched, and what every
process showed of itself meanwhile. Last, a canary is planted in each kind of place,
and found.
"""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lobstertrap import config
from lobstertrap.cli.prefect_server import PrefectServer
from lobstertrap.errors import LobsterTrapError
from lobstertrap.repository import Owners, restore, take_snapshot
from lobstertrap.stores import StoreSettings, open_store
from lobstertrap.targets.podman_engine import PodmanEngine
from tests.fixtures.canary import MARK, Canaries, Watch, etcd_revision
from tests.fixtures.cluster import Namespace
from tests.fixtures.podman import BUILD_ARGS
from tests.fixtures.registry import login, private_registry
from tests.fixtures.tally import AGENT, TallyClient

pytestmark = [
    pytest.mark.podman,
    pytest.mark.prefect,
    pytest.mark.slow,
    pytest.mark.timeout(2400),
]

_BUILD_ARGS = f'{{ BASE = "{BUILD_ARGS["BASE"]}" }}'
AGENTS_OWN = {"variable", "file", "program", "block"}
GENERATED = (*sorted(AGENTS_OWN), "rotated", "key", "spoken", "planted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Yard:
    """A project whose every secret is a canary, its surroundings, what was printed."""

    directory: Path
    """All that commands write is below it, beside what the other fields name."""
    agent: str
    canaries: Canaries
    environ: dict[str, str]
    away: str
    """Where the agent goes: `desk`, a host target, or `cluster`."""
    namespace: Namespace | None
    """Of the cluster."""
    podman: PodmanEngine
    prefect: PrefectServer
    prefect_home: Path
    store: StoreSettings
    said: list[str] = field(default_factory=list)

    @property
    def sources(self) -> Path:
        """Where the secrets come from: files, a kubeconfig, a login."""
        return self.directory / "sources"

    @property
    def config(self) -> config.Config:
        """Load the configuration as the commands do."""
        return config.load(self.directory, self.environ, {"prefect": self._block})

    def run(self, *arguments: str, ends: int = 0) -> str:
        """Run `lobstertrap --debug ...`, keep what it prints, and return its output."""
        done = subprocess.run(
            [str(Path(sys.executable).with_name("lobstertrap")), "--debug", *arguments],
            cwd=self.directory,
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        self.said.extend((done.stdout, done.stderr))
        if done.returncode != ends:
            lines = (done.stdout + done.stderr).splitlines()
            own = [line for line in lines if "| DEBUG" not in line]
            pytest.fail("\n".join([f"{arguments}: {done.returncode}", *own[-60:]]))
        return done.stdout

    def say(self, target: str, text: str) -> None:
        """Send the agent a message, which it writes into its volume."""
        status = self.config.target(target).status(self.config.agent(self.agent))
        token = self.environ["CANARY_VARIABLE"]
        TallyClient(address=status.addresses["http"], token=token).wait().say(text)

    def break_in_podman(self) -> None:
        """Let the agent die in a container of Podman, printing its token first."""
        program = self.directory / "agents" / self.agent / "tally.py"
        text, sign = program.read_text(), "from __future__ import annotations\n"
        last = (
            "import os\nif os.path.exists('/run/.containerenv'):\n"
            "    print('my token is', os.environ['TALLY_TOKEN'], flush=True)\n"
            "    os._exit(9)\n"
        )
        assert sign in text
        program.write_text(text.replace(sign, sign + last, 1))

    def mend(self) -> None:
        """Take the fault out again."""
        program = self.directory / "agents" / self.agent / "tally.py"
        program.write_bytes((AGENT / "tally.py").read_bytes())

    def _block(self, _name: str) -> str:
        return self.canaries.values["block"]


@pytest.fixture
def yard(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    podman_laptop: PodmanEngine,
    prefect_server: PrefectServer,
    prefect_environment: dict[str, str],
) -> Iterator[Yard]:
    """Make a yard; its agent is stopped and removed at the end."""
    for name in ("sources", "home", "tmp", "registry"):
        (tmp_path / name).mkdir(mode=0o700)
    with ExitStack() as until:
        place = _cluster if request.param == "cluster" else _desk
        away = until.enter_context(place(request, tmp_path))
        canaries = Canaries.named(*GENERATED, **away.values)
        values, agent = canaries.values, f"tally-{secrets.token_hex(4)}"
        _write_sources(tmp_path / "sources", values)
        _write_agent(tmp_path / "agents" / agent, agent, files=away.files)
        (tmp_path / config.FILE_NAME).write_text(
            _toml(tmp_path / "sources", podman_laptop, away)
        )
        made = Yard(
            directory=tmp_path,
            agent=agent,
            canaries=canaries,
            environ=_environ(tmp_path, values, away.store, prefect_environment),
            away=request.param,
            namespace=away.namespace,
            podman=podman_laptop,
            prefect=prefect_server,
            prefect_home=Path(prefect_environment["PREFECT_HOME"]),
            store=away.store,
        )
        _save_block(values["block"], made.environ)
        yield made
        for name in ("laptop", request.param):
            with suppress(LobsterTrapError):
                target, spec = made.config.target(name), made.config.agent(agent)
                target.stop(spec)
                target.remove(spec, volumes=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Away:
    """Where the agent goes, and the store that both places reach."""

    store: StoreSettings
    section: str
    """Of lobstertrap.toml."""
    values: dict[str, str]
    """Secrets besides those that are made."""
    namespace: Namespace | None = None
    files: str = ""
    """Which secrets are files there."""


@contextmanager
def _desk(request: pytest.FixtureRequest, directory: Path) -> Iterator[Away]:
    store: StoreSettings = request.getfixturevalue("store_settings")
    assert store.secret_key is not None
    yield Away(
        store=store,
        section=f'kind = "host"\nroot = "{directory}/desk"\n',
        values={"store": store.secret_key.reveal()},
    )


@contextmanager
def _cluster(request: pytest.FixtureRequest, directory: Path) -> Iterator[Away]:
    namespace: Namespace = request.getfixturevalue("namespace")
    store: StoreSettings = request.getfixturevalue("pod_store")
    namespace.cluster.require_own()  # its etcd and its node are searched
    assert store.secret_key is not None
    values = {
        "store": store.secret_key.reveal(),
        "password": secrets.token_hex(16),
        "token": _operators_token(namespace),
    }
    sources = directory / "sources"
    (directory / "home/.docker").symlink_to(sources)
    with private_registry(directory / "registry", values["password"]) as registry:
        login(sources / "config.json", registry, password=values["password"])
        _write_kubeconfig(sources / "kubeconfig", namespace, values["token"])
        _write_pull_secret(namespace, (sources / "config.json").read_text())
        yield Away(
            store=store,
            section=f"""\
kind = "kubernetes"
kubeconfig = "{sources}/kubeconfig"
namespace = "{namespace.name}"
registry = "{registry}/agents"
insecure_registry = true
pull_secret = "registry"
engine = "{namespace.engine}"
build_args = {_BUILD_ARGS}
""",
            values=values,
            namespace=namespace,
            files="secret_files:\n  FROM_FILE: /run/secrets/own/file\n",
        )


def _operators_token(namespace: Namespace) -> str:
    """Return a token of an account that has our Role, and nothing else."""
    namespace.kubectl("create", "serviceaccount", "operator")
    binding = f"--serviceaccount={namespace.name}:operator"
    role = ("create", "rolebinding", "by-token", "--role=lobstertrap")
    namespace.kubectl(*role, binding)
    return namespace.kubectl("create", "token", "operator").strip()


def _write_kubeconfig(path: Path, namespace: Namespace, token: str) -> None:
    operator = namespace.cluster.layout.path("operator.conf").read_text()
    kubeconfig = json.loads(operator)
    kubeconfig["users"][0]["user"] = {"token": token}
    _write_private(path, json.dumps(kubeconfig))


def _write_pull_secret(namespace: Namespace, logins: str) -> None:
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "registry"},
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": logins},
    }
    namespace.kubectl("apply", "-f", "-", stdin=secret)


def _write_sources(directory: Path, values: Mapping[str, str]) -> None:
    _write_private(directory / "secrets.json", json.dumps({"file": values["file"]}))
    answer = {"protocolVersion": 1, "values": {"program": values["program"]}}
    script = f"#!/bin/sh\ncat >/dev/null\necho '{json.dumps(answer)}'\n"
    _write_private(directory / "resolver", script, 0o700)


def _write_private(path: Path, text: str, mode: int = 0o600) -> None:
    path.write_text(text)
    path.chmod(mode)


def _write_agent(directory: Path, name: str, *, files: str) -> None:
    directory.mkdir(parents=True)
    for file in ("Containerfile", "tally.py"):
        (directory / file).write_bytes((AGENT / file).read_bytes())
    text = (AGENT / "agent.yaml").read_text()
    for old, new in {
        "name: tally\n": f"name: {name}\n",
        "  TALLY_TOKEN: ${TALLY_TOKEN}\n": "  TALLY_TOKEN: ${CANARY_VARIABLE}\n"
        "  FROM_FILE: {source: file, provider: vault, id: /file}\n"
        "  FROM_PROGRAM: {source: exec, provider: program, id: program}\n"
        f"  FROM_BLOCK: {{source: prefect, id: lobstertrap-canary}}\n{files}",
        "start: 30s": "start: 3m",
    }.items():
        assert old in text
        text = text.replace(old, new)
    (directory / "agent.yaml").write_text(text)


def _toml(sources: Path, podman: PodmanEngine, away: Away) -> str:
    name = "desk" if away.namespace is None else "cluster"
    return f"""
[store]
url = "{away.store.url}"
endpoint = "{away.store.endpoint}"
region = "us-east-1"
access_key = "${{CANARY_ACCESS}}"
secret_key = "${{CANARY_STORE}}"
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
kind = "podman"
url = "{podman.url}"
build_args = {_BUILD_ARGS}
[targets.{name}]
{away.section}"""


def _environ(
    directory: Path, values: Any, store: StoreSettings, prefect: dict[str, str]
) -> dict[str, str]:
    assert store.access_key is not None
    kept = {k: v for k, v in prefect.items() if not k.startswith("XDG_")}
    return {
        **kept,
        MARK: "1",
        "HOME": str(directory / "home"),
        "TMPDIR": str(directory / "tmp"),
        "CANARY_VARIABLE": values["variable"],
        "CANARY_KEY": values["key"],
        "CANARY_ACCESS": store.access_key.reveal(),
        "CANARY_STORE": values["store"],
        "PREFECT_LOGGING_LEVEL": "DEBUG",
        "PREFECT_LOGGING_ROOT_LEVEL": "DEBUG",
        "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.5",
    }


def _save_block(value: str, environ: dict[str, str]) -> None:
    code = (
        "import os; from prefect.blocks.system import Secret; "
        "Secret(value=os.environ['VALUE']).save('lobstertrap-canary', overwrite=True)"
    )
    own = {**environ, "VALUE": value}
    subprocess.run([sys.executable, "-c", code], env=own, check=True, timeout=240)


@pytest.mark.parametrize(
    "yard",
    [
        "desk",
        pytest.param("cluster", marks=pytest.mark.kubernetes),
    ],
    indirect=True,
)
def test_a_canary_is_nowhere_but_with_its_target(yard: Yard) -> None:
    found, watch = Findings.from_now(yard), Watch(canaries=yard.canaries)
    values, agent = yard.canaries.values, yard.agent
    with watch.over():
        yard.run("launch", agent, "--on", "laptop")
        yard.say("laptop", values["spoken"])
        inspected = yard.podman.run("inspect", f"lobstertrap-{agent}")
        while_running = found.in_podman()
        if yard.away == "desk":
            _rotate(yard, "laptop")
        yard.run("migrate", agent, "--to", yard.away)
        shown = json.loads(yard.run("secrets", agent, "--json"))["secrets"]
        if yard.away == "cluster":
            _rotate(yard, "cluster")
        yard.run("snapshot", agent)
        yard.break_in_podman()
        yard.run("migrate", agent, "--to", "laptop", ends=1)
        refused = "".join(yard.said[-2:])
        (yard.sources / "resolver").chmod(0o600)
        yard.run("secrets", agent, "--rotate", ends=1)
        (yard.sources / "resolver").chmod(0o700)
        yard.mend()
        yard.run("migrate", agent, "--to", "laptop")
        yard.run("stop", agent)
        yard.run("remove", agent)

    # Podman shows variables to whoever may use the engine, and keeps values itself.
    variables = AGENTS_OWN - ({"file"} if yard.namespace else set())
    assert yard.canaries.within(inspected.encode()) == variables
    assert {path for path, _ in while_running if not _is_podmans_own(path)} == set()
    assert {name for _, name in while_running} == AGENTS_OWN | {"spoken"}
    assert {row["on"][yard.away] for row in shown} == {"present"}
    assert "my token is **********" in refused
    assert "Traceback" in refused
    assert watch.looks > 100
    assert watch.arguments == set()
    assert watch.environments == {
        *((name, "agent") for name in (*variables, "rotated")),
        *((name, "command") for name in ("variable", "rotated", "key", "store")),
    }
    assert yard.canaries.within("".join(yard.said).encode()) == set()
    nowhere = found.everywhere()
    assert {place: at for place, at in nowhere.items() if at} == {}
    with watch.over(), _planted(yard):
        places = {place for place, at in found.everywhere().items() if at}
    assert places == {*nowhere}
    assert {name for name, _ in watch.arguments} == {"planted"}


def _rotate(yard: Yard, target: str) -> None:
    """Change a secret, and see that the agent goes by the new one."""
    yard.environ["CANARY_VARIABLE"] = yard.canaries.values["rotated"]
    yard.run("secrets", yard.agent, "--rotate")
    yard.say(target, "a word with the new token")


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Where canaries are that may not be there, by kind of place."""

    yard: Yard
    since: float
    revision: int
    """What etcd had before us is of other tests, which have the same store."""

    @classmethod
    def from_now(cls, yard: Yard) -> Findings:
        """Find what is left from now on."""
        revision = etcd_revision(_etcd(yard.namespace)) if yard.namespace else 0
        return cls(yard=yard, since=time.time() - 1, revision=revision)

    def everywhere(self) -> dict[str, set[Any]]:
        """Search every kind of place where something could have been left."""
        canaries, yard, home = self.yard.canaries, self.yard, self.yard.prefect_home
        return {
            "files": {
                (path, name)
                for path, name in canaries.in_files(yard.directory)
                if not Path(path).is_relative_to(yard.sources) and name != "spoken"
            },
            "temporary files": self._in_temporary_files(),
            "podman": {
                (path, name)
                for path, name in self.in_podman()
                # A database keeps what was deleted until it needs the room.
                if not path.endswith("/bolt_state.db") or name == "planted"
                if name != "spoken"
            },
            **(self._in_cluster(yard.namespace) if yard.namespace else {}),
            "prefect's files": canaries.in_files(home),
            "prefect's tables": canaries.in_database(home / "prefect.db"),
            "prefect's API": self._in_prefects_answers(),
            "objects": self._in_objects(),
            "snapshots": self._in_snapshots() - {"spoken"},
        }

    def in_podman(self) -> set[tuple[str, str]]:
        """Search all that the engine keeps: layers, volumes, containers, its state."""
        engine = self.yard.podman
        run = Path(engine.environment["CONTAINERS_CONF"]).parent
        return self.yard.canaries.in_files(engine.directory, run, since=self.since)

    def _in_cluster(self, namespace: Namespace) -> dict[str, set[tuple[str, str]]]:
        """Search the node's files, and what etcd has or had."""
        layout, canaries = namespace.cluster.layout, self.yard.canaries
        parts = [part for part in layout.path().iterdir() if part.name != "etcd"]
        ours = f"/registry/secrets/{namespace.name}/"
        return {
            "node": {
                (path, name)
                for path, name in canaries.in_files(*parts, since=self.since)
                # The runtime's own: what its containers were made of.
                if not path.endswith("io.containerd.metadata.v1.bolt/meta.db")
                if name != "spoken"
            },
            "etcd": {
                (key, name)
                for key, name in canaries.in_etcd(_etcd(namespace), since=self.revision)
                if not key.startswith(ours)
            },
        }

    def _in_temporary_files(self) -> set[tuple[str, str]]:
        """Search the files that stand in the machine's own temporary directories."""
        found = set()
        for place in (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")):  # noqa: S108 - where left-overs would be
            for path in place.iterdir():
                with suppress(OSError):
                    if path.is_file() and path.stat().st_ctime >= self.since:
                        names = self.yard.canaries.within(path.read_bytes())
                        found |= {(str(path), name) for name in names}
        return found

    def _in_prefects_answers(self) -> set[tuple[str, str]]:
        found = set()
        for kind in ("logs", "artifacts", "flow_runs", "task_runs", "block_documents"):
            for page in itertools.count():
                wanted = {"limit": 200, "offset": 200 * page}
                answer = _prefect(self.yard, f"{kind}/filter", wanted)
                found |= {(kind, name) for name in self.yard.canaries.within(answer)}
                if len(json.loads(answer)) < 200:
                    break
        return found

    def _in_objects(self) -> set[tuple[str, str]]:
        """Search what lies in the bucket: packs, manifests, records and journals."""
        store, found = open_store(self.yard.store), set()
        keys = [info.key for info in store.list("")]
        assert any(key.endswith("/record.json") for key in keys)
        for key in keys:
            for name in self.yard.canaries.within(store.get(key).data):
                found.add((key, name))
        return found

    def _in_snapshots(self) -> set[str]:
        """Search what the snapshots say, decrypted, and the files in them."""
        repo, found = self.yard.config.open_repository(), set[str]()
        owners = Owners(local=(0, 0), canonical=(1000, 1000))
        snapshots = repo.snapshots()
        assert len(snapshots) > 3
        with tempfile.TemporaryDirectory() as directory:
            for snapshot in snapshots:
                found |= self.yard.canaries.within(repr(snapshot).encode())
                root = Path(directory, snapshot.id)
                root.mkdir()
                restore(repo, snapshot, roots={"state": root}, owners=owners)
            restored = self.yard.canaries.in_files(Path(directory))
        assert {name for _, name in restored} >= {"spoken"}
        return found | {name for _, name in restored}


def _etcd(namespace: Namespace) -> str:
    return f"http://127.0.0.1:{namespace.cluster.layout.etcd_port}"


def _is_podmans_own(path: str) -> bool:
    """Whether Podman keeps secrets there, or what a container was made of, or data."""
    own = ("/secrets/", "/userdata/", "/bolt_state.db", "/volumes/", "/runc/")
    return any(part in path for part in own)


def _prefect(yard: Yard, path: str, body: object) -> bytes:
    """Return what Prefect's API answers."""
    request = urllib.request.Request(  # noqa: S310 - http, of our own server
        f"{yard.prefect.api}/{path}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
        return bytes(answer.read())


@contextmanager
def _planted(yard: Yard) -> Iterator[None]:
    """Leave a canary in every kind of place."""
    value, agent = yard.canaries.values["planted"], yard.agent
    (yard.directory / "home/left.gz").write_bytes(gzip.compress(value.encode()))
    label = ("--label", f"left={value}", "--name", f"left-{agent}")
    yard.podman.run("create", *label, BUILD_ARGS["BASE"], "sleep", "1")
    if yard.namespace is not None:
        _plant_in_cluster(yard.namespace, value)
    (yard.prefect_home / f"{agent}.left").write_text(value)
    page = {"key": "left", "type": "markdown", "data": f"{'x' * 9000}{value}"}
    _prefect(yard, "artifacts/", page)
    open_store(yard.store).put("left", value.encode())
    state = yard.directory / "planted"
    state.mkdir()
    (state / "left").write_text(value)
    take_snapshot(
        yard.config.open_repository(),
        agent=agent,
        roots={"state": state},
        owners=Owners(local=(0, 0), canonical=(1000, 1000)),
    )
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:  # a left-over
        file.write(value.encode())
        file.flush()
        yield
    yard.podman.run("rm", f"left-{agent}")


def _plant_in_cluster(namespace: Namespace, value: str) -> None:
    log = namespace.cluster.layout.path("log", f"{namespace.name}.log")
    log.write_text(base64.b64encode(value.encode()).decode())
    left = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "left"},
        "data": {"left": value},
    }
    namespace.kubectl("apply", "-f", "-", stdin=left)
