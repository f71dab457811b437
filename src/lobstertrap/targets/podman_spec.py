"""The hardened container in which Podman runs an agent: its names and its spec."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

from lobstertrap.agent import AgentSpec, Volume
from lobstertrap.errors import InvalidInput

AGENT = "io.lobstertrap.agent"
EPOCH = "io.lobstertrap.epoch"
VOLUME = "io.lobstertrap.volume"
TARGET = "io.lobstertrap.target"
MOVER = "io.lobstertrap.mover"
SECRETS = "io.lobstertrap.secrets"
"""The marks of the values that a container was made with, as JSON by name."""

_RESTARTS = 5
_LOG_BYTES = 10 * 2**20
_CPU_PERIOD = 100_000  # microseconds
_TMPFS = ["rw", "nosuid", "nodev", "mode=1777"]
_PODMANS_PLACE = PurePosixPath("/run/secrets")
_SECRETS_PLACE = ["rw", "nosuid", "nodev", "noexec", "mode=0755", "size=64k"]


def container_name(agent: AgentSpec) -> str:
    """Return the name of the agent's only container on an engine."""
    return f"lobstertrap-{agent.name}"


def volume_name(agent: AgentSpec, volume: str) -> str:
    """Return the engine's name of one of the agent's volumes."""
    return f"lobstertrap-{agent.name}-{volume}"


def secret_name(agent: AgentSpec, env: str) -> str:
    """Return the name of the Podman secret that holds one value of the agent."""
    return f"lobstertrap-{agent.name}-{env}"


def is_secret_of(agent: AgentSpec, name: str) -> bool:
    """Whether a Podman secret is this agent's: podman-py and 4.3 keep no labels."""
    prefix = secret_name(agent, "")
    # The name of a variable has no dash, so agent 'a' is not taken for 'a-b'.
    return name.startswith(prefix) and "-" not in name.removeprefix(prefix)


def agent_owner(agent: AgentSpec) -> tuple[int, int]:
    """Return whose the agent's files are, as every kind of mover sees them.

    In a container and inside `podman unshare` ids are the container's own; rootful
    engines do not map them.
    """
    return agent.security.user, agent.security.group


def epoch_of(found: Mapping[str, Any]) -> int:
    """Return the epoch of an inspected container; 0 when it has none."""
    text = (found["Config"].get("Labels") or {}).get(EPOCH, "")
    return int(text) if text.isdigit() else 0


