"""Freezing a real container: all of it stands still, and it goes on in any case."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from lobstertrap.agent import AgentSpec, load_agent
from lobstertrap.errors import NotFound, Refused
from lobstertrap.redaction import SecretValue
from lobstertrap.targets.podman import PodmanTarget
from lobstertrap.targets.podman_engine import PodmanEngine
from tests.fixtures.needs import missing
from tests.fixtures.podman import podman_target
from tests.fixtures.tally import AGENT, TOKEN

pytestmark = pytest.mark.podman

SECRETS = {"TALLY_TOKEN": SecretValue(TOKEN)}
KILLED = """
import os, signal, sys
from lobstertrap.agent import AgentSpec
from lobstertrap.targets.podman import PodmanTarget
PodmanTarget("there", sys.argv[1]).freeze(AgentSpec.model_validate_json(sys.argv[2]))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def target(podman_laptop: PodmanEngine) -> PodmanTarget:
    return podman_target(podman_laptop)


@pytest.fixture
def agent(target: PodmanTarget) -> Iterator[AgentSpec]:
    spec = load_agent(AGENT / "agent.yaml")
    rule = spec.snapshot.model_copy(update={"mode": "freeze", "timeout": 30.0})
    spec = spec.model_copy(
        update={"name": "frozen", "snapshot": rule, "stop_timeout": 2.0}
    )
    image = target.ensure_image(spec)
    target.bind_secrets(spec, SECRETS)
    target.launch(spec, epoch=1, image=image, secrets=SECRETS)
    await_healthy(target, spec)
    yield spec
    target.stop(spec)
    target.remove(spec, volumes=True)


def await_healthy(target: PodmanTarget, spec: AgentSpec, seconds: float = 60) -> float:
    began = time.monotonic()
    while not (status := target.status(spec)).healthy:
        if time.monotonic() > began + seconds:
            raise TimeoutError(status)
        time.sleep(0.05)
    return time.monotonic() - began


def freeze(target: PodmanTarget, agent: AgentSpec) -> None:
    try:
        target.freeze(agent)
    except Refused as error:
        missing(f"this engine cannot pause a container: {error.message}")


def test_a_frozen_container_stands_still_and_goes_on(target, agent) -> None:
    freeze(target, agent)

    assert target.status(agent).detail == "paused"
    assert target.thaw(agent)
    assert not target.thaw(agent)
    await_healthy(target, agent)


def test_the_guard_thaws_when_nobody_does(target, agent) -> None:
    rule = agent.snapshot.model_copy(update={"timeout": 0.5})
    freeze(target, agent.model_copy(update={"snapshot": rule}))

    await_healthy(target, agent)

    assert not target.thaw(agent)


def test_the_guard_thaws_as_soon_as_who_froze_it_is_killed(
    target, agent, podman_laptop
) -> None:
    freeze(target, agent)
    target.thaw(agent)
    text = agent.model_dump_json(exclude_none=True)
    command = [sys.executable, "-c", KILLED, podman_laptop.url, text]

    done = subprocess.run(command, check=False, capture_output=True, text=True)

    assert done.returncode == -signal.SIGKILL, done.stderr
    assert await_healthy(target, agent) < agent.snapshot.timeout


def test_a_frozen_container_can_be_stopped(target, agent) -> None:
    freeze(target, agent)

    target.stop(agent)

    assert target.status(agent).phase == "stopped"
    assert not target.thaw(agent)
    with pytest.raises(NotFound, match="does not run"):
        target.freeze(agent)


def test_a_command_runs_in_the_container_as_the_agents_user(target, agent) -> None:
    script = "import os; print(os.getuid(), os.environ['TALLY_STATE']); exit(3)"
    status, said = target.run_command(agent, ["python3", "-c", script], seconds=30)

    assert (status, said.split()) == (3, ["1000", "/home/tally/state"])


def test_no_guard_is_left(target, agent) -> None:
    freeze(target, agent)
    guard = target._guard._process.pid

    target.thaw(agent)

    with pytest.raises(ProcessLookupError):
        os.kill(guard, 0)
