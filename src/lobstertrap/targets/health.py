"""One look at an agent's health: an HTTP GET or a command, and what it said."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing

from lobstertrap.agent import Health, HttpProbe
from lobstertrap.errors import LobsterTrapError

RunCommand = Callable[[Sequence[str], float], tuple[int, str]]
"""Runs a command beside the agent, for at most so many seconds.

Returns its exit status and what it printed; raises `TimedOut` when it took longer.
"""

_SHOWN = 200  # characters of an answer that are repeated to a person


def probe(
    health: Health, addresses: Mapping[str, str], run_command: RunCommand
) -> tuple[bool, str]:
    """Return whether the agent is ready, and why not in a few words.

    `addresses` has `host:port` by port name. Never raises for an agent that is not
    well: that is an answer.
    """
    if health.http is not None:
        return _get(health.http, addresses.get(health.http.port), health.timeout)
    try:
        status, output = run_command(health.command or [], health.timeout)
    except LobsterTrapError as error:
        return False, error.message
    if status == 0:
        return True, ""
    said = f": {_short(output)}" if output.strip() else ""
    return False, f"health command ended with status {status}{said}"


def _get(
    http_probe: HttpProbe, address: str | None, timeout: float
) -> tuple[bool, str]:
    if address is None:
        return False, f"port '{http_probe.port}' is not published"
    where = f"GET http://{address}{http_probe.path}"
    try:
        with closing(http.client.HTTPConnection(address, timeout=timeout)) as server:
            server.request("GET", http_probe.path, headers={"Connection": "close"})
            answer = server.getresponse()
            body = answer.read(_SHOWN).decode("utf-8", "replace")
    except TimeoutError:
        return False, f"{where}: no answer within {timeout:g} s"
    except (OSError, http.client.HTTPException, ValueError) as error:
        return False, f"{where}: {_reason(error)}"
    if http.client.OK <= answer.status < http.client.BAD_REQUEST:
        return True, ""
    said = f": {_short(body)}" if body.strip() else ""
    return False, f"{where} answered {answer.status}{said}"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__


def _short(text: str) -> str:
    return " ".join(text.split())[:_SHOWN]
