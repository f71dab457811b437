"""What is done with an original: the first snapshot, and taking its place.

Until `switch` nothing of the original is changed. From the first write to the record
on, nothing of ours is launched for the agent but by `switch`, which stops the original
first: `lifecycle.refuse_adopted` sees to it, wherever somebody tries. The record says
how far a switch is, so that one that was killed is finished by the same command, or
undone by `abort`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lobstertrap import lifecycle
from lobstertrap.adopt.draft import Draft
from lobstertrap.adopt.found import Found, Originals
from lobstertrap.errors import LobsterTrapError, NotFound, Refused
from lobstertrap.lease import Adopted
from lobstertrap.lifecycle import AgentHandle

log = logging.getLogger(__name__)


def begin(
    handle: AgentHandle,
    originals: Originals,
    found: Found,
    drafted: Draft,
    *,
    target: str,
) -> dict[str, Any]:
    """Note the original down, keep its secrets on the target, and snapshot its state.

    Repeated, it takes another snapshot. Returns the mover's result. Raises `Refused`
    when the agent is one of ours already, or its place is being taken.
    """
    adopted = Adopted(
        target=target, original=found.original, sources=dict(drafted.sources)
    )
    _refuse_taken(handle, adopted)
    handle.lease.update(
        lambda now: replace(now, adopted=adopted, target=target, state="stopped")
    )
    for env, (secret, value) in drafted.secrets.items():
        originals.keep_secret(found, env=env, secret=secret, value=value)
    return _snapshot(handle, originals, adopted)


def switch(handle: AgentHandle, originals: Originals) -> dict[str, Any]:
    """Stop the original for good, and run the agent in its place with its state.

    Whatever fails before the agent is healthy, the original runs again as before.
    Returns `{"target", "original", "snapshot", "downtime_seconds", "state"}`.
    """
    adopted, downtime = _of(handle), 0.0
    originals.confirm(adopted)
    if adopted.step == "kept":
        adopted = _prepare(handle, originals, adopted)
    if adopted.step == "switching":
        began = handle.monotonic()
        adopted = _cut_over(handle, originals, adopted)
        downtime = handle.monotonic() - began if adopted.was_running else 0.0
    originals.stop(adopted, seconds=handle.spec.stop_timeout)
    originals.retire(adopted)
    handle.lease.update(lambda now: replace(now, adopted=None))
    state = lifecycle.resume(handle, adopted.target).phase
    return {
        "target": adopted.target,
        "original": adopted.original,
        "snapshot": handle.record().snapshot,
        "downtime_seconds": downtime,
        "state": state,
    }


def abort(handle: AgentHandle, originals: Originals) -> dict[str, Any]:
    """Undo a switch that was killed: the original runs again, if it ran before."""
    adopted = _of(handle)
    originals.confirm(adopted)
    if adopted.step == "retiring":
        raise Refused(
            f"agent '{handle.spec.name}' has taken the place of {adopted.original}: "
            "there is nothing left to undo",
            hint=f"lobstertrap adopt {adopted.target} {handle.spec.name} --switch "
            "finishes it",
        )
    if adopted.step == "switching":
        _go_back(handle, originals, adopted)
    return {"target": adopted.target, "original": adopted.original}


def _of(handle: AgentHandle) -> Adopted:
    adopted = handle.record().adopted
    if adopted is None:
        raise NotFound(
            f"agent '{handle.spec.name}' has no original whose place it could take",
            hint="lobstertrap adopt TARGET shows what can be adopted there",
        )
    return adopted


def _refuse_taken(handle: AgentHandle, wanted: Adopted) -> None:
    record, name = handle.record(), handle.spec.name
    before = record.adopted
    if before is None and record.target is None and record.snapshot is None:
        return
    if before is None:
        home = f" and lives on '{record.target}'" if record.target else ""
        raise Refused(
            f"agent '{name}' is there already{home}",
            hint="give the adopted one another name, with --from ORIGINAL",
        )
    if (before.target, before.original) != (wanted.target, wanted.original):
        raise Refused(
            f"agent '{name}' was adopted from {before.original} on '{before.target}'",
            hint="give this one another name, with --from ORIGINAL",
        )
    if before.step != "kept":
        raise Refused(
            f"agent '{name}' is taking the place of {before.original}",
            hint=f"lobstertrap adopt {before.target} {name} --switch finishes that, "
            "--abort undoes it",
        )


def _snapshot(
    handle: AgentHandle,
    originals: Originals,
    adopted: Adopted,
    *,
    stopped: bool = False,
) -> dict[str, Any]:
    still = stopped or not originals.users(adopted)
    return lifecycle.take_snapshot(
        handle,
        adopted.target,
        consistency="stopped" if still else "live",
        purpose="adoption",
        sources=_sources(handle, adopted),
    )


def _sources(handle: AgentHandle, adopted: Adopted) -> Mapping[str, str]:
    names = [volume.name for volume in handle.spec.volumes]
    unknown = [name for name in names if name not in adopted.sources]
    if unknown:
        raise Refused(
            f"agent '{handle.spec.name}': {adopted.original} has nothing for volume "
            f"{', '.join(unknown)}",
            hint=f"it has: {', '.join(adopted.sources)}; name the volumes so",
        )
    return {name: adopted.sources[name] for name in names}


def _prepare(handle: AgentHandle, originals: Originals, adopted: Adopted) -> Adopted:
    """Do all that can fail, or takes long, while the original still runs."""
    originals.refuse_lasting(adopted)
    target = handle.target(adopted.target)
    target.ensure_image(handle.spec)
    target.bind_secrets(handle.spec, handle.secrets())
    running = bool(originals.users(adopted))
    if running:
        copied = _snapshot(handle, originals, adopted)
        lifecycle.restore(handle, adopted.target, snapshot=copied["snapshot"])
    switching = replace(adopted, step="switching", was_running=running)
    handle.lease.update(lambda now: replace(now, adopted=switching))
    return switching


def _cut_over(handle: AgentHandle, originals: Originals, adopted: Adopted) -> Adopted:
    name = adopted.target
    try:
        originals.stop(adopted, seconds=handle.spec.stop_timeout)
        # One that runs already was launched before the command was killed.
        if handle.target(name).status(handle.spec).phase != "running":
            lifecycle.restore(handle, name, snapshot=_last(handle, originals, adopted))
            if adopted.was_running:
                image = handle.target(name).ensure_image(handle.spec)
                lifecycle.start(handle, name, image=image)
        if adopted.was_running:
            lifecycle.await_healthy(handle, name)
        retiring = replace(adopted, step="retiring")
        handle.lease.update(lambda now: replace(now, adopted=retiring))
    except BaseException:
        _try_to_go_back(handle, originals, adopted)
        raise
    return retiring


def _last(handle: AgentHandle, originals: Originals, adopted: Adopted) -> str:
    """Return a snapshot of what the stopped original left."""
    known = handle.record().snapshot
    if known is not None and not originals.has_state(adopted):
        log.warning(
            "%s is gone with its state: the snapshot %s is all there is of it",
            adopted.original,
            known[:8],
        )
        return known
    return str(_snapshot(handle, originals, adopted, stopped=True)["snapshot"])


def _try_to_go_back(
    handle: AgentHandle, originals: Originals, adopted: Adopted
) -> None:
    try:
        _go_back(handle, originals, adopted)
    except LobsterTrapError as error:
        log.warning(
            "%s could not be started again: %s; do it with lobstertrap adopt %s %s "
            "--abort",
            adopted.original,
            error,
            adopted.target,
            handle.spec.name,
        )


def _go_back(handle: AgentHandle, originals: Originals, adopted: Adopted) -> None:
    """Prove ours stopped, then start the original; the record is the last to change."""
    step = _of(handle).step
    if step == "retiring":  # the write whose answer was lost was the commit
        return
    lifecycle.stop(handle, adopted.target)
    if adopted.was_running:
        originals.start(adopted)
    kept = replace(adopted, step="kept")
    handle.lease.update(lambda now: replace(now, adopted=kept))
