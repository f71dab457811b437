"""Snapshots of an agent that is held still: it goes on whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lobstertrap import consistency, lifecycle
from lobstertrap.agent import AgentSpec
from lobstertrap.errors import NotFound, Refused, TimedOut, Unavailable
from lobstertrap.lease import hold
from lobstertrap.lifecycle import AgentHandle
from lobstertrap.stores.memory import MemoryStore
from lobstertrap.targets.base import CommandRunner, Freezer
from lobstertrap.targets.fake import FakeTarget
from lobstertrap.targets.host import HostTarget
from lobstertrap.targets.host_instance import Instance

SPEC = {
    "name": "crab",
    "image": "none",
    "volumes": [{"name": "state", "path": "/state"}],
}
HOOKS = {"mode": "hook", "before": ["sync"], "after": ["go", "on"], "timeout": "5s"}
RESULT = {"snapshot": "1" * 32}


class Mover:
    """Says what was frozen while it ran, and does what a test wants then."""

    def __init__(self) -> None:
        self.saw: list[bool] = []
        self.target: FakeTarget | None = None
        self.meanwhile: Any = lambda: None

    def run(self, request: str, on_progress: object) -> dict[str, Any]:
        """Answer one request."""
        assert self.target is not None
        self.saw.append("crab" in self.target.place.frozen)
        self.meanwhile()
        return RESULT


@pytest.fixture
def mover() -> Mover:
    return Mover()


@pytest.fixture
def target(tmp_path: Path, mover: Mover) -> FakeTarget:
    mover.target = FakeTarget("laptop", tmp_path / "laptop", mover=mover.run)
    return mover.target


def handle_of(spec: dict[str, Any], target: Any, lease: Any) -> AgentHandle:
    return AgentHandle(
        spec=AgentSpec.model_validate(spec),
        lease=lease,
        target=lambda _: target,
        secrets=dict,
        mover_request=dict,
    )


@pytest.fixture
def handle(target: FakeTarget) -> Iterator[AgentHandle]:
    with hold(MemoryStore(), "crab", "test") as lease:
        made = handle_of(SPEC, target, lease)
        lifecycle.launch(made, "laptop")
        yield made


@pytest.fixture
def hooked(target: FakeTarget) -> Iterator[AgentHandle]:
    with hold(MemoryStore(), "crab", "test") as lease:
        made = handle_of({**SPEC, "snapshot": HOOKS}, target, lease)
        lifecycle.launch(made, "laptop")
        yield made


def test_it_is_frozen_while_the_mover_reads_and_goes_on_afterwards(
    handle, target, mover
) -> None:
    consistency.snapshot_frozen(handle, "laptop")

    assert mover.saw == [True]
    assert not target.place.frozen
    assert handle.record().snapshot == RESULT["snapshot"]


def test_it_goes_on_when_the_mover_fails(handle, target, mover) -> None:
    def fail() -> None:
        raise Unavailable("the store is away")

    mover.meanwhile = fail

    with pytest.raises(Unavailable):
        consistency.snapshot_frozen(handle, "laptop")

    assert not target.place.frozen
    assert handle.record().snapshot is None


def test_it_goes_on_when_the_answer_to_the_freeze_is_lost(handle, target) -> None:
    target.fail_on("after:freeze", Unavailable("lost"))

    with pytest.raises(Unavailable):
        consistency.snapshot_frozen(handle, "laptop")

    assert not target.place.frozen


def test_a_snapshot_of_one_that_went_on_too_early_does_not_count(
    handle, target, mover
) -> None:
    mover.meanwhile = target.place.frozen.clear

    with pytest.raises(TimedOut, match="went on before"):
        consistency.snapshot_frozen(handle, "laptop")

    assert handle.record().snapshot is None


def test_one_that_a_killed_snapshot_left_frozen_is_thawed_by_the_next_operation(
    handle, target
) -> None:
    target.place.frozen.add("crab")

    lifecycle.resume(handle, "laptop")

    assert not target.place.frozen


def test_hooks_run_around_the_snapshot(hooked, target, mover) -> None:
    consistency.snapshot_hooked(hooked, "laptop")

    assert target.place.commands == [["go", "on"], ["sync"], ["go", "on"]]
    assert mover.saw == [False]


def test_the_after_command_is_run_when_the_snapshot_fails(
    hooked, target, mover
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    mover.meanwhile = interrupt
    with pytest.raises(KeyboardInterrupt):
        consistency.snapshot_hooked(hooked, "laptop")

    assert target.place.commands[-1] == ["go", "on"]


def test_a_before_command_that_fails_ends_the_snapshot_and_after_is_run(
    target,
) -> None:
    rule = {**HOOKS, "before": ["false"]}
    with hold(MemoryStore(), "crab", "test") as lease:
        handle = handle_of({**SPEC, "snapshot": rule}, target, lease)
        lifecycle.launch(handle, "laptop")

        with pytest.raises(Refused, match="false ended with status 1"):
            consistency.snapshot_hooked(handle, "laptop")

    assert target.place.commands[-1] == ["go", "on"]


def test_the_mode_is_the_specs_unless_another_is_asked_for(hooked) -> None:
    assert consistency.choose_mode(hooked, None) == "hook"
    assert consistency.choose_mode(hooked, "live") == "live"


def test_without_a_choice_it_is_stopped_and_hooks_have_to_be_written(handle) -> None:
    assert consistency.choose_mode(handle, None) == "stop"
    with pytest.raises(Refused, match="no commands"):
        consistency.choose_mode(handle, "hook")


@pytest.mark.parametrize(
    "rule", [{"mode": "hook"}, {"before": ["sync"]}, {"after": ["sync"]}]
)
def test_hooks_and_their_mode_go_together(rule) -> None:
    with pytest.raises(ValueError, match="before"):
        AgentSpec.model_validate({**SPEC, "snapshot": rule})


# A real process on a host.

COUNT = """
import os, time
from pathlib import Path
if not os.fork():
    os.setsid()  # a child that has left its group is frozen as well
    name = "child"
