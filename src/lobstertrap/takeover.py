"""A takeover: an agent whose home is gone for good lives on elsewhere, from a snapshot.

It is the one operation that cannot prove the old copy stopped. So a person has to ask
for it by name, is told before what will be lost, and it is refused as long as the old
home answers that the agent runs there. docs/migration.md says what holds afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lobstertrap import lifecycle
from lobstertrap.errors import InvalidInput, LobsterTrapError, NotFound, Refused
from lobstertrap.lease import AgentRecord, Move
from lobstertrap.lifecycle import AgentHandle


@dataclass(frozen=True, slots=True, kw_only=True)
class OldHome:
    """What is known of the place that the agent is taken from."""

    target: str
    epoch: int
    """Under which a copy that returns would run."""
    answers: bool
    why: str
    """Why nothing runs there, or why that is not known."""


def examine(record: AgentRecord, handle: AgentHandle, to: str) -> OldHome:
    """Look at the old home; `Refused` when the agent runs there: it is not gone."""
    home, name = record.target, record.agent
    if home is None:
        raise NotFound(
            f"agent '{name}' has no home to be taken from",
            hint=f"leave --takeover out: lobstertrap restore {name} --to {to}",
        )
    if home == to:
        raise InvalidInput(
            f"agent '{name}' lives on '{to}' already",
            hint="leave --takeover out: it is for a home that is gone",
        )
    try:
        status = handle.target(home).status(handle.spec)
    except LobsterTrapError as error:
        return OldHome(
            target=home, epoch=record.epoch, answers=False, why=error.message
        )
    lifecycle.refuse_adopted(handle)  # who answers may still run the original
    if status.phase == "running":
        raise Refused(
            f"agent '{name}' runs on '{home}', which answers: nothing is gone",
            hint=f"lobstertrap migrate {name} --to {to}",
        )
    return OldHome(
        target=home, epoch=record.epoch, answers=True, why=f"it is {status.phase} there"
    )


def take_over(handle: AgentHandle, to: str, snapshot: str) -> str:
    """Make `to` the agent's home, with the restore of `snapshot` begun.

    Returns the snapshot to restore: that of an unfinished takeover when there is one.
    The record changes in one write, so a killed takeover is finished by the same
    command, or by a plain restore.
    """
    record = handle.record()
    if record.target == to and record.restoring is not None:
        return record.restoring
    old = examine(record, handle, to)
    if old.answers:  # then it can be shown, and kept from coming back
        lifecycle.prove_stopped(handle, old.target)
    _end_migration(handle, record)
    lifecycle.prove_stopped(handle, to)
    handle.lease.update(
        lambda now: replace(
            now,
            epoch=now.epoch + 1,
            target=to,
            restoring=snapshot,
            migration=None,
            adopted=None,  # gone with its target, as the person says who asked
            snapshot=snapshot,
        ).after(
            Move(
                source=old.target,
                destination=to,
                outcome="taken-over",
                began=handle.now(),
                ended=handle.now(),
                epoch=now.epoch + 1,
            )
        )
    )
    return snapshot


def stop_old_copy(handle: AgentHandle, target_name: str) -> int | None:
    """Stop the copy of an agent that came back on a target it was taken over from.

    Only one that runs under an epoch of before that takeover, away from the agent's
    home, while no migration is open; its volumes stay, and so does what it wrote there.
    Returns its epoch, or None when there is no such copy (any more). A target that
    starts what it runs by itself, as a cluster does, then has nothing more to start.
    """
    record = handle.record()
    if record.target in {None, target_name} or record.migration or record.adopted:
        return None
    status = handle.target(target_name).status(handle.spec)
    if status.phase != "running" or not record.is_over(target_name, status.epoch):
        return None
    lifecycle.prove_stopped(handle, target_name)
    return status.epoch


def _end_migration(handle: AgentHandle, record: AgentRecord) -> None:
    """Show that an open migration has started nothing; its journal then goes too."""
    journal = record.migration
    if journal is None:
        return
    if journal.launched:
        raise Refused(
            f"agent '{record.agent}' was launched on '{journal.destination}' by a "
            "migration that is open: its state there may be newer than any snapshot",
            hint=f"lobstertrap migrate {record.agent} --to {journal.destination}",
        )
    lifecycle.prove_stopped(handle, journal.destination)
