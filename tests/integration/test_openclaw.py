"""The real OpenClaw, moved and lost while it talks; a stand-in is its model.

The domain's functions are called in the flows' order: the flows have tests of their
own, and what is asked here is what OpenClaw makes of it.
"""

from __future__ import annotations

import os
import secrets
import signal
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from lobstertrap import config, consistency, lifecycle, migration, takeover
from lobstertrap.agent import AgentSpec
from lobstertrap.cli.app import run
from lobstertrap.errors import Unavailable
from lobstertrap.lease import AgentRecord, read_record
from lobstertrap.stores import StoreSettings
from lobstertrap.targets.base import CommandRunner
from lobstertrap.targets.podman_engine import PodmanEngine
from tests.chaos.conftest import Driver, wait_until
from tests.cluster.cluster import Cluster
from tests.fixtures.cluster import Namespace
from tests.fixtures.model import KEY, Model, serve_model
from tests.fixtures.openclaw import TOKEN, OpenClaw, load_base, write_agent
from tests.openclaw.base import TAG

pytestmark = [
    pytest.mark.kubernetes,
    pytest.mark.podman,
    pytest.mark.slow,
    # OpenClaw ends when a thread of its own does not begin within five seconds, and
    # others that work beside it make it so: .ci/run runs it with nothing else.
    pytest.mark.timeout(1800),
]

HOMER = "My lobster is called Homer."
MAINE = "It lives in Maine."
PATIENCE = 300.0
STATE = "{{.State.Status}}"
SUSPENSION = "/tmp/openclaw-suspension"  # noqa: S108 - in the container, by its hook
GONE = "unix:///nowhere/at/all.sock"
SUSPENSION = "/tmp/openclaw-suspension"  # noqa: S108 - in the container, by its hook


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """An OpenClaw of one test, its places and its model."""

    directory: Path
    loaded: config.Config
    name: str
    model: Model
    engine: PodmanEngine
    """The laptop's."""

    @property
    def spec(self) -> AgentSpec:
        """What its agent.yaml says."""
        return self.loaded.agent(self.name)

    @property
    def container(self) -> str:
        """Its container on the laptop."""
        return f"lobstertrap-{self.name}"

    @property
    def record(self) -> AgentRecord:
        """Read its record."""
        found = read_record(self.loaded.open_store(), self.name)
        assert found
        return found

    def is_stopping(self) -> bool:
        """Whether the laptop's container was told to end, and has not yet."""
        shown = self.engine.run("inspect", "--format", STATE, self.container)
        return shown.strip() == "stopping"

    def is_held(self) -> bool:
        """Whether the gateway on the laptop lets turns end and admits no new one."""
        try:
            self.engine.run("exec", self.container, "test", "-e", SUSPENSION)
        except Unavailable:
            return False
        return True

    def remove(self) -> None:
        """Remove all of it."""
        for target in ("laptop", "cluster"):
            self.loaded.target(target).stop(self.spec)
            self.loaded.target(target).remove(self.spec, volumes=True)

    def lose_laptop(self) -> None:
        """Kill what runs there, and destroy its state."""
        self.engine.run("rm", "--force", "--time", "0", self.container)
        self.engine.run("volume", "rm", f"{self.container}-state")

    def second_machine(self) -> config.Config:
        """Return the configuration of a machine from which no laptop is in reach."""
        known = (self.directory / "lobstertrap.toml").read_text("utf-8")
        place = self.directory / "second"
        place.mkdir()
        file = place / "lobstertrap.toml"
        text = known.replace(f'url = "{self.engine.url}"', f'url = "{GONE}"')
        file.write_text(text.replace('"agents"', '"../agents"'), "utf-8")
        return config.load(place, os.environ | {"LOBSTERTRAP_CONFIG": str(file)})

    def openclaw(self, target: str) -> OpenClaw:
        """Return a client of the gateway that runs on a target."""
        address = self.loaded.target(target).status(self.spec).addresses["gateway"]
        return OpenClaw(address=address)

    def phase(self, target: str) -> str:
        """Say what a target shows of it."""
        return self.loaded.target(target).status(self.spec).phase

    def launch(self, on: str) -> None:
        """Run it and wait until it is ready."""
        with self.loaded.hold(self.name, "launch") as handle:
            lifecycle.launch(handle, on)

    def snapshot_by_hook(self) -> dict[str, Any]:
        """Take a snapshot as a schedule does."""
        with self.loaded.hold(self.name, "snapshot") as handle:
            return consistency.snapshot_hooked(handle, "laptop")

    def migrate(self, to: str) -> dict[str, Any]:
        """Move it, as flows/migrate_agent.py does when nothing goes wrong."""
        with self.loaded.hold(self.name, "migrate") as handle:
            source = handle.home()
            migration.begin(handle, migration.plan(handle, to))
            migration.stage(handle)
            migration.precopy(handle)
            migration.quiesce(handle)
            moved = migration.transfer(handle)
            migration.launch(handle)
            migration.await_healthy(handle)
            migration.commit(handle, to)
            migration.retire(handle, source)
        return moved


