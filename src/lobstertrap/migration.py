"""The steps of a migration, each of which may be repeated, and its journal.

docs/migration.md says what each step writes, in which order, and why at no instant two
copies run and at no instant there is no complete copy of the state.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lobstertrap import lifecycle
from lobstertrap.errors import (
    IntegrityError,
    InvalidInput,
    LobsterTrapError,
    NoSpace,
    NotFound,
    Refused,
)
from lobstertrap.lease import AgentRecord, Journal, Move
from lobstertrap.lifecycle import AgentHandle
from lobstertrap.targets.base import (
    AgentStatus,
    CommandRunner,
    ImageTransfer,
    Target,
    TargetInfo,
)

PRECOPY_ROUNDS = 5
"""How often the running source is copied at most."""
PRECOPY_SECONDS = 1800.0
"""After so long no further round is begun."""
PRECOPY_ENOUGH = 4 << 20
"""Bytes: a difference so small costs the cutover less than the programs' start."""
_SHRINKS = 0.7

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a migration will do; nothing was changed to find out."""

    agent: str
    source: str
    destination: str
    kinds: tuple[str, str]
    was_running: bool
    resumes: str | None
    """The step at which an open migration is continued."""
    notes: tuple[str, ...]


def plan(handle: AgentHandle, to: str) -> Plan:
    """Check everything that can be checked before the source is touched.

    Raises one error that lists every problem; its class is the first problem's.
    """
    record = handle.record()
    home = handle.home()
    journal = record.migration
    if journal is None or journal.destination != to:
        lifecycle.refuse_unfinished(handle)
    if journal is None and home == to:
        raise InvalidInput(
            f"agent '{handle.spec.name}' already lives on '{to}'",
            hint="name another target; `lobstertrap status` shows where agents are",
        )
    found: dict[str, TargetInfo] = {}
    _all(
        lambda: found.update(source=handle.target(home).inspect()),
        lambda: found.update(destination=handle.target(to).inspect()),
        handle.secrets,
        lambda: _source_has_volumes(handle, home),
        lambda: _destination_is_free(handle, to, journal),
        lambda: _destination_can_verify(handle, to, found),
        hint=_way_out(handle, journal),
    )
    source, destination = found["source"], found["destination"]
    if source.identity == destination.identity:
        raise InvalidInput(
            f"'{home}' and '{to}' are the same place ({source.identity})",
            hint="give one of them another socket or root in lobstertrap.toml",
        )
    return Plan(
        agent=handle.spec.name,
        source=home,
        destination=to,
        kinds=(source.kind, destination.kind),
        was_running=journal.was_running if journal else record.state == "running",
        resumes=journal.step if journal else None,
        notes=source.notes + destination.notes,
    )


def begin(handle: AgentHandle, plan: Plan) -> Journal:
    """Open the journal; one that is open is returned as it is."""
    journal = Journal(
        id=uuid.uuid4().hex,
        source=plan.source,
        destination=plan.destination,
        step="staging",
        was_running=plan.was_running,
        started=handle.now(),
    )
    record = handle.lease.update(
        lambda now: now if now.migration else replace(now, migration=journal)
    )
    return _open(record)


def stage(handle: AgentHandle) -> str:
    """Bring the image and the secrets to the destination; return the image's identity.

    An image that the source built is carried over, so that the same bytes run there;
    a destination that cannot take it builds or pulls its own.
    """
    journal = _forward(handle)
    source = handle.target(journal.source)
    destination = handle.target(journal.destination)
    there = _launched(handle, journal)
    if there is not None and there.image:
        return there.image
    destination.bind_secrets(handle.spec, handle.secrets())
    if isinstance(source, ImageTransfer) and isinstance(destination, ImageTransfer):
        image = source.ensure_image(handle.spec)
        if not destination.has_image(handle.spec, image):
            destination.import_image(handle.spec, source.export_image(image))
    return destination.ensure_image(handle.spec)


def precopy(handle: AgentHandle) -> list[dict[str, Any]]:
    """Copy the state of the *running* source, so that the cutover moves only the rest.

    Once, and again as long as that helps. Returns for each round the snapshot's result
    and the restore's, as `{"snapshot", "restore"}`; nothing when the source does not
    run or is past it.
    """
    journal = _forward(handle)
    if journal.step != "staging" or not journal.was_running:
        return []
    began, rounds = handle.monotonic(), [_precopy_once(handle, journal)]
    while helps_again(rounds, handle.monotonic() - began):
        rounds.append(_precopy_once(handle, journal))
    return rounds


def helps_again(rounds: Sequence[Mapping[str, Any]], seconds: float) -> bool:
    """Say whether one more round would leave less for the cutover.

    It does while the difference shrinks: an agent that writes as fast as it is copied
    has the same difference in every round, and the first repetition shows it.
    """
    if len(rounds) >= PRECOPY_ROUNDS or seconds >= PRECOPY_SECONDS:
        return False
    *before, last = map(_difference, rounds)
    if last <= PRECOPY_ENOUGH:
        return False
    return not before or last <= before[-1] * _SHRINKS


def _precopy_once(handle: AgentHandle, journal: Journal) -> dict[str, Any]:
    taken = lifecycle.take_snapshot(
        handle, journal.source, consistency="live", purpose="pre-copy"
    )
    if not _has_volumes(handle, journal.destination):  # else only the rest is written
        _refuse_full(handle.target(journal.destination), taken["bytes"])
    restored = lifecycle.restore(
        handle, journal.destination, snapshot=taken["snapshot"], in_place=True
    )
    return {"snapshot": taken, "restore": restored}


def _difference(moved: Mapping[str, Any]) -> int:
    """Return how much a round had to move: new in the store, or here at least."""
    snapshot, restored = moved["snapshot"], moved["restore"]
    return max(int(snapshot["new_bytes"]), int(restored["bytes_written"]))


def quiesce(handle: AgentHandle) -> None:
    """Stop the source for good: from here on the way back is `rollback`."""
    _forward(handle)
    journal = _advance(
        handle,
        lambda now: (
            now
            if now.step != "staging"
            else replace(now, step="cutover", stopped_at=handle.now())
        ),
    )
    lifecycle.prove_stopped(handle, journal.source)


def transfer(handle: AgentHandle) -> dict[str, Any]:
    """Snapshot the stopped source and make the destination's volumes equal to it.

    Does nothing once the destination may have been launched: its volumes are the
    agent's then. Returns `{"snapshot", "restore"}`, the movers' results.
    """
    journal = _forward(handle)
    if journal.launched:
        return {}
    lifecycle.prove_stopped(handle, journal.destination)
    taken = lifecycle.take_snapshot(
        handle, journal.source, consistency="stopped", purpose="migration"
    )
    if not _has_volumes(handle, journal.destination):  # nothing was copied before
        _refuse_full(handle.target(journal.destination), taken["bytes"])
    restored = lifecycle.restore(
        handle, journal.destination, snapshot=taken["snapshot"], in_place=True
    )
    if restored["tree_digest"] != taken["tree_digest"]:
        raise IntegrityError(
            f"'{journal.destination}' does not hold what '{journal.source}' held"
        )
    _advance(handle, lambda now: replace(now, snapshot=taken["snapshot"]))
    return {"snapshot": taken, "restore": restored}


def launch(handle: AgentHandle) -> int:
    """Raise the epoch and run the agent on the destination; return the epoch.

    The source is proven stopped once more, directly before.
    """
    journal = _forward(handle)
    source, destination = journal.source, handle.target(journal.destination)
    there = _launched(handle, journal)
    if there is not None and there.epoch is not None:
        return there.epoch
    image = destination.ensure_image(handle.spec)
    secrets = handle.secrets()
    lifecycle.prove_stopped(handle, source)
    record = handle.lease.update(
        lambda now: (
            now
            if _open(now).launched
            else replace(
                now,
                epoch=now.epoch + 1,
                migration=replace(_open(now), step="launching", launched=True),
            )
        )
    )
    destination.launch(handle.spec, epoch=record.epoch, image=image, secrets=secrets)
    return record.epoch


def await_healthy(handle: AgentHandle) -> float:
    """Wait for the destination and verify it; return the downtime in seconds."""
    journal = _forward(handle)
    lifecycle.await_healthy(handle, journal.destination)
    downtime = handle.now() - (journal.stopped_at or handle.now())
    lifecycle.verify(handle, journal.destination)
    return downtime


def commit(handle: AgentHandle, to: str) -> AgentRecord:
    """Make the destination the agent's home; the migration is then closed."""

    def close(now: AgentRecord) -> AgentRecord:
        if now.migration is None and now.target == to:
            return now  # done before, by a write whose answer was lost
        journal = _going_forward(_open(now))
        left = {*now.leftovers, journal.source} - {to}
        moved = replace(now, target=to, migration=None, leftovers=tuple(sorted(left)))
        return moved.after(_move(handle, now, journal, "moved"))

    return handle.lease.update(close)


