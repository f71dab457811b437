"""What a Deployment is, as every kind of target says it: pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lobstertrap.adopt.found import Found, Mount, slug
from lobstertrap.agent import parse_size

_UNKNOWN_PROGRAM = "it has arguments for a program that only its image knows"


def describe(
    deployment: Mapping[str, Any],
    *,
    pods: list[Any],
    claims: list[Any],
    config_maps: list[Any],
    secret_keys: Mapping[str, list[str]],
    made_by: str,
) -> Found:
    """Return what a Deployment is, beside what its namespace has.

    `secret_keys` has the keys of every Secret that is given to it as a whole.
    """
    metadata, spec = deployment["metadata"], deployment["spec"]["template"]["spec"]
    container = main_container(spec)
    namespace = metadata["namespace"]
    installed = made_by == "claw-installer"
    limits = (container.get("resources") or {}).get("limits") or {}
    security = (spec.get("securityContext") or {}) | (
        container.get("securityContext") or {}
    )
    env, held, told = _environment(container, config_maps, secret_keys)
    user = security.get("runAsUser", 1000)
    command, words = container.get("command") or (), container.get("args") or ()
    name = namespace.removesuffix("-openclaw") if installed else metadata["name"]
    return Found(
        original=f"{namespace}/{metadata['name']}",
        made_by=made_by,
        name=slug(name),
        running=bool(deployment["spec"].get("replicas", 1)),
        mounts=tuple(mounts_of(spec, container, namespace, claims)),
        image=_pinned(container, metadata["name"], pods),
        command=(*map(str, command), *map(str, words)),
        env=env,
        held=held,
        ports=tuple((p["containerPort"], None) for p in container.get("ports") or ()),
        health=_health(container),
        owner=(user, security.get("runAsGroup", security.get("fsGroup", user))),
        memory=_bytes(limits.get("memory")),
        cpus=_cpus(limits.get("cpu")),
        read_only_root=bool(security.get("readOnlyRootFilesystem")),
        capabilities=tuple((security.get("capabilities") or {}).get("add") or ()),
        tmpfs=tuple(_scratch(spec, container)),
        stop_seconds=spec.get("terminationGracePeriodSeconds"),
        is_openclaw=installed or "openclaw" in container["image"],
        obstacle=_UNKNOWN_PROGRAM if words and not command else "",
        warnings=(*told, *_warnings(deployment, spec, container)),
    )


def main_container(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the container that is meant: the one with a claim, else the first."""
    claims = claims_of(spec)
    for container in spec["containers"]:
        mounts = container.get("volumeMounts") or ()
        if any(m["name"] in claims for m in mounts):
            return dict(container)
    return dict(spec["containers"][0])


def claims_of(spec: Mapping[str, Any]) -> dict[str, str]:
    """Return the claim by the pod's name of the volume."""
    return {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in spec.get("volumes") or ()
        if "persistentVolumeClaim" in volume
    }


def mounts_of(
    spec: Mapping[str, Any],
    container: Mapping[str, Any],
    namespace: str,
    claims: list[Any],
) -> Iterator[Mount]:
    """Yield the claims that the container may write to."""
    used = claims_of(spec)
    sizes = {
        one["metadata"]["name"]: one["spec"]["resources"]["requests"].get("storage")
        for one in claims
    }
    for mount in container.get("volumeMounts") or ():
        claim = used.get(mount["name"])
        if claim is None or mount.get("readOnly"):
            continue
        inside = [mount["subPath"]] if mount.get("subPath") else []
        source = "/".join([namespace, claim, *inside])
        path = mount["mountPath"]
        yield Mount(path=path, source=source, size=_bytes(sizes.get(claim)))


def _scratch(spec: Mapping[str, Any], container: Mapping[str, Any]) -> Iterator[str]:
    empty = {v["name"] for v in spec.get("volumes") or () if "emptyDir" in v}
    for mount in container.get("volumeMounts") or ():
        if mount["name"] in empty:
            yield mount["mountPath"]


