"""The mover as a pod: mounts the agent's claims beside it, and is read by its log.

Its request holds credentials, so it is in a Secret that the pod owns: with the pod goes
the Secret, even when nobody is left to delete it. The pod is created with a gate, which
is taken away only after one more look at the fence, so that a mover that comes too late
never starts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from lobstertrap.agent import AgentSpec
from lobstertrap.errors import (
    Conflict,
    InvalidInput,
    LobsterTrapError,
    NotFound,
    Refused,
    TimedOut,
    Unavailable,
)
from lobstertrap.job import MoverJob, OnProgress, read_events
from lobstertrap.redaction import redactor
from lobstertrap.targets import kubernetes_pods as pods
from lobstertrap.targets import kubernetes_spec as spec
from lobstertrap.targets.kubernetes_api import KubernetesApi
from lobstertrap.targets.kubernetes_fence import ClusterFence

_GATE: Final = "lobstertrap.io/fence"
_REQUEST: Final = "/run/lobstertrap/request"
_START_SECONDS: Final = 180.0
_END_SECONDS: Final = 60.0
_GRACE_SECONDS: Final = 5
_SILENCE_SECONDS: Final = 20.0
_LOST_SECONDS: Final = 90.0
_TRIES: Final = 20
# The mover reads its request from standard input, and must know who it really is: the
# cluster may have given it another user than we asked for.
_START: Final = f"""\
import json, os, runpy
with open({_REQUEST!r}) as file:
    request = json.load(file)
request["local_owner"] = [os.getuid(), os.getgid()]
for path in request["volumes"].values():
    os.makedirs(path, 0o755, exist_ok=True)
memory = os.memfd_create("request")
with os.fdopen(os.dup(memory), "w") as file:
    json.dump(request, file)
