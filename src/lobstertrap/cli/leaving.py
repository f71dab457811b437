"""How this process ends when Prefect's server went away: without waiting for it.

Prefect's client keeps what it could not send, and tries again for minutes before it
lets Python end. By then the work is done or undone, and everything of ours is closed.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

from lobstertrap.errors import LobsterTrapError

if TYPE_CHECKING:
    from lobstertrap.config import Config
    from lobstertrap.lease import AgentRecord

_server_gone: list[bool] = []


def give_the_server_up() -> None:
    """Let nobody wait for what Prefect still has to send."""
    _server_gone.append(True)


def server_is_gone() -> bool:
    """Say whether the server was given up."""
    return bool(_server_gone)


def leave(code: int) -> NoReturn:
    """End this process; our own things are closed when this is called."""
    if not _server_gone:
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def where_things_are(config: Config, agent: str) -> str:
    """Say what the agent's record says now; an error is told in its place."""
    from lobstertrap.lease import read_record  # noqa: PLC0415 - not for --help

    try:
        record = read_record(config.open_store(), agent)
    except LobsterTrapError as error:
        return f"where '{agent}' is now is not known: {error.message}"
    if record is None or record.target is None:
        return f"'{agent}' has no home"
    return _told(record)


def _told(record: AgentRecord) -> str:
    home = f"the home of '{record.agent}' is {record.target}"
    if record.migration is not None:
        to = record.migration.destination
        return f"{home}, and a migration to {to} is open: run the same command again"
    if record.operation is not None:
        return f"{home}, and it is held: {record.operation}"
    return f"{home}, where it should be {record.state}; no migration is open"
