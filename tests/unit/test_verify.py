"""What a spec wants verified after a move: asked of the plan, run before the commit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from lobstertrap import migration
from lobstertrap.agent import AgentSpec, Verification
from lobstertrap.errors import Refused, Unhealthy
from lobstertrap.lifecycle import AgentHandle
from lobstertrap.targets.base import TargetInfo
from tests.chaos import commands
from tests.chaos.parts import FencedTarget, Process
from tests.chaos.world import World


@pytest.fixture
def world() -> World:
    world = World.of("laptop", "server")
    commands.launch(Process(world), "laptop")
    return world


@dataclass(frozen=True, slots=True)
class Runner(FencedTarget):
    """A target that runs commands: `false` fails, as everywhere."""

    ran: list[tuple[str, str]] = field(default_factory=list)
    allowed: bool = True

    def inspect(self) -> TargetInfo:
        """Say whether we may."""
        return replace(super(Runner, self).inspect(), commands=self.allowed)

    def run_command(
        self, agent: AgentSpec, command: Sequence[str], *, seconds: float
    ) -> tuple[int, str]:
        """Remember the command."""
        self.ran.append((self.name, " ".join(command)))
        return int(command[0] == "false"), "it is\n not so"


def verified(
    world: World, *rule: list[str], allowed: bool = True
) -> tuple[AgentHandle, list[tuple[str, str]]]:
    """Return a handle on an agent whose spec has these commands, and what is run."""
    process = Process(world)
    handle = process.handle(process.acquire("test").operation_id)
    rules = Verification(commands=list(rule))
    ran: list[tuple[str, str]] = []
    spec = handle.spec.model_copy(update={"verify": rules})

    def target(name: str) -> Runner:
        return Runner(process, world.places[name], ran, allowed)

    return replace(handle, spec=spec, target=target), ran


def launched(handle: AgentHandle) -> AgentHandle:
    """Take a migration as far as the launch."""
    migration.begin(handle, migration.plan(handle, "server"))
    for step in ("stage", "precopy", "quiesce", "transfer", "launch"):
        getattr(migration, step)(handle)
    return handle


def test_every_command_is_run_where_the_agent_has_moved_to(world: World) -> None:
    handle, ran = verified(world, ["check", "state"], ["check", "token"])

    migration.await_healthy(launched(handle))

    assert ran == [("server", "check state"), ("server", "check token")]


def test_a_command_that_fails_keeps_the_move_from_being_final(world: World) -> None:
    handle, ran = verified(world, ["false"], ["never"])
    launched(handle)

    with pytest.raises(Unhealthy, match="'server': false ended with status 1: it is n"):
        migration.await_healthy(handle)
    assert migration.rollback(handle) == "laptop"
    assert handle.record().target == "laptop"
    assert ran == [("server", "false")]


def test_a_place_that_may_not_run_commands_is_refused_before_anything_stops(
    world: World,
) -> None:
    handle, _ = verified(world, ["check"], allowed=False)

    with pytest.raises(Refused, match="'server' may not run commands") as refused:
        migration.plan(handle, "server")
    assert "role-commands.yaml" in str(refused.value.hint)
    assert handle.record().migration is None


def test_a_spec_without_commands_to_verify_with_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least 1 item"):
        Verification(commands=[])
