"""What a demo leaves on the machine: found by its directory, and swept away."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from lobstertrap.errors import Refused

MARK = "LOBSTERTRAP_DEMO"
"""The variable by which processes of a demo are found: its value is the directory."""

_LOCK = "lobstertrap-demo.lock"
_GONE_SECONDS = 10.0
_NOT_A_SIGN = (b"PWD=", b"OLDPWD=")
"""Variables that name the directory because somebody's shell is in it."""


@contextlib.contextmanager
def claim(directory: Path) -> Iterator[None]:
    """Hold the directory for one demo.

    Raises `Refused` while another demo has it, and when it is not a demo's at all.
    """
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    if any(directory.iterdir()) and not (directory / _LOCK).exists():
        raise Refused(
            f"{directory} holds something that is not a demo's, and would be removed",
            hint="give the demo a directory of its own: --directory",
        )
    with (directory / _LOCK).open("a+b") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Refused(
                f"another demo runs in {directory}",
                hint="let it end, or interrupt it with Ctrl-C",
            ) from error
        yield


def sweep(directory: Path, *, keep_lock: bool = True) -> None:
    """End every process of the demo and remove what it keeps on disk."""
    deadline = time.monotonic() + _GONE_SECONDS
    while (left := processes(directory)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    for place in (directory, *_run_directories(directory)):
        for mount in _mounts_below(place):
            subprocess.run(["umount", "--lazy", mount], check=False)
    for place in _run_directories(directory):
        shutil.rmtree(place, ignore_errors=True)
    for entry in directory.iterdir() if directory.is_dir() else ():
        if keep_lock and entry.name == _LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    if not keep_lock:
        with contextlib.suppress(OSError):
            directory.rmdir()


def leftovers(directory: Path, *, but: int | None = None) -> list[str]:
    """Say what is left of the demo: processes other than `but`, mounts, directories."""
    deadline = time.monotonic() + _GONE_SECONDS
    while (left := _left(directory, but)) and time.monotonic() < deadline:
        time.sleep(0.2)  # what was told to end may need a moment
    return left


def processes(directory: Path) -> dict[int, str]:
    """Return the demo's processes, ourselves and our parents excepted: pid, command."""
    sign = os.fsencode(directory)
    ours = _ancestors()
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in ours:
            continue
        with contextlib.suppress(OSError):
            variables = (entry / "environ").read_bytes().split(b"\0")
            if any(sign in v and not v.startswith(_NOT_A_SIGN) for v in variables):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(entry.name)] = command.decode(errors="replace")[:80].strip()
                found |= _relatives(entry, command)
    return found


def _relatives(entry: Path, command: bytes) -> dict[int, str]:
    """Return what belongs to it and bears no sign of the demo in its environment.

    That is a host target's supervisor, which would start its agent again, and what runs
    inside a container.
    """
    parent = _parent(entry)
    if b"supervisor.py" in Path(f"/proc/{parent}/cmdline").read_bytes():
        return {parent: "the supervisor of an agent"}
    if b"conmon" not in command:
        return {}
    children = Path(f"/proc/{entry.name}/task/{entry.name}/children").read_text("ascii")
    return {int(child): "an agent in a container" for child in children.split()}


def _left(directory: Path, but: int | None) -> list[str]:
    running = processes(directory)
    running.pop(but or 0, None)
    left = [f"process {pid}: {command}" for pid, command in running.items()]
    left += [f"directory {path}" for path in _run_directories(directory)]
    return left + [f"mount {path}" for path in _mounts_below(directory)]


def _run_directories(directory: Path) -> list[Path]:
    """Return where engines of this demo put their sockets: not below it."""
    found = []
    for conf in Path(tempfile.gettempdir()).glob("ltp-*/storage.conf"):
        with contextlib.suppress(OSError):
            if f'"{directory}/' in conf.read_text(encoding="utf-8"):
                found.append(conf.parent)
    return found


def _mounts_below(place: Path) -> list[str]:
    lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    points = [line.split()[1] for line in lines]
    return sorted((p for p in points if p.startswith(f"{place}/")), reverse=True)


def _ancestors() -> set[int]:
    found, pid = {os.getpid()}, os.getppid()
    while pid > 1:
        found.add(pid)
        pid = _parent(Path(f"/proc/{pid}"))
    return found


def _parent(entry: Path) -> int:
    stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
    return int(stat.rpartition(")")[2].split()[1])
