"""What is done to one agent on one target: launch, stop, snapshot, restore, remove.

Every function takes an `AgentHandle`, looks at the world first, may be repeated, and
writes the agent's record *before* the effect that the record describes, so that after
a crash between the two the record says what should be and running it again makes it so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from types import MappingProxyType
from typing import Any, Literal

from lobstertrap import progress
from lobstertrap.agent import AgentSpec
from lobstertrap.errors import (
    IntegrityError,
    NotFound,
    Permanent,
    Refused,
    Unhealthy,
)
from lobstertrap.job import MoverJob, OnProgress, Progress
from lobstertrap.lease import TTL, AgentRecord, Lease
from lobstertrap.redaction import redactor
from lobstertrap.targets.base import (
    AgentStatus,
    CommandRunner,
    Fence,
    Freezer,
    LogSource,
    Secrets,
    Target,
)

Consistency = Literal["stopped", "frozen", "hook", "live"]
"""What held the agent still while it was read; kept as a tag of the snapshot."""

_SHOWN = 400  # characters of what a command said
_LONGEST_KNOWN = 4096
"""Characters of a value that is looked for in files: the request has a limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentHandle:
    """An agent, the lease under which it is handled, and what is needed to do so."""

    spec: AgentSpec
    lease: Lease
    target: Callable[[str], Target]
    """Opens a target by its name in the configuration."""
    secrets: Callable[[], Secrets]
    """Resolves the agent's secrets now; `SecretMissing` names all that cannot be."""
    known_secrets: Callable[[], Secrets] = dict
    """The values that can be resolved, to look for them where they should not be."""
    mover_request: Callable[[], dict[str, Any]]
    """Store settings and repository key for a mover: secret, made at each use."""
    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def record(self) -> AgentRecord:
        """Return the record; `LeaseLost` when the operation no longer holds it."""
        return self.lease.read()

    def home(self) -> str:
        """Return the name of the target where the agent lives; `NotFound` if none."""
        target = self.record().target
        if target is None:
            raise NotFound(
                f"agent '{self.spec.name}' has never been launched",
                hint=f"lobstertrap launch {self.spec.name} --on TARGET",
            )
        return target


def launch(handle: AgentHandle, target_name: str) -> AgentStatus:
    """Run the agent on the target and wait until it is healthy.

    Raises `Refused` when it lives on another target, when a migration is open, or when
    it would start with empty volumes although there is a snapshot; `Unhealthy` when it
    does not become ready. An agent that cannot be run is left stopped.
    """
    refuse_unfinished(handle)
    _refuse_other_home(handle, target_name)
    target = handle.target(target_name)
    thaw_forgotten(handle, target)
    status = target.status(handle.spec)
    record = handle.record()
    if status.phase == "running" and status.epoch != record.epoch:
        bar_latecomers(handle, target)  # says so if it is the record that is wrong
        raise Refused(
            f"agent '{handle.spec.name}' runs on '{target_name}' under epoch "
            f"{status.epoch}, its record says {record.epoch}",
            hint=f"lobstertrap stop {handle.spec.name}, then launch it again",
        )
    if status.phase != "running":
        _refuse_nothing(handle, target)
    try:
        if status.phase != "running":
            image = target.ensure_image(handle.spec)
            start(handle, target_name, image=image)
        return await_healthy(handle, target_name)
    except Refused:
        raise
    except Permanent:
        stop(handle, target_name)
        raise


def start(handle: AgentHandle, target_name: str, *, image: str) -> int:
    """Raise the epoch, then run the agent under it on the target; return the epoch."""
    target = handle.target(target_name)
    refuse_adopted(handle, unless="switching")
    _refuse_nothing(handle, target)
    bar_latecomers(handle, target)
    secrets = handle.secrets()
    target.bind_secrets(handle.spec, secrets)
    record = handle.lease.update(
        lambda now: replace(
            now, epoch=now.epoch + 1, target=target_name, state="running"
        )
    )
    target.launch(handle.spec, epoch=record.epoch, image=image, secrets=secrets)
    return record.epoch


