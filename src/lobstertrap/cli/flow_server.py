"""The Prefect server that a command's flow run reports to when none is configured.

A `lobstertrap serve` that runs on this machine, or else a server of our own with the
same database, for as long as the command takes: the next `serve` shows its run and its
receipt. It starts while Prefect is imported, which takes as long.
"""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from lobstertrap.cli import leaving, served
from lobstertrap.cli.prefect_database import require_writable
from lobstertrap.cli.prefect_server import PrefectServer
from lobstertrap.errors import Refused

Reporting = Callable[[], AbstractContextManager[None]]

_API = "PREFECT_API_URL"
_ASK_SECONDS = 5.0
_DRAIN_SECONDS = 10


@contextmanager
def a_server(environ: MutableMapping[str, str]) -> Iterator[Reporting]:
    """Find or begin a server; within what it yields, flows and children report there.

    Nothing is changed where a person has configured one; it is only asked first. Where
    no server of ours can be had, because another command uses its directory, Prefect
    starts one by itself.

    Raises `Unavailable` when another program keeps our database.
    """
    if is_configured(environ):
        yield _chosen
        return
    directory = served.data_dir()
    note = served.find(directory)
    if note is not None and _answers(note.url):
        require_writable(directory)
        yield partial(_reporting, environ, note.api)
        return
    server = PrefectServer(directory)
    try:
        server.begin()
    except Refused:
        yield nullcontext
        return
    try:
        yield partial(_reporting, environ, server.api, server.wait)
    finally:
        server.stop()


@contextmanager
def _chosen() -> Iterator[None]:
    """Let nothing begin before the server that a person has chosen has answered."""
    from lobstertrap.cli.chosen_server import (  # noqa: PLC0415 - it imports Prefect
        require_server,
    )

    require_server()
    yield


@contextmanager
def _reporting(
    environ: MutableMapping[str, str], api: str, wait: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Let Prefect, which is imported now, and children of this process use `api`."""
    from prefect.settings import (  # noqa: PLC0415 - not for --help
        PREFECT_API_URL,
        temporary_settings,
    )

    wait()
    environ[_API] = api
    try:
        with temporary_settings(updates={PREFECT_API_URL: api}):
            try:
                yield
            finally:
                if not leaving.server_is_gone():
                    _send_what_is_queued()
    finally:
        environ.pop(_API, None)


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


def _send_what_is_queued() -> None:
    """End Prefect's background threads while the server still answers."""
    from prefect.events.worker import EventsWorker  # noqa: PLC0415 - not for --help
    from prefect.logging.handlers import APILogWorker  # noqa: PLC0415

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=_DRAIN_SECONDS, at_exit=False)
