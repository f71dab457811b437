"""A running agent held still for the moment of its snapshot: frozen, or by its hooks.

Whatever happens in between, it goes on: here in any case, by the target's guard when
this process is killed, and by the next operation on the agent when that fails too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from lobstertrap import lifecycle
from lobstertrap.errors import LobsterTrapError, Refused, TimedOut
from lobstertrap.lifecycle import AgentHandle
from lobstertrap.targets.base import Freezer

Mode = Literal["stop", "freeze", "hook", "live"]

log = logging.getLogger(__name__)


def choose_mode(handle: AgentHandle, asked: Mode | None) -> Mode:
    """Return how the agent is held still: as asked, or as its spec says."""
    mode = asked or handle.spec.snapshot.mode
    if mode == "hook" and not handle.spec.snapshot.before:
        raise Refused(
            f"agent '{handle.spec.name}' has no commands for a snapshot by hook",
            hint="write snapshot.mode, before and after into its agent.yaml",
        )
    return mode


def snapshot_frozen(handle: AgentHandle, target_name: str) -> dict[str, Any]:
    """Take a snapshot of one point in time while every process is suspended.

    Raises `TimedOut` when the agent went on before it was done; that snapshot is then
    not the agent's last one.
    """
    target = handle.target(target_name)
    if not isinstance(target, Freezer):
        raise Refused(
            f"target '{target_name}' cannot freeze an agent",
            hint="use --mode stop, or snapshot.mode hook in its agent.yaml",
        )
    lifecycle.bar_latecomers(handle, target)
    frozen = True

    def check() -> None:
        nonlocal frozen
        was_frozen = target.thaw(handle.spec)
        frozen = False
        if not was_frozen:
            raise TimedOut(
                f"agent '{handle.spec.name}' went on before its snapshot was done",
                hint="give it more time: snapshot.timeout in its agent.yaml",
            )

    try:
        target.freeze(handle.spec)
        return lifecycle.take_snapshot(
            handle, target_name, consistency="frozen", check=check
        )
    finally:
        if frozen:
            target.thaw(handle.spec)


def snapshot_hooked(handle: AgentHandle, target_name: str) -> dict[str, Any]:
    """Take a snapshot between the spec's `before` and `after` commands."""
    with _between_hooks(handle, target_name):
        return lifecycle.take_snapshot(handle, target_name, consistency="hook")


@contextmanager
def _between_hooks(handle: AgentHandle, target_name: str) -> Iterator[None]:
    rule = handle.spec.snapshot
    if rule.after:  # what a killed snapshot left undone; it may have nothing to do
        try:
            _run(handle, target_name, rule.after)
        except LobsterTrapError as error:
            log.info("before the snapshot: %s", error)
    try:
        _run(handle, target_name, rule.before)
        yield
    finally:
        if rule.after:
            _run(handle, target_name, rule.after)


def _run(handle: AgentHandle, target_name: str, command: Sequence[str]) -> None:
    status, said = lifecycle.run_beside(
        handle, target_name, command, seconds=handle.spec.snapshot.timeout
    )
    if status:
        raise Refused(
            f"agent '{handle.spec.name}': {command[0]} ended with status {status}: "
            f"{said}",
            hint="see snapshot.before and snapshot.after in its agent.yaml",
        )
