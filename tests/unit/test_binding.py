"""What targets hold of an agent's secrets, and their rotation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lobstertrap import lifecycle
from lobstertrap.agent import AgentSpec
from lobstertrap.binding import rotate, survey
from lobstertrap.errors import InvalidInput, SecretMissing, Unavailable
from lobstertrap.lease import hold, read_record
from lobstertrap.lifecycle import AgentHandle
from lobstertrap.redaction import SecretValue
from lobstertrap.repository.crypto import Keys
from lobstertrap.secrets import Lookup
from lobstertrap.stores.memory import MemoryStore
from lobstertrap.targets.base import AgentStatus
from lobstertrap.targets.fake import FakeTarget, World
from lobstertrap.targets.host import HostTarget

KEYS = Keys.from_master(b"m" * 32)
SPEC = AgentSpec.model_validate(
    {
        "name": "ada",
        "image": "x",
        "volumes": [{"name": "state", "path": "/state"}],
        "secrets": {
            "TOKEN": "${TOKEN}",
            "OTHER": {"source": "exec", "provider": "vault", "id": "other"},
        },
    }
)


def values(**plain: str) -> dict[str, SecretValue]:
    return {
        name: SecretValue(value, mark=KEYS.secret_mark("ada", name, value))
        for name, value in plain.items()
    }


class Place:
    """Two fakes, a store and the values that the references have now."""

    def __init__(self, root: Path) -> None:
        self.world = World()
        self.laptop = FakeTarget("laptop", root / "laptop", world=self.world)
        self.server = FakeTarget("server", root / "server", world=self.world)
        self.store = MemoryStore()
        self.now = values(TOKEN="one", OTHER="two")

    def run(self, work: Callable[[AgentHandle], AgentStatus]) -> AgentStatus:
        """Do `work` under a lease."""
        with hold(self.store, "ada", "test") as lease:
            handle = AgentHandle(
                spec=SPEC,
                lease=lease,
                target=lambda name: getattr(self, name),
                secrets=lambda: self.now,
                mover_request=dict,
                sleep=lambda _: None,
            )
            return work(handle)

    def states(self, **problems: str) -> dict[str, dict[str, str]]:
        """Return what a survey says, without the values that have problems."""
        known = {n: v for n, v in self.now.items() if n not in problems}
        rows = survey(
            SPEC,
            Lookup(values=known, problems=problems),
            read_record(self.store, "ada"),
            {name: lambda n=name: getattr(self, n) for name in ("laptop", "server")},
        )
        return {row.name: dict(row.on) for row in rows}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_before_its_launch_nothing_of_an_agent_is_anywhere(place: Place) -> None:
    nowhere = {"laptop": "not bound", "server": "not bound"}

    assert place.states() == {"TOKEN": nowhere, "OTHER": nowhere}


def test_what_was_launched_is_compared_with_what_the_references_say_now(
    place: Place,
) -> None:
    place.run(lambda handle: lifecycle.launch(handle, "laptop"))
    before = place.states()
    place.now = values(TOKEN="changed", OTHER="two")

    assert {n: on["laptop"] for n, on in before.items()} == {
        "TOKEN": "present",
        "OTHER": "present",
    }
    assert place.states() == {
        "TOKEN": {"laptop": "differs", "server": "not bound"},
        "OTHER": {"laptop": "present", "server": "not bound"},
    }
    assert place.states(TOKEN="gone")["TOKEN"]["laptop"] == "not compared"


def test_a_secret_that_is_gone_where_the_agent_runs_is_missing(place: Place) -> None:
    place.run(lambda handle: lifecycle.launch(handle, "laptop"))
    place.laptop.place.secrets["ada"].pop("TOKEN")
    place.server.fail_on("held_secrets", Unavailable("no answer"))

    assert place.states()["TOKEN"] == {"laptop": "missing", "server": "unreachable"}


def test_rotation_restarts_the_agent_with_the_new_values(place: Place) -> None:
    first = place.run(lambda handle: lifecycle.launch(handle, "laptop"))
    place.now = values(TOKEN="changed", OTHER="two")

    second = place.run(rotate)

    assert (first.epoch, second.epoch) == (1, 2)
    assert second.phase == "running"
    assert {on["laptop"] for on in place.states().values()} == {"present"}
    assert place.world.running("ada") == [2]


def test_a_rotation_that_cannot_resolve_touches_nothing(place: Place) -> None:
    place.run(lambda handle: lifecycle.launch(handle, "laptop"))

    def no_value() -> dict[str, SecretValue]:
        raise SecretMissing("secret TOKEN: the variable TOKEN is not set")

    def rotate_without(handle: AgentHandle) -> AgentStatus:
        return rotate(lifecycle.replace(handle, secrets=no_value))

    with pytest.raises(SecretMissing):
        place.run(rotate_without)

    assert place.world.running("ada") == [1]


def test_a_rotation_asks_for_the_values_once(place: Place) -> None:
    place.run(lambda handle: lifecycle.launch(handle, "laptop"))
    asked = []

    def answer() -> dict[str, SecretValue]:
        asked.append(1)
        return place.now

    place.run(lambda handle: rotate(lifecycle.replace(handle, secrets=answer)))

    assert len(asked) == 1


@pytest.mark.parametrize("when", ["bind_secrets", "after:bind_secrets", "launch"])
def test_a_rotation_that_dies_on_the_way_is_finished_by_the_next(
    place: Place, when: str
) -> None:
    place.run(lambda handle: lifecycle.launch(handle, "laptop"))
    place.now = values(TOKEN="changed", OTHER="two")
    place.laptop.fail_on(when, KeyboardInterrupt())  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        place.run(rotate)
    status = place.run(rotate)

    assert status.phase == "running"
    assert {on["laptop"] for on in place.states().values()} == {"present"}


def test_a_stopped_agent_is_bound_anew_and_stays_stopped(place: Place) -> None:
    place.run(lambda handle: lifecycle.launch(handle, "laptop"))
    place.run(lambda handle: lifecycle.stop(handle, "laptop"))  # type: ignore[arg-type,func-returns-value]
    place.now = values(TOKEN="changed", OTHER="two")

    status = place.run(rotate)

    assert status.phase == "stopped"
    assert place.states()["TOKEN"]["laptop"] == "present"


def test_an_agent_that_is_removed_leaves_no_secret(place: Place) -> None:
    place.run(lambda handle: lifecycle.launch(handle, "laptop"))
    place.run(lambda handle: lifecycle.stop(handle, "laptop"))  # type: ignore[arg-type,func-returns-value]

    place.laptop.remove(SPEC)

    assert place.laptop.held_secrets(SPEC) == {}


def test_marks_tell_values_apart_and_nothing_else() -> None:
    mark = KEYS.secret_mark
    others = {
        mark("ada", "TOKEN", "two"),
        mark("bob", "TOKEN", "one"),
        mark("ada", "OTHER", "one"),
        Keys.from_master(b"n" * 32).secret_mark("ada", "TOKEN", "one"),
    }

    assert mark("ada", "TOKEN", "one") == mark("ada", "TOKEN", "one")
    assert len(others) == 4
    assert mark("ada", "TOKEN", "one") not in others


def test_a_host_has_no_place_for_secrets_that_are_files(tmp_path: Path) -> None:
    spec = AgentSpec.model_validate(
        {
            **SPEC.model_dump(exclude_defaults=True),
            "secret_files": {"TOKEN": "/run/secrets/token"},
        }
    )

    with pytest.raises(InvalidInput, match="no place for secret_files"):
        HostTarget("here", tmp_path).bind_secrets(spec, values(TOKEN="1", OTHER="2"))
