"""Where every agent is, and how that differs from what its record says (drift)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lobstertrap.lease import AgentRecord
from lobstertrap.survey import Survey
from lobstertrap.targets.base import AgentStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRow:
    """One agent at one place."""

    agent: str
    target: str | None
    state: str
    """`running`, `stopped`, `absent`, `removed`, `never launched`, or `unknown`."""
    healthy: bool | None = None
    epoch: int | None = None
    should_be: str | None = None
    """`running` or `stopped`, by the record; None where there is none."""
    snapshot: str | None = None
    snapshot_at: float | None = None
    addresses: Mapping[str, str] = field(default_factory=dict)
    drift: tuple[str, ...] = ()
    """What the target shows that the record does not say; part of the notes."""
    notes: tuple[str, ...] = ()
    old_copy: bool = False
    """It came back on a target that the agent was taken over from."""

    def as_object(self) -> dict[str, Any]:
        """Return the row as plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRow:
    """One target; only a silent one gets a row in the table."""

    name: str
    problem: str | None

    def as_object(self) -> dict[str, Any]:
        """Return the row as plain values."""
        return {
            "name": self.name,
            "reachable": self.problem is None,
            "problem": self.problem,
        }


def target_rows(found: Survey) -> list[TargetRow]:
    """Return every target, silent ones last."""
    reached = [TargetRow(name=name, problem=None) for name in found.shown]
    silent = [TargetRow(name=n, problem=p) for n, p in found.bad_targets.items()]
    return reached + silent


def agent_rows(found: Survey) -> list[AgentRow]:
    """Return every agent at its home, followed by its copies that should not be."""
    rows = [
        AgentRow(agent=name, target=None, state="unknown", notes=(problem,))
        for name, problem in found.bad_agents.items()
    ]
    for name in found.specs:
        rows += [_at_home(found, name), *_strays(found, name)]
    return sorted(rows, key=lambda row: row.agent)


def _at_home(found: Survey, agent: str) -> AgentRow:
    record = found.records.get(agent)
    home = record.target if record else None
    if record is None or home is None:
        return _homeless(found, agent, record)
    status = found.shown.get(home, {}).get(agent)
    drift = tuple(_drift(record, status))
    return AgentRow(
        agent=agent,
        target=home,
        state=status.phase if status else "unknown",
        healthy=status.healthy if status else None,
        epoch=record.epoch,
        should_be=record.state,
        snapshot=record.snapshot,
        snapshot_at=found.taken.get(agent),
        addresses=dict(status.addresses) if status else {},
        drift=drift,
        notes=(
            *drift,
            *_operations(record),
            *_left_behind(found, agent, home),
        ),
    )


def _homeless(found: Survey, agent: str, record: AgentRecord | None) -> AgentRow:
    if record is None or record.epoch == 0:
        state = "never launched" if agent in found.records else "unknown"
    else:
        state = "removed"
    return AgentRow(
        agent=agent,
        target=None,
        state=state,
        epoch=record.epoch if record else None,
        snapshot=record.snapshot if record else None,
        snapshot_at=found.taken.get(agent),
        notes=tuple(_operations(record)) if record else (),
    )


def _drift(record: AgentRecord, status: AgentStatus | None) -> Iterator[str]:
    if status is None:
        yield f"'{record.target}' does not answer"
        return
    if status.phase != "running" and record.state == "running":
        yield "should be running"
    if status.phase == "running" and record.state == "stopped":
        yield "should be stopped"
    if status.phase == "running" and status.epoch != record.epoch:
        yield f"runs under epoch {status.epoch}"
    if status.detail and record.state == "running" and status.healthy is not True:
        yield status.detail


def _operations(record: AgentRecord) -> Iterator[str]:
    operation, migration = record.operation, record.migration
    if operation is not None:
        gone = ", but its process is gone" if operation.holder.is_dead() else ""
        yield f"{operation}{gone}"
    if migration is not None:
        where = f"'{migration.source}' to '{migration.destination}'"
        yield f"migration from {where} is open ({migration.step})"
    if record.restoring is not None:
        yield f"restore of {record.restoring[:12]} is unfinished"
    if record.adopted is not None:
        yield f"its original, {record.adopted.original}, still has its place"


def _left_behind(found: Survey, agent: str, home: str) -> Iterator[str]:
    places = [
        name
        for name, shown in found.shown.items()
        if name != home and agent in shown and shown[agent].volumes
    ]
    if places:
        yield f"volumes also on {', '.join(places)}"


def _strays(found: Survey, agent: str) -> Iterator[AgentRow]:
    record = found.records.get(agent)
    home = record.target if record else None
    expected = record.migration.destination if record and record.migration else None
    for name, shown in found.shown.items():
        status = shown.get(agent)
        if name == home or status is None or status.phase == "absent":
            continue
        unexpected = False
        if status.phase == "stopped" or found.bad_store:
            note = status.detail
        elif name == expected:
            note = "the migration's destination"
        else:
            unexpected = True
            note = f"must not run here: lobstertrap stop {agent} --on {name}"
        yield AgentRow(
            agent=agent,
            target=name,
            state=status.phase,
            healthy=status.healthy,
            epoch=status.epoch,
            addresses=dict(status.addresses),
            drift=(note,) if unexpected else (),
            notes=(note,) if note else (),
            old_copy=unexpected
            and record is not None
            and record.is_over(name, status.epoch),
        )