def config_text(namespace: Namespace, store: StoreSettings) -> str:
    build_args = f'{{ BASE = "{TAG}" }}'
    return f"""
        agents = "agents"
        [store]
        url = "{store.url}"
        endpoint = "{store.endpoint}"
        region = "us-east-1"
        access_key = {{ source = "env", id = "TEST_ACCESS_KEY" }}
        secret_key = {{ source = "env", id = "TEST_SECRET_KEY" }}
        [repository]
        key = {{ source = "env", id = "TEST_REPOSITORY_KEY" }}
        [targets.laptop]
        kind = "podman"
        url = "{namespace.engine}"
        build_args = {build_args}
        [targets.cluster]
        kind = "kubernetes"
        kubeconfig = "{namespace.cluster.layout.path("operator.conf")}"
        namespace = "{namespace.name}"
        registry = "{namespace.cluster.registry}/agents"
        insecure_registry = true
        engine = "{namespace.engine}"
        build_args = {build_args}
        egress = ["0.0.0.0/0"]
        """


@pytest.fixture
def with_openclaw(
    podman_laptop: PodmanEngine, openclaw_archive: Path, cluster: Cluster
) -> PodmanEngine:
    """Let the laptop build the agent's image."""
    load_base(podman_laptop, openclaw_archive, cluster.registry)
    return podman_laptop