def marks_of(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the marks of the secrets that an inspected container was made with."""
    try:
        marks = json.loads((found["Config"].get("Labels") or {}).get(SECRETS, "{}"))
    except ValueError:
        return {}
    return marks if isinstance(marks, dict) else {}


def volume_spec(agent: AgentSpec, volume: str, *, target: str) -> dict[str, Any]:
    """Return the request that makes one volume, owned by the agent's user.

    The options fix the owner for good; a volume without them is given to whoever
    mounts it first, which would undo a restore.
    """
    security = agent.security
    return {
        "Name": volume_name(agent, volume),
        "Driver": "local",
        "Labels": {AGENT: agent.name, VOLUME: volume, TARGET: target},
        "Options": {"o": f"uid={security.user},gid={security.group}"},
    }


def container_spec(
    agent: AgentSpec,
    *,
    epoch: int,
    image: str,
    secrets: Mapping[str, str],
    limits: frozenset[str],
    target: str,
    marks: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the request that creates the agent's container, not started.

    It restarts after a crash a few times, but never after a reboot: only `always` does
    that, and a machine that comes back must not start a copy that has moved away.

    `secrets` has the Podman secret's name by environment name, `marks` what tells its
    values apart; `limits` says which of `memory`, `pids` and `cpu` the engine can
    enforce.
    """
    security = agent.security
    files = agent.secret_files
    spec: dict[str, Any] = {
        "name": container_name(agent),
        "image": image,
        "labels": {
            AGENT: agent.name,
            EPOCH: str(epoch),
            TARGET: target,
            SECRETS: json.dumps(dict(marks)),
        },
        "hostname": agent.host_name,
        "env": _environment(agent, epoch),
        "secret_env": {n: name for n, name in secrets.items() if n not in files},
        "secrets": [
            {
                "Source": secrets[name],
                "Target": path,
                "UID": security.user,
                "GID": security.group,
                "Mode": 0o400,
            }
            for name, path in files.items()
        ],
        "user": f"{security.user}:{security.group}",
        "cap_drop": ["ALL"],
        "cap_add": list(security.capabilities),
        "no_new_privileges": security.no_new_privileges,
        "read_only_filesystem": security.read_only_root,
        "image_volume_mode": "ignore",  # an anonymous volume would be lost state
        "volumes": [_mount(agent, volume) for volume in agent.volumes],
        "mounts": [
            *(_tmpfs(path, _TMPFS) for path in security.tmpfs),
            *(
                _tmpfs(path, _SECRETS_PLACE)
                for path in _secrets_places(agent)
                if path not in security.tmpfs
            ),
        ],
        "portmappings": [
            {
                "host_ip": "127.0.0.1",
                "host_port": port.publish or 0,
                "container_port": port.port,
                "protocol": "tcp",
            }
            for port in agent.ports
        ],
        "stop_timeout": math.ceil(agent.stop_timeout),
        "restart_policy": "on-failure",
        "restart_tries": _RESTARTS,
        "log_configuration": {"driver": "k8s-file", "size": _LOG_BYTES},
        "resource_limits": _limits(agent, limits),
    }
    if agent.command:
        ports, volumes = _values(agent)
        # All of it as the entrypoint: that replaces the image's command too.
        spec["entrypoint"] = [
            agent.expand(word, ports=ports, volumes=volumes) for word in agent.command
        ]
    return spec


def _secrets_places(agent: AgentSpec) -> list[str]:
    """Return where a tmpfs must be for files to be mounted: the root is read-only."""
    places = {PurePosixPath(file).parent for file in agent.secret_files.values()}
    # Podman mounts a directory of its own here, read-only, in which none can be made.
    if any(place.is_relative_to(_PODMANS_PLACE) for place in places):
        places.add(_PODMANS_PLACE)
    return sorted(map(str, places))


def _tmpfs(path: str, options: Sequence[str]) -> dict[str, Any]:
    return {
        "type": "tmpfs",
        "destination": path,
        "source": "tmpfs",
        "options": [*options],
    }


def _mount(agent: AgentSpec, volume: Volume) -> dict[str, Any]:
    return {
        "Name": volume_name(agent, volume.name),
        "Dest": volume.path,
        # Without nocopy an empty volume is filled from the image: not so elsewhere.
        "Options": ["rw", "nosuid", "nodev", "nocopy"],
    }


def _environment(agent: AgentSpec, epoch: int) -> dict[str, str]:
    ports, volumes = _values(agent)
    own = {
        name: agent.expand(value, ports=ports, volumes=volumes)
        for name, value in agent.env.items()
    }
    reserved = [name for name in own if name.startswith("LOBSTERTRAP_")]
    if reserved:
        raise InvalidInput(
            f"agent '{agent.name}': env: {', '.join(reserved)} is set by the target"
        )
    files = {f"{name}_FILE": path for name, path in agent.secret_files.items()}
    return {**own, **files, "LOBSTERTRAP_EPOCH": str(epoch)}


def _values(agent: AgentSpec) -> tuple[dict[str, str], dict[str, str]]:
    ports = {port.name: str(port.port) for port in agent.ports}
    return ports, {volume.name: volume.path for volume in agent.volumes}


def _limits(agent: AgentSpec, can: frozenset[str]) -> dict[str, Any]:
    wanted = agent.resources
    limits: dict[str, Any] = {}
    if "memory" in can:
        # With swap equal to it nothing is swapped: slow is worse than ended.
        limits["memory"] = {"limit": wanted.memory, "swap": wanted.memory}
    if "pids" in can:
        limits["pids"] = {"limit": wanted.pids}
    if "cpu" in can:
        quota = max(1000, int(wanted.cpus * _CPU_PERIOD))
        limits["cpu"] = {"period": _CPU_PERIOD, "quota": quota}
    return limits
