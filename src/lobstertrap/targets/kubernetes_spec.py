"""The manifests by which Kubernetes runs an agent, and their names: pure, no API.

An agent is a StatefulSet with one replica or none: unlike a Deployment it starts no
second pod while the first may still run on a node that does not answer.

A volume is the directory `data` in a claim, not the claim's root: that one belongs to
the cluster (owner, mode, lost+found), so it could not be made equal to a snapshot. The
agent and the mover run as the same user, who owns `data` and all that is in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from lobstertrap.agent import AgentSpec, Health, split_egress
from lobstertrap.errors import InvalidInput, Refused

AGENT: Final = "io.lobstertrap.agent"
EPOCH: Final = "io.lobstertrap.epoch"
VOLUME: Final = "io.lobstertrap.volume"
TARGET: Final = "io.lobstertrap.target"
MOVER: Final = "io.lobstertrap.mover"
TURN: Final = "io.lobstertrap.turn"
PREPARED: Final = "io.lobstertrap.prepared"
"""On a claim whose `data` is there, so that no init container has to make it."""

SECRETS: Final = "io.lobstertrap.secrets"
"""On a StatefulSet: the marks of the values that its pod was made with, as JSON."""

DATA: Final = "data"
CONTAINER: Final = "agent"
_PLACE: Final = "/volumes"
_LIVENESS_SECONDS: Final = 10
_LIVENESS_FAILURES: Final = 6
_PREPARE = (
    "import os, sys\n"
    f"[os.makedirs(p + '/{DATA}', 0o755, exist_ok=True) for p in sys.argv[1:]]"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What lobstertrap.toml says of one Kubernetes target, for its manifests."""

    target: str
    storage_class: str | None = None
    """The cluster's default when it is not given."""
    access_mode: str = "ReadWriteOnce"
    user: int | None = None
    """The uid and gid of agents here; each agent's own when it is not given."""
    pull_secret: str | None = None
    """An existing Secret with the registry's credentials."""
    egress: Sequence[str] = ()
    """Where every agent may connect to, besides DNS and what its own spec names."""
    platform: str = "linux/amd64"
    keeps_hostname: bool = False
    """Whether the cluster can give a pod a host name of our choice (1.34)."""
    annotations: Mapping[str, str] = field(default_factory=dict)

    def owner(self, agent: AgentSpec) -> tuple[int, int]:
        """Return the uid and gid that the agent has here."""
        if self.user is not None:
            return self.user, self.user
        return agent.security.user, agent.security.group


def object_name(agent: AgentSpec) -> str:
    """Return the name of the StatefulSet, Service, ServiceAccount and policy."""
    return f"lobstertrap-{agent.name}"


def pod_name(agent: AgentSpec) -> str:
    """Return the name of the agent's only pod."""
    return f"{object_name(agent)}-0"


def claim_name(agent: AgentSpec, volume: str) -> str:
    """Return the name of the claim that holds one of the agent's volumes."""
    return f"{object_name(agent)}-{volume}"


def secret_name(agent: AgentSpec) -> str:
    """Return the name of the Secret with the agent's values; no agent has a dot."""
    return f"{object_name(agent)}.secrets"


def fence_name(agent: AgentSpec) -> str:
    """Return the name of the ConfigMap that outlives the agent here."""
    return f"{object_name(agent)}.fence"


def mover_name(agent: AgentSpec) -> str:
    """Return the name of the mover's pod and of its Secret."""
    return f"{object_name(agent)}.mover"


def secret_key(env: str, reference: str) -> tuple[str, str]:
    """Return Secret and key of a reference `NAME/KEY`; NAME alone: the variable's."""
    name, _, key = reference.partition("/")
    return name, key or env


def labels(
    agent: AgentSpec, settings: Settings, component: str = "agent"
) -> dict[str, str]:
    """Return the labels of everything that is made for an agent."""
    return {
        "app.kubernetes.io/name": agent.name,
        "app.kubernetes.io/instance": object_name(agent),
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/managed-by": "lobstertrap",
        AGENT: agent.name,
        TARGET: settings.target,
    }


