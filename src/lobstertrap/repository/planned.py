"""What a restore would do, counted, with the first of its changes by name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from lobstertrap.repository.browse import size_of
from lobstertrap.repository.diff import Change

LISTED = 1000
"""Changes that are named; all are counted."""


def planned(changes: Iterable[Change], listed: int = LISTED) -> dict[str, Any]:
    """Return `added`, `changed`, `removed`, `bytes` to be written, and `changes`."""
    counts = {"added": 0, "changed": 0, "removed": 0}
    named: list[dict[str, Any]] = []
    size = 0
    for change in changes:
        counts[change.kind] += 1
        if change.new is not None and ("content" in change.what or not change.old):
            size += size_of(change.new) or 0
        if len(named) < listed:
            named.append(_named(change))
    return {**counts, "bytes": size, "changes": named}


def _named(change: Change) -> dict[str, Any]:
    return {
        "path": os.fsdecode(change.path),
        "kind": change.kind,
        "what": list(change.what),
        "old_size": size_of(change.old) if change.old else None,
        "new_size": size_of(change.new) if change.new else None,
    }
