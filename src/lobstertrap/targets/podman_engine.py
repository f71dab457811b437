"""A Podman engine of one's own: its storage, network and socket, in one child process.

The demo and the tests use it so that two engines on one machine stand for two machines,
and so that nobody's own containers, images or locks are ever touched. It finds out what
the machine cannot do (cgroups, resource limits) and writes the engine's configuration
accordingly; the product itself needs none of this.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from lobstertrap.errors import Refused, Unavailable

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_DEFAULT_FILES = 1 << 20  # what Podman asks for when nobody says anything
_NPROC = 16384  # Podman lowers its own hard limit below what the shell shows

Network = Literal["bridge", "slirp4netns"]


class PodmanEngine:
    """A running `podman system service` below `directory`, which it owns and removes.

    Args:
        directory: where storage goes; made when missing, removed at the end.
        user: run rootless as this user (we must be root to do so); None is ourselves.
        tcp: listen on a free loopback port instead of on a unix socket.
        network: the default network of its containers; slirp4netns when it is here,
            because it needs no firewall rules and no address range of its own.

    Raises `Unavailable` when there is no Podman here or it does not start.
    """

    def __init__(
        self,
        directory: Path,
        *,
        user: str | None = None,
        tcp: bool = False,
        network: Network | None = None,
    ) -> None:
        self.directory = directory
        self.user = pwd.getpwnam(user) if user else None
        self._tcp = tcp
        self._network = network or _default_network()
        self._run = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    @property
    def rootless(self) -> bool:
        """Whether its containers live in a user namespace."""
        return (self.user.pw_uid if self.user else os.geteuid()) != 0

    @property
    def environment(self) -> Mapping[str, str]:
        """What the `podman` command and `podman unshare` need to mean this engine."""
        own = {
            "CONTAINERS_CONF": str(self._run / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self._run / "storage.conf"),
            "TMPDIR": str(self.directory / "tmp"),
        }
        if self.user:
            own["HOME"] = str(self.directory / "home")
        if self.rootless:
            own["XDG_RUNTIME_DIR"] = str(self._run / "user")
        kept = ("PATH", "HOME", "LANG", "LC_ALL")
        return {k: os.environ[k] for k in kept if k in os.environ} | own

    def __enter__(self) -> Self:
        if shutil.which("podman") is None:
            raise Unavailable(
                "there is no podman command on this machine",
                hint="install Podman 4.3 or newer",
            )
        # Short, because a unix socket's path and Podman's runroot are limited.
        self._run = Path(tempfile.mkdtemp(prefix="ltp-"))
        try:
            self._prepare()
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def run(self, *args: str) -> str:
        """Run `podman ARGS` on this engine's storage and return what it printed."""
        done = subprocess.run(
            ["podman", *args],
            capture_output=True,
            text=True,
            check=False,
            **self._identity(),
        )
        if done.returncode:
            raise Unavailable(f"podman {args[0]} failed: {done.stderr.strip()}")
        return str(done.stdout)

    def close(self) -> None:
        """Remove its containers, end the service and remove all its storage."""
        if (self._run / "containers.conf").exists():
            with contextlib.suppress(Unavailable):  # the storage goes anyway
                self.run("rm", "--all", "--force", "--time", "0")
        self._end_service()
        self._end_pause_process()
        for place in (self.directory, self._run):
            if place != Path():
                self._remove_tree(place)

    def _identity(self) -> dict[str, Any]:
        """How a child process becomes the engine's user."""
        common: dict[str, Any] = {"env": dict(self.environment), "cwd": "/"}
        if self.user:
            who = {"user": self.user.pw_uid, "group": self.user.pw_gid}
            return {**common, **who, "extra_groups": []}
        return common

    def _prepare(self) -> None:
        for name in ("storage", "tmp", "home"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        for name in ("run", "libpod", "user", "networks"):
            (self._run / name).mkdir(mode=0o700)
        self._write("storage.conf", _storage_conf(self.directory, self._run))
        self._write("containers.conf", _containers_conf(self._run, self._network))
        if self._network == "bridge":
            self._write("networks/podman.json", _bridge_network(self._run))
        if self.user:
            owner = (self.user.pw_uid, self.user.pw_gid)
            for root in (self.directory, self._run):
                for path in (root, *root.rglob("*")):
                    os.chown(path, *owner)
            self._run.chmod(0o755)  # the socket is opened by root and by the user

    def _write(self, name: str, text: str) -> None:
        (self._run / name).write_text(text, encoding="utf-8")

    def _start(self) -> None:
        address = f"127.0.0.1:{_free_port()}" if self._tcp else f"{self._run}/api.sock"
        self.url = f"tcp://{address}" if self._tcp else f"unix://{address}"
        command = ["podman", "system", "service", "--time=0", self.url]
        if shutil.which("setpriv"):  # so that it ends when we are killed
            command = ["setpriv", "--pdeathsig", "TERM", *command]
        with (self._run / "service.log").open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._identity(),
            )
        self._await_answer()

    def _await_answer(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            process = self._process
            if process is None or process.poll() is not None:
                log = (self._run / "service.log").read_text(errors="replace")
                raise Unavailable(f"podman did not start: {log.strip()[-500:]}")
            if time.monotonic() > deadline:
                raise Unavailable("podman's service did not answer in time")
            time.sleep(0.05)

    def _answers(self) -> bool:
        kind = socket.AF_INET if self._tcp else socket.AF_UNIX
        host, _, port = self.url.rpartition("/")[2].partition(":")
        address = (host, int(port)) if self._tcp else self.url.removeprefix("unix://")
        with socket.socket(kind) as probe:
            return probe.connect_ex(address) == 0

    def _end_service(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
                return

    def _end_pause_process(self) -> None:
        """End the process that keeps a rootless engine's namespace alive."""
        for file in self._run.rglob("pause.pid"):
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(file.read_text()), signal.SIGKILL)

    def _remove_tree(self, place: Path) -> None:
        for mount in _mounts_below(place):
            subprocess.run(["umount", "--lazy", mount], check=False)
        if self.rootless and not self.user:
            # Files of other ids belong to us only inside the namespace.
            remove = ["podman", "unshare", "rm", "-rf", str(place / "storage")]
            subprocess.run(remove, check=False, capture_output=True)
        shutil.rmtree(place, ignore_errors=True)


def _default_network() -> Network:
    usable = shutil.which("slirp4netns") and Path("/dev/net/tun").exists()
    return "slirp4netns" if usable else "bridge"


def _storage_conf(directory: Path, run: Path) -> str:
    return (
        '[storage]\ndriver = "overlay"\n'
        f'graphroot = "{directory}/storage"\nrunroot = "{run}/run"\n'
        f'rootless_storage_path = "{directory}/storage"\n'
    )


def _containers_conf(run: Path, network: Network) -> str:
    engine = {
        # Locks in shared memory are shared by all engines of a user, and a fresh
        # engine frees them all.
        "lock_type": '"file"',
        "tmp_dir": f'"{run}/libpod"',
        "events_logger": '"file"',
    }
    if not Path("/run/systemd/system").exists():
        engine["cgroup_manager"] = '"cgroupfs"'
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    if not unified and shutil.which("runc"):
        engine["runtime"] = '"runc"'  # crun refuses the hybrid hierarchy
    containers = {"log_driver": '"k8s-file"'}
    if limits := _ulimits():
        containers["default_ulimits"] = json.dumps(limits)
    if network == "slirp4netns":
        containers["netns"] = '"slirp4netns"'
    sections = {
        "engine": engine,
        "containers": containers,
        "network": {"network_config_dir": f'"{run}/networks"'},
    }
    return "\n".join(
        f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in values.items())
        for name, values in sections.items()
    )


