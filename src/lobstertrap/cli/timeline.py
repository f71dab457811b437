"""What became of an agent: `history`, its snapshots and moves as one timeline."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import typer

from lobstertrap.cli.output import AsJson, print_json, print_table
from lobstertrap.cli.running import Agent, load_config
from lobstertrap.cli.text import age, duration, size

if TYPE_CHECKING:
    from lobstertrap.lease import AgentRecord, Move
    from lobstertrap.repository import Snapshot

_SAID = {
    "moved": "moved",
    "rolled-back": "move undone",
    "taken-over": "taken over",
}
_WHY = {
    "pre-copy": "for a pre-copy",
    "migration": "for a migration",
    "before-restore": "before a restore",
    "before-removal": "before its removal",
    "rolled-back": "of a destination that was given up",
}
"""Purposes of snapshots in words; others speak for themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of the timeline."""

    at: float
    """Seconds since the epoch, by the clock of who did it."""
    event: str
    where: str
    details: str


def register(app: typer.Typer) -> None:
    """Add this module's commands to the program."""
    app.command()(history)


def history(agent: Agent, as_json: AsJson = False) -> None:
    """Show an agent's snapshots and moves as one timeline, oldest first.

    Example: lobstertrap history tally
    """
    from lobstertrap.lease import read_record  # noqa: PLC0415 - not for --help

    config = load_config()
    record = read_record(config.open_store(), agent)
    if record is None:
        config.agent(agent)  # a wrong name is an error; one without a past is not
    found = config.open_repository().snapshots(agent) if record else []
    events = timeline(record, found)
    if as_json:
        print_json({"agent": agent, "events": [asdict(event) for event in events]})
        return
    now = time.time()
    print_table(
        ["when", "ago", "event", "where", "details"],
        [
            [_clock(e.at), age(e.at, now), e.event, e.where, e.details or "-"]
            for e in events
        ],
    )


def timeline(record: AgentRecord | None, snapshots: list[Snapshot]) -> list[Event]:
    """Return everything that is known, oldest first; what goes on now is last."""
    events = [_taken(snapshot) for snapshot in snapshots]
    if record is None:
        return events
    events += [_moved(move) for move in record.moves]
    events.sort(key=lambda event: event.at)
    if record.migration is not None:
        journal = record.migration
        events.append(
            Event(
                at=journal.started,
                event="move open",
                where=f"{journal.source} -> {journal.destination}",
                details=f"at the step {journal.step}; lobstertrap migrate "
                f"{record.agent} --to {journal.destination} goes on",
            )
        )
    return events


def _taken(snapshot: Snapshot) -> Event:
    tags: dict[str, Any] = dict(snapshot.tags)
    held = tags.get("consistency", snapshot.consistency)
    said = [f"{size(snapshot.bytes)}, {size(snapshot.new_bytes)} new", str(held)]
    said += [_WHY.get(str(why), str(why))] if (why := tags.get("purpose")) else []
    said += [f"{len(snapshot.warnings)} warnings"] if snapshot.warnings else []
    return Event(
        at=snapshot.created_at,
        event=f"snapshot {snapshot.short_id}",
        where=str(tags.get("target", snapshot.host)),
        details=", ".join(said),
    )


def _moved(move: Move) -> Event:
    took = duration(move.ended - move.began)
    return Event(
        at=move.ended,
        event=_SAID[move.outcome],
        where=f"{move.source} -> {move.destination}",
        details=f"epoch {move.epoch}, took {took}",
    )


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
