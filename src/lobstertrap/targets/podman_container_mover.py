"""The mover as a container: where this process cannot enter an engine's volumes."""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from lobstertrap import __version__
from lobstertrap.agent import AgentSpec
from lobstertrap.errors import (
    InvalidInput,
    LobsterTrapError,
    NotFound,
    TimedOut,
    Unavailable,
)
from lobstertrap.job import MoverJob, OnProgress, read_events
from lobstertrap.redaction import redactor
from lobstertrap.targets import podman_python
from lobstertrap.targets.podman_api import PodmanApi, frames, lines
from lobstertrap.targets.podman_archive import platform, write_image
from lobstertrap.targets.podman_images import Images
from lobstertrap.targets.podman_spec import MOVER, TARGET, agent_owner, volume_name

_RUN = f"{MOVER}.run"
_REPOSITORY = "localhost/lobstertrap/mover"
_SILENCE_SECONDS = 60.0  # then look whether the container still runs
_CAPABILITIES = {
    "snapshot": ["DAC_READ_SEARCH", "FOWNER"],
    "restore": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETFCAP"],
}
# The mover reads its request from standard input; a container that is only started
# has none, so the secret's file becomes it.
_START = (
    "import os, runpy; "
    f"os.dup2(os.open({podman_python.REQUEST!r}, os.O_RDONLY), 0); "
    "runpy.run_module('lobstertrap.mover', run_name='__main__', alter_sys=True)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerMover:
    """Runs movers as containers on one engine, one per agent at a time."""

    api: PodmanApi
    images: Images
    target: str
    platform: str

    def run(
        self,
        agent: AgentSpec,
        job: MoverJob,
        on_progress: OnProgress,
        admit: Callable[[], None],
        *,
        here: bool,
    ) -> dict[str, Any]:
        """Run `job` in a container on the agent's volumes; see `Movers.run`.

        `here` says that the engine and this process see the same directories.
        """
        image = self._ensure_image()
        # Nothing in a container outlives it, so there is no cache to use.
        job = replace(job, request={**job.request, "cache": False})
        paths = {name: f"/volumes/{name}" for name in job.volumes}
        request = job.to_json(paths, owner=agent_owner(agent))
        run = secrets.token_hex(8)
        secret = f"{_name(agent)}-{run}"
        spec = self._spec(agent, job, image, run, here=here)
        try:
            self.end_stale(agent)
            self.api.post("/secrets/create", data=request.encode(), name=secret)
            made = self.api.post("/containers/create", spec)["Id"]
            admit()
            self.api.post(f"/containers/{made}/start")
            return read_events(self._output(made), on_progress)
        except Unavailable as error:
            said = redactor.redact(f"{error.message}{self._end_of(agent)}")
            raise Unavailable(said, hint=error.hint) from error
        finally:
            self._discard(agent, run)
            self.api.delete(f"/secrets/{secret}")

    def is_writing(self, agent: AgentSpec) -> bool:
        """Whether a restore runs, perhaps one that a killed command left."""
        found = self.api.find(f"/containers/{_name(agent)}/json")
        mounts = found["Mounts"] if found and found["State"]["Running"] else ()
        return any(mount["RW"] for mount in mounts if mount["Type"] == "volume")

    def end_stale(self, agent: AgentSpec) -> None:
        """Remove what a killed command left: its mover, and the mover's request."""
        name = _name(agent)
        self.api.delete(f"/containers/{name}", force=True, timeout=0)
        for secret in self.api.get("/secrets/json") or []:
            if secret["Spec"]["Name"].startswith(f"{name}-"):
                self.api.delete(f"/secrets/{secret['Spec']['Name']}")

    def _discard(self, agent: AgentSpec, run: str) -> None:
        """Remove the container of this run, and nobody else's of the same name."""
        found = self.api.find(f"/containers/{_name(agent)}/json")
        if found and found["Config"]["Labels"].get(_RUN) == run:
            self.api.delete(f"/containers/{found['Id']}", force=True, timeout=0)

    def _spec(
        self, agent: AgentSpec, job: MoverJob, image: str, run: str, *, here: bool
    ) -> dict[str, Any]:
        access = "ro" if job.command == "snapshot" else "rw"
        own = {name: volume_name(agent, name) for name in job.volumes}
        sources = own | {**job.sources}
        spec: dict[str, Any] = {
            "name": _name(agent),
            "image": image,
            "labels": {MOVER: agent.name, TARGET: self.target, _RUN: run},
            "entrypoint": ["python3", "-c", _START],
            "user": "0:0",
            "cap_drop": ["ALL"],
            "cap_add": _CAPABILITIES[job.command],
            "no_new_privileges": True,
            "read_only_filesystem": True,
            # The store may listen on the engine's own loopback.
            "netns": {"nsmode": "host"},
            "restart_policy": "no",
            "log_configuration": {"driver": "k8s-file"},
            "secrets": [
                {
                    "source": f"{_name(agent)}-{run}",
                    "target": podman_python.REQUEST,
                    "mode": 0o400,
                }
            ],
            "volumes": [
                {
                    "Name": source,
                    "Dest": f"/volumes/{name}",
                    "Options": [access, "nocopy"],
                }
                for name, source in sources.items()
                if not source.startswith("/")
            ],
            "mounts": [
                {"type": "tmpfs", "destination": "/tmp", "source": "tmpfs"},  # noqa: S108 - in the container
                *_directories(sources),
            ],
        }
        if any(source.startswith("/") for source in sources.values()):
            spec["selinux_opts"] = ["disable"]  # they are not ours to relabel
        directory = _store_directory(job.request)
        if directory is not None:
            spec["mounts"].append(self._store_mount(directory, here=here))
            spec["selinux_opts"] = ["disable"]  # the directory is not relabelled
        return spec

    def _store_mount(self, directory: Path, *, here: bool) -> dict[str, Any]:
        if not here:
            raise InvalidInput(
                f"store file://{directory}: target '{self.target}' is another machine",
                hint="use an s3:// store that both machines reach",
            )
        directory.mkdir(parents=True, exist_ok=True)
        return {
            "type": "bind",
            "source": str(directory),
            "destination": str(directory),
            "options": ["rbind", "rw"],
        }

    def _output(self, name: str) -> Iterator[str]:
        """Yield what the mover prints, until it ends; a pause is not the end."""
        seen = 0
        while True:
            with contextlib.suppress(TimedOut):
                for number, line in enumerate(self._follow(name)):
                    if number >= seen:
                        seen += 1
                        yield line
                return
            if not self.api.get(f"/containers/{name}/json")["State"]["Running"]:
                return

    def _follow(self, name: str) -> Iterator[str]:
        with self.api.stream(
            "GET",
            f"/containers/{name}/logs",
            seconds=_SILENCE_SECONDS,
            follow=True,
            stdout=True,
            stderr=True,
        ) as pieces:
            yield from lines(frames(pieces))

    def _end_of(self, agent: AgentSpec) -> str:
        """Say how the mover's container ended, if that can still be seen."""
        with contextlib.suppress(LobsterTrapError):
            found = self.api.find(f"/containers/{_name(agent)}/json")
            if found and not found["State"]["Running"]:
                killed = ", out of memory" if found["State"].get("OOMKilled") else ""
                return f" (it ended with {found['State']['ExitCode']}{killed})"
        return ""

    def _ensure_image(self) -> str:
        if self.platform != platform():
            return self._foreign_image()
        tag = f"{_REPOSITORY}:{podman_python.mover_digest()[:12]}"
        if self.images.find(tag) is None:
            with tempfile.TemporaryFile() as archive:
                write_image(
                    archive,
                    tag=tag,
                    layers=[
                        podman_python.python_layer,
                        podman_python.packages_layer,
                        podman_python.own_layer,
                    ],
                    env={
                        **podman_python.ENVIRONMENT,
                        "PYTHONPATH": podman_python.APPLICATION,
                    },
                )
                archive.seek(0)
                self.images.load(iter(lambda: archive.read(1 << 20), b""))
        return tag

    def _foreign_image(self) -> str:
        """Return the image that a person built there for another processor."""
        tag = f"{_REPOSITORY}:{__version__}"
        if self.images.find(tag) is None:
            raise NotFound(
                f"target '{self.target}' is {self.platform}, and has no mover for it",
                hint=f"there: podman build -f deployments/mover/Containerfile -t {tag}",
            )
        return tag


def _name(agent: AgentSpec) -> str:
    # No agent's name has a dot, so this is nobody's container.
    return f"lobstertrap-{agent.name}.mover"


def _directories(sources: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the mounts of directories that are somebody else's: never written."""
    return [
        {
            "type": "bind",
            "source": source,
            "destination": f"/volumes/{name}",
            "options": ["rbind", "ro"],
        }
        for name, source in sources.items()
        if source.startswith("/")
    ]


def _store_directory(request: Mapping[str, Any]) -> Path | None:
    parts = urlsplit(str(request.get("store", {}).get("url", "")))
    return Path(unquote(parts.path)) if parts.scheme == "file" else None