else:
    name = "parent"
file = Path(os.environ["STATE"]) / name
number = 0
while True:
    number += 1
    file.write_text(str(number))
    time.sleep(0.005)
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[tuple[HostTarget, AgentSpec]]:
    spec = AgentSpec.model_validate(
        {
            **SPEC,
            "host": {"command": [sys.executable, "-c", COUNT]},
            "env": {"STATE": "{volumes.state}"},
            "snapshot": {"mode": "freeze", "timeout": "2s"},
            "stop_timeout": "2s",
        }
    )
    target = HostTarget("laptop", tmp_path / "laptop")
    target.launch(spec, epoch=1, image="none", secrets={})
    yield target, spec
    target.stop(spec)


def counters(target: HostTarget, spec: AgentSpec) -> list[str]:
    root = target._root / spec.name / "volumes" / "state"
    return [file.read_text() for file in sorted(root.iterdir())]


def wait_until_counting(target: HostTarget, spec: AgentSpec) -> None:
    before, deadline = counters(target, spec), time.monotonic() + 120
    while len(before) < 2 or any(map(str.__eq__, before, counters(target, spec))):
        assert time.monotonic() < deadline, "it does not go on"
        time.sleep(0.05)
        before = before if len(before) == 2 else counters(target, spec)


def test_a_target_of_processes_freezes_all_of_them(host) -> None:
    target, spec = host
    wait_until_counting(target, spec)

    target.freeze(spec)
    before = counters(target, spec)
    time.sleep(0.2)

    assert counters(target, spec) == before
    assert target.thaw(spec)
    assert not target.thaw(spec)
    wait_until_counting(target, spec)


def test_frozen_processes_go_on_by_themselves_when_nobody_thaws_them(host) -> None:
    target, spec = host
    wait_until_counting(target, spec)

    target.freeze(spec)

    wait_until_counting(target, spec)
    target.thaw(spec)  # its note of it comes a moment after the processes go on
    assert not target.thaw(spec)


def test_a_frozen_agent_can_be_stopped(host) -> None:
    target, spec = host
    target.freeze(spec)

    target.stop(spec)

    assert target.status(spec).phase == "stopped"


def test_a_frozen_agent_whose_supervisor_is_killed_is_gone(host) -> None:
    target, spec = host
    target.freeze(spec)
    state = Instance(directory=target._root / spec.name).state()
    assert state is not None
    os.kill(state["supervisor_pid"], signal.SIGKILL)

    target.stop(spec)

    assert target.status(spec).phase == "stopped"


def test_nothing_is_frozen_where_nothing_runs(host) -> None:
    target, spec = host
    target.stop(spec)

    with pytest.raises(NotFound, match="does not run"):
        target.freeze(spec)
    assert not target.thaw(spec)


def test_a_command_is_run_beside_the_agent(host) -> None:
    target, spec = host

    status, said = target.run_command(
        spec, ["sh", "-c", "echo $STATE; exit 3"], seconds=5
    )

    assert (status, said.strip()) == (3, str(target._root / "crab/volumes/state"))
    with pytest.raises(TimedOut):
        target.run_command(spec, ["sleep", "60"], seconds=0.2)


def test_targets_say_what_they_can(host, target) -> None:
    for one in (host[0], target):
        assert isinstance(one, Freezer)
        assert isinstance(one, CommandRunner)


KILLED = """
import os, signal, sys
from pathlib import Path
from lobstertrap.agent import AgentSpec
from lobstertrap.targets.host import HostTarget
spec = AgentSpec.model_validate_json(sys.argv[2])
HostTarget("laptop", Path(sys.argv[1])).freeze(spec)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_snapshot_leaves_nothing_frozen(host) -> None:
    target, spec = host
    wait_until_counting(target, spec)
    text = spec.model_dump_json(exclude_none=True)
    command = [sys.executable, "-c", KILLED, str(target._root), text]

    done = subprocess.run(command, check=False, capture_output=True, text=True)

    assert done.returncode == -signal.SIGKILL, done.stderr
    wait_until_counting(target, spec)
