"""What a mover is asked to do, and the JSON lines by which it answers.

A request goes to the mover's standard input as one JSON object (it carries the store's
credentials and the repository's key, so it is never an argument or a file at rest).
The mover prints one JSON object per line: `progress` lines, then exactly one `result`
or `error` line. docs/migration.md has the fields.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lobstertrap import errors

PROTOCOL_VERSION = 1

STAY = "--stay"
"""The mover's argument: standard input is a socket, and more requests may come.

With a request come the locks under which it is done, as file descriptors; they are
closed before the line that ends the answer.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a transfer is; totals are None until they are known."""

    phase: str
    """`scan`, `read`, `fetch`, `write`, `verify` or `commit`."""
    done_bytes: int = 0
    total_bytes: int | None = None
    done_files: int = 0
    total_files: int | None = None


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class MoverJob:
    """One snapshot or one restore of an agent's volumes, without their paths.

    `request` holds what the repository and the store need, secrets included; the
    target adds the paths and the agent's numeric owner there, because only it knows.
    """

    command: Literal["snapshot", "restore"]
    agent: str
    volumes: tuple[str, ...]
    request: Mapping[str, Any] = field(repr=False)
    sources: Mapping[str, str] = field(default_factory=dict)
    """For a snapshot of what is not ours, by volume: a path, an engine's volume, or
    `namespace/claim[/path]`; see `lobstertrap.adopt`."""

    def to_json(self, paths: Mapping[str, str], *, owner: tuple[int, int]) -> str:
        """Return the one line for the mover's standard input.

        `owner` is the (uid, gid) that the agent's own files have on this target, as
        the mover sees it; snapshots hold the spec's owner in its place.
        """
        return json.dumps(
            {
                "version": PROTOCOL_VERSION,
                "command": self.command,
                "agent": self.agent,
                "volumes": dict(paths),
                "local_owner": list(owner),
                **self.request,
            }
        )


def progress_line(progress: Progress) -> str:
    """Return the line for one progress event."""
    return json.dumps({"event": "progress", **asdict(progress)})


def result_line(result: Mapping[str, Any]) -> str:
    """Return the line that ends a successful run."""
    return json.dumps({"event": "result", "result": result})


def error_line(error: errors.LobsterTrapError) -> str:
    """Return the line that ends a failed run."""
    return json.dumps(
        {
            "event": "error",
            "kind": type(error).__name__,
            "message": error.message,
            "hint": error.hint,
        }
    )


def read_events(lines: Iterable[str], on_progress: OnProgress) -> dict[str, Any]:
    """Pass progress on and return the result; raise what the mover raised.

    Raises `Unavailable` when the lines end without a result: the mover was killed. A
    generator is closed, and with it the connection that it reads.
    """
    try:
        return _read_events(lines, on_progress)
    finally:
        if isinstance(lines, Generator):
            lines.close()


def _read_events(lines: Iterable[str], on_progress: OnProgress) -> dict[str, Any]:
    noise: list[str] = []
    for line in lines:
        if not line.strip():
            continue
        try:
            event = json.loads(line)
            kind = event["event"]
        except (ValueError, TypeError, KeyError):
            noise = [*noise[-4:], line.rstrip()]
            continue
        if kind == "progress":
            on_progress(Progress(**{k: v for k, v in event.items() if k != "event"}))
        elif kind == "result":
            return dict(event["result"])
        elif kind == "error":
            raise _error_from(event)
    tail = f": {' | '.join(noise)}" if noise else ""
    msg = f"the mover ended without a result{tail}"
    raise errors.Unavailable(msg, hint="run the same command again; nothing was lost")


def _error_from(event: Mapping[str, Any]) -> errors.LobsterTrapError:
    kind = getattr(errors, str(event.get("kind")), errors.Permanent)
    if not (isinstance(kind, type) and issubclass(kind, errors.LobsterTrapError)):
        kind = errors.Permanent
    return kind(str(event.get("message")), hint=event.get("hint"))
