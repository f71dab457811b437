"""There and back between a cluster and every other kind of target, byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lobstertrap.agent import AgentSpec, load_agent
from lobstertrap.stores import StoreSettings
from lobstertrap.targets.base import Target
from lobstertrap.targets.host import HostTarget
from tests.contract.test_targets import (
    client,
    launch,
    make_repository,
    restore,
    snapshot,
)
from tests.fixtures.cluster import Namespace
from tests.fixtures.places import Place
from tests.fixtures.podman import podman_target
from tests.fixtures.tally import AGENT

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow]


@pytest.fixture
def agent() -> AgentSpec:
    return load_agent(AGENT / "agent.yaml")


@pytest.fixture
def open_target(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    new_namespace: Callable[[], Namespace],
) -> Callable[[str], Target]:
    """Return what opens a target of a kind, each time another place."""

    def open_target(kind: str) -> Target:
        if kind == "host":
            return HostTarget("host", tmp_path / "host")
        if kind == "kubernetes":
            return new_namespace().open()
        return podman_target(request.getfixturevalue(kind))

    return open_target


@pytest.mark.podman
@pytest.mark.parametrize(
    "kind", ["host", "podman_laptop", "podman_rootless", "kubernetes"]
)
def test_an_agent_goes_to_the_cluster_and_back_with_all_its_state(
    kind: str,
    agent: AgentSpec,
    open_target: Callable[[str], Target],
    pod_store: StoreSettings,
) -> None:
    home, cluster = open_target(kind), open_target("kubernetes")
    place = Place(open=lambda: home, store=replace(pod_store))
    make_repository(place)
    try:
        launch(home, agent, epoch=1)
        tally = client(home, agent)
        tally.say("at home")
        tally.post("/grow", {"megabytes": 4})
        home.stop(agent)

        away = snapshot(place, home, agent)
        there = restore(place, cluster, agent, away["snapshot"])
        launch(cluster, agent, epoch=2)
        said_there = client(cluster, agent).say("in the cluster")
        cluster.stop(agent)

        back = snapshot(place, cluster, agent)
        here = restore(place, home, agent, back["snapshot"])
        launch(home, agent, epoch=3)
        said_here = client(home, agent).say("at home again")
    finally:
        for target in (home, cluster):
            target.stop(agent)
            target.remove(agent, volumes=True)

    assert (said_there, said_here) == (2, 3)
    assert there["tree_digest"] == away["tree_digest"]
    assert here["tree_digest"] == back["tree_digest"]
    assert (there["warnings"], here["warnings"]) == ([], [])
    assert back["uploaded_bytes"] < away["uploaded_bytes"] / 4
    assert here["bytes_written"] < 2**20  # the older copy there was made use of
