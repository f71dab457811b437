"""The spec that reproduces an original: a pure function of what was found."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from lobstertrap.adopt import found as known
from lobstertrap.adopt.found import Found
from lobstertrap.adopt.secrecy import has_secret_shape, looks_secret
from lobstertrap.agent import AgentSpec, describe_mistakes
from lobstertrap.errors import InvalidInput, Refused
from lobstertrap.redaction import SecretValue, redactor

KeepIn = Literal["target", "env"]
"""Where the spec says that secrets are: on the target, or in the environment of who
runs `lobstertrap`."""

_PLACEHOLDER = re.compile(r"\{((?:volumes|ports)\.[a-z0-9-]+|agent)\}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_VOLUME_BYTES = 10 * 2**30
_UNITS = ((2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A spec, and what has to be done so that it can be run."""

    spec: AgentSpec
    secrets: Mapping[str, tuple[str, SecretValue | None]]
    """By variable: the id under which the target has to keep a value, and the value;
    None when the target has it already and only copies it."""
    sources: Mapping[str, str]
    """By volume: where the state is."""
    warnings: tuple[str, ...]


def draft(found: Found, name: str, *, keep_in: KeepIn = "target") -> Draft:
    """Return the spec of an agent `name` that does what the original does.

    Raises `Refused` when the original's command line holds what looks like a secret,
    and `InvalidInput` when it cannot be said in a spec at all.
    """
    if found.obstacle:
        raise Refused(
            f"{found.original} cannot be said in an agent.yaml: {found.obstacle}",
            hint="write the agent.yaml by hand, see docs/agents.md",
        )
    _refuse_secret_words(found)
    _refuse_placeholders(found)
    env, secrets, warnings = _environment(found)
    volumes = {_volume_name(m.path, i): m for i, m in enumerate(found.mounts)}
    refs = {
        variable: _reference(name, variable, found, keep_in) for variable in secrets
    }
    raw = {
        "name": name,
        "image": found.image,
        "command": [*found.command],
        "hostname": _hostname(found, name),
        "volumes": [_volume(key, mount, found) for key, mount in volumes.items()],
        "secrets": refs,
        "env": env,
        "ports": [*_ports(found)],
        "health": _health(found),
        "resources": _resources(found),
        "stop_timeout": _stop_seconds(found),
        "security": _security(found),
        "host": {"command": [*found.host_command]} if found.host_command else None,
    }
    raw = {key: value for key, value in raw.items() if value not in (None, [], {})}
    try:
        spec = AgentSpec.model_validate(raw)
    except ValidationError as error:
        told = describe_mistakes(Path(found.original), error)
        raise InvalidInput(
            f"{found.original} cannot be said in an agent.yaml: {told}",
            hint="write the agent.yaml by hand, see docs/agents.md",
        ) from None
    kept = {
        variable: (refs[variable]["id"], secrets[variable])
        for variable in secrets
        if refs[variable]["source"] == "target"
        and refs[variable]["id"] != found.held.get(variable)
    }
    return Draft(
        spec=spec,
        secrets=kept,
        sources={key: mount.source for key, mount in volumes.items()},
        warnings=(*found.warnings, *warnings, *_limits_told(found)),
    )


def to_yaml(drafted: Draft, found: Found, target: str) -> str:
    """Return the text of the agent.yaml; it has no value of a secret in it."""
    spec = drafted.spec.model_dump(mode="json", exclude_defaults=True)
    for volume in spec.get("volumes", []):
        volume["size"] = _size(volume["size"]) if "size" in volume else "1Gi"
    if "memory" in spec.get("resources", {}):
        spec["resources"]["memory"] = _size(spec["resources"]["memory"])
    body = yaml.safe_dump(spec, sort_keys=False, allow_unicode=False, width=88)
    notes = [f"Adopted from {found.original} on target {target} ({found.made_by})."]
    notes += [f"Not carried over: {warning}" for warning in drafted.warnings]
    return "".join(f"# {_one_line(note)}\n" for note in notes) + body


def _one_line(text: str) -> str:
    # A name with a line break in it must not become a line of the spec.
    return "".join(char if char.isprintable() else "?" for char in text)


def _refuse_secret_words(found: Found) -> None:
    for number, word in enumerate(found.command):
        if has_secret_shape(word):
            raise Refused(
                f"{found.original}: word {number} of its command looks like a secret, "
                "which would be written into the agent.yaml",
                hint="give it to the original as a variable or a Podman secret, then "
                "adopt it",
            )


def _refuse_placeholders(found: Found) -> None:
    """Refuse words that a target would replace; on the host they are our own."""
    words = [*found.command, *found.env.values()]
    if not found.host_command and any(_PLACEHOLDER.search(word) for word in words):
        raise InvalidInput(
            f"{found.original}: its command or environment has one of our placeholders",
            hint="write the agent.yaml by hand, see docs/agents.md",
        )


