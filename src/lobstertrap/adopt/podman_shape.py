"""What an inspected Podman container is, as every kind of target says it: pure."""

from __future__ import annotations

import itertools
import os.path
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lobstertrap.adopt.found import Found, Mount, slug
from lobstertrap.targets.podman_spec import EPOCH, MOVER
from lobstertrap.targets.podman_status import is_running

_SECONDS = 10**9  # Podman counts in nanoseconds
_SET_BY_PODMAN = ("TERM", "container", "HOSTNAME")
_OWN_DIRECTORIES = ("/tmp", "/run", "/var/tmp", "/proc", "/sys", "/dev")  # noqa: S108
_OWN_FILES = {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/mtab"}


def is_foreign(container: Mapping[str, Any]) -> bool:
    """Whether neither an agent of ours nor a mover; our images have a label too."""
    labels = container["Config"].get("Labels") or {}
    return not (EPOCH in labels or MOVER in labels or container.get("IsInfra"))


def name_of(container: Mapping[str, Any]) -> str:
    """Return the container's name."""
    return str(container["Name"]).removeprefix("/")


def describe(
    container: Mapping[str, Any],
    image: Mapping[str, Any],
    *,
    passwd: str = "",
    changed: Sequence[str] = (),
    secrets: frozenset[str] = frozenset(),
) -> Found:
    """Return what an inspected container is, beside its inspected image.

    `passwd` is its /etc/passwd, `changed` what it changed outside of its mounts,
    `secrets` the names of the engine's secrets.
    """
    config, host = container["Config"], container["HostConfig"]
    labels = config.get("Labels") or {}
    managed = labels.get("openclaw.managed") == "true"
    reference = _pinned(container, image)
    held = {k: v for k, v in _held(config).items() if v in secrets}
    command = _command(container, image)
    mounts = tuple(mounts_of(container))
    openclaw = managed or "openclaw" in str(container.get("ImageName", ""))
    # One may be run by its image's identity, or by another name.
    openclaw |= any(mount.path.endswith("/.openclaw") for mount in mounts)
    return Found(
        original=name_of(container),
        made_by="claw-installer" if managed else "podman run",
        name=slug(labels.get("openclaw.agent") or name_of(container)),
        running=is_running(container),
        mounts=mounts,
        image=reference,
        command=command,
        env=_environment(config, image),
        held=held,
        ports=tuple(_ports(container)),
        health=_health(config.get("Healthcheck") or {}),
        owner=_owner(str(config.get("User") or image.get("User") or ""), passwd),
        hostname=config.get("Hostname"),
        memory=host.get("Memory") or None,
        cpus=_cpus(host),
        pids=host.get("PidsLimit") or None,
        read_only_root=bool(host.get("ReadonlyRootfs")),
        capabilities=tuple(c.removeprefix("CAP_") for c in host.get("CapAdd") or ()),
        tmpfs=_tmpfs(host),
        stop_seconds=config.get("StopTimeout") or None,
        is_openclaw=openclaw,
        warnings=tuple(_warnings(container, image, changed)),
    )


def _pinned(container: Mapping[str, Any], image: Mapping[str, Any]) -> str | None:
    """Return the image by its digest, in the repository that the container names."""
    pinned = [str(name) for name in image.get("RepoDigests") or ()]
    named = str(container.get("ImageName", ""))
    repository = named.partition("@")[0].rpartition(":")[0] or named
    same = [name for name in pinned if name.partition("@")[0] == repository]
    return next(iter([*same, *pinned]), named or None)


def _command(container: Mapping[str, Any], image: Mapping[str, Any]) -> tuple[str, ...]:
    words = [str(container.get("Path", "")), *map(str, container.get("Args") or ())]
    if words[0].endswith(("/podman-init", "/dev/init", "/catatonit")):  # --init
        words = words[2:] if words[1:2] == ["--"] else words[1:]
    config = image.get("Config") or {}
    own = [*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())]
    return () if words == own or not words[0] else tuple(words)


def _environment(config: Mapping[str, Any], image: Mapping[str, Any]) -> dict[str, str]:
    own = {*((image.get("Config") or {}).get("Env") or ())}
    pairs = [text.partition("=") for text in config.get("Env") or () if text not in own]
    return {
        name: value
        for name, _, value in pairs
        if name not in _SET_BY_PODMAN and not (name == "PATH" and not value)
    }


