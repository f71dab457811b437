"""Freezing an agent on a host: its supervisor does it, and thaws it in any case."""

from __future__ import annotations

import signal
import time

from lobstertrap.errors import NotFound, Refused, TimedOut
from lobstertrap.targets.host_instance import Instance

_SECONDS = 10.0


def freeze(instance: Instance, about: str) -> None:
    """Suspend the agent's processes; returns when the supervisor says they are."""
    state = instance.state() or {}
    if not instance.is_held() or state.get("phase") != "running":
        raise NotFound(f"{about} it does not run")
    if "frozen" not in state:  # an older supervisor would die of the signal
        raise Refused(
            f"{about} it was started by an older version, which cannot freeze it",
            hint="stop it and launch it again",
        )
    if not (
        instance.ask_supervisor(signal.SIGUSR1) and _becomes(instance, frozen=True)
    ):
        instance.ask_supervisor(signal.SIGUSR2)
        raise TimedOut(f"{about} it could not be frozen", hint="try again")


def thaw(instance: Instance, about: str) -> bool:
    """Let the processes go on; says whether they were suspended until now."""
    state = instance.state() or {}
    if not instance.is_held() or "frozen" not in state:
        return False
    if not instance.ask_supervisor(signal.SIGUSR2):
        return False
    if not _becomes(instance, frozen=False):
        raise TimedOut(f"{about} its supervisor does not answer")
    return bool(state["frozen"])


def _becomes(instance: Instance, *, frozen: bool) -> bool:
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        if bool((instance.state() or {}).get("frozen")) == frozen:
            return True
        time.sleep(0.005)
    return False