def _environment(
    found: Found,
) -> tuple[dict[str, str], dict[str, SecretValue | None], list[str]]:
    plain: dict[str, str] = {}
    secrets: dict[str, SecretValue | None] = dict.fromkeys((*found.held, *found.named))
    warnings = []
    for name, value in found.env.items():
        if name in secrets or name.startswith("LOBSTERTRAP_"):
            continue
        if not _VARIABLE.fullmatch(name):
            warnings.append(f"the variable {name!r}, whose name is none")
        elif looks_secret(name, value):
            secrets[name] = SecretValue(value)
            redactor.add(SecretValue(value))
        else:
            plain[name] = value
    return plain, secrets, warnings


def _reference(
    name: str, variable: str, found: Found, keep_in: KeepIn
) -> dict[str, str]:
    if keep_in == "env" or variable in found.named:
        return {"source": "env", "id": variable.upper()}
    held = found.held.get(variable)
    if held is not None and "/" not in held:  # a Podman secret: used as it is
        return {"source": "target", "id": held}
    # A name that Podman and Kubernetes both allow, so that it can be made elsewhere.
    end = re.sub(r"[^a-z0-9]+", "-", variable.lower()).strip("-")
    return {"source": "target", "id": f"lobstertrap-{name}.env-{end}"}


def _volume_name(path: str, number: int) -> str:
    name = known.slug(PurePosixPath(path).name) if number == 0 else ""
    if name in ("node", "root") or name.startswith("agent"):
        name = "home"
    return name or f"{known.slug(PurePosixPath(path).name)[:36]}-{number}"


def _volume(name: str, mount: known.Mount, found: Found) -> dict[str, Any]:
    volume: dict[str, Any] = {"name": name, "path": mount.path}
    volume["size"] = mount.size or _VOLUME_BYTES
    if found.is_openclaw:
        below = "" if mount.path.rstrip("/").endswith(".openclaw") else "/.openclaw"
        volume["exclude"] = [f"{below}/{c}" for c in known.OPENCLAW_CACHES]
    return volume


def _ports(found: Found) -> Iterator[dict[str, Any]]:
    for number, publish in dict(found.ports).items():
        port: dict[str, Any] = {"name": _port_name(found, number), "port": number}
        if publish is not None:
            port["publish"] = publish
        yield port


def _port_name(found: Found, number: int) -> str:
    openclaw = found.is_openclaw and number == known.OPENCLAW_PORT
    return "gateway" if openclaw else f"port-{number}"


def _health(found: Found) -> Mapping[str, Any] | None:
    ports = dict(found.ports)
    if found.is_openclaw and known.OPENCLAW_PORT in ports:
        # What other tools ask for answers before OpenClaw is ready.
        port = _port_name(found, known.OPENCLAW_PORT)
        return {"http": {"port": port, "path": "/readyz"}, "start": 180.0}
    if found.health is None:
        return None
    health = dict(found.health)
    http = health.get("http")
    if http is not None:
        health["http"] = {**http, "port": _port_name(found, http["port"])}
    return health


def _resources(found: Found) -> dict[str, Any]:
    wanted: dict[str, Any] = {"memory": found.memory, "cpus": found.cpus}
    wanted["pids"] = found.pids
    if found.is_openclaw:
        wanted["memory"] = wanted["memory"] or known.OPENCLAW_MEMORY
        wanted["pids"] = wanted["pids"] or known.OPENCLAW_PIDS
    return {key: value for key, value in wanted.items() if value}


def _limits_told(found: Found) -> Iterator[str]:
    if found.memory is None:
        memory = _size(known.OPENCLAW_MEMORY if found.is_openclaw else 2**30)
        yield f"it had no limit of memory; now it has {memory}"


def _security(found: Found) -> dict[str, Any]:
    security: dict[str, Any] = {"user": found.owner[0], "group": found.owner[1]}
    security["read_only_root"] = found.read_only_root
    security["capabilities"] = [*found.capabilities]
    security["tmpfs"] = sorted({"/tmp", *found.tmpfs})  # noqa: S108 - in the container
    return security


def _stop_seconds(found: Found) -> float | None:
    if found.is_openclaw:
        return max(known.OPENCLAW_STOP_SECONDS, found.stop_seconds or 0.0)
    return found.stop_seconds


def _hostname(found: Found, name: str) -> str | None:
    # State may be bound to it, so it stays what it was, wherever the agent goes.
    if found.hostname and _HOST_NAME.fullmatch(found.hostname):
        return found.hostname if found.hostname != name else None
    return None


def _size(count: int) -> str:
    for unit, suffix in _UNITS:
        if count % unit == 0:
            return f"{count // unit}{suffix}"
    return str(count)