def await_healthy(handle: AgentHandle, target_name: str) -> AgentStatus:
    """Poll until the agent is healthy; `Unhealthy` with its last lines otherwise."""
    target = handle.target(target_name)
    health = handle.spec.health
    limit, interval = (health.start, health.interval) if health else (10.0, 1.0)
    began = handle.monotonic()
    while True:
        status = target.status(handle.spec)
        waited = handle.monotonic() - began
        if status.phase != "running" and waited >= interval:
            raise _unhealthy(handle, target, "it stopped", status)
        if status.phase == "running" and status.healthy is not False:
            return status
        if waited >= limit:
            raise _unhealthy(handle, target, f"not ready after {limit:g} s", status)
        handle.sleep(min(interval, 0.05 + waited / 10))  # eager at first: downtime


def verify(handle: AgentHandle, target_name: str) -> None:
    """Run the spec's `verify` beside the healthy agent; `Unhealthy` if one fails."""
    rule = handle.spec.verify
    if rule is None:
        return
    for command in rule.commands:
        status, said = run_beside(handle, target_name, command, seconds=rule.timeout)
        if status:
            raise Unhealthy(
                f"agent '{handle.spec.name}' on '{target_name}': {command[0]} ended "
                f"with status {status}: {said}",
                hint="see verify in its agent.yaml",
            )


def run_beside(
    handle: AgentHandle, target_name: str, command: Sequence[str], *, seconds: float
) -> tuple[int, str]:
    """Run a command beside the agent; return its status and its last words."""
    target = handle.target(target_name)
    if not isinstance(target, CommandRunner):
        raise Refused(
            f"target '{target_name}' cannot run a command beside an agent",
            hint="use --mode stop for a snapshot; leave verify out of its agent.yaml",
        )
    handle.lease.check()
    status, said = target.run_command(handle.spec, command, seconds=seconds)
    return status, " ".join(said.split())[-_SHOWN:]


def stop(handle: AgentHandle, target_name: str) -> None:
    """Record that the agent should be stopped, and stop it; proven, or an error."""
    handle.lease.update(lambda record: replace(record, state="stopped"))
    prove_stopped(handle, target_name)


def prove_stopped(handle: AgentHandle, target_name: str) -> None:
    """Stop whatever runs of the agent on the target; `Refused` if it still shows.

    Where the target can, whoever was to launch it there under this epoch or an older
    one, and comes late, is refused from now on.
    """
    target = handle.target(target_name)
    bar_latecomers(handle, target)
    target.stop(handle.spec)
    status = target.status(handle.spec)
    if status.phase == "running":
        raise Refused(
            f"agent '{handle.spec.name}' still runs on '{target_name}'",
            hint="stop it there by hand, then run the same command again",
        )


def bar_latecomers(handle: AgentHandle, target: Target) -> None:
    """Check the lease, and let the target, if it can, refuse what came before it.

    Raises `Refused` when the target has seen more than the record knows: the store was
    lost and begun anew, put back to an older state, or is another one.
    """
    record = handle.record()
    if not isinstance(target, Fence):
        return
    epoch, turn = target.fence(handle.spec, epoch=record.epoch, turn=record.turn)
    if epoch <= record.epoch and turn <= record.turn:
        return
    handle.lease.check()  # whoever holds it now may have raised the fence
    name = handle.spec.name
    raise Refused(
        f"'{target.name}' knows agent '{name}' under epoch {epoch} (turn {turn}), its "
        f"record is older: epoch {record.epoch} (turn {record.turn})",
        hint="if this store was lost or put back, and no other one is in use: "
        f"lobstertrap reclaim {name} --on TARGET, where its newest state is",
    )


