"""What the results of movers say, in words for the run's log.

Nothing here raises when a field is missing: a line in a log must not end a migration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def snapshot_words(taken: Mapping[str, Any]) -> str:
    """Return `3f8c2a91: 16 files, 21.3 MB, 10.5 MB of them new`."""
    size, new = taken.get("bytes", 0), taken.get("new_bytes", 0)
    return (
        f"{str(taken.get('snapshot'))[:8]}: {taken.get('files', 0):,} files, "
        f"{megabytes(size)}, {megabytes(new)} of them new"
    )


def restore_words(restored: Mapping[str, Any]) -> str:
    """Return `21.3 MB in 16 files written, tree digest 5a0c36ff1b20 verified`."""
    return (
        f"{megabytes(restored.get('bytes_written', 0))} in "
        f"{restored.get('files_written', 0):,} files written, "
        f"tree digest {str(restored.get('tree_digest'))[:12]} verified"
    )


def megabytes(count: int) -> str:
    """Return `21.3 MB`."""
    return f"{count / 1e6:,.1f} MB"
