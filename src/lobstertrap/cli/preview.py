"""The plan of a migration for a person: steps, sizes, downtime, secrets, risks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lobstertrap import migration
from lobstertrap.cli.text import age, duration, size
from lobstertrap.errors import LobsterTrapError
from lobstertrap.lease import Onlooker

if TYPE_CHECKING:
    from lobstertrap.agent import AgentSpec
    from lobstertrap.config import Config
    from lobstertrap.lifecycle import AgentHandle
    from lobstertrap.repository import Snapshot

RUNS, DOWN = "runs where it is", "is down"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the migration, and what the agent does meanwhile."""

    name: str
    what: str
    meanwhile: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What `migrate` would do; everything that it checks first was checked."""

    agent: str
    source: str
    destination: str
    steps: tuple[Step, ...]
    bytes: int | None
    """Size of the last snapshot; None when there is none."""
    downtime: str
    secrets: tuple[str, ...]
    """Names of the variables that are bound at the destination."""
    risks: tuple[str, ...]

    def as_object(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """Yield what the table of steps does not say."""
        known = "unknown before the first snapshot"
        yield f"state: {known if self.bytes is None else size(self.bytes)}"
        yield f"downtime: {self.downtime}"
        yield f"secrets: {', '.join(self.secrets) or 'none'}"
        for risk in self.risks:
            yield f"note: {risk}"


def preview(config: Config, agent: str, to: str) -> Preview:
    """Check what `migrate` checks before it touches anything, and say what it does.

    Raises what `migrate` would raise. Nothing is changed, not even the agent's record.
    """
    config.require_target(to)
    store = config.open_store()
    handle = config.handle(agent, Onlooker(store, agent))
    plan = migration.plan(handle, to)
    spec = handle.spec
    last = _last_snapshot(config, handle)
    held = handle.target(to).status(spec).volumes
    return Preview(
        agent=agent,
        source=plan.source,
        destination=to,
        steps=tuple(_steps(plan, spec, held)),
        bytes=last.bytes if last else None,
        downtime=_downtime(plan, spec),
        secrets=tuple(sorted(spec.secrets)),
        risks=tuple(_risks(plan, spec, held, last)),
    )


def _last_snapshot(config: Config, handle: AgentHandle) -> Snapshot | None:
    try:
        found = config.open_repository().snapshots(handle.spec.name)
    except LobsterTrapError:  # none yet; the migration makes the repository
        return None
    return found[-1] if found else None


def _steps(
    plan: migration.Plan, spec: AgentSpec, held: tuple[str, ...]
) -> Iterator[Step]:
    source, to = plan.source, plan.destination
    if plan.resumes:
        yield Step(
            name="continue",
            what=f"a migration is open at the step {plan.resumes}",
            meanwhile="see lobstertrap status",
        )
    yield Step(name="stage", what=f"image and secrets to '{to}'", meanwhile=RUNS)
    much = "what differs" if held else "all of its state"
    yield Step(
        name="pre-copy",
        what=f"{much}, through the store, in up to {migration.PRECOPY_ROUNDS} rounds",
        meanwhile=RUNS if plan.was_running else "is stopped",
    )
    grace = f"within {duration(spec.stop_timeout)}"
    yield Step(name="stop", what=f"'{source}' stops it {grace}", meanwhile=DOWN)
    yield Step(name="transfer", what="what changed since, verified", meanwhile=DOWN)
    if plan.was_running:
        yield Step(name="launch", what=f"'{to}' starts it", meanwhile=DOWN)
        yield Step(name="health", what=_health(spec), meanwhile="answers again")
    yield Step(name="commit", what=f"'{to}' is its home", meanwhile=f"lives on {to}")
    yield Step(name="retire", what=f"'{source}' keeps only its volumes", meanwhile="")


def _health(spec: AgentSpec) -> str:
    if spec.health is None:
        return "it has no health check: that it runs is enough"
    return f"within {duration(spec.health.start)}, or all is undone"


def _downtime(plan: migration.Plan, spec: AgentSpec) -> str:
    if not plan.was_running:
        return "none: it does not run"
    stop = f"its own stop (at most {duration(spec.stop_timeout)})"
    return f"{stop} and start, and a few seconds for what changed last"


def _risks(
    plan: migration.Plan,
    spec: AgentSpec,
    held: tuple[str, ...],
    last: Snapshot | None,
) -> Iterator[str]:
    yield from plan.notes
    if spec.health is None:
        yield "without a health check a broken destination is not seen: see docs/agents"
    if held:
        yield f"volumes {', '.join(held)} on '{plan.destination}' are overwritten"
    if last is None:
        yield "there is no snapshot of it yet; the migration takes one"
    else:
        yield f"the last snapshot was taken {age(last.created_at, time.time())}"
