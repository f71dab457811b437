"""The fake target's own abilities: it fails when told, and notices two copies."""

from __future__ import annotations

from pathlib import Path

import pytest

from lobstertrap.agent import AgentSpec
from lobstertrap.errors import Unavailable
from lobstertrap.targets.fake import FakeTarget, World

AGENT = AgentSpec.model_validate(
    {
        "name": "crab",
        "image": "none",
        "volumes": [{"name": "state", "path": "/state"}],
        "health": {"command": ["true"]},
    }
)


def launch(target: FakeTarget, epoch: int = 1) -> None:
    target.launch(AGENT, epoch=epoch, image="fake:1", secrets={})


def test_two_copies_in_one_world_are_noticed(tmp_path: Path) -> None:
    world = World()
    laptop = FakeTarget("laptop", tmp_path / "a", world=world)
    server = FakeTarget("server", tmp_path / "b", world=world)
    launch(laptop, 1)

    with pytest.raises(AssertionError, match="two copies of 'crab' run"):
        launch(server, 2)


def test_one_after_the_other_is_fine_and_is_history(tmp_path: Path) -> None:
    times = iter(range(100))
    world = World(clock=lambda: float(next(times)))
    laptop = FakeTarget("laptop", tmp_path / "a", world=world)
    server = FakeTarget("server", tmp_path / "b", world=world)

    launch(laptop, 1)
    laptop.stop(AGENT)
    launch(server, 2)
    server.crash(AGENT)

    assert [(e.what, e.target, e.epoch) for e in world.history] == [
        ("started", "laptop", 1),
        ("stopped", "laptop", 1),
        ("started", "server", 2),
        ("stopped", "server", 2),
    ]
    assert world.history[0].at < world.history[-1].at
    assert server.status(AGENT).detail == "ended with status 1"


def test_it_fails_before_the_effect_as_often_as_told(tmp_path: Path) -> None:
    target = FakeTarget("laptop", tmp_path)
    target.fail_on("launch", Unavailable("away"), times=2)

    for _ in range(2):
        with pytest.raises(Unavailable):
            launch(target)
        assert target.status(AGENT).phase == "absent"
    launch(target)

    assert target.status(AGENT).phase == "running"


def test_an_answer_can_be_lost_after_the_effect(tmp_path: Path) -> None:
    target = FakeTarget("laptop", tmp_path)
    target.fail_on("after:launch", Unavailable("away"))

    with pytest.raises(Unavailable):
        launch(target)

    assert target.status(AGENT).phase == "running"


def test_it_is_as_healthy_as_the_test_wants(tmp_path: Path) -> None:
    target = FakeTarget("laptop", tmp_path)
    launch(target)

    target.set_unhealthy(AGENT, "not today")
    ill = target.status(AGENT)
    target.set_unhealthy(AGENT, None)
    well = target.status(AGENT)

    assert (ill.healthy, ill.detail) == (False, "not today")
    assert (well.healthy, well.detail) == (True, "")
