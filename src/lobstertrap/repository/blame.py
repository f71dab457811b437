"""Blame: what damage is told with, the snapshot and the files that it costs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from lobstertrap.errors import IntegrityError, NotFound
from lobstertrap.repository.entry import shown
from lobstertrap.repository.snapshot import Snapshot

_SHOWN = 3
_HINT = "run `lobstertrap check`: it names all that is lost"


@contextmanager
def blaming(snapshot: Snapshot, path: bytes | None = None) -> Iterator[None]:
    """Let damage that is met in the block name the snapshot, and the file if known.

    An object that is not there any more is damage too: `IntegrityError`.
    """
    name = f"snapshot {snapshot.short_id}"
    what = name if path is None else f"{shown(path)} of {name}"
    try:
        yield
    except (IntegrityError, NotFound) as error:
        if name in error.message:
            raise
        hint = error.hint if isinstance(error, IntegrityError) else None
        message = f"{what}: {error.message}"
        raise IntegrityError(message, hint=hint or _HINT) from error


def costing(error: IntegrityError | NotFound, paths: Collection[bytes]) -> Exception:
    """Return `error` with the files that need what is damaged."""
    names = ", ".join(shown(path) for path in sorted(paths)[:_SHOWN])
    more = f" and {len(paths) - _SHOWN} more files" if len(paths) > _SHOWN else ""
    return IntegrityError(
        f"{error.message}; without it there is no {names}{more}", hint=_HINT
    )
