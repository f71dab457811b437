"""An agent that another tool deployed with Podman: found, adopted, and switched."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lobstertrap import lifecycle, migration
from lobstertrap.agent import AgentSpec, load_agent
from lobstertrap.cli.app import run
from lobstertrap.config import Config, load
from lobstertrap.errors import Refused
from lobstertrap.targets.podman_api import PodmanApi
from lobstertrap.targets.podman_engine import PodmanEngine
from tests.fixtures.podman import podman_target
from tests.fixtures.tally import AGENT, TOKEN, TallyClient

pytestmark = pytest.mark.podman

PROGRAM = "/usr/local/lib/tally/tally.py"
API_KEY = "sk-ant-0123456789abcdefghij"
CONFIG = """
[store]
url = "file://{directory}/store"
[repository]
key = {{ source = "env", id = "REPOSITORY_KEY" }}
[targets.laptop]
kind = "podman"
url = "{laptop}"
[targets.server]
kind = "podman"
url = "{server}"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A project whose laptop runs an agent as claw-installer deploys one."""

    directory: Path
    engine: PodmanEngine
    container: str
    capsys: pytest.CaptureFixture[str]

    def cli(self, *arguments: str, code: int = 0) -> str:
        """Run a command line in this process; return what it printed."""
        got = run(arguments)
        out, err = self.capsys.readouterr()
        assert got == code, err
        return out + err if code else out

    def config(self) -> Config:
        """Load the project's configuration."""
        return load(self.directory, os.environ)

    def spec(self, name: str = "ada") -> AgentSpec:
        """Load the agent that was made of it."""
        return load_agent(self.directory / "agents" / name / "agent.yaml")

    def inspect(self):
        """Return what the engine knows of the original."""
        return json.loads(self.engine.run("inspect", self.container))[0]

    def tally(self) -> TallyClient:
        """Talk to whoever has the port that people know."""
        found = self.inspect()["NetworkSettings"]["Ports"]["18789/tcp"][0]
        return TallyClient(address=f"127.0.0.1:{found['HostPort']}").wait()

    def switched(self, target: str = "laptop") -> TallyClient:
        """Talk to the agent that has taken the original's place."""
        status = self.config().target(target).status(self.spec())
        return TallyClient(address=status.addresses["gateway"]).wait()

    def has_container(self) -> bool:
        """Whether the original is still there, running or not."""
        names = self.engine.run("ps", "--all", "--format", "{{.Names}}").split()
        return self.container in names


@pytest.fixture
def bench(
    podman_laptop: PodmanEngine,
    podman_server: PodmanEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Bench]:
    text = CONFIG.format(
        directory=tmp_path, laptop=podman_laptop.url, server=podman_server.url
    )
    (tmp_path / "lobstertrap.toml").write_text(text)
    (tmp_path / "agents").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOBSTERTRAP_CONFIG", raising=False)
    monkeypatch.setenv("REPOSITORY_KEY", "correct horse")
    engine, name = podman_laptop, "openclaw-lt-ada"
    bench = Bench(directory=tmp_path, engine=engine, container=name, capsys=capsys)
    deploy(engine, name, tmp_path)
    try:
        yield bench
    finally:
        clean(bench, podman_server)


def deploy(engine: PodmanEngine, name: str, directory: Path) -> None:
    """Do what claw-installer does, with tally's image in the place of OpenClaw's."""
    image = podman_target(engine).ensure_image(load_agent(AGENT / "agent.yaml"))
    secret = directory / "token"
    secret.write_text(TOKEN)
    engine.run("secret", "create", "tally_token", str(secret))
    secret.unlink()
    labels = ["openclaw.managed=true", "openclaw.prefix=lt", "openclaw.agent=ada"]
    settings = {"TALLY_STATE": "/home/node/.openclaw", "TALLY_PORT": "18789"}
    settings |= {"OPENAI_API_KEY": API_KEY}
    engine.run(
        *("run", "--detach", "--name", name, "--restart", "always"),
        *(word for label in labels for word in ("--label", label)),
        *(word for k, v in settings.items() for word in ("--env", f"{k}={v}")),
        *("--secret", "tally_token,type=env,target=TALLY_TOKEN"),
        *("--volume", f"{name}-data:/home/node", "--publish", "127.0.0.1::18789"),
        *("--user", "1000:1000", "--cap-drop", "ALL", "--read-only"),
        *("--entrypoint", "sh", image, "-c"),
        f"umask 007 && mkdir -p $TALLY_STATE && exec python3 {PROGRAM}",
    )


