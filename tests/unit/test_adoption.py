"""A switch struck at every effect: never two copies, and never a lost message."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest

from lobstertrap import adopt, lifecycle, takeover, whereabouts
from lobstertrap.errors import LobsterTrapError, NotFound, Refused, Unavailable
from lobstertrap.job import MoverJob
from lobstertrap.lease import Adopted
from lobstertrap.lifecycle import AgentHandle
from lobstertrap.targets.base import Target
from tests.chaos.parts import Fault, FencedTarget, Killed, Process
from tests.chaos.world import AGENT, Message, Volume, World

FOUND = adopt.Found(
    original="elder",
    made_by="somebody",
    name="ada",
    running=True,
    mounts=(adopt.Mount(path="/state", source="elder-data"),),
    image="ada@sha256:" + "0" * 64,
)
DRAFT = adopt.Draft(
    spec=AGENT, secrets={}, sources={"state": "elder-data"}, warnings=()
)


@dataclass
class Elder:
    """The original: a container of somebody else, with a volume of its own."""

    running: bool = True
    exists: bool = True
    messages: tuple[Message, ...] = ((0, 0),)


@dataclass
class Beside(World):
    """A world in which an original writes, too; its promises are its own."""

    elder: Elder = field(default_factory=Elder)

    def turn(self) -> None:
        """Let what runs write; two at once must never be."""
        place = self.places["laptop"]
        if self.elder.running and place.running:
            self.break_promise("the original and the agent run")
        self.written += 1
        if self.elder.running:
            self.elder.messages += ((0, self.written),)
        volume, record = place.volume, self.record()
        if volume and volume.messages[: len(self.kept)] != self.kept:
            self.break_promise("what the agent said in its own place is lost")
        if volume and record and record.adopted and record.adopted.step == "retiring":
            self.kept = volume.messages
        if place.running and place.volume and place.instance:
            if place.volume.torn:
                self.break_promise("it runs on a half-restored volume")
            place.volume.messages += ((place.instance.epoch, self.written),)


class Reader(FencedTarget):
    """A target whose mover reads the original's volume when it is told to."""

    __slots__ = ()

    def _snapshot(self, job: MoverJob) -> dict[str, Any]:
        world = self.process.world
        if not job.sources:
            return super()._snapshot(job)
        assert job.sources == {"state": "elder-data"}
        if job.request["consistency"] == "stopped" and world.elder.running:
            world.break_promise("the original runs during the last snapshot")
        before = self.place.volume
        self.place.volume = Volume(messages=world.elder.messages)
        try:
            return super()._snapshot(job)
        finally:
            self.place.volume = before


@dataclass(frozen=True)
class Elders:
    """What looks after the original, as one process reaches it."""

    process: Process

    @property
    def elder(self) -> Elder:
        """The original itself."""
        return self.process.world.elder

    def _do(self, what: str, act: Callable[[], Any]) -> Any:
        return self.process.effect(f"elder.{what}", act)

    def find(self) -> list[adopt.Found]:
        """Find it."""
        return [FOUND]

    def keep_secret(self, found, *, env, secret, value) -> None:
        """There are none."""

    def confirm(self, adopted: Adopted) -> None:
        """It is what the record says."""

    def users(self, adopted: Adopted) -> list[str]:
        """Say whether it runs."""
        return self._do("users", lambda: ["elder"] if self.elder.running else [])

    def has_state(self, adopted: Adopted) -> bool:
        """Its volume is never removed."""
        return True

    def refuse_lasting(self, adopted: Adopted) -> None:
        """Nothing starts it again."""

    def stop(self, adopted: Adopted, *, seconds: float) -> None:
        """Stop it."""
        self._do("stop", lambda: setattr(self.elder, "running", False))

    def start(self, adopted: Adopted) -> None:
        """Start it."""

        def start() -> None:
            if not self.elder.exists:
                raise NotFound("the original is gone")
            self.elder.running = True

        self._do("start", start)

    def retire(self, adopted: Adopted) -> None:
        """Remove it; a running one is not."""

        def retire() -> None:
            assert not self.elder.running
            self.elder.exists = False

        self._do("retire", retire)


class Adopter(Process):
    """A process that adopts."""

    def handle(self, operation: str) -> AgentHandle:
        """Return what the domain's functions act through."""
        from dataclasses import replace  # noqa: PLC0415 - one use

        def target(name: str) -> Target:
            return Reader(self, self.world.places[name])

        return replace(super().handle(operation), target=target)


def act(world: Beside, what: str, **faults: Any) -> Adopter:
    """Run one command in a process of its own."""
    process = Adopter(world, **faults)
    handle = process.handle(process.acquire(what).operation_id)
    elders = Elders(process)
    if what == "begin":
        adopt.begin(handle, elders, FOUND, DRAFT, target="laptop")
    else:
        getattr(adopt, what)(handle, elders)
    handle.lease.release()
    return process


def adopted(**elder: Any) -> Beside:
    world = Beside(places=World.of("laptop", "server").places, elder=Elder(**elder))
    act(world, "begin")
    return world


