"""The SQLite database of a Prefect server of our own: can it be written to now?"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from lobstertrap.errors import IntegrityError, Unavailable

NAME = "prefect.db"
_PATIENCE = 10.0
"""Seconds; the server itself writes for a moment at most."""


def require_writable(directory: Path, patience: float = _PATIENCE) -> None:
    """Take the database's lock for an instant, and give it back.

    Prefect waits a minute for it in each request, says nothing and tries again.
    Raises `Unavailable` when another program keeps it, `IntegrityError` when the file
    is no database.
    """
    database = directory / NAME
    if not database.exists():
        return
    try:
        with closing(_open(database, patience)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        raise Unavailable(
            f"Prefect's database {database} cannot be written to: {error}",
            hint=f"end what uses it (`fuser -v {database}` names it), then run the "
            "same command again",
        ) from error
    except sqlite3.DatabaseError as error:
        raise IntegrityError(
            f"Prefect's database {database} is damaged: {error}",
            hint="move it away: it holds the history of flow runs, and nothing of your "
            "agents",
        ) from error


def _open(database: Path, patience: float) -> sqlite3.Connection:
    there = f"{database.as_uri()}?mode=rw"  # rw: it is not made here
    return sqlite3.connect(there, uri=True, timeout=patience, isolation_level=None)