def clean(bench: Bench, server: PodmanEngine) -> None:
    """Leave both engines as they were."""
    for engine in (bench.engine, server):
        names = engine.run("ps", "--all", "--format", "{{.Names}}").split()
        for name in {bench.container, "lobstertrap-ada"} & {*names}:
            engine.run("rm", "--force", "--time", "2", name)
        for name in engine.run("secret", "ls", "--format", "{{.Name}}").split():
            if "ada" in name or name == "tally_token":
                engine.run("secret", "rm", name)
        for name in engine.run("volume", "ls", "--quiet").split():
            if "-ada-" in name:
                engine.run("volume", "rm", name)


def write_config(bench: Bench, agents: list[str]) -> None:
    """Let the state hold what OpenClaw's own configuration says of its agents."""
    text = json.dumps({"agents": {"list": [{"id": one} for one in agents]}})
    script = f"cat > /home/node/.openclaw/openclaw.json <<'X'\n{text}\nX"
    bench.engine.run("exec", bench.container, "sh", "-c", script)


def test_it_is_found_and_adopted_and_left_as_it_is(bench):
    bench.tally().say("before")
    write_config(bench, ["lt_ada"])
    before = bench.inspect()

    (listed,) = json.loads(bench.cli("adopt", "laptop", "--json"))["originals"]
    adopted = json.loads(bench.cli("adopt", "laptop", "ada", "--json"))
    again = json.loads(bench.cli("adopt", "laptop", "ada", "--json"))

    after = bench.inspect()
    assert (listed["name"], listed["made_by"]) == ("ada", "claw-installer")
    assert (after["Id"], after["State"]) == (before["Id"], before["State"])
    assert adopted["openclaw_agents"] == ["lt_ada"]
    assert again["snapshot"] != adopted["snapshot"]
    spec = bench.spec()
    assert "@sha256:" in spec.image
    assert (spec.volumes[0].name, spec.volumes[0].path) == ("home", "/home/node")
    assert spec.ports[0].publish == int(
        before["NetworkSettings"]["Ports"]["18789/tcp"][0]["HostPort"]
    )
    assert spec.health.http.path == "/readyz"
    assert spec.security.read_only_root
    assert spec.hostname == before["Config"]["Hostname"]
    assert {name: ref.source for name, ref in spec.secrets.items()} == {
        "TALLY_TOKEN": "target",
        "OPENAI_API_KEY": "target",
    }
    assert spec.env["TALLY_PORT"] == "18789"
    assert_no_secret_in_a_file(bench)


def assert_no_secret_in_a_file(bench: Bench) -> None:
    """Check that the values are kept by the engine, and nowhere else."""
    files = [path for path in bench.directory.rglob("*") if path.is_file()]
    written = b"".join(path.read_bytes() for path in files)
    assert files
    assert API_KEY.encode() not in written
    assert TOKEN.encode() not in written
    kept = bench.engine.run("secret", "ls", "--format", "{{.Name}}").split()
    assert "lobstertrap-ada.env-openai-api-key" in kept
    assert "tally_token" in kept


def test_nothing_of_ours_is_launched_beside_the_original(bench):
    bench.tally()
    bench.cli("adopt", "laptop", "ada")
    config = bench.config()

    with config.hold("ada", "test") as handle:
        for attempt in (
            lambda: lifecycle.launch(handle, "laptop"),
            lambda: lifecycle.start(handle, "laptop", image=bench.spec().image),
            lambda: migration.plan(handle, "server"),
            lambda: lifecycle.prepare_restore(
                handle, "server", handle.record().snapshot
            ),
        ):
            with pytest.raises(Refused, match=r"openclaw-lt-ada.*still has its place"):
                attempt()

    assert bench.inspect()["State"]["Running"]


