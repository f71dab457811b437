"""The host target: agents as supervised processes of this machine, volumes as folders.

For Linux. It isolates nothing and limits nothing: the agent is a process of the user
who runs the command, in a session of its own. What it does promise is in base.py, and
the supervisor keeps it: one instance per agent and root, stopped means gone. Nothing
starts by itself after a reboot: the agent may have moved meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lobstertrap.agent import AgentSpec
from lobstertrap.errors import (
    AccessDenied,
    InvalidInput,
    NoSpace,
    NotFound,
    Permanent,
    Refused,
    SecretMissing,
    TimedOut,
    Unavailable,
)
from lobstertrap.job import MoverJob, OnProgress
from lobstertrap.targets.base import AgentStatus, Secrets, TargetInfo
from lobstertrap.targets.host_fence import EpochFence
from lobstertrap.targets.host_freeze import freeze, thaw
from lobstertrap.targets.host_instance import ENDED, Instance
from lobstertrap.targets.host_launch import HostLaunch
from lobstertrap.targets.host_status import read_status, run_beside
from lobstertrap.targets.mover_child import MoverChildren

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
_FORCE_SECONDS = 10.0


class HostTarget:
    """Runs agents below `root` on this machine; the module says what is promised."""

    kind = "host"

    def __init__(
        self,
        name: str,
        root: Path,
        *,
        restart_delays: Sequence[float] = (0.5, 1, 2, 4, 8),
        log_limit: int = 8 * 2**20,
    ) -> None:
        self._name = name
        self._root = root.absolute()
        self._movers = MoverChildren()
        self._policy = {"restart_delays": [*restart_delays], "log_limit": log_limit}

    @property
    def name(self) -> str:
        """The name in lobstertrap.toml."""
        return self._name

    def inspect(self) -> TargetInfo:
        """Look at the machine and the root; makes nothing."""
        if not sys.platform.startswith("linux"):
            raise Refused(
                f"target '{self._name}': host targets need Linux, not {sys.platform}",
                hint="use a podman target",
            )
        machine = platform.machine()
        with self._translated(f"target '{self._name}':"):
            there = next(p for p in (self._root, *self._root.parents) if p.exists())
            writable = os.access(there, os.W_OK | os.X_OK, effective_ids=True)
            if not (there.is_dir() and writable):
                raise AccessDenied(
                    f"target '{self._name}': {there} is not a directory to write to",
                    hint="choose another root in lobstertrap.toml, or change its owner",
                )
            return TargetInfo(
                name=self._name,
                kind=self.kind,
                identity=f"host:{_machine_id()}:{self._root.resolve()}",
                platform=f"linux/{_MACHINES.get(machine, machine)}",
                version=f"Linux {platform.release()}",
                free_bytes=shutil.disk_usage(there).free,
                notes=("a plain process: no isolation, no resource limits",),
            )

    def ensure_image(self, agent: AgentSpec) -> str:
        """Return the digest of the agent's directory: on a host that is what runs."""
        plan = self._plan(agent)
        plan.require_program()
        with self._translated(plan.about):
            return f"host:{plan.digest()}"

    def bind_secrets(self, agent: AgentSpec, secrets: Secrets) -> None:
        """Check that every value is there; a host keeps none."""
        if agent.secret_files:
            raise InvalidInput(
                f"{self._about(agent)} a host has no place for secret_files",
                hint="let the agent read variables, or run it in a container",
            )
        missing = sorted(agent.secrets.keys() - secrets.keys())
        if missing:
            raise SecretMissing(
                f"{self._about(agent)} no value for {', '.join(missing)}",
                hint="a host target keeps no secrets: use source env or file",
            )

    def launch(
        self, agent: AgentSpec, *, epoch: int, image: str, secrets: Secrets
    ) -> None:
        """Start a supervisor that starts the agent; see base.py.

        The lock is taken here and handed over, so that from now on, whoever dies,
        nobody else can start the agent here until this instance is gone.
        """
        self.bind_secrets(agent, secrets)
        plan = self._plan(agent)
        plan.require_program()
        with self._translated(plan.about), _claimed(plan.instance) as lock:
            if lock is None:
                _require_epoch(plan, epoch)
                return
            self._fence(agent).admit_launch(epoch)
            self._clear(plan, epoch)
            for path in (*plan.volumes.values(), plan.instance.home):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            request = plan.request(
                epoch=epoch, image=image, ports=plan.ports(), secrets=secrets
            )
            plan.instance.save(request["state"])
            answer = plan.instance.spawn(lock, request | self._policy)
        if "error" in answer:
            kind = NotFound if answer["errno"] == errno.ENOENT else Permanent
            raise kind(
                f"{plan.about} cannot be started: {answer['error']}",
                hint="see host.command in its agent.yaml",
            )

    def stop(self, agent: AgentSpec) -> None:
        """Ask the supervisor to stop, force it when it does not, and clean up after it.

        Returns with the lock taken and no process of the agent left: that is the proof.
        """
        instance, about = self._instance(agent), self._about(agent)
        deadline = time.monotonic() + agent.stop_timeout + _FORCE_SECONDS
        with self._translated(about):
            if not instance.directory.exists():
                return
            while not _finish(instance, agent.stop_timeout):
                late = time.monotonic() - deadline
                if late > _FORCE_SECONDS:
                    raise TimedOut(
                        f"{about} it does not stop",
                        hint="look at its processes; do not start it elsewhere",
                    )
                number = signal.SIGKILL if late > 0 else signal.SIGTERM
                instance.signal_supervisor(number)
                time.sleep(0.02)

    def status(self, agent: AgentSpec) -> AgentStatus:
        """Say what is here, by the lock and not by guessing at processes."""
        plan = self._plan(agent)
        with self._translated(plan.about):
            return read_status(plan)

    def run_mover(
        self, agent: AgentSpec, job: MoverJob, on_progress: OnProgress
    ) -> dict[str, Any]:
        """Run the mover as a child; the agent and a restore exclude each other.

        The child is handed the lock of the volumes, so that a mover that outlives a
        killed command still keeps the agent and other movers away.
        """
        instance, about = self._instance(agent), self._about(agent)
        paths = {name: instance.volumes / name for name in job.volumes}
        paths |= {name: Path(source) for name, source in job.sources.items()}
        reads = job.command == "snapshot"
        absent = [name for name, path in paths.items() if not path.is_dir()]
        if reads and absent:
            raise NotFound(f"{about} there is no volume '{absent[0]}'")
        with self._translated(about), _claimed(instance, "moving", reads) as lock:
            if lock is None:
                raise Unavailable(
                    f"{about} another mover is at its volumes",
                    hint="wait for it to end, then run the same command again",
                )
            if not reads and (instance.is_held() or instance.leftovers()):
                raise Refused(
                    f"{about} it runs, so its volumes are not written",
                    hint="stop the agent first",
                )
            self._fence(agent).admit_mover(job.request.get("turn"))
            for path in paths.values():
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            request = job.to_json(
                {name: str(path) for name, path in paths.items()},
                owner=(os.getuid(), os.getgid()),
            )
            return self._movers.run(request, on_progress, locks=(lock,))

    def close(self) -> None:
        """End the mover that stays for the next request; see base.py."""
        self._movers.close()

    def remove(self, agent: AgentSpec, *, volumes: bool = False) -> None:
        """Remove what is left of a stopped instance, its log too; see base.py."""
        instance, about = self._instance(agent), self._about(agent)
        if not instance.directory.exists():
            return
        with (
            self._translated(about),
            _claimed(instance) as lock,
            _claimed(instance, "moving") as moving,
        ):
            if lock is None or instance.leftovers():
                raise Refused(f"{about} it runs", hint="stop it first")
            if moving is None:
                raise Refused(f"{about} a mover is at its volumes", hint="wait for it")
            instance.remove(volumes=volumes)

    def fence(self, agent: AgentSpec, *, epoch: int, turn: int) -> tuple[int, int]:
        """Refuse what comes too late; see base.py.

        A launch that passed the fence before holds the lock already: it shows as
        running, and `stop` waits for it.
        """
        with self._translated(self._about(agent)):
            return self._fence(agent).raise_to(epoch=epoch, turn=turn)

    def held_secrets(self, agent: AgentSpec) -> Mapping[str, str]:
        """Name the secrets that the running agent was given. See `SecretKeeper`."""
        instance = self._instance(agent)
        with self._translated(self._about(agent)):
            if not instance.is_held():
                return {}
            return dict((instance.state() or {}).get("secrets") or {})

    def freeze(self, agent: AgentSpec) -> None:
        """Let the supervisor suspend the agent's processes; see base.py."""
        about = self._about(agent)
        with self._translated(about):
            freeze(self._instance(agent), about)

    def thaw(self, agent: AgentSpec) -> bool:
        """Let the supervisor wake them; see base.py."""
        about = self._about(agent)
        with self._translated(about):
            return thaw(self._instance(agent), about)

    def run_command(
        self, agent: AgentSpec, command: Sequence[str], *, seconds: float
    ) -> tuple[int, str]:
        """Run a command as the agent is run, without its secrets; see base.py."""
        plan = self._plan(agent)
        with self._translated(plan.about):
            return run_beside(plan, command, seconds)

    def logs(
        self, agent: AgentSpec, *, follow: bool = False, lines: int | None = None
    ) -> Iterator[str]:
        """Yield what the agent printed, as far as the size limit kept it."""
        instance = self._instance(agent)
        with self._translated(self._about(agent)):
            if follow:
                yield from instance.follow_log(lines)
            else:
                yield from instance.log_lines(lines)

    def _instance(self, agent: AgentSpec) -> Instance:
        return Instance(directory=self._root / agent.name)

    def _fence(self, agent: AgentSpec) -> EpochFence:
        return EpochFence(directory=self._root / agent.name, about=self._about(agent))

    def _about(self, agent: AgentSpec) -> str:
        return f"target '{self._name}': agent '{agent.name}':"

    def _plan(self, agent: AgentSpec) -> HostLaunch:
        return HostLaunch(
            agent=agent, instance=self._instance(agent), about=self._about(agent)
        )

    def _clear(self, plan: HostLaunch, epoch: int) -> None:
        """Make sure that nobody is at the volumes.

        What a killed supervisor left is ended, if it is of the epoch that may run.
        """
        with _claimed(plan.instance, "moving", shared=True) as moving:
            if moving is None:
                raise Unavailable(
                    f"{plan.about} a restore still writes its volumes",
                    hint="wait for it to end, then run the same command again",
                )
        if plan.instance.leftovers():
            _require_epoch(plan, epoch)
            plan.instance.end_leftovers(plan.agent.stop_timeout)

    @contextlib.contextmanager
    def _translated(self, about: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            message = f"{about} {error.filename or self._root}: {reason}"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace(message, hint="make room there") from error
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise AccessDenied(message, hint="change its owner or mode") from error
            raise Permanent(message) from error


@contextlib.contextmanager
def _claimed(
    instance: Instance, name: str = "lock", shared: bool = False
) -> Iterator[int | None]:
    descriptor = instance.claim(name, shared=shared)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _require_epoch(plan: HostLaunch, epoch: int) -> None:
    found = (plan.instance.state() or {}).get("epoch")
    if found != epoch:
        raise Refused(
            f"{plan.about} it runs under epoch {found}, not {epoch}",
            hint="stop it first",
        )


def _finish(instance: Instance, grace: float) -> bool:
    """Say whether the agent is stopped for good; clean up if it is."""
    with _claimed(instance) as lock:
        if lock is None:
            return False
        instance.end_leftovers(grace)
        state = instance.state()
        if state is not None and state.get("phase") not in ENDED:
            instance.save(state | {"phase": "stopped"})
        return True


def _machine_id() -> str:
    """Return a digest of the machine's id, which is itself to be kept private."""
    text = platform.node()
    with contextlib.suppress(OSError):
        text = Path("/etc/machine-id").read_text(encoding="utf-8").strip() or text
    return hashlib.sha256(text.encode()).hexdigest()[:12]
