"""Reclaiming an agent whose record is older than what the targets show.

A store that was lost and begun anew, or put back from a copy, has forgotten launches
that did happen. Every target refuses to act on such a record (its fence is higher), and
rightly: the agent may live, and run, somewhere else by now. So a person says where it
lives, every target is asked, and the record is raised to the highest that any has seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from lobstertrap.errors import LobsterTrapError, NotFound, Refused
from lobstertrap.lease import AgentRecord
from lobstertrap.lifecycle import AgentHandle
from lobstertrap.targets.base import AgentStatus, Fence


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What one target knows of the agent."""

    status: AgentStatus
    epoch: int
    turn: int


def reclaim(handle: AgentHandle, home: str, targets: Iterable[str]) -> AgentRecord:
    """Make the record say that the agent lives on `home`, as it is there.

    It is neither started nor stopped. `targets` are all where it might be: raises
    `Unavailable` when one of them does not answer, `Refused` when it runs on another
    one than `home`, `NotFound` when `home` has no volumes of it but another one does.
    """
    record = handle.record()
    seen = {name: _look(handle, name, record) for name in {*targets, home}}
    _refuse_elsewhere(handle, home, seen)
    here = seen[home].status
    epoch = max(record.epoch, *(it.epoch for it in seen.values()))
    turn = max(record.turn, *(it.turn for it in seen.values()))
    return handle.lease.update(
        lambda now: replace(
            now,
            epoch=epoch,
            turn=turn,
            target=home,
            state="running" if here.phase == "running" else "stopped",
            migration=None,
            # Half-restored volumes stay what they are: only that restore mends them.
            restoring=now.restoring if now.target == home else None,
        )
    )


def _look(handle: AgentHandle, name: str, record: AgentRecord) -> _Seen:
    target = handle.target(name)
    try:
        status = target.status(handle.spec)
        epoch, turn = status.epoch or 0, 0
        if isinstance(target, Fence):
            fenced, turn = target.fence(
                handle.spec, epoch=record.epoch, turn=record.turn
            )
            epoch = max(epoch, fenced)
    except LobsterTrapError as error:
        raise type(error)(
            f"nobody knows whether agent '{handle.spec.name}' runs on '{name}': "
            f"{error.message}",
            hint="bring it back; if it is gone for good, take it out of "
            "lobstertrap.toml",
        ) from error
    return _Seen(status=status, epoch=epoch, turn=turn)


def _refuse_elsewhere(
    handle: AgentHandle, home: str, seen: Mapping[str, _Seen]
) -> None:
    name, here = handle.spec.name, seen[home].status
    for other, found in seen.items():
        if other != home and found.status.phase == "running":
            raise Refused(
                f"agent '{name}' runs on '{other}' (epoch {found.status.epoch})",
                hint=f"lobstertrap reclaim {name} --on {other}, or stop it there first",
            )
    holders = sorted(other for other, found in seen.items() if found.status.volumes)
    if holders and not here.volumes:
        raise NotFound(
            f"'{home}' has no volumes of agent '{name}'; there are some on "
            f"{', '.join(holders)}",
            hint="name the target that has its newest state",
        )