def claim(agent: AgentSpec, volume: str, settings: Settings) -> dict[str, Any]:
    """Return the PersistentVolumeClaim of one volume."""
    size = next(v.size for v in agent.volumes if v.name == volume)
    spec: dict[str, Any] = {
        "accessModes": [settings.access_mode],
        "resources": {"requests": {"storage": str(size)}},
    }
    if settings.storage_class is not None:
        spec["storageClassName"] = settings.storage_class
    found = _object("v1", "PersistentVolumeClaim", claim_name(agent, volume))
    found["metadata"]["labels"] = {**labels(agent, settings), VOLUME: volume}
    return {**found, "spec": spec}


def surroundings(agent: AgentSpec, settings: Settings) -> dict[str, dict[str, Any]]:
    """Return what stands around the StatefulSet, by resource."""
    name, marks = object_name(agent), labels(agent, settings)
    account = _object("v1", "ServiceAccount", name, marks)
    account["automountServiceAccountToken"] = False
    service = _object("v1", "Service", name, marks)
    ports = [
        {"name": p.name[:15].strip("-"), "port": p.port, "targetPort": p.port}
        for p in agent.ports
    ]
    service["spec"] = {"selector": _selector(agent), "type": "ClusterIP"}
    service["spec"] |= {"ports": ports} if ports else {"clusterIP": "None"}
    return {
        "serviceaccounts": account,
        "services": service,
        "networkpolicies": _policy(agent, settings),
    }


