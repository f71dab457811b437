"""The Prefect server that a flow's command reports to: can it be used, and if not, why.

A person may have chosen one that is away, wants a password or is too old. Whatever
Prefect's client says of it becomes one of our errors. Prefect is imported here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit

import httpx
from packaging.version import InvalidVersion, Version
from prefect import __version__ as ours
from prefect.client.base import ServerType
from prefect.client.orchestration import get_client
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)

from lobstertrap.errors import (
    AccessDenied,
    InvalidInput,
    LobsterTrapError,
    NotFound,
    Unavailable,
)

_ASK_SECONDS = 30.0
_DENIED = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)


def require_server() -> str:
    """Ask the server in Prefect's settings who it is; returns that for a person.

    Raises `Unavailable`, `AccessDenied`, `NotFound` when something else than Prefect
    answers, and `InvalidInput` when its major version is another.
    """
    if not PREFECT_API_URL.value():
        return "none is named: Prefect starts one by itself"
    brief = {PREFECT_API_REQUEST_TIMEOUT: _ASK_SECONDS, PREFECT_CLIENT_MAX_RETRIES: 1}
    with explained(), temporary_settings(updates=brief):
        with get_client(sync_client=True) as client:
            if client.server_type == ServerType.CLOUD:  # it fits every client
                client.hello()
                return f"Prefect Cloud at {_address()}"
            version = client.api_version()
        _compare(version)
    return f"{version} at {_address()}"


@contextmanager
def explained() -> Iterator[None]:
    """Let an error of Prefect's client be one of ours; any other stays what it is."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, RuntimeError) as error:
        its = error.__cause__ if isinstance(error, RuntimeError) else error
        client = isinstance(its, httpx.HTTPError | httpx.InvalidURL)
        if its is None or not client or _is_interrupt(error):
            raise
        raise _meaning(its) from error


def is_away(error: LobsterTrapError) -> bool:
    """Say whether an explained error means that no server answers any more."""
    cause = error.__cause__
    its = cause.__cause__ if isinstance(cause, RuntimeError) else cause
    return isinstance(its, httpx.TransportError)


def _is_interrupt(error: BaseException | None) -> bool:
    """Say whether a request broke only because of Ctrl-C."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _meaning(error: BaseException) -> LobsterTrapError:
    server = f"Prefect's server at {_address()}"
    if not isinstance(error, httpx.HTTPStatusError):
        return Unavailable(
            f"{server} does not answer: {str(error) or type(error).__name__}",
            hint="start it, or correct PREFECT_API_URL or the Prefect profile; without "
            "either, `lobstertrap` uses a server of its own",
        )
    status = error.response.status_code
    if status in _DENIED:
        return AccessDenied(
            f"{server} refuses this user (HTTP {status})",
            hint="set PREFECT_API_AUTH_STRING (a server of your own) or "
            "PREFECT_API_KEY (Prefect Cloud) to what it accepts",
        )
    if status == httpx.codes.NOT_FOUND:
        return _no_prefect()
    said = " ".join(error.response.text.split())[:200]
    return Unavailable(
        f"{server} answers HTTP {status}: {said}",
        hint="read the server's log; then run the same command again",
    )


def _compare(version: object) -> None:
    try:
        theirs, mine = Version(str(version)), Version(ours)
    except InvalidVersion:
        raise _no_prefect() from None
    if theirs.major != mine.major:
        raise InvalidInput(
            f"Prefect's server at {_address()} is version {theirs}, here it is {mine}",
            hint=f"use a server of version {mine.major}",
        )
    if (theirs.major, theirs.minor) < (mine.major, mine.minor):
        print(  # noqa: T201 - this is the command line
            f"warning: Prefect's server at {_address()} is version {theirs}, which is "
            f"older than {mine} here\nhint: upgrade it: what is new may not work",
            file=sys.stderr,
        )


def _no_prefect() -> NotFound:
    return NotFound(
        f"what answers at {_address()} is not Prefect's API",
        hint="PREFECT_API_URL ends in /api, as in http://127.0.0.1:4200/api",
    )


def _address() -> str:
    """Return the API's address without the password that may be in it."""
    parts = urlsplit(PREFECT_API_URL.value() or "")
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))
