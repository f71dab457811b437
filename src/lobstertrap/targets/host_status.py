"""What a host shows of an agent: the lock, the last state, one look at its health."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lobstertrap.errors import NotFound, TimedOut
from lobstertrap.redaction import redactor
from lobstertrap.targets.base import AgentStatus
from lobstertrap.targets.health import probe
from lobstertrap.targets.host_instance import ENDED, Instance, boot_id
from lobstertrap.targets.host_launch import HostLaunch

_TAIL_LINES = 3


def read_status(plan: HostLaunch) -> AgentStatus:
    """Return what is here of the agent now."""
    held, state = _observe(plan.instance)
    left = [] if held else plan.instance.leftovers()
    volumes = tuple(name for name, path in plan.volumes.items() if path.is_dir())
    if not held and not left and state is None:
        return AgentStatus(phase="absent", volumes=volumes)
    state = state or {}
    ports = state.get("ports", {}) if held else {}
    addresses = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    if held and state.get("phase") == "running":
        healthy, detail = _probe(plan, addresses)
    elif held or left:
        healthy, detail = (
            (False if plan.agent.health else None),
            _unsettled(state, left),
        )
    else:
        healthy, detail = None, _epitaph(plan.instance, state)
    return AgentStatus(
        phase="running" if held or left else "stopped",
        epoch=state.get("epoch"),
        healthy=healthy,
        detail=detail,
        started_at=state.get("started_at"),
        image=state.get("image"),
        addresses=addresses,
        volumes=volumes,
    )


def _observe(instance: Instance) -> tuple[bool, dict[str, Any] | None]:
    """Return whether a supervisor lives, and a state that belongs to the answer."""
    held, state = instance.is_held(), instance.state()
    for _ in range(50):
        if not held or (state and state.get("phase") not in ENDED):
            break
        time.sleep(0.01)  # between its last word and its end, or before its first
        held, state = instance.is_held(), instance.state()
    return held, state


def run_beside(
    plan: HostLaunch, command: Sequence[str], seconds: float
) -> tuple[int, str]:
    """Run a command as the agent is run, with its environment but its secrets."""
    held, state = _observe(plan.instance)
    if not held or (state or {}).get("phase") != "running":
        raise NotFound(f"{plan.about} it does not run")
    ports = (state or {}).get("ports", {})
    return _run(command, plan.environment(ports), plan.instance.home, seconds)


def _probe(plan: HostLaunch, addresses: Mapping[str, str]) -> tuple[bool | None, str]:
    if plan.agent.health is None:
        return None, ""
    ports = {name: int(at.rpartition(":")[2]) for name, at in addresses.items()}

    def run(command: Sequence[str], timeout: float) -> tuple[int, str]:
        return _run(command, plan.environment(ports), plan.instance.home, timeout)

    return probe(plan.agent.health, addresses, run)


def _run(
    command: Sequence[str], env: Mapping[str, str], cwd: Path, timeout: float
) -> tuple[int, str]:
    """Run a health command in a group of its own, which does not outlive it."""
    try:
        process = subprocess.Popen(
            command,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return 127, f"{error.strerror}: {error.filename}".lower()
    with process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            message = f"the command took longer than {timeout:g} s"
            raise TimedOut(message) from None
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output.decode(errors="replace")


def _ending(state: Mapping[str, Any]) -> str:
    status = state.get("exit_status")
    if status is None:
        return "stopped"
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"


def _unsettled(state: Mapping[str, Any], left: Sequence[int]) -> str:
    if left:
        return f"its supervisor was killed; processes {[*left]} are left"
    if state.get("phase") == "restarting":
        return f"{_ending(state)}; restart {state.get('restarts', 0) + 1} follows"
    return "starting"


def _epitaph(instance: Instance, state: Mapping[str, Any]) -> str:
    """Return why an instance is stopped, in a few words."""
    if state.get("phase") not in ENDED:
        gone = state.get("boot") != boot_id()
        return "the machine was restarted" if gone else "its supervisor was killed"
    if state["phase"] == "failed":
        return f"could not be started: {state.get('problem')}"
    if state["phase"] == "stopped":
        return _ending(state)
    detail = state.get("problem") or _ending(state)
    detail += f" after {state.get('restarts', 0)} restarts"
    said = " | ".join(instance.log_lines(_TAIL_LINES))
    return redactor.redact(f"{detail}: {said}" if said else detail)