def assert_switched(world: Beside) -> None:
    record, place = world.record(), world.places["laptop"]
    assert world.violations == []
    assert record.adopted is None
    assert (world.elder.running, world.elder.exists) == (False, False)
    assert place.running
    assert place.instance.epoch == record.epoch
    said = world.elder.messages
    assert place.volume.messages[: len(said)] == said


def assert_untouched(world: Beside) -> None:
    record, place = world.record(), world.places["laptop"]
    assert world.violations == []
    assert record.adopted.step == "kept"
    assert (world.elder.running, world.elder.exists) == (True, True)
    assert not place.running
    assert record.state == "stopped"


@cache
def effects() -> tuple[str, ...]:
    """Return every effect of a switch that nothing disturbs."""
    return tuple(act(adopted(), "switch").effects)


def test_the_agent_takes_the_place_of_the_original_with_all_that_it_said():
    world = adopted()

    act(world, "switch")

    assert_switched(world)
    assert "elder.stop" in effects()
    assert "elder.retire" in effects()


def test_an_original_that_was_stopped_is_replaced_by_a_stopped_agent():
    world = adopted(running=False)

    act(world, "switch")

    assert not world.places["laptop"].running
    assert world.places["laptop"].volume.messages == world.elder.messages
    assert world.record().state == "stopped"


@pytest.mark.parametrize("then", ["switch", "abort"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_switch_killed_at_any_effect_is_finished_or_undone(when, then):
    for number in range(len(effects())):
        world = adopted()
        with pytest.raises(Killed):
            act(world, "switch", faults={number: Fault(when, Killed)})
        record = world.record()
        if record.adopted is None:  # it was done already
            assert world.violations == []
            continue
        if then == "abort" and record.adopted.step == "retiring":
            with pytest.raises(Refused, match="has taken the place"):
                act(world, "abort")
            continue
        act(world, then)
        (assert_switched if then == "switch" else assert_untouched)(world)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_switch_that_fails_at_any_effect_leaves_one_of_the_two_running(when):
    for number in range(len(effects())):
        world = adopted()
        try:
            act(world, "switch", faults={number: Fault(when, Unavailable)})
        except LobsterTrapError:
            record = world.record()
            assert world.violations == []
            step = record.adopted.step if record.adopted else None
            copies = [world.elder.running, world.places["laptop"].running]
            if step == "kept":
                assert copies == [True, False], effects()[number]
            elif step == "retiring":
                assert copies == [False, True], effects()[number]
            act(world, "switch") if record.adopted else None
        assert_switched(world)


def test_an_agent_that_does_not_become_healthy_gives_the_place_back():
    world = adopted()
    world.places["laptop"].healthy = False

    with pytest.raises(LobsterTrapError, match="not ready"):
        act(world, "switch")

    assert_untouched(world)
    world.places["laptop"].healthy = True
    act(world, "switch")
    assert_switched(world)


def test_nothing_else_launches_an_adopted_agent():
    world = adopted()
    process = Adopter(world)
    handle = process.handle(process.acquire("test").operation_id)

    for attempt in (
        lambda: lifecycle.launch(handle, "laptop"),
        lambda: lifecycle.start(handle, "laptop", image="ada:1"),
        lambda: lifecycle.resume(handle, "laptop"),
        lambda: lifecycle.prepare_restore(handle, "laptop", "any"),
        lambda: takeover.take_over(handle, "server", "any"),
    ):
        with pytest.raises(Refused, match="elder on 'laptop', still has its place"):
            attempt()


def test_what_is_gone_with_its_target_can_be_taken_over():
    world = adopted()
    process = Adopter(world)
    handle = process.handle(process.acquire("test").operation_id)

    class Silent(Reader):
        __slots__ = ()

        def status(self, agent: Any) -> Any:
            raise Unavailable("nobody answers")

    def target(name: str) -> Target:
        kind = Silent if name == "laptop" else Reader
        return kind(process, world.places[name])

    from dataclasses import replace  # noqa: PLC0415 - one use

    snapshot = world.record().snapshot
    takeover.take_over(replace(handle, target=target), "server", snapshot)

    assert world.record().adopted is None
    assert world.record().target == "server"


def test_an_agent_of_ours_is_not_overwritten_by_an_adopted_one():
    world = Beside(places=World.of("laptop").places)
    process = Adopter(world)
    handle = process.handle(process.acquire("test").operation_id)
    world.elder.running = False
    lifecycle.launch(handle, "laptop")
    handle.lease.release()

    with pytest.raises(Refused, match="'ada' is there already and lives on 'laptop'"):
        act(world, "begin")


def test_the_record_of_an_adopted_agent_survives_being_stored():
    record = adopted().record()

    again = type(record).from_json(record.to_json())

    assert again == record
    assert again.adopted.sources == {"state": "elder-data"}


def test_the_status_says_that_the_original_has_the_place():
    record = adopted().record()

    assert [*whereabouts._operations(record)] == [
        "its original, elder, still has its place"
    ]
