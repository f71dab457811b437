"""How an entry of a snapshot, and a change of one, looks as a line or as an object."""

from __future__ import annotations

import os
import stat as st
from datetime import UTC, datetime
from typing import Any

from lobstertrap.cli.text import printable, size
from lobstertrap.repository.browse import KINDS, size_of
from lobstertrap.repository.diff import Change
from lobstertrap.repository.entry import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    DIRECTORY,
    FIFO,
    FILE,
    GID,
    HARD_LINK,
    MODE,
    MTIME,
    PATH,
    SYMLINK,
    TARGET,
    TYPE,
    UID,
    Row,
)

_FORMS = {
    FILE: st.S_IFREG,
    DIRECTORY: st.S_IFDIR,
    SYMLINK: st.S_IFLNK,
    FIFO: st.S_IFIFO,
    HARD_LINK: st.S_IFREG,
    CHARACTER_DEVICE: st.S_IFCHR,
    BLOCK_DEVICE: st.S_IFBLK,
}
_SIGNS = {"added": "+", "removed": "-", "changed": "M"}


def _modified(nanoseconds: int) -> str:
    try:
        when = datetime.fromtimestamp(nanoseconds // 10**9, tz=UTC).astimezone()
    except (ValueError, OverflowError, OSError):  # a time that no calendar has
        return f"{nanoseconds} ns"
    return when.strftime("%Y-%m-%d %H:%M:%S")


def entry_line(row: Row) -> str:
    """Return an entry for a person, as `ls -l` shows one."""
    shown = entry_object(row)
    mode = st.filemode(_FORMS[row[TYPE]] | row[MODE])
    owner = f"{row[UID]}:{row[GID]}"
    count = "-" if shown["size"] is None else str(shown["size"])
    arrow = {SYMLINK: " -> "}.get(row[TYPE], " = ")
    leads = f"{arrow}{shown['target']}" if shown["target"] is not None else ""
    name = printable(os.fsdecode(row[PATH]) + leads)
    return f"{mode} {owner:>11} {count:>12} {_modified(row[MTIME])} {name}"


def entry_object(row: Row) -> dict[str, Any]:
    """Return an entry for `--json`; bytes that are not UTF-8 become surrogates."""
    leads = row[TYPE] in (SYMLINK, HARD_LINK)
    return {
        "path": os.fsdecode(row[PATH]),
        "kind": KINDS[row[TYPE]],
        "mode": f"{row[MODE]:04o}",
        "uid": row[UID],
        "gid": row[GID],
        "mtime_ns": row[MTIME],
        "size": size_of(row),
        "target": os.fsdecode(row[TARGET]) if leads else None,
    }


def version_cells(row: Row, ids: list[str]) -> list[str]:
    """Return a version of a file, and the snapshots that have it, for the table."""
    shown = entry_object(row)
    where = ids[0][:8] if len(ids) == 1 else f"{ids[0][:8]} .. {ids[-1][:8]}"
    return [
        shown["path"],
        shown["kind"],
        "-" if shown["size"] is None else size(shown["size"]),
        _modified(shown["mtime_ns"]),
        f"{len(ids)}: {where}",
    ]


def change_line(change: Change) -> str:
    """Return a change for a person: a sign, the path, and what differs."""
    what = f"  ({', '.join(change.what)})" if change.what else ""
    return f"{_SIGNS[change.kind]} {printable(os.fsdecode(change.path))}{what}"


def change_object(change: Change) -> dict[str, Any]:
    """Return a change for `--json`."""
    return {
        "path": os.fsdecode(change.path),
        "kind": change.kind,
        "what": list(change.what),
        "old_size": size_of(change.old) if change.old else None,
        "new_size": size_of(change.new) if change.new else None,
    }