def stateful_set(
    agent: AgentSpec,
    settings: Settings,
    *,
    epoch: int,
    image: str,
    replicas: int,
    prepare_image: str | None,
    secrets: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the StatefulSet; with `prepare_image` its volumes are made ready first.

    `secrets` has the marks of the values that its pod is to have, by name.
    """
    marks = labels(agent, settings) | {EPOCH: str(epoch)}
    found = _object("apps/v1", "StatefulSet", object_name(agent), marks)
    found["metadata"]["annotations"] = {SECRETS: json.dumps(dict(secrets))}
    found["spec"] = {
        "replicas": replicas,
        "serviceName": object_name(agent),
        "selector": {"matchLabels": _selector(agent)},
        "template": {
            "metadata": {"labels": marks, "annotations": dict(settings.annotations)},
            "spec": _pod(agent, settings, epoch, image, prepare_image),
        },
    }
    return found


def skeleton(agent: AgentSpec, settings: Settings, image: str) -> dict[str, Any]:
    """Return the least StatefulSet, which runs nothing: to be created, then applied.

    Creating fails when there is one already; applying alone would scale that down.
    """
    marks = labels(agent, settings)
    found = _object("apps/v1", "StatefulSet", object_name(agent), marks)
    found["spec"] = {
        "replicas": 0,
        "serviceName": object_name(agent),
        "selector": {"matchLabels": _selector(agent)},
        "template": {
            "metadata": {"labels": marks},
            "spec": {"containers": [{"name": CONTAINER, "image": image}]},
        },
    }
    return found


def container_security(agent: AgentSpec, *, mover: bool = False) -> dict[str, Any]:
    """Return a container's securityContext: what Pod Security "restricted" asks."""
    security = agent.security
    added = [] if mover else [*security.capabilities]
    return {
        "allowPrivilegeEscalation": not (mover or security.no_new_privileges),
        "readOnlyRootFilesystem": mover or security.read_only_root,
        "capabilities": {"drop": ["ALL"]} | ({"add": added} if added else {}),
    }


def pod_security(agent: AgentSpec, settings: Settings) -> dict[str, Any]:
    """Return a pod's securityContext.

    The cluster gives the root of a claim to the group once, when it is empty; `data`
    and what is in it are never touched (OnRootMismatch).
    """
    user, group = settings.owner(agent)
    if user == 0:
        raise Refused(
            f"agent '{agent.name}' runs as root, target '{settings.target}' does not "
            "allow that",
            hint="set security.user in its agent.yaml, or user for the target",
        )
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": group,
        "fsGroup": group,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def claims_as_volumes(
    agent: AgentSpec, names: Sequence[str], *, read_only: bool = False
) -> list[dict[str, Any]]:
    """Return the pod's volumes, each called as the agent's volume."""
    return [
        {
            "name": f"volume-{name}",
            "persistentVolumeClaim": {
                "claimName": claim_name(agent, name),
                "readOnly": read_only,
            },
        }
        for name in names
    ]


def places(names: Sequence[str], *, read_only: bool = False) -> list[dict[str, Any]]:
    """Return the mounts of whole claims, at `place`."""
    return [
        {"name": f"volume-{n}", "mountPath": place(n), "readOnly": read_only}
        for n in names
    ]


def place(volume: str) -> str:
    """Return where a mover sees a claim."""
    return f"{_PLACE}/{volume}"


def scheduling(settings: Settings) -> dict[str, Any]:
    """Return where pods may run: on nodes of the image's platform."""
    system, _, machine = settings.platform.partition("/")
    pod: dict[str, Any] = {
        "nodeSelector": {
            "kubernetes.io/os": system,
            "kubernetes.io/arch": machine.partition("/")[0],
        }
    }
    if settings.pull_secret:
        pod["imagePullSecrets"] = [{"name": settings.pull_secret}]
    return pod


def _object(
    version: str, kind: str, name: str, marks: Mapping[str, str] | None = None
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name}
    if marks:
        metadata["labels"] = dict(marks)
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


def _selector(agent: AgentSpec) -> dict[str, str]:
    return {
        "app.kubernetes.io/instance": object_name(agent),
        "app.kubernetes.io/component": "agent",
    }


def _pod(
    agent: AgentSpec,
    settings: Settings,
    epoch: int,
    image: str,
    prepare_image: str | None,
) -> dict[str, Any]:
    names = [volume.name for volume in agent.volumes]
    pod = {
        **scheduling(settings),
        "serviceAccountName": object_name(agent),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": math.ceil(agent.stop_timeout),
        "securityContext": pod_security(agent, settings),
        "containers": [_container(agent, epoch, image)],
        "volumes": [
            *claims_as_volumes(agent, names),
            *_scratch(agent),
            *_secret_volumes(agent),
        ],
    }
    if settings.keeps_hostname:
        pod["hostnameOverride"] = agent.host_name
    if prepare_image is not None:
        pod["initContainers"] = [_prepare(agent, names, prepare_image)]
    return pod


def _container(agent: AgentSpec, epoch: int, image: str) -> dict[str, Any]:
    ports = {port.name: str(port.port) for port in agent.ports}
    volumes = {volume.name: volume.path for volume in agent.volumes}

    def expand(text: str) -> str:
        # The kubelet expands $(NAME) by itself, no other target does.
        return agent.expand(text, ports=ports, volumes=volumes).replace("$(", "$$(")

    wanted = agent.resources
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": image,
        "env": _environment(agent, epoch, expand),
        "ports": [{"containerPort": port.port} for port in agent.ports],
        "resources": {
            "limits": {"memory": str(wanted.memory), "cpu": _cpus(wanted.cpus)},
            "requests": {
                "memory": str(wanted.memory),
                "cpu": _cpus(min(0.1, wanted.cpus)),
            },
        },
        "securityContext": container_security(agent),
        "volumeMounts": [
            {"name": f"volume-{v.name}", "mountPath": v.path, "subPath": DATA}
            for v in agent.volumes
        ]
        + [
            {"name": f"scratch-{number}", "mountPath": path}
            for number, path in enumerate(agent.security.tmpfs)
        ]
        + [
            {
                "name": f"secret-{number}",
                "mountPath": path,
                "subPath": "value",
                "readOnly": True,
            }
            for number, path in enumerate(agent.secret_files.values())
        ],
    }
    if agent.command:
        container["command"] = [expand(word) for word in agent.command]
    if agent.health is not None:
        container |= _probes(agent, agent.health)
    return container


