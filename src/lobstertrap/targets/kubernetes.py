"""The Kubernetes target: agents as StatefulSets of one namespace, volumes as claims."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from lobstertrap.agent import AgentSpec
from lobstertrap.errors import (
    AccessDenied,
    Conflict,
    InvalidInput,
    NotFound,
    Refused,
    SecretMissing,
    Unavailable,
)
from lobstertrap.job import MoverJob, OnProgress
from lobstertrap.targets import kubernetes_spec as spec
from lobstertrap.targets.base import AgentStatus, Secrets, TargetInfo
from lobstertrap.targets.kubernetes_api import Access, KubernetesApi
from lobstertrap.targets.kubernetes_commands import execute, may_run_commands
from lobstertrap.targets.kubernetes_fence import ClusterFence
from lobstertrap.targets.kubernetes_forward import dial
from lobstertrap.targets.kubernetes_images import ClusterImages
from lobstertrap.targets.kubernetes_mover import MoverPods
from lobstertrap.targets.kubernetes_nodes import node_platforms
from lobstertrap.targets.kubernetes_pods import (
    container_state,
    node_of,
    trouble_in_events,
)
from lobstertrap.targets.kubernetes_probe import Probe
from lobstertrap.targets.kubernetes_registry import Registry
from lobstertrap.targets.kubernetes_rights import is_allowed, missing_rights
from lobstertrap.targets.kubernetes_status import (
    agent_status,
    epoch_of,
    is_running,
    marks_of,
)
from lobstertrap.targets.podman_api import PodmanApi

_SETTLE_SECONDS: Final = 30.0  # after the grace, for the node to say so
_TRIES: Final = 50
_LARGEST_SECRET: Final = 512_000  # bytes; all of a Secret may have 1 MiB
_HOSTNAMES_SINCE: Final = 34


class KubernetesTarget:
    """One namespace of one cluster; docs/kubernetes.md says what it needs there.

    Args:
        name: the target's name in lobstertrap.toml.
        access: how the API server is reached.
        namespace: where everything is made; made itself if that is allowed.
        storage_class: of the claims; the cluster's default when it is not given.
        access_mode: of the claims.
        registry: `host/path` that the cluster pulls from and `engine` pushes to.
        insecure_registry: whether the registry speaks HTTP.
        auth_files: where `podman login` keeps the registry's credentials.
        pull_secret: an existing Secret with which the cluster pulls.
        engine: the URL of the Podman that builds and pushes.
        build_args: given to every build, such as the base image.
        mover_image: a mover image that the cluster can pull, instead of our own.
        platform: of the nodes; what they all are if we may look, or else the API
            server's own, when it is not given.
        user: the uid and gid of agents here; each agent's own when it is not given.
        egress: where agents may connect to besides DNS: `0.0.0.0/0:443`.
    """

    def __init__(
        self,
        name: str,
        access: Access,
        *,
        namespace: str,
        storage_class: str | None = None,
        access_mode: str = "ReadWriteOnce",
        registry: str | None = None,
        insecure_registry: bool = False,
        auth_files: Sequence[Path] = (),
        pull_secret: str | None = None,
        engine: str | None = None,
        build_args: Mapping[str, str] = MappingProxyType({}),
        mover_image: str | None = None,
        platform: str | None = None,
        user: int | None = None,
        egress: Sequence[str] = (),
    ) -> None:
        self._name = name
        self._access = access
        self._api = KubernetesApi(name, access, namespace)
        self._namespace = namespace
        self._platform = platform
        self._user = user
        self._egress = tuple(egress)
        self._storage_class = storage_class
        self._access_mode = access_mode
        self._pull_secret = pull_secret
        self._images = ClusterImages(
            target=name,
            registry=None
            if registry is None
            else Registry(
                place=registry, insecure=insecure_registry, auth_files=auth_files
            ),
            engine=None if engine is None else PodmanApi(name, engine),
            build_args=dict(build_args),
            auth_files=auth_files,
            mover=mover_image,
        )
        self._known: spec.Settings | None = None

    @property
    def name(self) -> str:
        """The name in lobstertrap.toml."""
        return self._name

    def inspect(self) -> TargetInfo:
        """Ask the API server what it is, and what we may do there. See `Target`."""
        version = self._api.raw("GET", "/version")
        lacking = missing_rights(self._api)
        if lacking:
            raise AccessDenied(
                f"target '{self._name}': not allowed in namespace "
                f"'{self._namespace}': {', '.join(lacking)}",
                hint="kubectl apply -f deployments/kubernetes, for that user",
            )
        identity, notes = self._identity()
        settings = self._settings
        nodes = node_platforms(self._api)
        if nodes and settings.platform not in nodes:
            raise InvalidInput(
                f"target '{self._name}': no node is {settings.platform}: they are "
                f"{', '.join(sorted(nodes))}",
                hint="set platform for the target in lobstertrap.toml",
            )
        if not settings.keeps_hostname:
            notes.append("agents see another host name: the cluster is older than 1.34")
        return TargetInfo(
            name=self._name,
            kind="kubernetes",
            identity=identity,
            platform=settings.platform,
            version=str(version["gitVersion"]),
            free_bytes=None,
            commands=may_run_commands(self._api),
            notes=tuple(notes),
        )

    def ensure_image(self, agent: AgentSpec) -> str:
        """Build, push, and return the image by its digest. See `Target`."""
        platform = self._settings.platform
        image = self._images.agent_image(agent, platform=platform)
        if image == agent.image:  # by its digest: we have not even looked at it
            self._images.refuse_other_platform(image, platform=platform)
        return image

    def bind_secrets(self, agent: AgentSpec, secrets: Secrets) -> None:
        """Keep the values in the agent's Secret. See `Target`."""
        own = [n for n, ref in agent.secrets.items() if ref.source != "target"]
        missing = [f"{n} ({agent.secrets[n]})" for n in own if n not in secrets]
        missing += self._absent_on_target(agent)
        if missing:
            raise SecretMissing(
                f"agent '{agent.name}': secrets not on '{self._name}': "
                + ", ".join(missing),
                hint="there: kubectl create secret generic NAME --from-file=KEY, for "
                "source target with id NAME/KEY",
            )
        values = {name: secrets[name].reveal() for name in own}
        wrong = [n for n, v in values.items() if not 0 < len(v) <= _LARGEST_SECRET]
        if wrong:
            raise InvalidInput(
                f"agent '{agent.name}': secret {', '.join(wrong)} is empty or larger "
                f"than {_LARGEST_SECRET} bytes"
            )
        self._ensure_namespace()
        name = spec.secret_name(agent)
        self._refuse_foreign(agent, "secrets", name)
        manifest = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "labels": spec.labels(agent, self._settings)},
            "type": "Opaque",
            "stringData": values,
        }
        # Replaced, not merged: a value that is no longer named must be gone.
        self._api.delete("secrets", name)
        self._api.apply("secrets", manifest)

    def launch(
        self, agent: AgentSpec, *, epoch: int, image: str, secrets: Secrets
    ) -> None:
        """Run the agent in a new pod under `epoch`. See `Target`.

        Every try acts on the version of the StatefulSet that it has looked at, so a
        fence that is raised meanwhile, or another launch, makes it look again.
        """
        marks = {name: value.mark for name, value in secrets.items()}
        for _ in range(_TRIES):
            found = self._find(agent)
            if is_running(found, self._pod(agent)):
                self._refuse_other_epoch(agent, found, epoch)
                return
            try:
                if found is None:
                    self._ensure_namespace()
                    self._fence(agent).admit_launch(epoch)
                    found = self._api.create(
                        "statefulsets", spec.skeleton(agent, self._settings, image)
                    )
                self._fence(agent).admit_launch(epoch)
                self._movers.end(agent)
                self._start(agent, found, epoch, image, marks)
            except Conflict:
                continue
            return
        raise Unavailable(
            f"agent '{agent.name}' on '{self._name}': others change its StatefulSet "
            "all the time",
            hint="run the same command again",
        )

    def stop(self, agent: AgentSpec) -> None:
        """Scale to zero and wait until the pod is no more. See `Target`."""
        name = spec.object_name(agent)
        if self._find(agent) is not None:
            self._api.merge("statefulsets", name, {"spec": {"replicas": 0}})
        seconds = agent.stop_timeout + _SETTLE_SECONDS
        gone = self._api.until(lambda: self._is_gone(agent), seconds=seconds)
        pod = self._pod(agent)
        if not gone and pod is not None:
            raise Refused(
                f"agent '{agent.name}' on '{self._name}' cannot be proven stopped: "
                f"node '{node_of(pod)}' does not confirm that its pod has ended",
                hint="bring the node back; only if it is switched off for certain: "
                f"kubectl -n {self._namespace} delete pod {spec.pod_name(agent)} "
                "--force, and then the same command again",
            )
        if not gone:
            raise Refused(
                f"agent '{agent.name}' on '{self._name}' cannot be proven stopped: the "
                "cluster's controllers do not act on its StatefulSet",
                hint="is kube-controller-manager running there?",
            )

    def status(self, agent: AgentSpec) -> AgentStatus:
        """Say what the cluster shows of the agent. See `Target`."""
        found, pod = self._find(agent), self._pod(agent)
        return agent_status(self._api, agent, found, pod, self._volumes(agent))

    def run_mover(
        self, agent: AgentSpec, job: MoverJob, on_progress: OnProgress
    ) -> dict[str, Any]:
        """Run the mover in a pod beside the volumes. See `Target`."""
        self._fence(agent).admit_mover(job.request.get("turn"))
        if job.sources:
            return self._run_elsewhere(agent, job, on_progress)
        if job.command == "restore":
            self._refuse_running(agent, "so its volumes are not written")
            self._ensure_namespace()
            self._ensure_claims(agent)
        here = self._volumes(agent)
        absent = [name for name in job.volumes if name not in here]
        if absent:
            raise NotFound(
                f"agent '{agent.name}' has no volume {', '.join(absent)} "
                f"on '{self._name}'",
                hint=f"lobstertrap status {agent.name} shows where it lives",
            )
        image = self._images.mover_image(platform=self._settings.platform)
        bare = [name for name in job.volumes if not self._is_prepared(agent, name)]
        result = self._movers.run(
            agent,
            job,
            on_progress,
            image=image,
            read_only=job.command == "snapshot" and not bare,
        )
        for volume in bare:
            self._mark_prepared(agent, volume)
        return result

    def remove(self, agent: AgentSpec, *, volumes: bool = False) -> None:
        """Remove what is left of a stopped agent. See `Target`."""
        self._refuse_running(agent, "so it is not removed")
        self._movers.end(agent)
        name = spec.object_name(agent)
        for resource in spec.surroundings(agent, self._settings):
            self._api.delete(resource, name)
        self._api.delete("secrets", spec.secret_name(agent))
        self._api.delete("statefulsets", name)
        self._await_absence(agent, "statefulsets", name)
        for volume in self._volumes(agent) if volumes else ():
            claim = spec.claim_name(agent, volume)
            self._api.delete("persistentvolumeclaims", claim)
            self._await_absence(agent, "persistentvolumeclaims", claim)

    def fence(self, agent: AgentSpec, *, epoch: int, turn: int) -> tuple[int, int]:
        """Refuse what comes too late. See `Fence`."""
        self._ensure_namespace()
        return self._fence(agent).raise_to(epoch=epoch, turn=turn)

    def held_secrets(self, agent: AgentSpec) -> Mapping[str, str]:
        """Name the keys that the Secrets have. See `SecretKeeper`."""
        absent = self._absent_on_target(agent)
        bound = self._api.find("secrets", spec.secret_name(agent)) or {}
        marks = marks_of(self._find(agent))
        return {
            name: marks.get(name, "")
            for name, ref in agent.secrets.items()
            if (
                f"{name} ({ref})" not in absent
                if ref.source == "target"
                else name in (bound.get("data") or {})
            )
        }

    def logs(
        self, agent: AgentSpec, *, follow: bool = False, lines: int | None = None
    ) -> Iterator[str]:
        """Yield what the agent's pod printed since its last start. See `LogSource`."""
        if self._pod(agent) is None:
            raise NotFound(
                f"agent '{agent.name}' has no pod on '{self._name}', so no log",
                hint=f"lobstertrap status {agent.name} shows where it lives",
            )
        query = {"container": spec.CONTAINER}
        if follow:
            query["follow"] = "true"
        if lines is not None:
            query["tailLines"] = str(lines)
        seconds = 86_400.0 if follow else 60.0
        return self._api.log_lines(spec.pod_name(agent), seconds=seconds, **query)

    def run_command(
        self, agent: AgentSpec, command: Sequence[str], *, seconds: float
    ) -> tuple[int, str]:
        """Run a command in the agent's pod. See `CommandRunner`."""
        name, about = self._running_pod(agent)
        return execute(
            self._api, name, spec.CONTAINER, command, seconds=seconds, about=about
        )

    def dial(self, agent: AgentSpec, port: int) -> socket.socket:
        """Connect to a port of the agent's pod. See `Forwarder`."""
        name, about = self._running_pod(agent)
        return dial(self._api, name, port, about=about)

    def _running_pod(self, agent: AgentSpec) -> tuple[str, str]:
        """Return the name of the agent's pod, and what errors about it begin with."""
        pod = self._pod(agent)
        if pod is None or not container_state(pod, "running"):
            raise NotFound(
                f"agent '{agent.name}' does not run on '{self._name}'",
                hint=f"lobstertrap launch {agent.name} --on {self._name}",
            )
        about = f"target '{self._name}': agent '{agent.name}':"
        return spec.pod_name(agent), about

    def check_network(self, agent: AgentSpec, address: str) -> None:
        """Show that pods here reach `host:port`, and that we reach the pods.

        Raises `Unavailable` with the way that is closed.
        """
        self._ensure_namespace()
        image = self._images.mover_image(platform=self._settings.platform)
        Probe(api=self._api, settings=self._settings, image=image).run(agent, address)

    def manifests(self, agent: AgentSpec, *, image: str) -> list[dict[str, Any]]:
        """Return what `launch` applies, in order, for people who review first.

        The Secret's values are left out, and the epoch is 1.
        """
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": spec.secret_name(agent),
                "labels": spec.labels(agent, self._settings),
            },
            "type": "Opaque",
        }
        prepare = self._images.mover_image(platform=self._settings.platform)
        return [
            *(spec.claim(agent, v.name, self._settings) for v in agent.volumes),
            secret,
            *spec.surroundings(agent, self._settings).values(),
            spec.stateful_set(
                agent,
                self._settings,
                epoch=1,
                image=image,
                replicas=1,
                prepare_image=prepare,
            ),
        ]

    @property
    def _settings(self) -> spec.Settings:
        if self._known is None:
            version = self._api.raw("GET", "/version")
            minor = "".join(c for c in str(version["minor"]) if c.isdigit())
            self._known = spec.Settings(
                target=self._name,
                storage_class=self._storage_class,
                access_mode=self._access_mode,
                user=self._user,
                pull_secret=self._pull_secret,
                egress=self._egress,
                platform=self._platform or self._guess_platform(version),
                keeps_hostname=int(minor or 0) >= _HOSTNAMES_SINCE,
            )
        return self._known

    def _guess_platform(self, version: Mapping[str, Any]) -> str:
        """Return what all nodes are, or else what the API server itself is."""
        nodes = node_platforms(self._api)
        return next(iter(nodes)) if len(nodes) == 1 else str(version["platform"])

    @property
    def _movers(self) -> MoverPods:
        return MoverPods(api=self._api, settings=self._settings)

    def _run_elsewhere(
        self, agent: AgentSpec, job: MoverJob, on_progress: OnProgress
    ) -> dict[str, Any]:
        """Read somebody else's claims: in their namespace, as their own user."""
        (namespace,) = {source.partition("/")[0] for source in job.sources.values()}
        api = KubernetesApi(self._name, self._access, namespace)
        settings = replace(self._settings, user=None)
        image = self._images.mover_image(platform=settings.platform)
        movers = MoverPods(api=api, settings=settings)
        return movers.run(agent, job, on_progress, image=image, read_only=True)

    def _fence(self, agent: AgentSpec) -> ClusterFence:
        return ClusterFence(api=self._api, agent=agent, settings=self._settings)

    def _identity(self) -> tuple[str, list[str]]:
        """Return what the same namespace of the same cluster has too, and notes."""
        path = f"/api/v1/namespaces/{self._namespace}"
        try:
            return f"kubernetes {self._api.raw('GET', path)['metadata']['uid']}", []
        except NotFound:
            if is_allowed(self._api, "create", "namespaces", in_namespace=False):
                note = f"namespace '{self._namespace}' will be made"
                return f"kubernetes new {self._name} {self._namespace}", [note]
            raise

    def _ensure_namespace(self) -> None:
        path = f"/api/v1/namespaces/{self._namespace}"
        try:
            self._api.raw("GET", path)
        except NotFound:
            # Labelled so that whatever we make there has to be harmless.
            marks = {"pod-security.kubernetes.io/enforce": "restricted"}
            manifest = {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": self._namespace, "labels": marks},
            }
            try:
                self._api.raw("POST", "/api/v1/namespaces", manifest)
            except Conflict:
                return

    def _find(self, agent: AgentSpec) -> Any | None:
        found = self._api.find("statefulsets", spec.object_name(agent))
        if found is not None:
            self._refuse_if_foreign(agent, found)
        return found

    def _pod(self, agent: AgentSpec) -> Any | None:
        found = self._api.find("pods", spec.pod_name(agent))
        if found is not None:
            self._refuse_if_foreign(agent, found)
        return found

    def _refuse_foreign(self, agent: AgentSpec, resource: str, name: str) -> None:
        found = self._api.find(resource, name)
        if found is not None:
            self._refuse_if_foreign(agent, found)

    def _refuse_if_foreign(self, agent: AgentSpec, found: Mapping[str, Any]) -> None:
        marks = found["metadata"].get("labels") or {}
        if marks.get(spec.AGENT) != agent.name:
            kind, name = found.get("kind", "object"), found["metadata"]["name"]
            raise Refused(
                f"{kind} {name} on '{self._name}' is not agent '{agent.name}'s",
                hint="rename the agent, or remove that object",
            )

    def _refuse_running(self, agent: AgentSpec, so: str) -> None:
        if is_running(self._find(agent), self._pod(agent)):
            raise Refused(
                f"agent '{agent.name}' runs on '{self._name}', {so}",
                hint=f"lobstertrap stop {agent.name}",
            )

    def _refuse_other_epoch(
        self, agent: AgentSpec, found: Mapping[str, Any] | None, epoch: int
    ) -> None:
        now = epoch_of(found) if found is not None else None
        if now != epoch or found is None or not found["spec"]["replicas"]:
            raise Refused(
                f"agent '{agent.name}' already runs on '{self._name}' under epoch "
                f"{now}",
                hint=f"lobstertrap stop {agent.name}",
            )

    def _start(
        self,
        agent: AgentSpec,
        found: Mapping[str, Any],
        epoch: int,
        image: str,
        marks: Mapping[str, str],
    ) -> None:
        self._ensure_claims(agent)
        for resource, manifest in spec.surroundings(agent, self._settings).items():
            self._api.apply(resource, manifest)
        prepare = None
        if not all(self._is_prepared(agent, v.name) for v in agent.volumes):
            prepare = self._images.mover_image(platform=self._settings.platform)
        manifest = spec.stateful_set(
            agent,
            self._settings,
            epoch=epoch,
            image=image,
            replicas=1,
            prepare_image=prepare,
            secrets=marks,
        )
        version = found["metadata"]["resourceVersion"]
        manifest["metadata"]["resourceVersion"] = version
        manifest["metadata"]["uid"] = found["metadata"]["uid"]
        self._api.apply("statefulsets", manifest)

    def _is_gone(self, agent: AgentSpec) -> bool:
        """Whether no pod is there and the controller will not make one any more."""
        found = self._find(agent)
        if found is not None:
            observed = found["status"].get("observedGeneration", 0)
            if observed < found["metadata"]["generation"]:
                return False
        return self._pod(agent) is None

    def _volumes(self, agent: AgentSpec) -> tuple[str, ...]:
        claims = self._api.select("persistentvolumeclaims", **{spec.AGENT: agent.name})
        return tuple(sorted(c["metadata"]["labels"][spec.VOLUME] for c in claims))

    def _ensure_claims(self, agent: AgentSpec) -> None:
        for volume in agent.volumes:
            name = spec.claim_name(agent, volume.name)
            found = self._api.find("persistentvolumeclaims", name)
            if found is None:
                manifest = spec.claim(agent, volume.name, self._settings)
                self._api.apply("persistentvolumeclaims", manifest)
            else:
                self._refuse_if_foreign(agent, found)

    def _is_prepared(self, agent: AgentSpec, volume: str) -> bool:
        claim = self._api.get("persistentvolumeclaims", spec.claim_name(agent, volume))
        return spec.PREPARED in (claim["metadata"].get("annotations") or {})

    def _mark_prepared(self, agent: AgentSpec, volume: str) -> None:
        mark = {"metadata": {"annotations": {spec.PREPARED: "true"}}}
        name = spec.claim_name(agent, volume)
        self._api.merge("persistentvolumeclaims", name, mark)

    def _absent_on_target(self, agent: AgentSpec) -> list[str]:
        absent = []
        for env, ref in agent.secrets.items():
            if ref.source != "target":
                continue
            name, key = spec.secret_key(env, ref.id)
            found = self._api.find("secrets", name)
            if found is None or key not in (found.get("data") or {}):
                absent.append(f"{env} ({ref})")
        return absent

    def _await_absence(self, agent: AgentSpec, resource: str, name: str) -> None:
        gone = self._api.until(
            lambda: self._api.find(resource, name) is None, seconds=_SETTLE_SECONDS
        )
        if not gone:
            said = trouble_in_events(self._api, [name])
            raise Unavailable(
                f"agent '{agent.name}' on '{self._name}': {resource} {name} is not "
                f"removed yet{': ' if said else ''}{said}",
                hint="run the same command again",
            )
