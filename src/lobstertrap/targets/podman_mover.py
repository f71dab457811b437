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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lobstertrap.agent import AgentSpec
from lobstertrap.errors import Unavailable
from lobstertrap.job import MoverJob, OnProgress
from lobstertrap.targets.mover_child import MoverChildren
from lobstertrap.targets.podman_api import PodmanApi
from lobstertrap.targets.podman_container_mover import ContainerMover
from lobstertrap.targets.podman_spec import agent_owner, volume_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Movers:
    """Runs movers on one engine, in the one way or the other."""

    api: PodmanApi
    target: str
    rootless: bool
    containers: ContainerMover
    children: MoverChildren

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
            return self.containers.run(agent, job, on_progress, admit, here=here)
        paths = {name: self._path(agent, job, name) for name in job.volumes}
        request = job.to_json(paths, owner=agent_owner(agent))
        own = [path for name, path in paths.items() if name not in job.sources]
        # The child is handed the locks: as long as it moves, nobody else is let in.
        with self._locked(own, shared=job.command == "snapshot") as locks:
            admit()
            return self.children.run(request, on_progress, prefix=prefix, locks=locks)

    def refuse_busy(self, agent: AgentSpec) -> None:
        """Raise `Unavailable` while a restore still writes, perhaps a forgotten one."""
        if self.containers.is_writing(agent):
            raise self._busy()
        volumes = [volume_name(agent, volume.name) for volume in agent.volumes]
        known = [self.api.find(f"/volumes/{name}/json") for name in volumes]
        paths = [volume["Mountpoint"] for volume in known if volume]
        if paths and is_here(self.api) and self._child_prefix() is not None:
            with self._locked(paths, shared=True):
                pass

    def end_stale(self, agent: AgentSpec) -> None:
        """End what a killed command left; a child ends with its command."""
        self.containers.end_stale(agent)

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

    def _path(self, agent: AgentSpec, job: MoverJob, volume: str) -> str:
        source = job.sources.get(volume, volume_name(agent, volume))
        if source.startswith("/"):
            return source
        return str(self.api.get(f"/volumes/{source}/json")["Mountpoint"])


def is_here(api: PodmanApi) -> bool:
    """Prove that the engine keeps its volumes on this machine, where we see them."""
    name = f"lobstertrap-probe.{secrets.token_hex(8)}"
    made = api.post("/volumes/create", {"Name": name})
    try:
        return os.path.lexists(made["Mountpoint"])
    finally:
        api.delete(f"/volumes/{name}", force=True)


def _lock_file(mountpoint: str) -> Path:
    """Return the lock beside a volume's directory, which may be the agent's alone."""
    return Path(f"{Path(mountpoint).parent}.lock")