def test_the_switch_keeps_the_state_and_puts_the_original_away(bench):
    tally = bench.tally()
    tally.say("to the original")
    bench.cli("adopt", "laptop", "ada")
    tally.say("after the first snapshot")

    done = json.loads(bench.cli("adopt", "laptop", "ada", "--switch", "--json"))
    here = bench.switched()
    number = here.say("to ours")

    said = [entry["text"] for entry in transcript(here)]
    assert done["state"] == "running"
    assert number == 3
    assert said == ["to the original", "after the first snapshot", "to ours"]
    assert not bench.has_container()
    volumes = bench.engine.run("volume", "ls", "--quiet").split()
    assert (
        "openclaw-lt-ada-data" in volumes
    )  # the original's own state is never removed


def test_a_migration_takes_the_adopted_state_along(bench, podman_server):
    bench.tally().say("to the original")
    bench.cli("adopt", "laptop", "ada")
    bench.cli("adopt", "laptop", "ada", "--switch")
    bench.switched().say("to ours")
    carry_secrets(bench, podman_server)

    migrate(bench.config(), "server")
    there = bench.switched("server")
    there.say("on the server")

    said = [entry["text"] for entry in transcript(there)]
    assert said == ["to the original", "to ours", "on the server"]


def transcript(tally: TallyClient) -> list[dict]:
    import http.client  # noqa: PLC0415 - one line per message, so it is no JSON

    server = http.client.HTTPConnection(tally.address, timeout=120)
    try:
        server.request("GET", "/transcript")
        text = server.getresponse().read().decode()
    finally:
        server.close()
    return [json.loads(line) for line in text.splitlines()]


def carry_secrets(bench: Bench, server: PodmanEngine) -> None:
    """Do what a person does for secrets of source target: make them there too."""
    api = PodmanApi("server", server.url)
    for name, value in (
        ("tally_token", TOKEN),
        ("lobstertrap-ada.env-openai-api-key", API_KEY),
    ):
        api.post("/secrets/create", data=value.encode(), name=name)
    api.close()


def migrate(config: Config, to: str) -> None:
    with config.hold("ada", "migrate") as handle:
        migration.begin(handle, migration.plan(handle, to))
        migration.stage(handle)
        migration.precopy(handle)
        migration.quiesce(handle)
        migration.transfer(handle)
        migration.launch(handle)
        lifecycle.await_healthy(handle, to)
        migration.commit(handle, to)


def test_a_switch_that_does_not_become_healthy_leaves_the_original_running(bench):
    tally = bench.tally()
    tally.say("one")
    bench.cli("adopt", "laptop", "ada")
    path = bench.directory / "agents" / "ada" / "agent.yaml"
    text = path.read_text().replace("/readyz", "/nothing").replace("180.0", "2")
    path.write_text(text)

    said = bench.cli("adopt", "laptop", "ada", "--switch", code=1)
    number = bench.tally().say("two")

    assert "not ready" in said
    assert number == 2
    assert bench.config().target("laptop").status(bench.spec()).phase != "running"
    with bench.config().hold("ada", "test") as handle:
        assert handle.record().adopted.step == "kept"


def test_a_second_container_on_the_same_volume_stops_the_switch(bench):
    bench.tally()
    bench.cli("adopt", "laptop", "ada")
    image = bench.inspect()["Image"]
    volume = f"{bench.container}-data:/home/node"
    bench.engine.run(
        *("run", "--detach", "--name", "stray-ada", "--volume", volume),
        *("--entrypoint", "sleep", image, "600"),
    )
    try:
        said = bench.cli("adopt", "laptop", "ada", "--switch", code=3)
        bench.tally()
    finally:
        bench.engine.run("rm", "--force", "--time", "0", "stray-ada")

    assert "stray-ada still runs" in said
    assert bench.inspect()["State"]["Running"]
