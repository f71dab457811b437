"""What a person is told, and asked, before state is given up."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import typer

from lobstertrap.cli.text import age, printable_lines

if TYPE_CHECKING:
    from lobstertrap.config import Config
    from lobstertrap.repository import Snapshot


def confirm_takeover(
    config: Config, agent: str, to: str, snapshot: Snapshot, *, yes: bool
) -> None:
    """Say exactly what a takeover gives up; raises `Refused` unless that is wanted."""
    from lobstertrap.errors import InvalidInput, Refused  # noqa: PLC0415 - keep light

    lines = loss(config, agent, to, snapshot, now=time.time())
    typer.echo(printable_lines("\n".join(lines)), err=True)
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise InvalidInput(
            "a takeover is made only with --yes where nobody can be asked",
            hint="add --yes if what came after the snapshot may be lost",
        )
    if not typer.confirm(f"run '{agent}' on '{to}' from this snapshot?", err=True):
        raise Refused("nothing was changed", hint="answer y, or add --yes")


def loss(
    config: Config, agent: str, to: str, snapshot: Snapshot, *, now: float
) -> list[str]:
    """Return what a takeover loses and what it cannot know; `Refused` if unneeded."""
    from lobstertrap import takeover  # noqa: PLC0415 - not for --help
    from lobstertrap.lease import Lease, read_record  # noqa: PLC0415

    store = config.open_store()
    record = read_record(store, agent)
    if record is None or (record.target == to and record.restoring):
        return []  # the flow says so, or goes on with what was confirmed before
    # Nothing is changed here: the flow takes the lease, and looks at all this again.
    handle = config.handle(agent, Lease(store, agent, "nobody"))
    old = takeover.examine(record, handle, to)
    when = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(snapshot.created_at))
    gone = (
        f"lost: everything that '{agent}' did after snapshot {snapshot.short_id}, "
        f"taken {when} ({age(snapshot.created_at, now)})"
    )
    lines = [f"'{old.target}', the home of '{agent}': {old.why}", gone]
    if snapshot.consistency == "live":
        lines.append("that snapshot was taken live: it is not of one point in time")
    if not old.answers:
        lines.append(
            f"nobody can show that nothing runs on '{old.target}': if it does, there "
            f"are two copies; `lobstertrap status` then shows it under epoch "
            f"{old.epoch}: lobstertrap stop {agent} --on {old.target}"
        )
    return lines
