"""What targets hold of an agent's secrets beside what its references say, and rotation.

A value is never read back from a target: every instance carries a *mark* of each value
that it was launched with, a digest under a key of the repository, and marks are what is
compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from lobstertrap.agent import AgentSpec
from lobstertrap.errors import LobsterTrapError
from lobstertrap.lease import AgentRecord
from lobstertrap.lifecycle import (
    AgentHandle,
    bar_latecomers,
    pause,
    refuse_unfinished,
    resume,
)
from lobstertrap.secrets import Lookup
from lobstertrap.targets.base import AgentStatus, SecretKeeper, Target

State = Literal[
    "present", "differs", "missing", "not compared", "not bound", "unreachable"
]
"""`differs`: the instance runs with another value than the reference has now;
`missing`: the agent lives here and the value is not here; `not compared`: it is here,
but the marks or the value are not known; `not bound`: nothing of the agent is here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretState:
    """One secret of an agent: whether its reference resolves, and where it is."""

    name: str
    ref: str
    file: str | None
    """Where the agent finds it as a file; None: in its environment."""
    problem: str
    """Why its reference does not resolve; "" when it does."""
    on: Mapping[str, State]
    """By target."""


def survey(
    spec: AgentSpec,
    found: Lookup,
    record: AgentRecord | None,
    targets: Mapping[str, Callable[[], Target]],
) -> list[SecretState]:
    """Return the state of every secret of the agent on every one of `targets`."""
    held = {name: _held(spec, target) for name, target in targets.items()}
    home = record.target if record and record.state == "running" else None
    return [
        SecretState(
            name=name,
            ref=str(ref),
            file=spec.secret_files.get(name),
            problem=found.problems.get(name, ""),
            on={
                target: _state(
                    name,
                    marks,
                    now=found.values[name].mark if name in found.values else "",
                    on_target=ref.source == "target",
                    at_home=target == home,
                )
                for target, marks in held.items()
            },
        )
        for name, ref in spec.secrets.items()
    ]


def rotate(handle: AgentHandle) -> AgentStatus:
    """Bind what the references say now, and restart the agent if it should run.

    Everything is resolved before anything is touched. Dying on the way leaves an agent
    that should run stopped, which the next operation on it, or this one again, mends.
    """
    refuse_unfinished(handle)
    home, secrets = handle.home(), handle.secrets()
    target = handle.target(home)
    if handle.record().state == "running":
        known = replace(handle, secrets=lambda: secrets)
        pause(known, home)
        return resume(known, home)
    bar_latecomers(handle, target)
    target.bind_secrets(handle.spec, secrets)
    return target.status(handle.spec)


def _held(spec: AgentSpec, target: Callable[[], Target]) -> Mapping[str, str] | None:
    """Return the marks that a target shows; None when it cannot be asked."""
    try:
        opened = target()
        return opened.held_secrets(spec) if isinstance(opened, SecretKeeper) else None
    except LobsterTrapError:
        return None


def _state(
    name: str,
    marks: Mapping[str, str] | None,
    *,
    now: str,
    on_target: bool,
    at_home: bool,
) -> State:
    if marks is None:
        return "unreachable"
    if name not in marks:
        return "missing" if at_home else "not bound"
    if on_target:
        return "present"
    if not now or not marks[name]:
        return "not compared"
    return "present" if marks[name] == now else "differs"