def _leak_check(handle: AgentHandle, purpose: str) -> dict[str, Any]:
    """Return the request's fields for the leak check.

    A snapshot that saves state before something happens to it is not refused.
    """
    rule = handle.spec.snapshot.leaks
    if rule == "off":
        return {}
    if rule == "refuse" and purpose not in ("asked for", "pre-copy"):
        rule = "warn"
    plain = {name: v.reveal() for name, v in handle.known_secrets().items()}
    values = {name: v for name, v in plain.items() if len(v) <= _LONGEST_KNOWN}
    return {"leaks": rule, "secrets": values}


def thaw_forgotten(handle: AgentHandle, target: Target) -> None:
    """Let an agent go on that a killed snapshot left frozen."""
    if isinstance(target, Freezer):
        target.thaw(handle.spec)


def take_snapshot(
    handle: AgentHandle,
    target_name: str,
    *,
    consistency: Consistency,
    purpose: str = "asked for",
    check: Callable[[], None] = lambda: None,
    current: bool = True,
    sources: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Take a snapshot of the agent's volumes beside them; returns the mover's result.

    With "stopped" the agent must not run: `Refused` otherwise. `purpose` is kept as a
    tag: "asked for", "pre-copy", "migration", "rolled-back", "before-restore" or
    "before-removal". `check` is called when the mover is done, before the snapshot
    becomes the agent's last one; without `current` it does not.
    """
    target = handle.target(target_name)
    if consistency == "stopped" and target.status(handle.spec).phase == "running":
        raise Refused(f"agent '{handle.spec.name}' runs on '{target_name}'")
    tags = {"target": target_name, "purpose": purpose, "consistency": consistency}
    turn = handle.record().turn  # for a target that is a `Fence`
    # A hook holds only what it knows of, so the files are read as if they changed.
    still: Literal["stopped", "live"] = (
        "stopped" if consistency in ("stopped", "frozen") else "live"
    )
    leaks = _leak_check(handle, purpose)
    job = _job(handle, "snapshot", consistency=still, tags=tags, turn=turn, **leaks)
    job = replace(job, sources=sources)  # where the state is, while it is not ours
    label = f"snapshot {handle.spec.name} on {target_name}"
    result = target.run_mover(handle.spec, job, _watch(handle, label))
    check()
    if current:
        handle.lease.update(lambda record: replace(record, snapshot=result["snapshot"]))
    return result


def restore(
    handle: AgentHandle, target_name: str, *, snapshot: str, in_place: bool = False
) -> dict[str, Any]:
    """Make the volumes on the target equal to the snapshot; returns the result.

    Only differences are written; what is not in the snapshot is deleted there. The
    agent must not run on the target: `Refused` otherwise. With `in_place` a large file
    is changed where it is: only for volumes that are nobody's state until the restore
    is over, as a migration's destination.
    """
    target = handle.target(target_name)
    if target.status(handle.spec).phase == "running":
        raise Refused(f"agent '{handle.spec.name}' runs on '{target_name}'")
    label = f"restore {handle.spec.name} on {target_name}"
    bar_latecomers(handle, target)
    turn = handle.record().turn
    job = _job(
        handle,
        "restore",
        snapshot=snapshot,
        delete_extra=True,
        in_place=in_place,
        turn=turn,
    )
    result = target.run_mover(handle.spec, job, _watch(handle, label))
    if not result["verified"]:
        raise IntegrityError(f"the restore on '{target_name}' was not verified")
    return result


def plan_restore(
    handle: AgentHandle, target_name: str, *, snapshot: str
) -> dict[str, Any] | None:
    """Return what `restore` would change on the target; nothing is changed.

    For a target this is as reading for a snapshot: the agent may run. None: it holds
    none of the agent's volumes, so all of the snapshot would be written.
    """
    target = handle.target(target_name)
    held = target.status(handle.spec).volumes
    job = _job(handle, "snapshot", snapshot=snapshot, delete_extra=True)
    job = replace(
        job,
        request={**job.request, "command": "plan"},
        volumes=tuple(name for name in job.volumes if name in held),
    )
    if not job.volumes:
        return None
    label = f"plan a restore of {handle.spec.name} on {target_name}"
    return target.run_mover(handle.spec, job, partial(progress.report, label))


def pause(handle: AgentHandle, target_name: str) -> None:
    """Stop the agent for a moment: the record still says that it should run."""
    refuse_unfinished(handle)
    prove_stopped(handle, target_name)


def resume(handle: AgentHandle, target_name: str) -> AgentStatus:
    """Make what the record says true again: run it if it should run, and wait.

    This is also what mends an agent that a killed operation left stopped.
    """
    refuse_unfinished(handle)
    target = handle.target(target_name)
    thaw_forgotten(handle, target)
    status = target.status(handle.spec)
    if handle.record().state != "running" or status.phase == "running":
        return status
    image = status.image or target.ensure_image(handle.spec)
    start(handle, target_name, image=image)
    return await_healthy(handle, target_name)


def prepare_restore(handle: AgentHandle, target_name: str, snapshot: str) -> str:
    """Stop the agent, save what its volumes hold now, and open the restore.

    Returns the id of the snapshot to restore: that of an unfinished restore when there
    is one. Raises `Refused` when the agent lives on another target.
    """
    record, target = handle.record(), handle.target(target_name)
    if record.migration is not None or record.adopted is not None:
        refuse_unfinished(handle)
    _refuse_other_home(handle, target_name)
    if record.restoring is not None:
        return record.restoring
    prove_stopped(handle, target_name)
    here = target.status(handle.spec).volumes
    if all(volume.name in here for volume in handle.spec.volumes):
        take_snapshot(
            handle, target_name, consistency="stopped", purpose="before-restore"
        )
    handle.lease.update(
        lambda now: replace(now, target=target_name, restoring=snapshot)
    )
    return snapshot


def restore_home(
    handle: AgentHandle, target_name: str, *, snapshot: str
) -> dict[str, Any]:
    """Restore over the agent's own volumes; returns the result.

    Unfinished until the end: the mark of `prepare_restore` is made once more, because a
    repeated call finds it gone when only the answer to its removal was lost.
    """
    handle.lease.update(lambda now: replace(now, restoring=snapshot))
    result = restore(handle, target_name, snapshot=snapshot)
    finish_restore(handle)
    return result


def finish_restore(handle: AgentHandle) -> None:
    """Close the restore: the volumes hold what was asked for."""
    handle.lease.update(lambda now: replace(now, restoring=None))


def remove(handle: AgentHandle, target_name: str, *, volumes: bool) -> str | None:
    """Remove a stopped agent from a target; its volumes only when asked.

    What volumes hold is snapshotted before they are removed, and the snapshot's id is
    returned. A stale copy (the agent lives elsewhere) goes without, if the home shows
    the agent's volumes. Raises `Refused` while it runs there, or while that copy may be
    the only one.
    """
    refuse_unfinished(handle)
    record = handle.record()
    target = handle.target(target_name)
    bar_latecomers(handle, target)
    saved = _save_before_removal(handle, target, record) if volumes else None
    if record.target == target_name and target.status(handle.spec).phase != "running":
        handle.lease.update(lambda now: replace(now, state="stopped"))
    target.remove(handle.spec, volumes=volumes)
    if volumes and record.target == target_name:
        handle.lease.update(lambda now: replace(now, target=None))
    forget_leftover(handle, target_name)
    return saved


def forget_leftover(handle: AgentHandle, target_name: str) -> None:
    """Take the target off the list of those where something was left behind."""

    def without(record: AgentRecord) -> AgentRecord:
        left = tuple(name for name in record.leftovers if name != target_name)
        return replace(record, leftovers=left)

    if target_name in handle.record().leftovers:
        handle.lease.update(without)


def _save_before_removal(
    handle: AgentHandle, target: Target, record: AgentRecord
) -> str | None:
    """See to it that the state outlives the volumes on `target`."""
    status = target.status(handle.spec)
    if not status.volumes or status.phase == "running":  # refused by the target itself
        return None
    home = record.target
    stale = record.snapshot is not None if home is None else home != target.name
    if not stale:
        return str(
            take_snapshot(
                handle, target.name, consistency="stopped", purpose="before-removal"
            )["snapshot"]
        )
    if home and not handle.target(home).status(handle.spec).volumes:
        raise Refused(
            f"agent '{handle.spec.name}' lives on '{home}', which does not show its "
            f"volumes: those on '{target.name}' may be the only copy",
            hint=f"lobstertrap restore {handle.spec.name} --to {home} first",
        )
    return None


def refuse_unfinished(handle: AgentHandle) -> None:
    """Raise `Refused` while a migration or a restore of the agent is unfinished."""
    record, name = handle.record(), handle.spec.name
    migration = record.migration
    if migration is not None:
        raise Refused(
            f"a migration of agent '{name}' from '{migration.source}' to "
            f"'{migration.destination}' is open",
            hint=f"finish it: lobstertrap migrate {name} --to {migration.destination}, "
            f"or undo it: lobstertrap migrate {name} --abort",
        )
    if record.restoring is not None:
        raise Refused(
            f"a restore of agent '{name}' on '{record.target}' is unfinished",
            hint=f"lobstertrap restore {name} --to {record.target}",
        )
    refuse_adopted(handle)


def refuse_adopted(handle: AgentHandle, *, unless: str = "") -> None:
    """Raise `Refused` while the original of an adopted agent may still run."""
    adopted, name = handle.record().adopted, handle.spec.name
    if adopted is not None and adopted.step != unless:
        raise Refused(
            f"agent '{name}' is adopted: its original, {adopted.original} on "
            f"'{adopted.target}', still has its place",
            hint=f"lobstertrap adopt {adopted.target} {name} --switch stops that one "
            "for good and runs this one",
        )


def _refuse_nothing(handle: AgentHandle, target: Target) -> None:
    """Raise `Refused` where the agent would start with empty volumes and forget all."""
    if handle.record().snapshot is None or target.status(handle.spec).volumes:
        return
    raise Refused(
        f"agent '{handle.spec.name}' has snapshots but no volumes on "
        f"'{target.name}': it would start with nothing",
        hint=f"lobstertrap restore {handle.spec.name} --to {target.name}",
    )


def _refuse_other_home(handle: AgentHandle, target_name: str) -> None:
    home = handle.record().target
    if home not in (None, target_name):
        name = handle.spec.name
        raise Refused(
            f"agent '{name}' lives on '{home}'; a second copy on '{target_name}' would "
            "split its state",
            hint=f"lobstertrap migrate {name} --to {target_name}",
        )


def _job(
    handle: AgentHandle, command: Literal["snapshot", "restore"], **fields: Any
) -> MoverJob:
    spec = handle.spec
    return MoverJob(
        command=command,
        agent=spec.name,
        volumes=tuple(volume.name for volume in spec.volumes),
        request={
            **handle.mover_request(),
            "owner": [spec.security.user, spec.security.group],
            "exclude": {volume.name: volume.exclude for volume in spec.volumes},
            **fields,
        },
    )


def _watch(handle: AgentHandle, label: str) -> OnProgress:
    """Report progress, and stop the mover when the lease is lost meanwhile."""
    checked = handle.monotonic()

    def on_progress(done: Progress) -> None:
        nonlocal checked
        if handle.monotonic() - checked > TTL / 3:
            handle.lease.check()
            checked = handle.monotonic()
        progress.report(label, done)

    return on_progress


def _unhealthy(
    handle: AgentHandle, target: Target, what: str, status: AgentStatus
) -> Unhealthy:
    lines: list[str] = []
    if isinstance(target, LogSource):
        lines = list(islice(target.logs(handle.spec, lines=5), 5))
    # What it printed may be a secret of its own, and this message is kept by Prefect.
    shown = "".join(f"\n  {redactor.redact(line.rstrip())}" for line in lines)
    detail = f" ({status.detail})" if status.detail else ""
    return Unhealthy(
        f"agent '{handle.spec.name}' on '{target.name}': {what}{detail}{shown}",
        hint=f"lobstertrap logs {handle.spec.name}",
    )