def _environment(agent: AgentSpec, epoch: int, expand: Any) -> list[dict[str, Any]]:
    reserved = [name for name in agent.env if name.startswith("LOBSTERTRAP_")]
    if reserved:
        raise InvalidInput(
            f"agent '{agent.name}': env: {', '.join(reserved)} is set by the target"
        )
    plain = {name: expand(value) for name, value in agent.env.items()}
    plain["LOBSTERTRAP_EPOCH"] = str(epoch)
    found: list[dict[str, Any]] = [{"name": n, "value": v} for n, v in plain.items()]
    for env in agent.secrets:
        if env in agent.secret_files:
            file = {"name": f"{env}_FILE", "value": agent.secret_files[env]}
            found.append(file)
            continue
        name, key = _place_of_secret(agent, env)
        source = {"secretKeyRef": {"name": name, "key": key}}
        found.append({"name": env, "valueFrom": source})
    return found


def _place_of_secret(agent: AgentSpec, env: str) -> tuple[str, str]:
    """Return the Secret, and the key in it, that hold one of the agent's values."""
    ref = agent.secrets[env]
    if ref.source == "target":
        return secret_key(env, ref.id)
    return secret_name(agent), env


def _secret_volumes(agent: AgentSpec) -> list[dict[str, Any]]:
    """Return a volume in memory for each secret that is a file: one file in each."""
    found = []
    for number, env in enumerate(agent.secret_files):
        name, key = _place_of_secret(agent, env)
        items = [{"key": key, "path": "value"}]
        secret = {"secretName": name, "items": items, "defaultMode": 0o440}
        found.append({"name": f"secret-{number}", "secret": secret})
    return found


def _cpus(number: float) -> str:
    return f"{max(1, round(number * 1000))}m"


def _probes(agent: AgentSpec, health: Health) -> dict[str, Any]:
    period = max(1, round(health.interval))
    probe: dict[str, Any] = {
        "periodSeconds": period,
        "timeoutSeconds": max(1, math.ceil(health.timeout)),
    }
    if health.http is not None:
        port = agent.port(health.http.port).port
        probe["httpGet"] = {"path": health.http.path, "port": port}
    else:
        probe["exec"] = {"command": health.command}
    return {
        "startupProbe": {
            **probe,
            "failureThreshold": max(1, math.ceil(health.start / period)),
        },
        "readinessProbe": {**probe, "failureThreshold": 3},
        # Slow to judge: a restart in the middle of an agent's turn costs that turn.
        "livenessProbe": {
            **probe,
            "periodSeconds": max(period, _LIVENESS_SECONDS),
            "failureThreshold": _LIVENESS_FAILURES,
        },
    }


def _scratch(agent: AgentSpec) -> list[dict[str, Any]]:
    limit = str(agent.resources.memory // 2)
    return [
        {
            "name": f"scratch-{number}",
            "emptyDir": {"medium": "Memory", "sizeLimit": limit},
        }
        for number, _ in enumerate(agent.security.tmpfs)
    ]


def _prepare(agent: AgentSpec, names: list[str], image: str) -> dict[str, Any]:
    return {
        "name": "prepare",
        "image": image,
        "command": ["python3", "-c", _PREPARE, *[place(name) for name in names]],
        "securityContext": container_security(agent, mover=True),
        "resources": {
            "limits": {"memory": "128Mi", "cpu": "1"},
            "requests": {"memory": "32Mi", "cpu": "10m"},
        },
        "volumeMounts": places(names),
    }


def _policy(agent: AgentSpec, settings: Settings) -> dict[str, Any]:
    found = _object(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        object_name(agent),
        labels(agent, settings),
    )
    ports = [{"protocol": "TCP", "port": port.port} for port in agent.ports]
    dns = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
    endpoints = [used.preset.block for used in agent.inference]
    allowed = dict.fromkeys([*settings.egress, *agent.egress, *filter(None, endpoints)])
    found["spec"] = {
        "podSelector": {"matchLabels": _selector(agent)},
        "policyTypes": ["Ingress", "Egress"],
        # Whoever is in the same namespace, and only what the agent publishes.
        "ingress": [{"from": [{"podSelector": {}}], "ports": ports}] if ports else [],
        "egress": [{"ports": dns}, *[_egress(text) for text in allowed]],
    }
    return found


def _egress(text: str) -> dict[str, Any]:
    block, port = split_egress(text)
    rule: dict[str, Any] = {"to": [{"ipBlock": {"cidr": block}}]}
    if port is not None:
        rule["ports"] = [{"protocol": "TCP", "port": port}]
    return rule
