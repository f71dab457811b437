"""The real OpenClaw, moved between turns of a conversation; a stand-in is its model.

The domain's functions are called in the flows' order: the flows have tests of their
own, and what is asked here is what OpenClaw makes of it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lobstertrap import config, lifecycle, migration
from lobstertrap.agent import AgentSpec
from lobstertrap.stores import StoreSettings
from lobstertrap.targets.base import CommandRunner
from lobstertrap.targets.podman_engine import PodmanEngine
from tests.fixtures.cluster import Namespace
from tests.fixtures.model import KEY, Model, serve_model
from tests.fixtures.openclaw import TOKEN, OpenClaw, load_base, write_agent
from tests.openclaw.base import TAG

pytestmark = [
    pytest.mark.kubernetes,
    pytest.mark.podman,
    pytest.mark.slow,
    pytest.mark.long,  # each start of OpenClaw takes fifteen seconds of CPU
    pytest.mark.timeout(1800),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """An OpenClaw of one test, its places and its model."""

    loaded: config.Config
    name: str
    model: Model

    @property
    def spec(self) -> AgentSpec:
        """What its agent.yaml says."""
        return self.loaded.agent(self.name)

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
def with_openclaw(podman_laptop: PodmanEngine, openclaw_archive: Path) -> None:
    """Let the laptop build the agent's image."""
    load_base(podman_laptop, openclaw_archive)


@pytest.fixture
def world(
    tmp_path: Path,
    namespace: Namespace,
    with_openclaw: None,
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
        world = World(loaded=loaded, name=name, model=model)
        try:
            yield world
        finally:
            for target in ("laptop", "cluster"):
                world.loaded.target(target).stop(world.spec)
                world.loaded.target(target).remove(world.spec, volumes=True)


def test_a_conversation_goes_on_in_the_cluster_and_back_on_the_laptop(
    world: World, namespace: Namespace
) -> None:
    namespace.allow_commands()
    cluster = world.loaded.target("cluster")
    assert isinstance(cluster, CommandRunner)
    world.launch("laptop")
    first = world.openclaw("laptop").say("My lobster is called Homer.")

    there = world.migrate("cluster")
    second = world.openclaw("cluster").say("It lives in Maine.")
    assert world.phase("laptop") != "running"
    assert world.model.saw("My lobster is called Homer.")
    assert world.model.saw(first)
    hostname = cluster.run_command(world.spec, ["hostname"], seconds=300)
    assert hostname == (0, "openclaw\n")  # its lease is bound to it

    back = world.migrate("laptop")
    third = world.openclaw("laptop").say("What is it called, and where does it live?")
    assert world.phase("cluster") == "absent"
    for text in ("My lobster is called Homer.", first, "It lives in Maine.", second):
        assert world.model.saw(text)
    assert len({first, second, third}) == 3
    for moved in (there, back):
        digests = {moved[part]["tree_digest"] for part in ("snapshot", "restore")}
        assert len(digests) == 1
    assert not world.model.refused