def _ulimits() -> list[str]:
    """Return lower limits where Podman's defaults exceed what we may set."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY or files >= _DEFAULT_FILES:
        return []
    _, processes = resource.getrlimit(resource.RLIMIT_NPROC)
    if processes == resource.RLIM_INFINITY or processes > _NPROC:
        processes = _NPROC
    return [f"nofile={files}:{files}", f"nproc={processes}:{processes}"]


def _bridge_network(run: Path) -> str:
    """Return a default network of its own: two engines must not share addresses."""
    number = _free_subnet()
    return json.dumps(
        {
            "name": "podman",
            "id": f"{number:064x}",
            "driver": "bridge",
            "network_interface": f"{run.name[:12]}",
            "subnets": [
                {"subnet": f"10.97.{number}.0/24", "gateway": f"10.97.{number}.1"}
            ],
            "ipv6_enabled": False,
            "internal": False,
            "dns_enabled": False,
            "ipam_options": {"driver": "host-local"},
        }
    )


def _free_subnet() -> int:
    """Return n of a 10.97.n.0/24 that nobody else on this machine has.

    A listening socket in the abstract namespace is the claim; it is held until this
    process ends.
    """
    for number in range(1, 255):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0lobstertrap-subnet-{number}")
        except OSError:
            claim.close()
            continue
        _claims.append(claim.detach())
        return number
    raise Refused("no free address range for another Podman engine")


_claims: list[int] = []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _mounts_below(place: Path) -> Iterator[str]:
    """Yield mount points below `place`, innermost first."""
    lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    points = [line.split()[1] for line in lines]
    yield from sorted((p for p in points if p.startswith(f"{place}/")), reverse=True)