def _held(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the Podman secret by variable, from the command that made the container.

    The engine itself tells the values, but not which secret they come from.
    """
    words = [str(word) for word in config.get("CreateCommand") or ()]
    options = [w.partition("=")[2] for w in words if w.startswith("--secret=")]
    options += [b for a, b in itertools.pairwise(words) if a == "--secret"]
    held = {}
    for option in options:
        name, *settings = option.split(",")
        given = dict(setting.partition("=")[::2] for setting in settings)
        if given.get("type") == "env":
            held[given.get("target") or name] = name
    return held


def mounts_of(container: Mapping[str, Any]) -> Iterator[Mount]:
    """Yield the directories of state: volumes and binds that it may write to."""
    for mount in container.get("Mounts") or ():
        path = str(mount["Destination"])
        if not mount.get("RW") or path == "/":
            continue
        if mount["Type"] == "volume" and mount.get("Name"):
            yield Mount(path=path, source=str(mount["Name"]))
        elif mount["Type"] == "bind" and not os.path.isfile(mount["Source"]):  # noqa: PTH113
            yield Mount(path=path, source=str(mount["Source"]))


def _ports(container: Mapping[str, Any]) -> Iterator[tuple[int, int | None]]:
    bound = container["HostConfig"].get("PortBindings") or {}
    for name, places in bound.items():
        number, _, protocol = name.partition("/")
        if protocol == "tcp":
            published = [str(place.get("HostPort", "")) for place in places or ()]
            public = next((int(port) for port in published if port.isdigit()), None)
            yield int(number), public or None


def _health(check: Mapping[str, Any]) -> dict[str, Any] | None:
    kind, *words = check.get("Test") or ["NONE"]
    if kind not in ("CMD", "CMD-SHELL") or not words:
        return None
    command = [*words] if kind == "CMD" else ["sh", "-c", words[0]]
    health: dict[str, Any] = {"command": command}
    for ours, theirs in (("interval", "Interval"), ("timeout", "Timeout")):
        if check.get(theirs):
            health[ours] = check[theirs] / _SECONDS
    tried = (check.get("Retries") or 3) * (check.get("Interval") or 0)
    start = (tried + (check.get("StartPeriod") or 0)) / _SECONDS
    health["start"] = max(60.0, start)
    return health


def _owner(user: str, passwd: str) -> tuple[int, int]:
    """Return the numbers of `user[:group]`; a group's name is not looked up."""
    name, _, group = user.partition(":")
    rows = [line.split(":") for line in passwd.splitlines()]
    known = [row for row in rows if len(row) > 3 and name in (row[0], row[2])]  # noqa: PLR2004
    uid = int(name) if name.isdigit() else int(known[0][2]) if known else 0
    primary = int(known[0][3]) if known else 0
    return uid, int(group) if group.isdigit() else primary


def _cpus(host: Mapping[str, Any]) -> float | None:
    if host.get("NanoCpus"):
        return float(host["NanoCpus"]) / _SECONDS
    if host.get("CpuQuota") and host.get("CpuPeriod"):
        return float(host["CpuQuota"]) / float(host["CpuPeriod"])
    return None


def _tmpfs(host: Mapping[str, Any]) -> tuple[str, ...]:
    # A read-only root gives /run and /var/tmp too, whoever asked for it or not.
    return tuple(path for path in host.get("Tmpfs") or {} if path.startswith("/"))


def _warnings(
    container: Mapping[str, Any], image: Mapping[str, Any], changed: Sequence[str]
) -> Iterator[str]:
    config, host = container["Config"], container["HostConfig"]
    if not image.get("RepoDigests"):
        yield f"the digest of its image {container.get('ImageName')}: it has none"
    if host.get("AutoRemove"):
        yield "--rm: it is removed when it stops, so a failed switch cannot start it"
    if host.get("Privileged"):
        yield "--privileged: it gets no capability but those that the spec names"
    if container.get("Pod"):
        yield "the pod that it is in, and what runs beside it there"
    if host.get("NetworkMode") == "host":
        yield "the host's network: it gets one of its own, and its published ports"
    own = (image.get("Config") or {}).get("WorkingDir") or "/"
    if (config.get("WorkingDir") or "/") != own:
        yield f"its working directory {config['WorkingDir']}"
    yield from _mounts_told(container)
    yield from _ports_told(host)
    yield from _changes_told(container, changed)


def _mounts_told(container: Mapping[str, Any]) -> Iterator[str]:
    kept = {mount.path for mount in mounts_of(container)}
    for mount in container.get("Mounts") or ():
        if mount["Destination"] not in kept:
            yield f"what is mounted at {mount['Destination']}"


def _ports_told(host: Mapping[str, Any]) -> Iterator[str]:
    for name, places in (host.get("PortBindings") or {}).items():
        if not name.endswith("/tcp"):
            yield f"its port {name}"
        elif any(p.get("HostIp") not in ("127.0.0.1", "::1") for p in places or ()):
            yield f"port {name} for other machines: it is published on loopback only"


def _changes_told(
    container: Mapping[str, Any], changed: Sequence[str]
) -> Iterator[str]:
    kept = [m["Destination"].rstrip("/") for m in container.get("Mounts") or ()]
    kept += _OWN_DIRECTORIES
    lost = [
        path
        for path in changed
        if path not in _OWN_FILES
        and not any(path == k or path.startswith(f"{k}/") for k in kept)
        and not any(k.startswith(f"{path}/") for k in (*kept, *_OWN_FILES))
    ]
    # A directory shows as changed because of what is in it.
    lost = [p for p in lost if not any(q.startswith(f"{p}/") for q in lost)]
    if lost:
        some = ", ".join(lost[:5]) + (" ..." if len(lost) > 5 else "")  # noqa: PLR2004
        yield f"what it wrote outside of its volumes: {some}"
