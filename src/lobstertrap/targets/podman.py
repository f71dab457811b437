"""The Podman target: agents as hardened containers of one engine, local or remote."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lobstertrap.agent import AgentSpec
from lobstertrap.errors import (
    Conflict,
    LobsterTrapError,
    NotFound,
    Permanent,
    Refused,
    Transient,
    Unhealthy,
)
from lobstertrap.image import image_tag
from lobstertrap.job import MoverJob, OnProgress
from lobstertrap.targets import podman_spec as spec
from lobstertrap.targets.base import AgentStatus, Secrets, TargetInfo
from lobstertrap.targets.mover_child import MoverChildren
from lobstertrap.targets.podman_api import PodmanApi, frames, lines
from lobstertrap.targets.podman_container_mover import ContainerMover
from lobstertrap.targets.podman_facts import EngineFacts
from lobstertrap.targets.podman_fence import PodmanFence
from lobstertrap.targets.podman_freeze import Guard, pause, unpause
from lobstertrap.targets.podman_images import Images, carried_name, identity
from lobstertrap.targets.podman_mover import Movers
from lobstertrap.targets.podman_secrets import BoundSecrets
from lobstertrap.targets.podman_status import (
    agent_status,
    execute,
    is_running,
    is_settled,
    never_started,
)

_SETTLE_SECONDS = 5.0


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
        self._identity = identity
        self._guard: Guard | None = None
        self._children = MoverChildren()
        self._api = PodmanApi(name, url, identity=identity)
        self._secrets = BoundSecrets(api=self._api, target=name)
        self._images = Images(api=self._api, target=name, build_args=self._build_args)

    @property
    def name(self) -> str:
        """The name in lobstertrap.toml."""
        return self._name

    def inspect(self) -> TargetInfo:
        """Ask the engine what it is. See `Target`."""
        info = self._api.get("/info")
        engine = EngineFacts.of(info)
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
        self._secrets.bind(agent, secrets)

    def launch(
        self, agent: AgentSpec, *, epoch: int, image: str, secrets: Secrets
    ) -> None:
        """Run the agent in a new container under `epoch`. See `Target`.

        The container is made before the fence is asked: whoever raised the fence too
        late for this launch finds the container, and removes it before it can start.
        """
        found = self._container(agent)
        if found is not None and is_running(found):
            _require_epoch(agent, found, epoch, self._name)
            return
        self._fence(agent).admit_launch(epoch)
        request = spec.container_spec(
            agent,
            epoch=epoch,
            image=image,
            secrets=self._secrets.names(agent),
            limits=self._engine.limits,
            target=self._name,
            # The values were bound before, so that they are not in the request.
            marks={name: value.mark for name, value in secrets.items()},
        )
        self._movers.refuse_busy(agent)
        self._ensure_volumes(agent)
        if found is not None:
            self._delete_container(found["Id"])
        made = self._api.post("/containers/create", request)["Id"]
        try:
            self._fence(agent).admit_launch(epoch)
            self._start(agent, made)
        except Permanent:
            self._delete_container(made)
            raise

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

        def admit() -> None:
            self._fence(agent).admit_mover(job.request.get("turn"))
            if job.command == "restore":
                self._refuse_running(agent)

        admit()
        if job.command == "restore":
            self._ensure_volumes(agent)
        here = {volume["Labels"][spec.VOLUME] for volume in self._volumes(agent)}
        here |= job.sources.keys()
        absent = [name for name in job.volumes if name not in here]
        if absent:
            raise NotFound(
                f"agent '{agent.name}' has no volume {', '.join(absent)} "
                f"on '{self._name}'",
                hint=f"lobstertrap status {agent.name} shows where it lives",
            )
        return self._movers.run(agent, job, on_progress, admit=admit)

    def close(self) -> None:
        """End the mover that stays for the next request. See `Keeper`."""
        self._children.close()

    def remove(self, agent: AgentSpec, *, volumes: bool = False) -> None:
        """Remove the stopped container and the secrets. See `Target`."""
        found = self._refuse_running(agent)
        if found is not None:
            self._delete_container(found["Id"])
        self._movers.end_stale(agent)
        self._secrets.remove(agent)
        gone = self._volumes(agent) if volumes else []
        for volume in gone:
            self._api.delete(f"/volumes/{volume['Name']}")
        self._movers.forget(volume["Mountpoint"] for volume in gone)

    def fence(self, agent: AgentSpec, *, epoch: int, turn: int) -> tuple[int, int]:
        """Refuse what comes too late. See `Fence`.

        A launch that passed the fence already has its container: if that has not been
        started, it never will be. A mover that a killed command left is ended.
        """
        fenced = self._fence(agent).raise_to(epoch=epoch, turn=turn)
        self._movers.end_stale(agent)
        found = self._container(agent)
        if found and never_started(found) and spec.epoch_of(found) <= epoch:
            try:
                self._delete_container(found["Id"])
            except Permanent:
                found = self._container(agent)
                if found is not None and never_started(found):
                    raise
        return fenced

    def held_secrets(self, agent: AgentSpec) -> Mapping[str, str]:
        """Name the Podman secrets that are here. See `SecretKeeper`."""
        found = self._container(agent)
        marks = spec.marks_of(found) if found is not None else {}
        return {name: marks.get(name, "") for name in self._secrets.present(agent)}

    def freeze(self, agent: AgentSpec) -> None:
        """Pause the container, guarded. See `Freezer`."""
        name = self._require_running(agent)
        seconds = agent.snapshot.timeout
        guard = Guard(self._api.url, self._identity, name, seconds)
        try:
            pause(self._api, name, f"target '{self._name}': agent '{agent.name}':")
        except BaseException:
            guard.dismiss(done=False)  # the answer may be what was lost
            raise
        self._guard = guard

    def thaw(self, agent: AgentSpec) -> bool:
        """Let the container go on; the guard does it if this fails. See `Freezer`."""
        guard, self._guard = self._guard, None
        done = False
        try:
            found = self._container(agent)
            paused = found is not None and unpause(self._api, found["Id"])
            done = True
        finally:
            if guard is not None:
                guard.dismiss(done=done)
        return paused

    def run_command(
        self, agent: AgentSpec, command: Sequence[str], *, seconds: float
    ) -> tuple[int, str]:
        """Run a command in the container. See `CommandRunner`."""
        self._require_running(agent)
        return execute(self._api, agent, command, seconds)

    def _require_running(self, agent: AgentSpec) -> str:
        found = self._container(agent)
        if found is None or not is_running(found):
            raise NotFound(f"agent '{agent.name}' does not run on '{self._name}'")
        return spec.container_name(agent)

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
        self._images.tag(image, carried_name(self._image_name(agent)))
        return image

    def has_image(self, agent: AgentSpec, image: str) -> bool:
        """Whether the image is here; if so, `ensure_image` finds it. See the base."""
        if self._images.find(image) is None:
            return False
        named = self._images.find(self._image_name(agent))
        if named is None or identity(named) != image:  # it is here by another name
            self._images.tag(image, carried_name(self._image_name(agent)))
        return True

    def _image_name(self, agent: AgentSpec) -> str:
        return agent.image or image_tag(agent, self._build_args)

    @property
    def _engine(self) -> EngineFacts:
        return EngineFacts.ask(self._api)

    @property
    def _movers(self) -> Movers:
        return Movers(
            api=self._api,
            target=self._name,
            rootless=self._engine.rootless,
            containers=ContainerMover(
                api=self._api,
                images=self._images,
                target=self._name,
                platform=self._engine.platform,
            ),
            children=self._children,
        )

    def _fence(self, agent: AgentSpec) -> PodmanFence:
        return PodmanFence(api=self._api, agent=agent.name, target=self._name)

    def _refuse_running(self, agent: AgentSpec) -> Any | None:
        """Return the stopped container, if any; `Refused` when it runs."""
        found = self._container(agent)
        if found is not None and is_running(found):
            raise Refused(
                f"agent '{agent.name}' runs on '{self._name}'",
                hint=f"lobstertrap stop {agent.name}",
            )
        return found

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

    def _delete_container(self, identity: str) -> None:
        # Without force: one that runs after all is never removed here.
        self._api.delete(f"/containers/{identity}", v=False)

    def _start(self, agent: AgentSpec, identity: str) -> None:
        try:
            self._api.post(f"/containers/{identity}/start")
        except NotFound as error:
            raise Refused(
                f"agent '{agent.name}' was fenced off on '{self._name}' meanwhile",
                hint="look at `lobstertrap status`",
            ) from error
        except Permanent as error:
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


def _require_epoch(
    agent: AgentSpec, found: Mapping[str, Any], epoch: int, target: str
) -> None:
    if spec.epoch_of(found) != epoch:
        raise Refused(
            f"agent '{agent.name}' already runs on '{target}' under epoch "
            f"{spec.epoch_of(found)}",
            hint=f"lobstertrap stop {agent.name}",
        )


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
