"""The mover beside a Podman engine's volumes: a child process, or a container there.

A child process is used where this process may enter the volumes' directories: as root
on a rootful engine of this machine, or inside `podman unshare` on the user's own
rootless one. Anywhere else the mover is a container with the volumes mounted. That the
engine is on this machine is proven, not guessed from its URL: a volume with a random
name must appear here when the engine makes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from lobstertrap.targets.mover_child import run_mover_child
from lobstertrap.targets.podman_api import PodmanApi, frames, lines
from lobstertrap.targets.podman_archive import platform, write_image
from lobstertrap.targets.podman_images import Images
from lobstertrap.targets.podman_spec import MOVER, TARGET, volume_name

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
class Movers:
    """Runs movers on one engine."""

    api: PodmanApi
    images: Images
    target: str
    rootless: bool
    platform: str

    def run(
        self,
        agent: AgentSpec,
        job: MoverJob,
        on_progress: OnProgress,
        *,
        admit: Callable[[], None],
    ) -> dict[str, Any]:
        """Run `job` on the agent's volumes, which exist; see `Target.run_mover`.

        `admit` is called when the mover can be seen by others and has not begun: it
        raises if this one comes too late.
        """
        here = is_here(self.api)
        prefix = self._child_prefix() if here else None
        if prefix is None:
            return self._in_container(agent, job, on_progress, admit, here=here)
        paths = {name: self._mountpoint(agent, name) for name in job.volumes}
        request = job.to_json(paths, owner=_owner(agent))
        # The child inherits the locks: as long as it lives, nobody else is let in.
        with self._locked(paths.values(), shared=job.command == "snapshot") as locks:
            admit()
            return run_mover_child(request, on_progress, prefix=prefix, pass_fds=locks)

    def refuse_busy(self, agent: AgentSpec) -> None:
        """Raise `Unavailable` while a restore still writes, perhaps a forgotten one."""
        found = self.api.find(f"/containers/{_name(agent)}/json")
        if found and found["State"]["Running"] and _writes(found):
            raise self._busy()
        volumes = [volume_name(agent, volume.name) for volume in agent.volumes]
        known = [self.api.find(f"/volumes/{name}/json") for name in volumes]
        paths = [volume["Mountpoint"] for volume in known if volume]
        if paths and is_here(self.api) and self._child_prefix() is not None:
            with self._locked(paths, shared=True):
                pass

    def forget(self, mountpoints: Iterable[str]) -> None:
        """Remove the locks of volumes that are no more; those elsewhere have none."""
        locks = [_lock_file(mountpoint) for mountpoint in mountpoints]
        if locks and is_here(self.api):
            for lock in locks:
                with contextlib.suppress(OSError):
                    lock.unlink()

    @contextlib.contextmanager
    def _locked(
        self, mountpoints: Iterable[str], *, shared: bool
    ) -> Iterator[list[int]]:
        """Lock volumes of this machine against other movers, from any process."""
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        with contextlib.ExitStack() as stack:
            locks = []
            for mountpoint in mountpoints:
                lock = os.open(_lock_file(mountpoint), os.O_RDWR | os.O_CREAT, 0o600)
                stack.callback(os.close, lock)
                try:
                    fcntl.flock(lock, kind | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise self._busy() from error
                locks.append(lock)
            yield locks

    def _busy(self) -> Unavailable:
        return Unavailable(
            f"target '{self.target}': another mover is at the volumes",
            hint="wait for it to end, then run the same command again",
        )

    def end_stale(self, agent: AgentSpec) -> None:
        """Remove what a killed command left: its mover, and the mover's request."""
        name = _name(agent)
        self.api.delete(f"/containers/{name}", force=True, timeout=0)
        for secret in self.api.get("/secrets/json") or []:
            if secret["Spec"]["Name"].startswith(f"{name}-"):
                self.api.delete(f"/secrets/{secret['Spec']['Name']}")

    def _child_prefix(self) -> tuple[str, ...] | None:
        """Return what enters the volumes from here; None when nothing does."""
        if not self.api.is_socket or sys.platform != "linux":
            return None
        if not self.rootless:
            return () if os.geteuid() == 0 else None
        owner = Path(self.api.url.removeprefix("unix://")).stat().st_uid
        if owner != os.geteuid() or owner == 0 or shutil.which("podman") is None:
            return None
        return ("podman", "unshare")

    def _mountpoint(self, agent: AgentSpec, volume: str) -> str:
        found = self.api.get(f"/volumes/{volume_name(agent, volume)}/json")
        return str(found["Mountpoint"])

    def _in_container(
        self,
        agent: AgentSpec,
        job: MoverJob,
        on_progress: OnProgress,
        admit: Callable[[], None],
        *,
        here: bool,
    ) -> dict[str, Any]:
        image = self._ensure_image()
        # Nothing in a container outlives it, so there is no cache to use.
        job = replace(job, request={**job.request, "cache": False})
        paths = {name: f"/volumes/{name}" for name in job.volumes}
        request = job.to_json(paths, owner=_owner(agent))
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

    def _discard(self, agent: AgentSpec, run: str) -> None:
        """Remove the container of this run, and nobody else's of the same name."""
        found = self.api.find(f"/containers/{_name(agent)}/json")
        if found and found["Config"]["Labels"].get(_RUN) == run:
            self.api.delete(f"/containers/{found['Id']}", force=True, timeout=0)

    def _spec(
        self, agent: AgentSpec, job: MoverJob, image: str, run: str, *, here: bool
    ) -> dict[str, Any]:
        access = "ro" if job.command == "snapshot" else "rw"
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
                    "Name": volume_name(agent, name),
                    "Dest": f"/volumes/{name}",
                    "Options": [access, "nocopy"],
                }
                for name in job.volumes
            ],
            "mounts": [
                {"type": "tmpfs", "destination": "/tmp", "source": "tmpfs"}  # noqa: S108 - in the container
            ],
        }
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


def is_here(api: PodmanApi) -> bool:
    """Prove that the engine keeps its volumes on this machine, where we see them."""
    name = f"lobstertrap-probe.{secrets.token_hex(8)}"
    made = api.post("/volumes/create", {"Name": name})
    try:
        return os.path.lexists(made["Mountpoint"])
    finally:
        api.delete(f"/volumes/{name}", force=True)


def _owner(agent: AgentSpec) -> tuple[int, int]:
    """Return whose the agent's files are, as every kind of mover sees them.

    In a container and inside `podman unshare` ids are the container's own; rootful
    engines do not map them.
    """
    return agent.security.user, agent.security.group


def _writes(found: Mapping[str, Any]) -> bool:
    return any(mount["RW"] for mount in found["Mounts"] if mount["Type"] == "volume")


def _lock_file(mountpoint: str) -> Path:
    """Return the lock beside a volume's directory, which may be the agent's alone."""
    return Path(f"{Path(mountpoint).parent}.lock")


def _name(agent: AgentSpec) -> str:
    # No agent's name has a dot, so this is nobody's container.
    return f"lobstertrap-{agent.name}.mover"


def _store_directory(request: Mapping[str, Any]) -> Path | None:
    parts = urlsplit(str(request.get("store", {}).get("url", "")))
    return Path(unquote(parts.path)) if parts.scheme == "file" else None
