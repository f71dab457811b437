"""The Prefect server that a command's flow run reports to when none is configured.

A `lobstertrap serve` that runs on this machine, or else a server of our own with the
same database, for as long as the command takes: the next `serve` shows its run and its
receipt. It starts while Prefect is imported, which takes as long.
"""

from __future__ import annotations

import http.client
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from lobstertrap.cli import served
from lobstertrap.cli.prefect_server import PrefectServer
from lobstertrap.errors import LobsterTrapError

_API = "PREFECT_API_URL"
_ASK_SECONDS = 5.0
_DRAIN_SECONDS = 10


@contextmanager
def a_server(environ: MutableMapping[str, str]) -> Iterator[Callable[[], None]]:
    """Name a server in `environ` unless a person has; what it yields waits for it.

    To be entered before Prefect is imported. Where no server of ours can be had,
    because another command uses its directory, Prefect starts one by itself.
    """
    if is_configured(environ):
        yield lambda: None
        return
    note = served.find(served.data_dir())
    if note is not None and _answers(note.url):
        with _set(environ, note.api):
            yield lambda: None
        return
    server = PrefectServer(served.data_dir())
    try:
        server.begin()
    except LobsterTrapError:
        yield lambda: None
        return
    try:
        with _set(environ, server.api):
            yield server.wait
    finally:
        try:
            _send_what_is_queued()
        finally:
            server.stop()


def is_configured(environ: Mapping[str, str]) -> bool:
    """Say whether a person has told Prefect where its server is; it is not imported."""
    if any(environ.get(name) for name in (_API, "PREFECT_PROFILE")):
        return True
    home = Path(environ.get("PREFECT_HOME") or Path.home() / ".prefect").expanduser()
    profiles = environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml"
    files = (profiles, "prefect.toml", ".env")  # Prefect reads the last two here, too
    return any(_names_a_server(Path(file)) for file in files)


def _names_a_server(file: Path) -> bool:
    try:
        text = file.read_text("utf-8", errors="replace").lower()
    except OSError:
        return False
    lines = (line.strip() for line in text.splitlines())
    return any(
        ("prefect_api_url" in line or line.startswith("url"))
        and not line.startswith("#")
        for line in lines
    )


def _answers(url: str) -> bool:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(
        address.hostname or "", address.port, timeout=_ASK_SECONDS
    )
    try:
        connection.request("GET", "/api/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextmanager
def _set(environ: MutableMapping[str, str], api: str) -> Iterator[None]:
    environ[_API] = api
    try:
        yield
    finally:
        environ.pop(_API, None)


def _send_what_is_queued() -> None:
    """End Prefect's background threads while the server still answers."""
    if "prefect.events.worker" not in sys.modules:
        return
    from prefect.events.worker import EventsWorker  # noqa: PLC0415 - not for --help
    from prefect.logging.handlers import APILogWorker  # noqa: PLC0415

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=_DRAIN_SECONDS, at_exit=False)
