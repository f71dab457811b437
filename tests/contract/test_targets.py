"""What every target promises, on every kind of target; base.py has the promises.

A new kind needs one fixture, `place_KIND`, that returns a `Place`, and its name in
`PLACES`.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lobstertrap.agent import AgentSpec, load_agent
from lobstertrap.errors import (
    LobsterTrapError,
    NotFound,
    Refused,
    SecretMissing,
)
from lobstertrap.job import MoverJob
from lobstertrap.redaction import SecretValue
from lobstertrap.repository import Repository
from lobstertrap.secret_ref import SecretRef
from lobstertrap.stores import StoreSettings, open_store
from lobstertrap.targets.base import (
    AgentStatus,
    Fence,
    LogSource,
    SecretKeeper,
    Target,
)
from lobstertrap.targets.fake import FakeTarget, World
from lobstertrap.targets.host import HostTarget
from tests.fixtures.places import Place
from tests.fixtures.tally import AGENT, TOKEN, TallyClient

PLACES = [
    "fake",
    "host",
    pytest.param("podman_laptop", marks=pytest.mark.podman),
    pytest.param("podman_rootless", marks=pytest.mark.podman),
    pytest.param("podman_tcp", marks=pytest.mark.podman),
    pytest.param("kubernetes", marks=pytest.mark.kubernetes),
]
SECRETS = {"TALLY_TOKEN": SecretValue(TOKEN)}
KEY = "a passphrase for tests"
_numbers = itertools.count(1)


@pytest.fixture
def place_fake(tmp_path: Path) -> Place:
    world = World()
    return Place(
        open=lambda: FakeTarget("there", tmp_path / "place", world=world),
        store=StoreSettings(url=f"file://{tmp_path}/store"),
        real=False,
    )


@pytest.fixture
def place_host(tmp_path: Path) -> Place:
    return Place(
        open=lambda: HostTarget("there", tmp_path / "place"),
        store=StoreSettings(url=f"file://{tmp_path}/store"),
    )


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> Place:
    return request.getfixturevalue(f"place_{request.param}")


@pytest.fixture
def target(place: Place) -> Target:
    return place.open()


@pytest.fixture
def agent(target: Target) -> Iterator[AgentSpec]:
    """Tally under a name of its own; gone at the end, whatever happened."""
    spec = load_agent(AGENT / "agent.yaml")
    spec = spec.model_copy(update={"name": f"tally-{next(_numbers)}"})
    yield spec
    target.stop(spec)
    target.remove(spec, volumes=True)


def launch(target: Target, agent: AgentSpec, epoch: int = 1) -> None:
    image = target.ensure_image(agent)
    target.bind_secrets(agent, SECRETS)
    target.launch(agent, epoch=epoch, image=image, secrets=SECRETS)


def ready(target: Target, agent: AgentSpec) -> AgentStatus:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        status = target.status(agent)
        if status.healthy:
            return status
        time.sleep(0.05)
    raise TimeoutError(status)


def client(target: Target, agent: AgentSpec) -> TallyClient:
    return TallyClient(address=ready(target, agent).addresses["http"])


def make_repository(place: Place) -> None:
    Repository.create(open_store(place.store), SecretValue(KEY))


def mover_job(place: Place, agent: AgentSpec, command: Any, **fields: Any) -> MoverJob:
    return MoverJob(
        command=command,
        agent=agent.name,
        volumes=tuple(volume.name for volume in agent.volumes),
        request={
            "store": place.store.to_dict(),
            "key": KEY,
            "cache": False,
            "owner": [agent.security.user, agent.security.group],
            "exclude": {volume.name: volume.exclude for volume in agent.volumes},
            **fields,
        },
    )


def snapshot(
    place: Place, target: Target, agent: AgentSpec, **fields: Any
) -> dict[str, Any]:
    job = mover_job(place, agent, "snapshot", consistency="stopped", tags={}, **fields)
    return target.run_mover(agent, job, lambda _: None)


def restore(
    place: Place, target: Target, agent: AgentSpec, snapshot_id: str, **fields: Any
) -> dict[str, Any]:
    job = mover_job(
        place, agent, "restore", snapshot=snapshot_id, delete_extra=True, **fields
    )
    return target.run_mover(agent, job, lambda _: None)


def test_it_says_what_it_is(place: Place, target: Target) -> None:
    info = target.inspect()
    again = place.open().inspect()

    assert info.name == target.name
    assert info.platform.startswith("linux/")
    assert info.identity == again.identity
    assert info.free_bytes is None or info.free_bytes > 0


def test_an_agent_that_was_never_here_is_absent(
    target: Target, agent: AgentSpec
) -> None:
    target.stop(agent)
    target.remove(agent)
    target.remove(agent, volumes=True)

    assert target.status(agent) == AgentStatus(phase="absent")


def test_the_same_image_has_the_same_identity(
    place: Place, target: Target, agent: AgentSpec
) -> None:
    image = target.ensure_image(agent)

    assert image == target.ensure_image(agent) == place.open().ensure_image(agent)


def test_a_launched_agent_runs_under_its_epoch_for_whoever_looks(
    place: Place, target: Target, agent: AgentSpec
) -> None:
    launch(target, agent, epoch=7)

    seen = ready(place.open(), agent)
    assert (seen.phase, seen.epoch) == ("running", 7)
    assert seen.image == target.ensure_image(agent)
    assert seen.volumes == ("state",)
    assert seen.started_at is not None
    assert abs(seen.started_at - time.time()) < 120


def test_launching_again_under_the_same_epoch_changes_nothing(
    place: Place, target: Target, agent: AgentSpec
) -> None:
    launch(target, agent)
    before = ready(target, agent)

    launch(place.open(), agent)

    assert ready(target, agent) == before


def test_launching_under_another_epoch_is_refused_and_changes_nothing(
    target: Target, agent: AgentSpec
) -> None:
    launch(target, agent, epoch=3)
    before = ready(target, agent)

    for epoch in (2, 4):
        with pytest.raises(Refused, match=agent.name):
            launch(target, agent, epoch=epoch)

    assert ready(target, agent) == before


def test_a_stopped_agent_is_gone_and_stopping_again_is_no_error(
    place: Place, target: Target, agent: AgentSpec
) -> None:
    launch(target, agent, epoch=5)
    address = ready(target, agent).addresses["http"]

    target.stop(agent)
    place.open().stop(agent)

    status = target.status(agent)
    assert (status.phase, status.epoch, status.healthy) == ("stopped", 5, None)
    assert status.volumes == ("state",)
    if place.real:
        host, port = address.split(":")
        with pytest.raises(OSError, match=r"refused|No route|timed out"):
            socket.create_connection((host, int(port)), timeout=60)


def test_a_stopped_agent_is_replaced_and_keeps_its_state(
    place: Place, target: Target, agent: AgentSpec
) -> None:
    launch(target, agent, epoch=1)
    if place.real:
        client(target, agent).say("before")
    target.stop(agent)

    launch(target, agent, epoch=2)

    assert ready(target, agent).epoch == 2
    if place.real:
        answer = client(target, agent).post("/message", {"text": "after"})
        assert (answer["sequence"], answer["epoch"]) == (2, 2)


def test_a_stop_lets_the_message_in_hand_be_finished(
    place: Place, target: Target, agent: AgentSpec
) -> None:
    launch(target, agent)
    if not place.real:
        return
    tally = client(target, agent)
    answers: list[Any] = []
    body = {"text": "slow", "delay_ms": 1500}
    slow = threading.Thread(target=lambda: answers.append(tally.post("/message", body)))
    slow.start()
    time.sleep(0.7)

    target.stop(agent)
    slow.join(30)

    assert answers[0]["sequence"] == 1


def test_a_running_agent_is_not_removed(target: Target, agent: AgentSpec) -> None:
    launch(target, agent)

    for volumes in (False, True):
        with pytest.raises(Refused, match=agent.name):
            target.remove(agent, volumes=volumes)

    assert ready(target, agent).volumes == ("state",)


def test_volumes_are_removed_only_when_asked(target: Target, agent: AgentSpec) -> None:
    launch(target, agent)
    target.stop(agent)

    target.remove(agent)
    kept = target.status(agent)
    target.remove(agent, volumes=True)
    gone = target.status(agent)

    assert kept == AgentStatus(phase="absent", volumes=("state",))
    assert gone == AgentStatus(phase="absent")


def test_a_snapshot_of_a_volume_that_is_not_here_names_it(
    place: Place, target: Target, agent: AgentSpec
) -> None:
    with pytest.raises(NotFound, match="state"):
        snapshot(place, target, agent)

    assert target.status(agent) == AgentStatus(phase="absent")


def test_a_restore_makes_the_volumes_and_the_agent_goes_on(
    place: Place, target: Target, agent: AgentSpec
) -> None:
    make_repository(place)
    launch(target, agent, epoch=1)
    if place.real:
        client(target, agent).say("before the move")
    target.stop(agent)
    taken = snapshot(place, target, agent)
    target.remove(agent, volumes=True)

    restored = restore(place, target, agent, taken["snapshot"])

    assert restored["verified"]
    assert restored["tree_digest"] == taken["tree_digest"]
    assert target.status(agent) == AgentStatus(phase="absent", volumes=("state",))
    launch(target, agent, epoch=2)
    if place.real:
        assert client(target, agent).say("after the move") == 2


def test_a_mover_that_fails_raises_what_it_said(
    place: Place, target: Target, agent: AgentSpec
) -> None:
    make_repository(place)

    with pytest.raises(NotFound):
        restore(place, target, agent, "0" * 64)


def test_a_secret_without_a_value_is_named(target: Target, agent: AgentSpec) -> None:
    with pytest.raises(SecretMissing, match="TALLY_TOKEN"):
        target.bind_secrets(agent, {})

    assert target.status(agent).phase == "absent"


def test_a_target_says_which_secrets_it_has_and_shows_no_value(
    target: Target, agent: AgentSpec
) -> None:
    assert isinstance(target, SecretKeeper)
    before = target.held_secrets(agent)
    marked = {"TALLY_TOKEN": SecretValue(TOKEN, mark="a-mark")}
    image = target.ensure_image(agent)
    target.bind_secrets(agent, marked)
    target.launch(agent, epoch=1, image=image, secrets=marked)
    ready(target, agent)

    running = target.held_secrets(agent)
    target.stop(agent)
    target.remove(agent)

    assert before == {}
    assert running == {"TALLY_TOKEN": "a-mark"}
    assert target.held_secrets(agent) == {}


def test_a_secret_that_should_be_on_the_target_is_missed(
    target: Target, agent: AgentSpec
) -> None:
    elsewhere = SecretRef(source="target", id="nobody-made-this")
    spec = agent.model_copy(update={"secrets": {"TALLY_TOKEN": elsewhere}})

    with pytest.raises(SecretMissing, match="TALLY_TOKEN"):
        target.bind_secrets(spec, {})


def test_a_port_in_use_is_a_clear_error_and_nothing_runs(
    place: Place, target: Target, agent: AgentSpec
) -> None:
    if not (place.real and place.publishes):
        return
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        port = agent.ports[0].model_copy(update={"publish": number})
        spec = agent.model_copy(update={"ports": [port]})

        with pytest.raises(LobsterTrapError, match=str(number)):
            launch(target, spec)

    assert target.status(spec).phase != "running"


def test_the_log_has_what_the_agent_printed(
    place: Place, target: Target, agent: AgentSpec
) -> None:
    assert isinstance(target, LogSource)
    launch(target, agent, epoch=9)
    ready(target, agent)

    lines: list[str] = []
    for _ in range(100):
        if lines := list(target.logs(agent)):
            break
        time.sleep(0.05)  # it is on its way through a pipe
    last = list(target.logs(agent, lines=1))

    assert any("epoch 9" in line for line in lines)
    assert last == lines[-1:]


def test_a_launch_that_comes_too_late_is_refused_even_after_a_removal(
    place: Place, target: Target, agent: AgentSpec
) -> None:
    if not isinstance(target, Fence):
        return
    assert target.fence(agent, epoch=4, turn=1) == (4, 1)
    assert target.fence(agent, epoch=2, turn=3) == (4, 3)
    target.remove(agent, volumes=True)

    for epoch in (1, 4):
        with pytest.raises(Refused, match=agent.name):
            launch(place.open(), agent, epoch=epoch)
    assert target.status(agent).phase == "absent"

    launch(target, agent, epoch=5)
    assert target.fence(agent, epoch=5, turn=1) == (5, 3)
    assert ready(target, agent).epoch == 5


def test_a_mover_that_comes_too_late_is_refused(
    place: Place, target: Target, agent: AgentSpec
) -> None:
    if not isinstance(target, Fence):
        return
    make_repository(place)
    launch(target, agent, epoch=1)
    target.stop(agent)
    taken = snapshot(place, target, agent)["snapshot"]
    target.fence(agent, epoch=1, turn=3)

    with pytest.raises(Refused, match=agent.name):
        restore(place, target, agent, taken, turn=2)
    with pytest.raises(Refused, match=agent.name):
        snapshot(place, target, agent, turn=2)

    assert snapshot(place, target, agent, turn=3)["snapshot"]
    assert restore(place, target, agent, taken, turn=3)["verified"]
    assert restore(place, target, agent, taken)["verified"]
