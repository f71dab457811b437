"""Taking an agent over from a home that is gone: what is refused, and what holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lobstertrap import lifecycle, migration, takeover
from lobstertrap.agent import AgentSpec
from lobstertrap.errors import InvalidInput, NotFound, Refused, Unavailable
from lobstertrap.lease import Adopted, Journal, hold
from lobstertrap.lifecycle import AgentHandle
from lobstertrap.stores.memory import MemoryStore
from lobstertrap.targets.fake import FakeTarget, World

AGENT = AgentSpec.model_validate(
    {
        "name": "crab",
        "image": "none",
        "volumes": [{"name": "state", "path": "/state"}],
    }
)
SNAPSHOT = "5" * 32
AWAY = Unavailable("target 'laptop' does not answer")


@pytest.fixture
def targets(tmp_path: Path) -> dict[str, FakeTarget]:
    world = World()
    return {n: FakeTarget(n, tmp_path / n, world=world) for n in ("laptop", "server")}


@pytest.fixture
def handle(targets: dict[str, FakeTarget]) -> Iterator[AgentHandle]:
    with hold(MemoryStore(), "crab", "test") as lease:
        made = AgentHandle(
            spec=AGENT,
            lease=lease,
            target=targets.__getitem__,
            secrets=dict,
            mover_request=dict,
        )
        lifecycle.launch(made, "laptop")
        yield made


def lose(target: FakeTarget) -> None:
    for method in ("status", "fence", "stop", "inspect"):
        target.fail_on(method, AWAY, times=100)


def journal(**changes: object) -> Journal:
    open_one = Journal(
        id="1",
        source="laptop",
        destination="server",
        step="cutover",
        was_running=True,
        started=0,
    )
    return replace(open_one, **changes)


def test_a_home_that_is_gone_loses_the_agent_and_the_epoch_rises(handle, targets):
    lose(targets["laptop"])

    chosen = takeover.take_over(handle, "server", SNAPSHOT)

    record = handle.record()
    assert chosen == record.restoring == record.snapshot == SNAPSHOT
    assert (record.target, record.epoch, record.state) == ("server", 2, "running")


def test_nothing_is_launched_before_the_restore_is_finished(handle, targets):
    lose(targets["laptop"])
    takeover.take_over(handle, "server", SNAPSHOT)

    with pytest.raises(Refused, match="unfinished"):
        lifecycle.resume(handle, "server")


def test_a_killed_takeover_goes_on_with_its_own_snapshot(handle, targets):
    lose(targets["laptop"])
    takeover.take_over(handle, "server", SNAPSHOT)

    assert takeover.take_over(handle, "server", "6" * 32) == SNAPSHOT
    assert lifecycle.prepare_restore(handle, "server", "6" * 32) == SNAPSHOT
    assert handle.record().epoch == 2


def test_a_home_where_it_runs_is_not_gone(handle, targets):
    with pytest.raises(Refused, match="nothing is gone"):
        takeover.take_over(handle, "server", SNAPSHOT)

    assert handle.record().target == "laptop"


def test_a_home_that_answers_is_fenced_off(handle, targets):
    targets["laptop"].stop(AGENT)

    takeover.take_over(handle, "server", SNAPSHOT)

    with pytest.raises(Refused, match="fenced off"):
        targets["laptop"].launch(AGENT, epoch=1, image="none", secrets={})


def test_the_same_home_needs_no_takeover(handle, targets):
    with pytest.raises(InvalidInput, match="lives on 'laptop' already"):
        takeover.take_over(handle, "laptop", SNAPSHOT)


def test_an_agent_without_a_home_needs_no_takeover(handle, targets):
    handle.lease.update(lambda now: replace(now, target=None))

    with pytest.raises(NotFound, match="no home"):
        takeover.take_over(handle, "server", SNAPSHOT)


def test_a_destination_that_does_not_answer_changes_nothing(handle, targets):
    lose(targets["laptop"])
    targets["server"].fail_on("fence", AWAY)

    with pytest.raises(Unavailable):
        takeover.take_over(handle, "server", SNAPSHOT)

    assert handle.record().target == "laptop"


def test_a_migration_that_was_open_is_closed(handle, targets):
    handle.lease.update(lambda now: replace(now, migration=journal()))
    lose(targets["laptop"])

    takeover.take_over(handle, "server", SNAPSHOT)

    assert handle.record().migration is None


def test_the_destination_of_a_migration_that_was_open_is_fenced_off(
    handle, targets, tmp_path
):
    attic = targets["attic"] = FakeTarget("attic", tmp_path / "attic", world=World())
    open_one = journal(destination="attic")
    handle.lease.update(lambda now: replace(now, migration=open_one))
    lose(targets["laptop"])
    lose(attic)

    with pytest.raises(Unavailable):
        takeover.take_over(handle, "server", SNAPSHOT)
    assert handle.record().migration == open_one

    attic.place.failures.clear()
    takeover.take_over(handle, "server", SNAPSHOT)
    with pytest.raises(Refused, match="fenced off"):
        attic.launch(AGENT, epoch=1, image="none", secrets={})


def test_a_migration_that_may_have_launched_is_finished_instead(handle, targets):
    open_one = journal(step="launching", launched=True)
    handle.lease.update(lambda now: replace(now, migration=open_one))
    lose(targets["laptop"])

    with pytest.raises(Refused, match="newer than any snapshot"):
        takeover.take_over(handle, "server", SNAPSHOT)


def test_a_home_that_returns_is_refused_everything(handle, targets):
    laptop = targets["laptop"]
    lose(laptop)
    takeover.take_over(handle, "server", SNAPSHOT)
    lifecycle.finish_restore(handle)
    laptop.place.failures.clear()

    assert laptop.status(AGENT).epoch == 1 < handle.record().epoch
    with pytest.raises(Refused, match="lives on 'server'"):
        lifecycle.launch(handle, "laptop")
    targets["server"].volume(AGENT, "state").mkdir(parents=True)
    with pytest.raises(Refused, match="already runs on 'laptop'"):
        migration.plan(handle, "laptop")


def returned(handle: AgentHandle, laptop: FakeTarget) -> None:
    lose(laptop)
    takeover.take_over(handle, "server", SNAPSHOT)
    lifecycle.finish_restore(handle)
    laptop.place.failures.clear()


def test_a_copy_that_returns_is_stopped_for_good(handle, targets):
    returned(handle, targets["laptop"])

    assert takeover.stop_old_copy(handle, "laptop") == 1

    assert targets["laptop"].status(AGENT).phase == "stopped"
    with pytest.raises(Refused, match="epoch"):  # whoever comes late is refused
        targets["laptop"].launch(AGENT, epoch=1, image="none", secrets={})
    assert takeover.stop_old_copy(handle, "laptop") is None


@pytest.mark.parametrize(
    "why",
    [
        "it is the home",
        "a migration is open",
        "it was adopted",
        "it is another's",
        "taken elsewhere",
    ],
)
def test_no_copy_is_stopped_that_may_be_the_agent(why, handle, targets):
    returned(handle, targets["laptop"])
    original = Adopted(target="laptop", original="the container x", sources={})
    handle.lease.update(
        lambda now: {
            "it is the home": replace(now, target="laptop"),
            "a migration is open": replace(now, migration=journal()),
            "it was adopted": replace(now, adopted=original),
            "taken elsewhere": replace(
                now, moves=(replace(now.moves[-1], source="desk"),)
            ),
            "it is another's": replace(now, moves=()),  # of this name, by its own store
        }[why]
    )

    assert takeover.stop_old_copy(handle, "laptop") is None

    assert targets["laptop"].status(AGENT).phase == "running"


def test_a_copy_under_the_agents_own_epoch_is_not_taken_for_one_of_before(
    handle, targets
):
    handle.lease.update(lambda now: replace(now, target="server"))
    assert targets["laptop"].status(AGENT).epoch == handle.record().epoch

    assert takeover.stop_old_copy(handle, "laptop") is None

    assert targets["laptop"].status(AGENT).phase == "running"
