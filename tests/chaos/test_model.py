"""Two operators, crashes, lost leases, and requests that fail, repeat or come late.

Hypothesis decides who does what next; the flows' own code runs. After every effect the
world looks at the promises, and at the end the same command is run again in peace.
"""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from lobstertrap.errors import Refused, Unavailable
from tests.chaos import commands
from tests.chaos.operators import Operator, operators
from tests.chaos.parts import Fault, Process
from tests.chaos.world import World

TARGETS = ("laptop", "server")
WHO = st.sampled_from([0, 1])
FAULTS = st.builds(
    Fault,
    st.sampled_from(["before", "during", "after", "twice", "late"]),
    st.sampled_from([Unavailable, Refused, KeyboardInterrupt]),
)
"""What the network, a store, a target or a person does to a request."""


def restore_newest(process: Process) -> None:
    """Restore the newest snapshot where the agent lives."""
    record, snapshots = process.world.record(), process.world.snapshots
    if record and record.target and snapshots:
        commands.restore(process, record.target, next(reversed(snapshots)))


def take_over_newest(process: Process) -> None:
    """Take the agent over to `server`, from its newest snapshot."""
    if process.world.snapshots:
        commands.take_over(process, "server", next(reversed(process.world.snapshots)))


COMMANDS: dict[str, Any] = {
    "migrate to laptop": lambda it: commands.migrate(it, "laptop"),
    "migrate to server": lambda it: commands.migrate(it, "server"),
    "abort": commands.abort,
    "launch on laptop": lambda it: commands.launch(it, "laptop"),
    "launch on server": lambda it: commands.launch(it, "server"),
    "stop": commands.stop,
    "snapshot": commands.snapshot,
    "remove from laptop": lambda it: commands.remove(it, "laptop"),
    "restore": restore_newest,
    "take over": take_over_newest,
}
NAMES = st.sampled_from(
    ["migrate to laptop", "migrate to server", "abort"]
) | st.sampled_from(sorted(COMMANDS))
EFFECTS = st.sampled_from(range(90))  # evenly: integers() prefers small ones


class Operations(RuleBasedStateMachine):
    """What two people may do to one agent, and what may happen to them."""

    @initialize()
    def launch(self) -> None:
        """Start with an agent that runs."""
        self.world = World.of(*TARGETS)
        self.who = operators(self.world, "ada's", "bob's")
        commands.launch(Process(self.world), "laptop")

    @rule(
        who=WHO,
        name=NAMES,
        effects=EFFECTS,
        then=st.sampled_from(["die", "die", "sleep", "wait", "end", "fail", "outage"]),
        fault=FAULTS,
    )
    def act(self, who: int, name: str, effects: int, then: str, fault: Fault) -> None:
        """Let somebody begin a command, or go on with it, until something happens."""
        operator = self.who[who]
        operator.suspended = False
        if not operator.busy:
            operator.start(COMMANDS[name])
        if not operator.advance(effects):
            return
        if then == "die":
            operator.kill()
        elif then == "sleep":
            operator.suspended = True
        elif then == "outage":
            operator.outage = 1 + effects % 9
        elif then != "wait":
            operator.next_fault = fault if then == "fail" else None
            operator.finish()

    @rule(who=WHO, name=NAMES, effects=EFFECTS, rival=NAMES)
    def overtake(self, who: int, name: str, effects: int, rival: str) -> None:
        """Let somebody sleep in the middle of a command while another one acts."""
        sleeper, other = self.who[who], self.who[1 - who]
        if sleeper.busy or other.busy:
            return
        if sleeper.start(COMMANDS[name]).advance(effects):
            sleeper.suspended = True
            other.start(COMMANDS[rival]).finish()
            sleeper.suspended = False
            sleeper.finish()

    @rule(who=WHO, name=NAMES, effects=EFFECTS, then=NAMES)
    def die_and_go_on(self, who: int, name: str, effects: int, then: str) -> None:
        """Let a command be killed, and another one follow at once."""
        operator = self.who[who]
        if not operator.busy:
            operator.start(COMMANDS[name]).advance(effects)
            operator.kill()
            operator.start(COMMANDS[then]).finish()

    @precondition(lambda self: self.world.on_the_way)
    @rule()
    def arrive(self) -> None:
        """Let a request arrive of which nobody thinks any more."""
        self.world.arrive()

    @rule(where=st.sampled_from(TARGETS), healthy=st.booleans())
    def fall_ill(self, where: str, healthy: bool) -> None:
        """Make the agent unhealthy there, or well again."""
        self.world.places[where].healthy = healthy

    def recover(self) -> None:
        """Make it healthy everywhere."""
        for place in self.world.places.values():
            place.healthy = True

    @invariant()
    def no_promise_is_broken(self) -> None:
        """Ask the world."""
        if hasattr(self, "world"):
            assert self.world.violations == []

    def teardown(self) -> None:
        """Let everybody end, and run the same command again."""
        if hasattr(self, "world"):
            for operator in self.who:
                self._finish(operator)
            while self.world.on_the_way:
                self.world.arrive()
            self.recover()
            again(self.world)
            assert_settled(self.world)

    def _finish(self, operator: Operator) -> None:
        operator.next_fault, operator.outage = None, 0
        operator.finish()


def again(world: World) -> None:
    """Run again, in peace, whatever is unfinished; then see to it that it runs."""
    record = world.record()
    assert record
    if record.restoring:
        commands.restore(Process(world), record.target or "laptop", record.restoring)
    elif record.migration:
        commands.migrate(Process(world), record.migration.destination)
    record = world.record()
    assert record
    if record.state == "running":  # a zombie may have stopped it: it may not start it
        commands.launch(Process(world), record.target or "laptop")


def assert_settled(world: World) -> None:
    """Check the promises, and that the record says what is."""
    record = world.record()
    assert world.violations == []
    assert record
    assert record.migration is None
    running = [place for place in world.places.values() if place.running]
    assert [place.name for place in running] == (
        [record.target] if record.state == "running" else []
    )
    for place in running:
        assert place.instance
        assert place.instance.epoch == record.epoch


TestOperations = Operations.TestCase
TestOperations.settings = settings(
    max_examples=150,
    stateful_step_count=16,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
