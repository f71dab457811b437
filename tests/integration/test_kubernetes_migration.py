"""The flow from a laptop's Podman to a cluster and back, by lobstertrap.toml."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

import pytest

from flows.launch_agent import launch_agent
from flows.migrate_agent import migrate_agent
from lobstertrap import config
from lobstertrap.errors import LobsterTrapError
from lobstertrap.stores import StoreSettings
from tests.fixtures.cluster import Namespace
from tests.fixtures.podman import BUILD_ARGS
from tests.fixtures.tally import AGENT, TOKEN, TallyClient

pytestmark = [
    pytest.mark.kubernetes,
    pytest.mark.podman,
    pytest.mark.prefect,
    pytest.mark.slow,
    pytest.mark.usefixtures("prefect_api"),
]


def write_config(directory: Path, namespace: Namespace, store: StoreSettings) -> None:
    build_args = f'{{ BASE = "{BUILD_ARGS["BASE"]}" }}'
    (directory / "lobstertrap.toml").write_text(
        f"""
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
        """
    )


@pytest.fixture
def name(tmp_path: Path) -> str:
    """Return the name of a tally of this test alone: fences outlive an agent."""
    name = f"tally-{secrets.token_hex(4)}"
    directory = tmp_path / "agents" / name
    shutil.copytree(AGENT, directory)
    text = (directory / "agent.yaml").read_text()
    (directory / "agent.yaml").write_text(text.replace("name: tally", f"name: {name}"))
    return name


@pytest.fixture
def loaded(
    tmp_path: Path,
    namespace: Namespace,
    pod_store: StoreSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> config.Config:
    """Return a configuration with a laptop and a cluster, which flows find too."""
    write_config(tmp_path, namespace, pod_store)
    assert pod_store.access_key is not None
    assert pod_store.secret_key is not None
    for name, value in {
        "LOBSTERTRAP_CONFIG": str(tmp_path / "lobstertrap.toml"),
        "TEST_ACCESS_KEY": pod_store.access_key.reveal(),
        "TEST_SECRET_KEY": pod_store.secret_key.reveal(),
        "TEST_REPOSITORY_KEY": "a key for tests",
        "TALLY_TOKEN": TOKEN,
    }.items():
        monkeypatch.setenv(name, value)
    return config.load(tmp_path, os.environ)


def test_a_migration_goes_to_the_cluster_and_back(
    loaded: config.Config, namespace: Namespace, name: str
) -> None:
    spec = loaded.agent(name)
    targets = [loaded.target(name) for name in ("laptop", "cluster")]

    def tally(number: int) -> TallyClient:
        return TallyClient(address=targets[number].status(spec).addresses["http"])

    try:
        launch_agent(agent=name, on="laptop")
        tally(0).say("on the laptop")
        there = migrate_agent(agent=name, to="cluster")
        assert targets[0].status(spec).phase != "running"
        assert tally(1).say("in the cluster") == 2
        back = migrate_agent(agent=name, to="laptop")
        assert targets[1].status(spec).phase != "running"
        assert tally(0).say("home again") == 3
        epochs = tally(0).get("/state")["epochs"]
    finally:
        for target in targets:
            target.stop(spec)
            target.remove(spec, volumes=True)

    assert there["digest_equal"]
    assert back["digest_equal"]
    assert there["kinds"] == ["podman", "kubernetes"]
    assert epochs == [1, there["epoch"], back["epoch"]]


def test_a_cluster_that_cannot_run_the_agent_leaves_it_where_it_was(
    loaded: config.Config, namespace: Namespace, name: str
) -> None:
    spec = loaded.agent(name)
    laptop = loaded.target("laptop")
    # The state can be restored there; it is the launch that fails, after the cutover.
    namespace.kubectl("create", "quota", "small", "--hard=count/statefulsets.apps=0")

    try:
        launch_agent(agent=name, on="laptop")
        address = laptop.status(spec).addresses["http"]
        TallyClient(address=address).say("stay")
        with pytest.raises(LobsterTrapError, match="exceeded quota"):
            migrate_agent(agent=name, to="cluster")
        address = laptop.status(spec).addresses["http"]
        tally = TallyClient(address=address)
        assert tally.say("still here") == 2
        assert len(tally.get("/state")["epochs"]) == 2  # it was stopped meanwhile
    finally:
        laptop.stop(spec)
        laptop.remove(spec, volumes=True)