def retire(handle: AgentHandle, target_name: str) -> None:
    """Remove the stopped instance and its secrets from a target; its volumes stay.

    This only tidies up what can do no harm: whatever does not answer any more does not
    turn what was done into a failure.
    """
    try:
        handle.lease.check()
        handle.target(target_name).remove(handle.spec, volumes=False)
        lifecycle.forget_leftover(handle, target_name)
    except LobsterTrapError as error:
        log.warning("could not tidy up '%s': %s", target_name, error)


def retire_leftovers(handle: AgentHandle) -> None:
    """Retire every old place that a killed migration, or a lost answer, has left."""
    record = handle.record()
    for old in record.leftovers:
        if old != record.target and _is_configured(handle, old):
            retire(handle, old)
        else:  # it lives there again, or nobody can go there any more
            lifecycle.forget_leftover(handle, old)


def _is_configured(handle: AgentHandle, target_name: str) -> bool:
    try:
        handle.target(target_name)
    except NotFound:
        return False
    return True


def rollback(handle: AgentHandle) -> str | None:
    """Undo an open migration: the source runs again from its untouched volumes.

    Returns the source's name, or None when no migration is open. The destination is
    proven stopped first if it may ever have been launched; if that cannot be proven,
    raises what stood in the way and changes nothing more. What it wrote since is kept
    in a snapshot, which is not the agent's last one.
    """
    found = handle.record().migration
    if found is None:
        return None
    journal = _advance(handle, lambda now: replace(now, step="rolling-back"))
    if journal.launched:
        lifecycle.prove_stopped(handle, journal.destination)
    restart = journal.was_running and found.step != "staging"
    if restart:
        _restart_source(handle, journal.source)
    if journal.launched:
        _keep_what_was_written(handle, journal.destination)
    handle.lease.update(
        lambda now: (
            now  # done before, by a write whose answer was lost
            if now.migration is None
            else replace(now, migration=None).after(
                _move(handle, now, journal, "rolled-back")
            )
        )
    )
    retire(handle, journal.destination)
    if restart:
        lifecycle.await_healthy(handle, journal.source)
    return journal.source


