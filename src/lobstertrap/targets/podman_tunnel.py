"""A remote Podman engine's socket, brought here by the ssh client."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from lobstertrap.errors import Unavailable

_CONNECT_SECONDS = 10.0


@contextlib.contextmanager
def open_tunnel(url: str, identity: Path | None) -> Iterator[Path]:
    """Forward the remote engine's socket; yields the local one.

    Not podman-py's own tunnel: that one switches host key checking off, and waits five
    minutes when ssh has already failed.
    """
    parts = urlsplit(url)
    directory = Path(tempfile.mkdtemp(prefix="lt-ssh-"))
    local = directory / "podman.sock"
    command = ["ssh", "-N", "-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes"]
    command += ["-o", f"ConnectTimeout={_CONNECT_SECONDS:.0f}"]
    command += ["-o", "ServerAliveInterval=15", "-L", f"{local}:{parts.path}"]
    command += ["-i", str(identity)] if identity else []
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"ssh://{parts.netloc}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is ours to handle first
        )
    try:
        _await_tunnel(process, local, parts.netloc)
        yield local
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(directory, ignore_errors=True)


def _await_tunnel(process: subprocess.Popen[bytes], local: Path, host: str) -> None:
    deadline = time.monotonic() + 2 * _CONNECT_SECONDS
    while not local.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            log = (local.parent / "log").read_text(errors="replace").strip()
            raise Unavailable(
                f"no ssh connection to {host}: {log or 'no answer'}",
                hint=f"try: ssh {os.fspath(host)} true",
            )
        time.sleep(0.05)
