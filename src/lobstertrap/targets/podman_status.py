"""What a Podman container's state means for its agent, and one look at its health."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from lobstertrap.agent import AgentSpec, HttpProbe
from lobstertrap.errors import LobsterTrapError
from lobstertrap.targets.base import AgentStatus
from lobstertrap.targets.health import probe
from lobstertrap.targets.podman_api import PodmanApi, frames, lines
from lobstertrap.targets.podman_spec import container_name, epoch_of

_NEVER_STARTED = {"created", "configured", "initialized"}
_ENDED = {"exited", "stopped"}
_KILLED = 137
_NOT_THERE = {126, 127}  # what a shell and the runtimes say of a missing program


def is_running(found: Mapping[str, Any]) -> bool:
    """Whether it runs, or may: everything that is not known to have ended."""
    state = found["State"]
    ended = state["Status"] in _NEVER_STARTED | _ENDED
    return bool(state.get("Running")) or not ended


def never_started(found: Mapping[str, Any]) -> bool:
    """Whether it was made, and nobody has started it yet."""
    return not is_running(found) and found["State"]["Status"] in _NEVER_STARTED


def is_settled(found: Mapping[str, Any]) -> bool:
    """Whether it has ended for good: in `stopped` its restart is not yet decided."""
    return not is_running(found) and found["State"]["Status"] != "stopped"


def agent_status(
    api: PodmanApi,
    agent: AgentSpec,
    found: Mapping[str, Any],
    volumes: tuple[str, ...],
) -> AgentStatus:
    """Return the status of the agent whose container was inspected."""
    running = is_running(found)
    addresses = _addresses(agent, found) if running else {}
    healthy, detail = None, ""
    if not running:
        detail = _why_stopped(api, agent, found)
    elif found["State"]["Status"] == "paused":
        healthy, detail = False, "paused"
    elif agent.health is not None:
        healthy, detail = _probe(api, agent, found, addresses)
    return AgentStatus(
        phase="running" if running else "stopped",
        epoch=epoch_of(found) or None,
        healthy=healthy,
        detail=detail,
        started_at=_seconds(found["State"].get("StartedAt", "")),
        image=f"sha256:{found['Image'].removeprefix('sha256:')}",
        addresses=addresses,
        volumes=volumes,
    )


def _addresses(agent: AgentSpec, found: Mapping[str, Any]) -> dict[str, str]:
    published = found["NetworkSettings"].get("Ports") or {}
    addresses = {}
    for port in agent.ports:
        for place in published.get(f"{port.port}/tcp") or ():
            host = place.get("HostIp") or "127.0.0.1"
            addresses[port.name] = f"{host}:{place['HostPort']}"
    return addresses


def _why_stopped(api: PodmanApi, agent: AgentSpec, found: Mapping[str, Any]) -> str:
    state = found["State"]
    if state["Status"] in _NEVER_STARTED:
        return "created, but never started"
    code = state.get("ExitCode", 0)
    if state.get("OOMKilled"):
        how = "killed: out of memory"
    elif code == _KILLED:
        how = "killed (137): by force, or out of memory"
    else:
        how = f"exited with status {code}"
    last = _last_line(api, agent) if code else ""
    return f"{how}: {last}" if last else how


def _last_line(api: PodmanApi, agent: AgentSpec) -> str:
    path = f"/containers/{container_name(agent)}/logs"
    with (
        contextlib.suppress(LobsterTrapError),
        api.stream(
            "GET", path, stdout=True, stderr=True, follow=False, tail="5"
        ) as pieces,
    ):
        said = [line.strip() for line in lines(frames(pieces)) if line.strip()]
        return said[-1] if said else ""
    return ""


def _seconds(text: str) -> float | None:
    """Return seconds since the epoch; Go's zero time means never."""
    with contextlib.suppress(ValueError):
        moment = datetime.fromisoformat(text)
        return moment.timestamp() if moment.year > 1 else None
    return None


def _probe(
    api: PodmanApi,
    agent: AgentSpec,
    found: Mapping[str, Any],
    addresses: Mapping[str, str],
) -> tuple[bool, str]:
    health = agent.health
    if health is None:
        return True, ""

    def run(command: Sequence[str], seconds: float) -> tuple[int, str]:
        return execute(api, agent, command, seconds)

    if health.http is not None and not _is_here(found):
        return _probe_inside(api, agent, health.http, health.timeout)
    return probe(health, addresses, run)


def _is_here(found: Mapping[str, Any]) -> bool:
    """Prove that the container runs on this machine: its monitor is a process here."""
    monitor = Path(f"/proc/{found['State'].get('ConmonPid', 0)}/cmdline")
    with contextlib.suppress(OSError):
        return found["Id"].encode() in monitor.read_bytes()
    return False


def _probe_inside(
    api: PodmanApi, agent: AgentSpec, http: HttpProbe, seconds: float
) -> tuple[bool, str]:
    """Ask from inside the container with whatever there is that speaks HTTP."""
    url = f"http://127.0.0.1:{agent.port(http.port).port}{http.path}"
    limit = str(max(1, round(seconds)))
    ask = (
        "import sys, urllib.request as r; "
        f"r.urlopen(sys.argv[1], timeout={seconds!r}).read(1)"
    )
    for command in (
        ["python3", "-c", ask, url],
        ["curl", "-fsS", "-o", "/dev/null", "-m", limit, url],
        ["wget", "-q", "-O", "/dev/null", "-T", limit, url],
    ):
        try:
            status, said = execute(api, agent, command, seconds + 5)
        except LobsterTrapError as error:
            if "executable file" in error.message or "not found" in error.message:
                continue
            return False, error.message
        if status not in _NOT_THERE:
            last = said.strip().splitlines()[-1:] or [f"status {status}"]
            return (True, "") if status == 0 else (False, f"GET {url}: {last[0]}")
    return False, "no python3, curl or wget in the image to probe it with"


def execute(
    api: PodmanApi, agent: AgentSpec, command: Sequence[str], seconds: float
) -> tuple[int, str]:
    """Run a command in the agent's container; return its status and output."""
    request = {"AttachStdout": True, "AttachStderr": True, "Cmd": list(command)}
    made = api.post(f"/containers/{container_name(agent)}/exec", request)
    with api.stream(
        "POST",
        f"/exec/{made['Id']}/start",
        data=b'{"Detach": false, "Tty": false}',
        seconds=seconds,
    ) as pieces:
        said = b"".join(frames(pieces)).decode("utf-8", "replace")
    return int(api.get(f"/exec/{made['Id']}/json")["ExitCode"]), said
