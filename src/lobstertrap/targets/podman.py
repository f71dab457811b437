"""The Podman target: agents as hardened containers of one engine, local or remote."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lobstertrap.agent import AgentSpec
from lobstertrap.errors import (
    Conflict,
    InvalidInput,
    LobsterTrapError,
    NotFound,
    Refused,
    SecretMissing,
    Transient,
    Unhealthy,
)
from lobstertrap.image import image_tag
from lobstertrap.job import MoverJob, OnProgress
from lobstertrap.targets import podman_spec as spec
from lobstertrap.targets.base import AgentStatus, Secrets, TargetInfo
from lobstertrap.targets.podman_api import PodmanApi, frames, lines
from lobstertrap.targets.podman_images import Images
from lobstertrap.targets.podman_mover import Movers
from lobstertrap.targets.podman_status import agent_status, is_running, is_settled

_SETTLE_SECONDS = 5.0
_LARGEST_SECRET = 512_000  # bytes; Podman's own limit


class PodmanTarget:
    """One Podman engine, rootful or rootless, found by its URL.

    Args:
        name: the target's name in lobstertrap.toml.
        url: `unix://`, `ssh://` or `tcp://`; tcp has neither encryption nor passwords,
            so use it on loopback only.
        build_args: given to every build here, such as the base image.
        identity: the private key file of an ssh URL.

    Containers restart after a crash, but never after a reboot (see `podman_spec`).
    A value bound as a secret can be read by whoever may use the engine.
    """

    def __init__(
        self,
        name: str,
        url: str,
        *,
        build_args: Mapping[str, str] = MappingProxyType({}),
        identity: Path | None = None,
    ) -> None:
        self._name = name
        self._build_args = dict(build_args)
        self._api = PodmanApi(name, url, identity=identity)
        self._images = Images(api=self._api, target=name, build_args=self._build_args)

    @property
    def name(self) -> str:
        """The name in lobstertrap.toml."""
        return self._name

    def inspect(self) -> TargetInfo:
        """Ask the engine what it is. See `Target`."""
        info = self._api.get("/info")
        engine = _engines[self._api.url] = _Engine.of(info)
        store = info["store"]
        free = store.get("graphRootAllocated", 0) - store.get("graphRootUsed", 0)
        host = info["host"]
        return TargetInfo(
            name=self._name,
            kind="podman",
            identity=f"{host['hostname']} {store['graphRoot']} {host['memTotal']}",
            platform=engine.platform,
            version=str(info["version"]["Version"]),
            free_bytes=free if free > 0 else None,
            notes=engine.notes,
        )

    def ensure_image(self, agent: AgentSpec) -> str:
        """Build or pull the image unless it is here. See `Target`."""
        return self._images.ensure(agent, platform=self._engine.platform)

    def bind_secrets(self, agent: AgentSpec, secrets: Secrets) -> None:
        """Keep the values as Podman secrets. See `Target`."""
        own = [n for n, ref in agent.secrets.items() if ref.source != "target"]
        missing = [f"{n} ({agent.secrets[n]})" for n in own if n not in secrets]
        self._refuse_missing(agent, [*missing, *self._absent_on_target(agent)])
        values = {name: secrets[name].reveal().encode() for name in own}
        wrong = [n for n, v in values.items() if not 0 < len(v) <= _LARGEST_SECRET]
        if wrong:
            raise InvalidInput(
                f"agent '{agent.name}': secret {', '.join(wrong)} is empty or larger "
                f"than {_LARGEST_SECRET} bytes"
            )
        for name in self._secrets_of(agent):
            self._api.delete(f"/secrets/{name}")
        for name, value in values.items():
            secret = spec.secret_name(agent, name)
            self._api.post("/secrets/create", data=value, name=secret)

    def launch(
        self, agent: AgentSpec, *, epoch: int, image: str, secrets: Secrets
    ) -> None:
        """Run the agent in a new container under `epoch`. See `Target`."""
        del secrets  # bound before, so that they are not in the request
        found = self._container(agent)
        if found is not None and is_running(found):
            if found["Config"]["Labels"].get(spec.EPOCH) == str(epoch):
                return
            raise Refused(
                f"agent '{agent.name}' already runs on '{self._name}' under epoch "
                f"{found['Config']['Labels'].get(spec.EPOCH)}",
                hint=f"lobstertrap stop {agent.name}",
            )
        request = spec.container_spec(
            agent,
            epoch=epoch,
            image=image,
            secrets=self._bound_secrets(agent),
            limits=self._engine.limits,
            target=self._name,
        )
        self._ensure_volumes(agent)
        self._delete_container(agent)
        self._api.post("/containers/create", request)
        self._start(agent)

    def stop(self, agent: AgentSpec) -> None:
        """Stop the container and prove it. See `Target`."""
        deadline = time.monotonic() + agent.stop_timeout + _SETTLE_SECONDS
        while found := self._container(agent):
            if is_running(found):
                self._stop_once(agent, found)
            elif is_settled(found):
                return
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)  # it has ended; a restart may still be on its way
        found = self._container(agent)
        if found is not None and is_running(found):
            raise Refused(
                f"agent '{agent.name}' on '{self._name}' cannot be proven stopped: "
                f"its container is {found['State']['Status']}",
                hint=f"there: podman rm --force {spec.container_name(agent)}",
            )

    def status(self, agent: AgentSpec) -> AgentStatus:
        """Say what the engine shows of the agent, and probe it. See `Target`."""
        found = self._container(agent)
        labels = [v["Labels"] for v in self._volumes(agent)]
        volumes = tuple(sorted(label[spec.VOLUME] for label in labels))
        if found is None:
            return AgentStatus(phase="absent", volumes=volumes)
        return agent_status(self._api, agent, found, volumes)

    def run_mover(
        self, agent: AgentSpec, job: MoverJob, on_progress: OnProgress
    ) -> dict[str, Any]:
        """Run the mover beside the volumes. See `Target`."""
        if job.command == "restore":
            self._ensure_volumes(agent)
        here = {volume["Labels"][spec.VOLUME] for volume in self._volumes(agent)}
        absent = [name for name in job.volumes if name not in here]
        if absent:
            raise NotFound(
                f"agent '{agent.name}' has no volume {', '.join(absent)} "
                f"on '{self._name}'",
                hint=f"lobstertrap status {agent.name} shows where it lives",
            )
        return self._movers.run(agent, job, on_progress)

    def remove(self, agent: AgentSpec, *, volumes: bool = False) -> None:
        """Remove the stopped container and the secrets. See `Target`."""
        found = self._container(agent)
        if found is not None and is_running(found):
            raise Refused(
                f"agent '{agent.name}' runs on '{self._name}'",
                hint=f"lobstertrap stop {agent.name}",
            )
        self._delete_container(agent)
        self._movers.end_stale(agent)
        for name in self._secrets_of(agent):
            self._api.delete(f"/secrets/{name}")
        for volume in self._volumes(agent) if volumes else ():
            self._api.delete(f"/volumes/{volume['Name']}")

    def logs(
        self, agent: AgentSpec, *, follow: bool = False, lines: int | None = None
    ) -> Iterator[str]:
        """Yield what the agent printed. See `LogSource`."""
        if self._container(agent) is None:
            raise NotFound(
                f"agent '{agent.name}' is not on '{self._name}'",
                hint=f"lobstertrap status {agent.name} shows where it lives",
            )
        return self._read_logs(agent, follow=follow, count=lines)

    def export_image(self, image: str) -> Iterator[bytes]:
        """Stream an image. See `ImageTransfer`."""
        return self._images.export(image)

    def import_image(self, agent: AgentSpec, archive: Iterator[bytes]) -> str:
        """Load an image, under the name that `ensure_image` looks for."""
        image = self._images.load(archive)
        name = agent.image or image_tag(agent, self._build_args)
        if "@" not in name:  # a digest is the image's own name already
            self._images.tag(image, name)
        return image

    def has_image(self, image: str) -> bool:
        """Whether the image with this identity is here."""
        return self._images.find(image) is not None

    @property
    def _engine(self) -> _Engine:
        engine = _engines.get(self._api.url)
        if engine is None:
            engine = _engines[self._api.url] = _Engine.of(self._api.get("/info"))
        return engine

    @property
    def _movers(self) -> Movers:
        return Movers(
            api=self._api,
            images=self._images,
            target=self._name,
            rootless=self._engine.rootless,
            platform=self._engine.platform,
        )

    def _container(self, agent: AgentSpec) -> Any | None:
        """Return the agent's container; `Refused` when the name is somebody else's."""
        name = spec.container_name(agent)
        found = self._api.find(f"/containers/{name}/json")
        if found and (found["Config"]["Labels"] or {}).get(spec.AGENT) != agent.name:
            raise Refused(
                f"container {name} on '{self._name}' was not made by lobstertrap",
                hint="rename or remove that container",
            )
        return found

    def _delete_container(self, agent: AgentSpec) -> None:
        # Without force: one that runs after all is never removed here.
        self._api.delete(f"/containers/{spec.container_name(agent)}", v=False)

    def _start(self, agent: AgentSpec) -> None:
        try:
            self._api.post(f"/containers/{spec.container_name(agent)}/start")
        except Transient:
            raise
        except LobsterTrapError as error:
            self._delete_container(agent)
            raise _start_error(agent, self._name, error) from error

    def _stop_once(self, agent: AgentSpec, found: Mapping[str, Any]) -> None:
        path = f"/containers/{spec.container_name(agent)}"
        if found["State"]["Status"] == "paused":
            self._api.post(f"{path}/unpause")
        grace = math.ceil(agent.stop_timeout)
        try:
            self._api.post(f"{path}/stop", seconds=grace + 60, timeout=grace)
        except NotFound:
            return
        except LobsterTrapError as error:
            if isinstance(error, Transient):
                raise
            self._api.post(f"{path}/kill", signal="SIGKILL")

    def _volumes(self, agent: AgentSpec) -> list[Any]:
        filters = {"label": [f"{spec.AGENT}={agent.name}"]}
        return self._api.get("/volumes/json", filters=filters) or []

    def _ensure_volumes(self, agent: AgentSpec) -> None:
        here = {volume["Name"] for volume in self._volumes(agent)}
        for volume in agent.volumes:
            name = spec.volume_name(agent, volume.name)
            if name in here:
                continue
            if self._api.find(f"/volumes/{name}/json"):
                raise Refused(
                    f"volume {name} on '{self._name}' is not agent '{agent.name}'s",
                    hint="rename the agent or the volume",
                )
            request = spec.volume_spec(agent, volume.name, target=self._name)
            self._api.post("/volumes/create", request)

    def _secrets_of(self, agent: AgentSpec) -> list[str]:
        names = [s["Spec"]["Name"] for s in self._api.get("/secrets/json") or []]
        return [name for name in names if spec.is_secret_of(agent, name)]

    def _bound_secrets(self, agent: AgentSpec) -> dict[str, str]:
        """Return the Podman secret's name by environment name; all are here."""
        bound = set(self._secrets_of(agent))
        names = {
            env: ref.id if ref.source == "target" else spec.secret_name(agent, env)
            for env, ref in agent.secrets.items()
        }
        unbound = [
            f"{env} ({ref})"
            for env, ref in agent.secrets.items()
            if ref.source != "target" and names[env] not in bound
        ]
        self._refuse_missing(agent, [*unbound, *self._absent_on_target(agent)])
        return names

    def _absent_on_target(self, agent: AgentSpec) -> list[str]:
        return [
            f"{env} ({ref})"
            for env, ref in agent.secrets.items()
            if ref.source == "target" and not self._api.find(f"/secrets/{ref.id}/json")
        ]

    def _refuse_missing(self, agent: AgentSpec, missing: list[str]) -> None:
        if missing:
            raise SecretMissing(
                f"agent '{agent.name}': secrets not on '{self._name}': "
                + ", ".join(missing),
                hint="there: podman secret create NAME FILE, for source target",
            )

    def _read_logs(
        self, agent: AgentSpec, *, follow: bool, count: int | None
    ) -> Iterator[str]:
        # Podman counts the pieces of a line that was written in pieces.
        asked = "all" if count is None else str(count if follow else 4 * count)
        with self._api.stream(
            "GET",
            f"/containers/{spec.container_name(agent)}/logs",
            seconds=None if follow else 60.0,
            stdout=True,
            stderr=True,
            follow=follow,
            tail=asked,
        ) as pieces:
            found = lines(frames(pieces))
            yield from found if follow or count is None else deque(found, maxlen=count)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Engine:
    """What does not change while an engine runs."""

    platform: str
    rootless: bool
    limits: frozenset[str]
    notes: tuple[str, ...] = field(default=())

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> _Engine:
        host = info["host"]
        rootless = bool(host["security"]["rootless"])
        wanted = {"memory", "pids", "cpu"}
        limits = wanted & set(host.get("cgroupControllers") or ())
        if rootless and host.get("cgroupVersion") == "v1":
            limits = set()
        absent = ", ".join(sorted(wanted - limits))
        kind = "rootless" if rootless else "rootful"
        note = f"no limits for {absent}: {kind} on cgroup {host.get('cgroupVersion')}"
        return cls(
            platform=f"{host['os']}/{host['arch']}",
            rootless=rootless,
            limits=frozenset(limits),
            notes=(kind, note) if absent else (kind,),
        )


_engines: dict[str, _Engine] = {}
"""By URL: asking takes an engine 0.2 s, and a target is opened for every step."""


def _start_error(
    agent: AgentSpec, target: str, error: LobsterTrapError
) -> LobsterTrapError:
    said = error.message
    if "address already in use" in said or "port is already allocated" in said:
        ports = ", ".join(str(p.publish) for p in agent.ports if p.publish)
        return Conflict(
            f"agent '{agent.name}' cannot start on '{target}': port {ports} is in use",
            hint="end what listens there, or change ports.publish in the agent.yaml",
        )
    if "exec format" in said or "executable file" in said or "OCI" in said:
        return Unhealthy(
            f"agent '{agent.name}' cannot run on '{target}': {said}",
            hint="check the image's platform and the spec's command",
        )
    return error
