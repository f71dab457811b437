"""Two operators, crashes, lost leases and lost answers, in any order.

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
    st.sampled_from(["before", "during", "after"]),
    st.sampled_from([Unavailable, Refused, KeyboardInterrupt]),
)


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
MIGRATE = st.sampled_from(["migrate to laptop", "migrate to server"])


class Operations(RuleBasedStateMachine):
    """What two people may do to one agent, and what may happen to them."""

    @initialize()
    def launch(self) -> None:
        """Start with an agent that runs."""
        self.world = World.of(*TARGETS)
        self.who = operators(self.world, "ada's", "bob's")
        commands.launch(Process(self.world), "laptop")

    @rule(who=WHO, name=MIGRATE | st.sampled_from(sorted(COMMANDS)))
    def begin(self, who: int, name: str) -> None:
        """Let somebody who is idle begin a command."""
        if not self.who[who].busy:
            self.who[who].suspended = False
            self.who[who].start(COMMANDS[name])

    def _busy(self) -> bool:
        return any(operator.busy for operator in self.who)

    @precondition(_busy)
    @rule(who=WHO, effects=st.integers(1, 60))
    def go_on(self, who: int, effects: int) -> None:
        """Let somebody make some effects."""
        if not self.who[who].suspended:
            self.who[who].advance(effects)

    @precondition(_busy)
    @rule(who=WHO)
    def kill(self, who: int) -> None:
        """Kill somebody in the middle."""
        if self.who[who].busy:
            self.who[who].kill()

    @precondition(_busy)
    @rule(who=WHO)
    def suspend(self, who: int) -> None:
        """Let somebody sleep, and not renew."""
        self.who[who].suspended = True

    @precondition(lambda self: any(operator.suspended for operator in self.who))
    @rule(who=WHO)
    def wake(self, who: int) -> None:
        """Wake somebody."""
        self.who[who].suspended = False

    @precondition(_busy)
    @rule(who=WHO, fault=FAULTS)
    def strike(self, who: int, fault: Fault) -> None:
        """Let the next effect fail."""
        self.who[who].next_fault = fault

    @rule(where=st.sampled_from(TARGETS))
    def fall_ill(self, where: str) -> None:
        """Make the agent unhealthy there."""
        self.world.places[where].healthy = False

    @rule()
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
            self.recover()
            again(self.world)
            assert_settled(self.world)

    def _finish(self, operator: Operator) -> None:
        operator.next_fault = None
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
    max_examples=80,
    stateful_step_count=30,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