os.lseek(memory, 0, os.SEEK_SET)
os.dup2(memory, 0)
runpy.run_module("lobstertrap.mover", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoverPods:
    """Runs movers in one namespace."""

    api: KubernetesApi
    settings: spec.Settings
    memory: int = 2**30
    start_seconds: float = _START_SECONDS

    def run(
        self,
        agent: AgentSpec,
        job: MoverJob,
        on_progress: OnProgress,
        *,
        image: str,
        read_only: bool,
    ) -> dict[str, Any]:
        """Run `job` on the agent's claims, which exist; see `Target.run_mover`."""
        _refuse_unreachable(self.settings.target, job)
        # Nothing in a pod outlives it, so there is no cache to use.
        job = replace(job, request={**job.request, "cache": False})
        paths = {name: _path(job, name) for name in job.volumes}
        request = job.to_json(paths, owner=self.settings.owner(agent))
        self.end(agent)
        pod = self._create(agent, self._pod(agent, job, image, read_only))
        uid, answered = pod["metadata"]["uid"], False
        try:
            self._hand_over(agent, request, uid)
            self._admit(agent, job, pod)
            self._await_start(agent, job)
            result = read_events(self._output(agent), on_progress)
            answered = True
        except Unavailable as error:
            said = redactor.redact(f"{error.message}{self._how_it_ended(agent)}")
            raise Unavailable(said, hint=error.hint) from error
        finally:
            # One that has answered ends by itself: whoever needs the volumes next waits
            # for that, while an agent that moves away need not.
            (self._dismiss if answered else self.end)(agent, uid=uid)
        return result

    def end(self, agent: AgentSpec, *, uid: str = "") -> None:
        """Make sure that no mover of the agent is here, not even a forgotten one.

        With `uid` only that one is meant. Raises `Unavailable` when it cannot be proven
        that it has ended: its node does not answer.
        """
        name = spec.mover_name(agent)
        found = self.api.persist(lambda: self._find(name, uid))
        if found is None:
            return
        self._dismiss(agent, uid=found["metadata"]["uid"])
        gone = self.api.until(
            lambda: self._find(name, uid) is None, seconds=_END_SECONDS
        )
        if not gone:
            raise Unavailable(
                f"{self._about(agent)} its mover's pod {name} does not end: node "
                f"'{pods.node_of(found)}' does not confirm it",
                hint="bring the node back; only if it is switched off for certain: "
                f"kubectl -n {self.api.namespace} delete pod {name} --force",
            )

    def _dismiss(self, agent: AgentSpec, *, uid: str) -> None:
        """Delete the pod and its request, without waiting until it is gone."""
        name = spec.mover_name(agent)
        self.api.persist(lambda: self.api.delete("pods", name, uid=uid))
        self.api.persist(lambda: self._delete_request(name, uid))

    def _about(self, agent: AgentSpec) -> str:
        return f"target '{self.settings.target}': agent '{agent.name}':"

    def _find(self, name: str, uid: str) -> Any | None:
        found = self.api.find("pods", name)
        other = found is not None and uid not in ("", found["metadata"]["uid"])
        return None if other else found

    def _create(self, agent: AgentSpec, manifest: dict[str, Any]) -> dict[str, Any]:
        try:
            pod: dict[str, Any] = self.api.create("pods", manifest)
        except Conflict as error:
            raise Unavailable(
                f"{self._about(agent)} another mover is at its volumes",
                hint="wait for it to end, then run the same command again",
            ) from error
        return pod

    def _hand_over(self, agent: AgentSpec, request: str, uid: str) -> None:
        """Create the Secret with the request; it belongs to the pod and goes with it.

        The garbage collector also removes one whose pod is gone when it is created.
        """
        name = spec.mover_name(agent)
        marks = spec.labels(agent, self.settings, "mover") | {spec.MOVER: agent.name}
        owner = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}
        self.api.delete("secrets", name)  # what the pod before this one has left
        self.api.create(
            "secrets",
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": name, "labels": marks, "ownerReferences": [owner]},
                "immutable": True,
                "stringData": {"request": request},
            },
        )

    def _delete_request(self, name: str, uid: str) -> None:
        """Delete that pod's Secret at once: the garbage collector takes a while."""
        found = self.api.find("secrets", name)
        if found is not None:
            owners = [o["uid"] for o in found["metadata"].get("ownerReferences") or ()]
            if uid in owners:
                self.api.delete("secrets", name, uid=found["metadata"]["uid"])

    def _pod(
        self, agent: AgentSpec, job: MoverJob, image: str, read_only: bool
    ) -> dict[str, Any]:
        marks = spec.labels(agent, self.settings, "mover") | {spec.MOVER: agent.name}
        marks[spec.TURN] = str(job.request.get("turn") or 0)
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": spec.mover_name(agent), "labels": marks},
            "spec": {
                **spec.scheduling(self.settings),
                **self._beside(agent, job),
                "schedulingGates": [{"name": _GATE}],
                "hostname": "mover",
                "restartPolicy": "Never",
                "automountServiceAccountToken": False,
                "enableServiceLinks": False,
                "terminationGracePeriodSeconds": _GRACE_SECONDS,
                "securityContext": spec.pod_security(agent, self.settings),
                "containers": [self._container(agent, job, image, read_only)],
                "volumes": [
                    *_claims(agent, job, read_only=read_only),
                    {"name": "scratch", "emptyDir": {}},
                    {
                        "name": "request",
                        "secret": {
                            "secretName": spec.mover_name(agent),
                            "defaultMode": 0o440,
                        },
                    },
                ],
            },
        }

    def _container(
        self, agent: AgentSpec, job: MoverJob, image: str, read_only: bool
    ) -> dict[str, Any]:
        request = _REQUEST.rpartition("/")[0]
        return {
            "name": "mover",
            "image": image,
            "command": ["python3", "-c", _START],
            "env": [{"name": "HOME", "value": "/tmp"}],  # noqa: S108 - in the pod
            "securityContext": spec.container_security(agent, mover=True),
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "resources": {
                "limits": {"memory": str(self.memory), "cpu": "2"},
                "requests": {"memory": str(self.memory // 4), "cpu": "100m"},
            },
            "volumeMounts": [
                *spec.places(job.volumes, read_only=read_only),
                {"name": "scratch", "mountPath": "/tmp"},  # noqa: S108 - in the pod
                {"name": "request", "mountPath": request, "readOnly": True},
            ],
        }

    def _beside(self, agent: AgentSpec, job: MoverJob) -> dict[str, Any]:
        """Return what puts the pod on the node of the running agent, cordoned or not.

        A claim that only one node may mount is mounted there already.
        """
        beside: dict[str, Any] = {
            "tolerations": [
                {"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}
            ]
        }
        found = self._user_of(job) or self.api.find("pods", spec.pod_name(agent))
        if found is not None and found["spec"].get("nodeName"):
            here = {
                "key": "metadata.name",
                "operator": "In",
                "values": [pods.node_of(found)],
            }
            beside["affinity"] = {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [{"matchFields": [here]}]
                    }
                }
            }
        return beside

    def _user_of(self, job: MoverJob) -> Any | None:
        """Return the pod that has somebody else's claims mounted, if there is one."""
        wanted = {source.split("/")[1] for source in job.sources.values()}
        for pod in self.api.get("pods")["items"] if wanted else ():
            claims = {
                volume["persistentVolumeClaim"]["claimName"]
                for volume in pod["spec"].get("volumes") or ()
                if "persistentVolumeClaim" in volume
            }
            if wanted & claims and pod["status"].get("phase") in ("Pending", "Running"):
                return pod
        return None

    def _admit(self, agent: AgentSpec, job: MoverJob, pod: dict[str, Any]) -> None:
        """Take the gate away, if the fence still lets this job pass."""
        fence = ClusterFence(api=self.api, agent=agent, settings=self.settings)
        name = spec.mover_name(agent)
        open_gate = {"op": "remove", "path": "/spec/schedulingGates"}
        for _ in range(_TRIES):
            fence.admit_mover(job.request.get("turn"))
            version = pod["metadata"]["resourceVersion"]
            same = {"op": "test", "path": "/metadata/resourceVersion", "value": version}
            try:
                self.api.patch("pods", name, [same, open_gate])
            except (Conflict, InvalidInput):
                found = self.api.find("pods", name)
                if found is None or found["metadata"]["uid"] != pod["metadata"]["uid"]:
                    break
                pod = found  # only its status has changed
            except NotFound:
                break
            else:
                return
        fence.admit_mover(job.request.get("turn"))
        raise Refused(
            f"{self._about(agent)} its mover was removed by another operation",
            hint="look at `lobstertrap status`",
        )

    def _await_start(self, agent: AgentSpec, job: MoverJob) -> None:
        about = f"{self._about(agent)} the mover does not start:"
        name = spec.mover_name(agent)
        claims = [spec.claim_name(agent, volume) for volume in job.volumes]
        seen: list[str] = []

        def started() -> bool:
            pod = self.api.find("pods", name)
            if pod is None:
                raise Unavailable(f"{about} somebody has deleted its pod")
            if any(pods.container_state(pod, s) for s in ("running", "terminated")):
                return True
            wrong = pods.trouble(pod, about)
            if wrong is not None and wrong.error is not None:
                raise wrong.error
            seen[:] = [wrong.text] if wrong is not None else []
            return bool(pod["status"].get("phase") in ("Succeeded", "Failed"))

        if not self.api.until(started, seconds=self.start_seconds):
            told = pods.trouble_in_events(self.api, [name, *claims])
            said = "; ".join(filter(None, [*seen, told]))
            raise pods.cannot_start(about, said)

    def _output(self, agent: AgentSpec) -> Iterator[str]:
        """Yield what the mover prints until it ends; a lost connection is not the end.

        Every reading begins at the first line, because a log has no position.
        """
        name, seen, lost = spec.mover_name(agent), 0, None
        while True:
            ended = self._has_ended(name)
            try:
                for number, line in enumerate(self._follow(name, follow=not ended)):
                    if number >= seen:
                        seen, lost = number + 1, None
                        yield line
            except NotFound:
                return
            except (Unavailable, TimedOut, InvalidInput) as error:
                lost = self._still_there(agent, lost, error)
                continue
            if ended:
                return

    def _follow(self, name: str, *, follow: bool) -> Iterator[str]:
        query = {"follow": "true"} if follow else {}
        return self.api.log_lines(name, seconds=_SILENCE_SECONDS, **query)

    def _has_ended(self, name: str) -> bool:
        pod = self.api.persist(
            lambda: self.api.find("pods", name), seconds=_LOST_SECONDS
        )
        return pod is None or bool(pods.container_state(pod, "terminated"))

    def _still_there(
        self, agent: AgentSpec, lost: float | None, error: LobsterTrapError
    ) -> float | None:
        """Return since when the node is lost; None while the pod is well but silent."""
        pod = self.api.persist(
            lambda: self.api.find("pods", spec.mover_name(agent)), seconds=_LOST_SECONDS
        )
        if pod is None or (isinstance(error, TimedOut) and pods.is_ready(pod)):
            return None
        time.sleep(0.5)
        lost = lost or time.monotonic()
        if time.monotonic() - lost > _LOST_SECONDS:
            raise Unavailable(
                f"{self._about(agent)} its mover's node '{pods.node_of(pod)}' does not "
                "answer",
                hint="run the same command again when it is back; nothing was lost",
            ) from error
        return lost

    def _how_it_ended(self, agent: AgentSpec) -> str:
        try:
            pod = self.api.find("pods", spec.mover_name(agent))
        except LobsterTrapError:
            return ""
        if pod is None:
            return " (its pod is gone: deleted or evicted)"
        wrong = pods.trouble(pod, "")
        said = wrong.text if wrong is not None else pods.last_end(pod)
        return f" ({said})" if said else ""


def _path(job: MoverJob, volume: str) -> str:
    """Return the directory of a volume in the mover's pod."""
    if volume not in job.sources:
        return f"{spec.place(volume)}/{spec.DATA}"
    _namespace, _claim, *inside = job.sources[volume].split("/")
    return "/".join([spec.place(volume), *inside])


def _claims(
    agent: AgentSpec, job: MoverJob, *, read_only: bool
) -> list[dict[str, Any]]:
    found = spec.claims_as_volumes(agent, job.volumes, read_only=read_only)
    for volume, source in zip(found, job.sources.values(), strict=False):
        volume["persistentVolumeClaim"]["claimName"] = source.split("/")[1]
    return found


def _refuse_unreachable(target: str, job: MoverJob) -> None:
    url = str(job.request.get("store", {}).get("url", ""))
    if url.startswith("file://"):
        raise InvalidInput(
            f"store {url}: target '{target}' is another machine",
            hint="use an s3:// store that the cluster reaches",
        )