@pytest.fixture
def world(
    tmp_path: Path,
    namespace: Namespace,
    with_openclaw: PodmanEngine,
    pod_store: StoreSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[World]:
    """Return a world with a laptop's Podman and a cluster."""
    name = f"openclaw-{secrets.token_hex(4)}"  # of this test: fences outlive an agent
    (tmp_path / "lobstertrap.toml").write_text(config_text(namespace, pod_store))
    assert pod_store.access_key is not None
    assert pod_store.secret_key is not None
    for variable, value in {
        "LOBSTERTRAP_CONFIG": str(tmp_path / "lobstertrap.toml"),
        "TEST_ACCESS_KEY": pod_store.access_key.reveal(),
        "TEST_SECRET_KEY": pod_store.secret_key.reveal(),
        "TEST_REPOSITORY_KEY": "a key for tests",
        "OPENCLAW_GATEWAY_TOKEN": TOKEN,
        "MODEL_KEY": KEY,
    }.items():
        monkeypatch.setenv(variable, value)
    # The bridge's address: pods reach it, and so do the laptop's containers.
    with serve_model(namespace.cluster.gateway) as model:
        write_agent(tmp_path / "agents" / name, name, model)
        loaded = config.load(tmp_path, os.environ)
        world = World(
            directory=tmp_path,
            loaded=loaded,
            name=name,
            model=model,
            engine=with_openclaw,
        )
        try:
            yield world
        finally:
            world.remove()


def test_a_conversation_goes_on_whatever_becomes_of_the_machines(
    world: World, namespace: Namespace
) -> None:
    namespace.allow("commands")
    world.launch("laptop")
    first = world.openclaw("laptop").say(HOMER)

    second = killed_in_the_middle_of_a_turn(world, "cluster", MAINE)
    third = world.openclaw("cluster").say("It likes the cold.")
    assert_lives_in_the_cluster(world)
    assert_heard_once(world, HOMER, first, MAINE, second)

    back = world.migrate("laptop")
    fourth, taken = snapshot_in_the_middle_of_a_turn(world, "It eats clams.")
    assert world.phase("cluster") == "absent"
    assert_heard_once(world, HOMER, first, MAINE, second, third)
    assert back["snapshot"]["tree_digest"] == back["restore"]["tree_digest"]

    world.openclaw("laptop").say("Nobody will know that I said this.")
    world.lose_laptop()
    take_over(world.second_machine(), world.name, taken["snapshot"])
    world.openclaw("cluster").say("What is it called, and where does it live?")
    assert_lives_in_the_cluster(world)
    assert_heard_once(world, HOMER, first, MAINE, second, third, "It eats clams.")
    assert_heard_once(world, fourth)
    assert world.model.heard("Nobody will know") == 0
    assert not world.model.refused


def test_one_that_podman_run_started_is_adopted_and_moved(world: World) -> None:
    original = f"by-hand-{world.name}"
    address = run_by_hand(world, original)
    first = OpenClaw(address=address).say(HOMER)
    ours = replace(world, name=f"{world.name}-2")

    try:
        adopt = ("adopt", "laptop", ours.name)
        assert run((*adopt, "--from", original, "--secrets", "env")) == 0
        second = OpenClaw(address=address).say(MAINE)
        assert run((*adopt, "--switch")) == 0
        third = ours.openclaw("laptop").say("It likes the cold.")
        assert_heard_once(world, HOMER, first, MAINE, second)

        ours.migrate("cluster")
        ours.openclaw("cluster").say("What is it called, and where does it live?")
        assert ours.record.target == "cluster"
        assert_heard_once(world, HOMER, first, MAINE, second, third)
    finally:
        world.engine.run("rm", "--force", "--ignore", "--time", "0", original)
        if (world.directory / "agents" / ours.name).exists():
            ours.remove()
        world.engine.run("volume", "rm", f"{original}-state")


def run_by_hand(world: World, name: str) -> str:
    """Do what a person does who has only Podman; return the gateway's address."""
    target = world.loaded.target("laptop")
    image = target.ensure_image(world.spec)
    world.engine.run(
        *("run", "--detach", "--name", name, "--hostname", "openclaw", "--read-only"),
        *("--env", f"OPENCLAW_GATEWAY_TOKEN={TOKEN}", "--env", f"MODEL_KEY={KEY}"),
        *("--volume", f"{name}-state:/home/node/.openclaw"),
        *("--publish", "127.0.0.1::18789", image),
    )
    address = world.engine.run("port", name, "18789/tcp").strip()
    wait_until(lambda: is_ready(address), seconds=PATIENCE)
    return address


def is_ready(address: str) -> bool:
    """Whether the gateway there takes messages."""
    try:
        with urllib.request.urlopen(f"http://{address}/readyz", timeout=30) as answer:
            return bool(answer.status == HTTPStatus.OK)
    except OSError:
        return False


def take_over(loaded: config.Config, name: str, snapshot: str) -> None:
    """Run it in the cluster, as `restore --takeover` does."""
    with loaded.hold(name, "restore") as handle:
        chosen = takeover.take_over(handle, "cluster", snapshot)
        lifecycle.restore_home(handle, "cluster", snapshot=chosen)
        lifecycle.resume(handle, "cluster")


def assert_lives_in_the_cluster(world: World) -> None:
    """Check that it runs there alone, and with the host name of its lease."""
    cluster = world.loaded.target("cluster")
    assert isinstance(cluster, CommandRunner)
    hostname = cluster.run_command(world.spec, ["hostname"], seconds=300)
    assert hostname == (0, "openclaw\n")
    assert world.record.target == "cluster"
    assert world.phase("laptop") != "running"


def snapshot_in_the_middle_of_a_turn(
    world: World, text: str
) -> tuple[str, dict[str, Any]]:
    """Say something on the laptop, and let a snapshot by hook begin before the answer.

    Returns the answer and the snapshot's result.
    """
    openclaw = world.openclaw("laptop")
    with ThreadPoolExecutor(2) as others, world.model.thinking() as arrived:
        turn = others.submit(openclaw.say, text)
        assert arrived.wait(PATIENCE)
        taking = others.submit(world.snapshot_by_hook)
        wait_until(lambda: world.is_held() or taking.done(), seconds=PATIENCE)
        assert not taking.done()
        assert not turn.done()
        world.model.think_no_more()
        return turn.result(PATIENCE), taking.result(PATIENCE)


def killed_in_the_middle_of_a_turn(world: World, to: str, text: str) -> str:
    """Say something on the laptop, and kill who migrates before there is an answer.

    The same command then moves it. Returns the answer, which came in between.
    """
    driver = Driver(world.directory, agent=world.name)

    def is_stopping() -> bool:
        return driver.marked() > 0 and world.is_stopping()

    try:
        # All that takes long is done before, so that the model need not think so long.
        killed = driver.migrate(to, kill=("precopy_state", "after"))
        assert killed.status == -signal.SIGKILL, driver.errors()
        with ThreadPoolExecutor(1) as other:
            with world.model.thinking() as arrived:
                turn = other.submit(world.openclaw("laptop").say, text)
                assert arrived.wait(PATIENCE)
                killed = driver.migrate(to, mark="stop_source", kill_when=is_stopping)
                assert killed.status == -signal.SIGKILL, driver.errors()
                assert world.record.target == "laptop"
                assert not turn.done()
            ended = driver.migrate(to)
            assert ended.status == 0, driver.errors()
            return turn.result(PATIENCE)
    finally:
        driver.close()


def assert_heard_once(world: World, *texts: str) -> None:
    """Check what the model was told last of what was said before."""
    assert [world.model.heard(text) for text in texts] == [1] * len(texts)
