"""What a launch on a host is made of: program, ports, environment, the request."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lobstertrap.agent import AgentSpec
from lobstertrap.errors import InvalidInput, NotFound, Refused
from lobstertrap.targets.base import Secrets
from lobstertrap.targets.host_instance import Instance, boot_id
from lobstertrap.targets.supervisor import MARK

# The interpreter that runs this has a Python beside it, should the system have none.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PATH += f":{Path(sys.executable).parent}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLaunch:
    """One agent's way of running in one place; `about` begins every message."""

    agent: AgentSpec
    instance: Instance
    about: str

    @property
    def command(self) -> Sequence[str]:
        """What the spec wants to be run, before the placeholders are replaced."""
        if self.agent.host is None:
            raise InvalidInput(
                f"{self.about} its spec has no host.command",
                hint="add one to its agent.yaml, or use a podman target",
            )
        return self.agent.host.command

    @property
    def volumes(self) -> dict[str, Path]:
        """The directories of the volumes by name."""
        return {v.name: self.instance.volumes / v.name for v in self.agent.volumes}

    def require_program(self) -> None:
        """Raise `NotFound` when the program of the command is not on this machine."""
        program = self.command[0].replace("{agent}", str(self.agent.directory))
        path = self.agent.env.get("PATH", _PATH)
        if "{" not in program and shutil.which(program, path=path) is None:
            raise NotFound(
                f"{self.about} there is no program '{program}'",
                hint=f"install it, or give host.command its path; searched: {path}",
            )

    def digest(self) -> str:
        """Hash the command and every file of the agent's directory, by path."""
        digest = hashlib.sha256(repr(self.agent.host).encode())
        root = self.agent.directory
        # A spec that came from no file has no directory.
        for path in sorted(root.rglob("*")) if root != Path() else ():
            if "__pycache__" not in path.parts:
                digest.update(os.fsencode(path.relative_to(root)) + b"\0")
                digest.update(_fingerprint(path))
        return digest.hexdigest()

    def ports(self) -> dict[str, int]:
        """Choose a free port where none is published; a taken one is `Refused`."""
        return {port.name: self._port(port.publish) for port in self.agent.ports}

    def _port(self, wanted: int | None) -> int:
        with contextlib.closing(socket.socket()) as trial:
            # As servers do: a connection that just ended does not block the port.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind(("127.0.0.1", wanted or 0))
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise Refused(
                    f"{self.about} port {wanted} cannot be had: {reason}",
                    hint="end what listens there, or change 'publish' in agent.yaml",
                ) from error
            return int(trial.getsockname()[1])

    def environment(self, ports: Mapping[str, int]) -> dict[str, str]:
        """Return the agent's environment without its secrets and its epoch."""
        values = self._values(ports)
        spec = self.agent.env.items()
        return {
            "PATH": _PATH,
            "HOME": str(self.instance.home),
            "LANG": "C.UTF-8",
            **{name: self.agent.expand(text, **values) for name, text in spec},
            "HOSTNAME": self.agent.host_name,
        }

    def request(
        self, *, epoch: int, image: str, ports: Mapping[str, int], secrets: Secrets
    ) -> dict[str, Any]:
        """Return what the supervisor is asked, but for its policy and the lock."""
        values = self._values(ports)
        command = [self.agent.expand(part, **values) for part in self.command]
        return {
            "command": command,
            "env": {
                **self.environment(ports),
                **{name: value.reveal() for name, value in secrets.items()},
                "LOBSTERTRAP_EPOCH": str(epoch),
                MARK: self.instance.mark,
            },
            "cwd": str(self.instance.home),
            "state_path": str(self.instance.state_path),
            "log_path": str(self.instance.log),
            "stop_timeout": self.agent.stop_timeout,
            "freeze_seconds": self.agent.snapshot.timeout,
            "state": {
                "version": 1,
                "phase": "starting",
                "epoch": epoch,
                "image": image,
                "ports": dict(ports),
                "secrets": {name: value.mark for name, value in secrets.items()},
                "boot": boot_id(),
                "command": command,
            },
        }

    def _values(self, ports: Mapping[str, int]) -> dict[str, Any]:
        return {
            "agent": str(self.agent.directory),
            "volumes": {name: str(path) for name, path in self.volumes.items()},
            "ports": {name: str(port) for name, port in ports.items()},
        }


def _fingerprint(path: Path) -> bytes:
    found = path.lstat()
    kind = f"{stat.S_IFMT(found.st_mode)} {found.st_mode & 0o111} ".encode()
    if stat.S_ISLNK(found.st_mode):
        return kind + os.fsencode(path.readlink()) + b"\0"
    if not stat.S_ISREG(found.st_mode):
        return kind
    with path.open("rb") as file:
        return kind + hashlib.file_digest(file, "sha256").digest()
