"""What an agent in a Podman container can do and reach, tried from the inside."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator

import pytest

from lobstertrap.agent import AgentSpec, load_agent
from lobstertrap.redaction import SecretValue
from lobstertrap.targets.podman import PodmanTarget
from tests.fixtures import probe
from tests.fixtures.podman import podman_target
from tests.fixtures.tally import AGENT, TOKEN

pytestmark = pytest.mark.podman

SECRETS = {"TALLY_TOKEN": SecretValue(TOKEN)}
MINE = ["/home/tally/state", "/tmp"]  # noqa: S108 - in the container
SLIRP_HOST = "10.0.2.2"
"""Where slirp4netns would show the host, if it were let."""
_numbers = itertools.count(1)


@pytest.fixture(params=["podman_laptop", "podman_server", "podman_rootless"])
def target(request: pytest.FixtureRequest) -> PodmanTarget:
    """Return a rootful engine, one with a bridge, and a rootless one."""
    return podman_target(request.getfixturevalue(request.param))


@pytest.fixture
def agents(target: PodmanTarget) -> Iterator[list[AgentSpec]]:
    """Return two agents that run side by side."""
    spec = load_agent(AGENT / "agent.yaml")
    pair = [
        spec.model_copy(update={"name": f"hard-{next(_numbers)}", "stop_timeout": 2.0})
        for _ in range(2)
    ]
    try:
        for agent in pair:
            image = target.ensure_image(agent)
            target.bind_secrets(agent, SECRETS)
            target.launch(agent, epoch=1, image=image, secrets=SECRETS)
        yield pair
    finally:
        for agent in pair:
            target.stop(agent)
            target.remove(agent, volumes=True)


@pytest.fixture
def on_loopback() -> Iterator[str]:
    """Return the port of a server that only this machine should reach."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield str(server.getsockname()[1])


def look(target: PodmanTarget, agent: AgentSpec, *places: str):
    status, output = target.run_command(agent, probe.command(*places), seconds=120)
    assert status == 0, output
    return probe.seen(output)


def test_an_agent_in_a_container_cannot_get_out(target, agents, on_loopback):
    agent, neighbour = agents
    published = target.status(neighbour).addresses["http"]

    found = look(
        target, agent, f"127.0.0.1:{on_loopback}", f"{SLIRP_HOST}:{on_loopback}"
    )

    # Podman's own seccomp profile lets it: docs/security.md says what that means.
    probe.assert_confined(
        found, uid=1000, writable=MINE, allowed=["own user namespace"]
    )
    assert "done" not in found["reached"].values()
    # A command that is run beside the agent has no more rights than it has.
    assert found["self"]["CapEff"] == probe.NO_CAPABILITIES
    assert found["self"]["NoNewPrivs"] == "1"
    assert published.startswith("127.0.0.1:")
    told = " ".join(target.inspect().notes)
    for what, limit in (("memory", 256 * 2**20), ("pids", 64)):
        shown = {found[what].strip(), found[f"{what} v1"].strip()}
        assert what in told or str(limit) in shown
