"""What a cluster shows of one agent: its StatefulSet, its pod and its claims."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from lobstertrap.agent import AgentSpec
from lobstertrap.targets import kubernetes_pods as pods
from lobstertrap.targets import kubernetes_spec as spec
from lobstertrap.targets.base import AgentStatus
from lobstertrap.targets.kubernetes_api import FIELD_MANAGER, KubernetesApi


def is_running(found: Mapping[str, Any] | None, pod: Mapping[str, Any] | None) -> bool:
    """Whether it runs, or may: a pod is there, or one is wanted or not yet unwanted."""
    if pod is not None:
        return True
    if found is None:
        return False
    observed = found["status"].get("observedGeneration", 0)
    settled = observed >= found["metadata"]["generation"]
    return bool(found["spec"]["replicas"]) or (
        not settled and bool(found["status"].get("replicas"))
    )


def epoch_of(found: Mapping[str, Any]) -> int | None:
    """Return the epoch of a StatefulSet or a pod."""
    text = str((found["metadata"].get("labels") or {}).get(spec.EPOCH, ""))
    return int(text) if text.isdigit() else None


def marks_of(found: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the marks of the secrets that a StatefulSet was applied with."""
    notes = (found["metadata"].get("annotations") or {}) if found else {}
    try:
        marks = json.loads(notes.get(spec.SECRETS, "{}"))
    except ValueError:
        return {}
    return marks if isinstance(marks, dict) else {}


def agent_status(
    api: KubernetesApi,
    agent: AgentSpec,
    found: Mapping[str, Any] | None,
    pod: Mapping[str, Any] | None,
    volumes: tuple[str, ...],
) -> AgentStatus:
    """Return the status of the agent; `found` is its StatefulSet."""
    shown = pod or found
    if shown is None:
        return AgentStatus(phase="absent", volumes=volumes)
    running = is_running(found, pod)
    healthy, detail = None, ""
    if running:
        healthy, detail = _health(api, agent, pod)
    detail = "; ".join(filter(None, (detail, drift_of(found))))
    return AgentStatus(
        phase="running" if running else "stopped",
        epoch=epoch_of(shown),
        healthy=healthy,
        detail=detail,
        started_at=_started_at(pod),
        image=_image(shown),
        addresses=_addresses(agent, pod),
        volumes=volumes,
    )


def drift_of(found: Mapping[str, Any] | None) -> str:
    """Say who else has set fields of a StatefulSet, and which; "" when nobody has.

    The API server notes it down for server-side apply; launching takes them back.
    """
    told = []
    for entry in (found or {}).get("metadata", {}).get("managedFields") or ():
        ours = entry.get("manager") == FIELD_MANAGER
        fields = (entry.get("fieldsV1") or {}).get("f:spec")
        if fields and not ours and entry.get("subresource") != "status":
            paths = ", ".join(sorted(_paths(fields, "spec")))
            told.append(f"{entry.get('manager')} has changed {paths}")
    return "; ".join(told)


def _paths(fields: Mapping[str, Any], above: str) -> Iterator[str]:
    """Yield the paths of the fields that managedFields names, as a person writes them.

    `f:` is a field's name, `k:` an entry of a list, `.` the object itself.
    """
    below = {key: value for key, value in fields.items() if key != "."}
    if not below:
        yield above
    for key, value in below.items():
        kind, _, name = key.partition(":")
        if kind == "k":
            name = "/".join(str(part) for part in json.loads(name).values())
        yield from _paths(value, f"{above}.{name}")


def _health(
    api: KubernetesApi, agent: AgentSpec, pod: Mapping[str, Any] | None
) -> tuple[bool | None, str]:
    names = [spec.object_name(agent), spec.pod_name(agent)]
    names += [spec.claim_name(agent, volume.name) for volume in agent.volumes]
    if pod is None:
        return False, pods.trouble_in_events(api, names) or "its pod is not made yet"
    if pod["metadata"].get("deletionTimestamp"):
        return False, f"its pod is ending on node '{pods.node_of(pod)}'"
    if pods.is_ready(pod):
        return (True if agent.health is not None else None), ""
    wrong = pods.trouble(pod, "")
    if wrong is not None and "PersistentVolumeClaim" not in wrong.text:
        return False, wrong.text
    said = pods.trouble_in_events(api, names)  # a claim's own event says more
    return False, said or "its pod is starting"


def _started_at(pod: Mapping[str, Any] | None) -> float | None:
    if pod is None:
        return None
    text = pods.container_state(pod, "running").get("startedAt")
    return datetime.fromisoformat(text).timestamp() if text else None


def _image(shown: Mapping[str, Any]) -> str | None:
    template = shown["spec"].get("template", shown)
    containers = template["spec"]["containers"]
    return str(containers[0]["image"]) if containers else None


def _addresses(agent: AgentSpec, pod: Mapping[str, Any] | None) -> dict[str, str]:
    address = (pod or {}).get("status", {}).get("podIP")
    if not address:
        return {}
    host = f"[{address}]" if ":" in address else address
    return {port.name: f"{host}:{port.port}" for port in agent.ports}