def _pinned(container: Mapping[str, Any], workload: str, pods: list[Any]) -> str:
    """Return the image by the digest that a node has pulled, if one tells it."""
    image = str(container["image"])
    for pod in pods:
        if not pod["metadata"]["name"].startswith(f"{workload}-"):
            continue
        for status in pod["status"].get("containerStatuses") or ():
            pulled = str(status.get("imageID", "")).rpartition("://")[2]
            if status["name"] == container["name"] and "@sha256:" in pulled:
                return pulled
    return image


def _environment(
    container: Mapping[str, Any],
    config_maps: list[Any],
    secret_keys: Mapping[str, list[str]],
) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Return the plain values, the references to Secrets, and what is neither."""
    maps = {one["metadata"]["name"]: one.get("data") or {} for one in config_maps}
    env: dict[str, str] = {}
    held: dict[str, str] = {}
    told: list[str] = []
    for source in container.get("envFrom") or ():
        if "configMapRef" in source:
            env |= maps.get(source["configMapRef"]["name"], {})
            continue
        name, prefix = source["secretRef"]["name"], source.get("prefix", "")
        for key in secret_keys.get(name, ()):
            held[f"{prefix}{key}"] = f"{name}/{key}"
    for one in container.get("env") or ():
        name, given = one["name"], one.get("valueFrom") or {}
        if "secretKeyRef" in given:
            ref = given["secretKeyRef"]
            held[name] = f"{ref['name']}/{ref['key']}"
        elif "configMapKeyRef" in given:
            ref = given["configMapKeyRef"]
            env[name] = maps.get(ref["name"], {}).get(ref["key"], "")
        elif given:
            told.append(f"the variable {name}, which the cluster makes up")
        else:
            env[name] = one.get("value", "")
    return env, held, told


def _health(container: Mapping[str, Any]) -> dict[str, Any] | None:
    for kind in ("readinessProbe", "startupProbe", "livenessProbe"):
        probe = container.get(kind)
        if not probe or "tcpSocket" in probe or "grpc" in probe:
            continue
        health: dict[str, Any] = {"timeout": float(probe.get("timeoutSeconds", 1))}
        if "httpGet" in probe:
            port = _port_number(container, probe["httpGet"]["port"])
            health["http"] = {"port": port, "path": probe["httpGet"].get("path", "/")}
        else:
            health["command"] = [*probe["exec"]["command"]]
        tried = probe.get("failureThreshold", 3) * probe.get("periodSeconds", 10)
        health["start"] = float(max(60, tried + probe.get("initialDelaySeconds", 0)))
        return health
    return None


def _port_number(container: Mapping[str, Any], port: object) -> int:
    named = {p.get("name"): p["containerPort"] for p in container.get("ports") or ()}
    return int(named.get(str(port), port))


def _bytes(text: str | None) -> int | None:
    found = parse_size(text) if text else None
    return found if isinstance(found, int) else None


def _cpus(text: str | None) -> float | None:
    if not text:
        return None
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def _warnings(
    deployment: Mapping[str, Any],
    spec: Mapping[str, Any],
    container: Mapping[str, Any],
) -> Iterator[str]:
    others = [c["name"] for c in spec["containers"] if c["name"] != container["name"]]
    if others:
        yield f"the containers beside it: {', '.join(others)}"
    first = [c["name"] for c in spec.get("initContainers") or ()]
    if first:
        # claw-installer's overwrites openclaw.json and MEMORY.md at every start.
        yield f"what runs before it and may overwrite its state: {', '.join(first)}"
    kept = {
        *claims_of(spec),
        *(v["name"] for v in spec.get("volumes") or () if "emptyDir" in v),
    }
    for mount in container.get("volumeMounts") or ():
        if mount["name"] not in kept:
            yield f"what is mounted at {mount['mountPath']}"
    if deployment["spec"].get("replicas", 1) > 1:
        yield "all but one of its replicas"