def _move(
    handle: AgentHandle,
    record: AgentRecord,
    journal: Journal,
    outcome: Literal["moved", "rolled-back"],
) -> Move:
    return Move(
        source=journal.source,
        destination=journal.destination,
        outcome=outcome,
        began=journal.started,
        ended=handle.now(),
        epoch=record.epoch,
    )


def _keep_what_was_written(handle: AgentHandle, destination: str) -> None:
    """Snapshot a destination that may have accepted what is nowhere else.

    That it cannot be done does not hold up the rollback: the volumes stay there.
    """
    try:
        if handle.target(destination).status(handle.spec).phase == "absent":
            return  # nothing ran
        kept = lifecycle.take_snapshot(
            handle,
            destination,
            consistency="stopped",
            purpose="rolled-back",
            current=False,
        )
    except LobsterTrapError as error:
        log.warning(
            "what the agent wrote on '%s' is only in its volumes there: %s",
            destination,
            error,
        )
    else:
        log.warning(
            "what the agent wrote on '%s' is in snapshot %s",
            destination,
            kept["snapshot"][:8],
        )


def _restart_source(handle: AgentHandle, source: str) -> None:
    status = handle.target(source).status(handle.spec)
    # Also one that runs: an interrupted stop may have told it to end already.
    lifecycle.prove_stopped(handle, source)
    image = status.image or handle.target(source).ensure_image(handle.spec)
    lifecycle.start(handle, source, image=image)


