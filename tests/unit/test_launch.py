"""Launching an agent: what is refused, and how it is left when it cannot be run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lobstertrap import lifecycle
from lobstertrap.agent import AgentSpec
from lobstertrap.errors import NoSpace, Refused, Unhealthy
from lobstertrap.lease import hold
from lobstertrap.lifecycle import AgentHandle
from lobstertrap.stores.memory import MemoryStore
from lobstertrap.targets.fake import FakeTarget, World

AGENT = AgentSpec.model_validate(
    {
        "name": "crab",
        "image": "none",
        "volumes": [{"name": "state", "path": "/state"}],
        "health": {"command": ["true"], "start": 0.2, "interval": 0.05},
    }
)


@pytest.fixture
def targets(tmp_path: Path) -> dict[str, FakeTarget]:
    world = World()
    return {n: FakeTarget(n, tmp_path / n, world=world) for n in ("laptop", "server")}


@pytest.fixture
def handle(targets: dict[str, FakeTarget]) -> Iterator[AgentHandle]:
    with hold(MemoryStore(), "crab", "test") as lease:
        yield AgentHandle(
            spec=AGENT,
            lease=lease,
            target=targets.__getitem__,
            secrets=dict,
            mover_request=dict,
        )


def test_a_launched_agent_runs_under_the_records_epoch(handle, targets) -> None:
    status = lifecycle.launch(handle, "laptop")

    record = handle.record()
    assert (status.phase, status.healthy, status.epoch) == ("running", True, 1)
    assert (record.target, record.state, record.epoch) == ("laptop", "running", 1)


def test_launching_again_changes_nothing(handle, targets) -> None:
    lifecycle.launch(handle, "laptop")

    lifecycle.launch(handle, "laptop")

    assert [event.what for event in targets["laptop"].world.history] == ["started"]


def test_a_second_home_is_refused(handle, targets) -> None:
    lifecycle.launch(handle, "laptop")

    with pytest.raises(Refused, match="lives on 'laptop'"):
        lifecycle.launch(handle, "server")

    assert targets["server"].status(AGENT).phase == "absent"


def test_an_agent_that_never_becomes_ready_is_left_stopped(handle, targets) -> None:
    targets["laptop"].set_unhealthy(AGENT, "still thinking")

    with pytest.raises(Unhealthy, match="still thinking"):
        lifecycle.launch(handle, "laptop")

    assert targets["laptop"].status(AGENT).phase == "stopped"
    assert handle.record().state == "stopped"


def test_an_agent_that_cannot_be_started_is_recorded_as_stopped(
    handle, targets
) -> None:
    targets["laptop"].fail_on("launch", NoSpace("the disk is full"))

    with pytest.raises(NoSpace):
        lifecycle.launch(handle, "laptop")

    assert handle.record().state == "stopped"


def test_a_stray_copy_under_another_epoch_is_refused_and_left_alone(
    handle, targets
) -> None:
    targets["laptop"].launch(AGENT, epoch=7, image="fake:1", secrets={})

    with pytest.raises(Refused, match="under epoch 7"):
        lifecycle.launch(handle, "laptop")

    assert targets["laptop"].status(AGENT).phase == "running"


def test_an_agent_with_snapshots_does_not_start_with_nothing(handle, targets) -> None:
    handle.lease.update(lambda record: replace(record, snapshot="5f3a"))

    with pytest.raises(Refused, match="has snapshots but no volumes") as refused:
        lifecycle.launch(handle, "laptop")

    assert refused.value.hint == "lobstertrap restore crab --to laptop"
    assert targets["laptop"].status(AGENT).phase == "absent"
