"""An agent's state through time: `snapshot`, `snapshots` and `restore`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lobstertrap.cli.confirm import confirm_takeover
from lobstertrap.cli.output import AsJson, print_json, print_result, print_table
from lobstertrap.cli.running import Agent, load_config
from lobstertrap.cli.text import age, size

if TYPE_CHECKING:
    from lobstertrap.repository import Snapshot

Mode = Literal["stop", "freeze", "hook", "live"]


def register(app: typer.Typer) -> None:
    """Add this module's commands to the program."""
    for command in (snapshot, snapshots, restore):
        app.command()(command)


def snapshot(
    context: typer.Context,
    agent: Agent,
    mode: Annotated[
        Mode | None,
        typer.Option(
            help="How it is held still; its spec's choice by default.",
            show_default=False,
        ),
    ] = None,
    live: Annotated[
        bool,
        typer.Option("--live", help="As --mode live: not of one point in time."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Take an encrypted snapshot of an agent's volumes.

    For the moment in which its last changes are read, the agent is stopped, frozen, or
    held still by its own hooks.
    """
    from lobstertrap.cli.flow_runs import check_first, run_flow  # noqa: PLC0415

    check_first(agent)
    if live and mode not in (None, "live"):
        raise typer.BadParameter(f"not with --mode {mode}", param_hint="'--live'")
    chosen = "live" if live else mode
    result = run_flow(context, "snapshot_agent", agent=agent, mode=chosen)
    print_result(result, as_json=as_json)


def snapshots(
    agent: Annotated[
        str | None,
        typer.Argument(
            metavar="[AGENT]", help="Only this agent's.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the snapshots in the repository, oldest first."""
    config = load_config()
    found = config.open_repository().snapshots(agent)
    if agent is not None and not found:
        config.agent(agent)  # an agent that was deleted may still have snapshots
    if as_json:
        print_json({"snapshots": [_as_object(snapshot) for snapshot in found]})
        return
    now = time.time()
    print_table(
        ["snapshot", "agent", "taken", "files", "size", "new", "stored", "notes"],
        [_as_row(snapshot, now) for snapshot in found],
    )


def restore(
    context: typer.Context,
    agent: Agent,
    *,
    to: Annotated[
        str, typer.Option("--to", metavar="TARGET", help="Onto this target.")
    ],
    snapshot: Annotated[
        str,
        typer.Option(metavar="ID", help="The snapshot's id, its beginning, or latest."),
    ] = "latest",
    takeover: Annotated[
        bool,
        typer.Option("--takeover", help="Its home is gone for good: run it here."),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask before a takeover.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make an agent's volumes on a target equal to a snapshot.

    What they hold now is snapshotted first, so nothing is lost. With --takeover the
    agent is moved here although its home does not answer any more: what it did after
    the snapshot is lost, which is said before.
    """
    from lobstertrap.cli.flow_runs import check_first, run_flow  # noqa: PLC0415

    config = check_first(agent, to)
    found = config.open_repository().find(snapshot, agent)  # fails before Prefect
    if takeover:
        confirm_takeover(config, agent, to, found, yes=yes)
    result = run_flow(
        context,
        "restore_agent",
        agent=agent,
        to=to,
        snapshot=found.id,
        takeover=takeover,
    )
    print_result(result, as_json=as_json)


def _as_object(snapshot: Snapshot) -> dict[str, Any]:
    names = (
        "id",
        "agent",
        "created_at",
        "tree_digest",
        "status",
        "warnings",
        "files",
        "bytes",
        "new_bytes",
        "uploaded_bytes",
        "consistency",
        "tags",
        "host",
    )
    return {name: getattr(snapshot, name) for name in names}


def _as_row(snapshot: Snapshot, now: float) -> list[str]:
    purpose = snapshot.tags.get("purpose")
    held = snapshot.tags.get("consistency", snapshot.consistency)
    notes: list[str] = [held, *([purpose] if purpose else [])]
    notes += [f"{len(snapshot.warnings)} warnings"] if snapshot.warnings else []
    return [
        snapshot.short_id,
        snapshot.agent,
        age(snapshot.created_at, now),
        f"{snapshot.files:,}",
        size(snapshot.bytes),
        size(snapshot.new_bytes),
        size(snapshot.uploaded_bytes),
        ", ".join(notes),
    ]