def _launched(handle: AgentHandle, journal: Journal) -> AgentStatus | None:
    """Return what the destination shows if this migration has it running already."""
    if not journal.launched:
        return None
    status = handle.target(journal.destination).status(handle.spec)
    alive = status.phase == "running" and status.epoch == handle.record().epoch
    return status if alive else None


def _forward(handle: AgentHandle) -> Journal:
    return _going_forward(_open(handle.record()))


def _going_forward(journal: Journal) -> Journal:
    if journal.step == "rolling-back":
        raise Refused(
            f"the migration to '{journal.destination}' is being rolled back",
            hint="run the same command again: it finishes that first",
        )
    return journal


def _open(record: AgentRecord) -> Journal:
    if record.migration is None:
        raise Refused(f"no migration of agent '{record.agent}' is open")
    return record.migration


def _advance(handle: AgentHandle, change: Callable[[Journal], Journal]) -> Journal:
    record = handle.lease.update(lambda now: replace(now, migration=change(_open(now))))
    return _open(record)


def _has_volumes(handle: AgentHandle, target_name: str) -> bool:
    here = handle.target(target_name).status(handle.spec).volumes
    return all(volume.name in here for volume in handle.spec.volumes)


def _source_has_volumes(handle: AgentHandle, source: str) -> None:
    here = handle.target(source).status(handle.spec).volumes
    for volume in handle.spec.volumes:
        if volume.name not in here:
            raise NotFound(
                f"volume '{volume.name}' of agent '{handle.spec.name}' does not exist "
                f"on '{source}'",
                hint="restore it from a snapshot: lobstertrap restore --help",
            )


def _destination_is_free(handle: AgentHandle, to: str, journal: Journal | None) -> None:
    status = handle.target(to).status(handle.spec)
    if status.phase == "running" and not (journal and journal.launched):
        raise Refused(
            f"agent '{handle.spec.name}' already runs on '{to}' (epoch {status.epoch})",
            hint="stop it there first; its record says that it lives elsewhere",
        )


def _destination_can_verify(
    handle: AgentHandle, to: str, found: Mapping[str, TargetInfo]
) -> None:
    """Raise `Refused` where the spec's commands could not be run after the move."""
    info = found.get("destination")
    if handle.spec.verify is None or info is None:  # None: it does not answer
        return
    if not isinstance(handle.target(to), CommandRunner) or not info.commands:
        raise Refused(
            f"'{to}' may not run commands beside agent '{handle.spec.name}', whose "
            "spec has some to verify it with",
            hint="a cluster needs deployments/kubernetes/role-commands.yaml; or leave "
            "out verify in its agent.yaml",
        )


def _refuse_full(destination: Target, needed: int) -> None:
    free = destination.inspect().free_bytes
    if free is not None and free < needed:
        raise NoSpace(
            f"'{destination.name}' has {free:,} bytes free, {needed:,} are needed",
            hint="make room there, then run the same command again",
        )


def _way_out(handle: AgentHandle, journal: Journal | None) -> str | None:
    """Say how to get an agent back that an interrupted cutover left stopped."""
    if journal is None or journal.step == "staging":
        return None
    return (
        "mend it and run the same command again, or go back to "
        f"'{journal.source}': lobstertrap migrate {handle.spec.name} --abort"
    )


def _all(*checks: Callable[[], object], hint: str | None) -> None:
    problems: list[LobsterTrapError] = []
    for check in checks:
        try:
            check()
        except LobsterTrapError as error:
            if all(error.message != seen.message for seen in problems):
                problems.append(error)
    if problems:
        message = "\n".join(problem.message for problem in problems)
        raise type(problems[0])(message, hint=hint or problems[0].hint) from problems[0]
