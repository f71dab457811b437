"""What a pod's status and events say is wrong, in words for a person."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from lobstertrap.errors import (
    LobsterTrapError,
    NoSpace,
    NotFound,
    Permanent,
    Refused,
    Unavailable,
)
from lobstertrap.targets.kubernetes_api import KubernetesApi

_NEVER: Final[Mapping[str, tuple[type[LobsterTrapError], str]]] = {
    "ImagePullBackOff": (
        NotFound,
        "can the node reach the registry, and log in to it?",
    ),
    "ErrImageNeverPull": (NotFound, "push the image to a registry"),
    "InvalidImageName": (NotFound, "check registry in lobstertrap.toml"),
    "CreateContainerConfigError": (Refused, "is every Secret there?"),
    "CreateContainerError": (Permanent, "see the message"),
    "RunContainerError": (Permanent, "see the message"),
    "Failed": (Permanent, "see the message"),
}
_TELLING: Final = {
    *("FailedScheduling", "FailedMount", "FailedAttachVolume", "FailedBinding"),
    *("ProvisioningFailed", "FailedCreate", "FailedCreatePodSandBox", "Failed"),
    *("BackOff", "Unhealthy", "Evicted", "Preempted"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why a pod does not run; `error` when waiting longer changes nothing."""

    text: str
    error: LobsterTrapError | None = None


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether the kubelet says that the pod is ready, and it is not being ended."""
    if pod["metadata"].get("deletionTimestamp"):
        return False
    return _condition(pod, "Ready").get("status") == "True"


def container_state(pod: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """Return `running`, `waiting` or `terminated` of the pod's container, or {}."""
    for status in pod["status"].get("containerStatuses") or ():
        return (status.get("state") or {}).get(kind) or {}
    return {}


def last_end(pod: Mapping[str, Any]) -> str:
    """Say how the pod's container ended last, this time or before its restart."""
    for status in pod["status"].get("containerStatuses") or ():
        for when in ("state", "lastState"):
            ended = (status.get(when) or {}).get("terminated")
            if ended:
                return _ending(ended)
    return ""


def trouble(pod: Mapping[str, Any], about: str) -> Trouble | None:
    """Return what keeps the pod from running, as far as its own status says."""
    status = pod["status"]
    if status.get("reason") == "Evicted":
        said = f"evicted: {_plain(status.get('message'))}"
        return Trouble(text=said, error=Unavailable(f"{about} {said}"))
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("reason") == "Unschedulable":
        return Trouble(text=f"unschedulable: {_plain(scheduled.get('message'))}")
    for container in [
        *(status.get("initContainerStatuses") or ()),
        *(status.get("containerStatuses") or ()),
    ]:
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason = str(waiting.get("reason", ""))
        said = ": ".join(filter(None, (reason, _plain(waiting.get("message")))))
        if reason == "CrashLoopBackOff":
            return Trouble(text=f"restarting after a crash: {last_end(pod)}")
        if reason in _NEVER:
            kind, hint = _NEVER[reason]
            return Trouble(text=said, error=kind(f"{about} {said}", hint=hint))
    return None


def trouble_in_events(api: KubernetesApi, names: Iterable[str]) -> str:
    """Return what the newest telling event of these objects says."""
    with contextlib.suppress(LobsterTrapError):
        wanted = set(names)
        found = [
            event
            for event in api.get("events")["items"]
            if event["involvedObject"].get("name") in wanted
            and event["reason"] in _TELLING
            and event.get("type") == "Warning"
        ]
        found.sort(key=_weight)
        if found:
            event = found[-1]
            return f"{event['reason']}: {_plain(event.get('message'))}"
    return ""


def _weight(event: Mapping[str, Any]) -> tuple[bool, str, int]:
    """Return how much an event tells: a claim's first, then the newest, the longest."""
    at = event.get("lastTimestamp") or event.get("eventTime") or ""
    claims = event["involvedObject"].get("kind") == "PersistentVolumeClaim"
    return claims, str(at), len(str(event.get("message") or ""))


def cannot_start(about: str, said: str) -> LobsterTrapError:
    """Return the error for a pod that was not started in time."""
    if "exceeded quota" in said:
        return NoSpace(f"{about} {said}", hint="ask for more quota")
    if "unbound" in said.lower() or "ProvisioningFailed" in said or "storage" in said:
        hint = "see storage_class in lobstertrap.toml, and: kubectl get pvc,sc"
        return Unavailable(f"{about} {said}", hint=hint)
    if "violates PodSecurity" in said:
        return Refused(f"{about} {said}", hint="see security in the agent's agent.yaml")
    hint = "kubectl describe pod shows more"
    return Unavailable(f"{about} {said or 'it was not started in time'}", hint=hint)


def node_of(pod: Mapping[str, Any]) -> str:
    """Return the name of the pod's node."""
    return str(pod["spec"].get("nodeName") or "(none)")


def _condition(pod: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    for condition in pod["status"].get("conditions") or ():
        if condition["type"] == kind:
            return dict(condition)
    return {}


def _ending(ended: Mapping[str, Any]) -> str:
    code = ended.get("exitCode", 0)
    if ended.get("reason") == "OOMKilled":
        return "killed: out of memory"
    if code == 137:  # noqa: PLR2004 - 128 + SIGKILL
        return "killed (137): by force, or out of memory"
    said = _plain(ended.get("message"))
    return f"exited with status {code}" + (f": {said}" if said else "")


def _plain(text: object) -> str:
    return " ".join(str(text or "").split())
