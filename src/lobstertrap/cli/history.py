"""An agent's state through time: `snapshot`, `snapshots` and `restore`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lobstertrap.cli import complete
from lobstertrap.cli.confirm import confirm_takeover
from lobstertrap.cli.output import AsJson, print_json, print_result, print_table
from lobstertrap.cli.running import Agent, load_config
from lobstertrap.cli.text import age, printable, size

if TYPE_CHECKING:
    from lobstertrap.repository import Snapshot
    from lobstertrap.repository.snapshot import SnapshotName

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
    Example: lobstertrap snapshot tally --mode live
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
            metavar="AGENT",
            autocompletion=complete.agents,
            help="Only this agent's.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the snapshots in the repository, oldest first.

    Example: lobstertrap snapshots tally
    """
    config = load_config()
    repo = config.open_repository()
    unreadable: list[tuple[SnapshotName, str]] = []
    found = repo.snapshots(
        agent,
        on_unreadable=lambda name, error: unreadable.append((name, error.message)),
    )
    if agent is not None and not found and not unreadable:
        config.agent(agent)  # an agent that was deleted may still have snapshots
    for _, message in unreadable:
        typer.echo(printable(f"warning: {message}"), err=True)
    if as_json:
        lost = [
            {"id": name.id, "created_at": name.milliseconds / 1000, "message": message}
            for name, message in unreadable
        ]
        listed = [_as_object(snapshot) for snapshot in found]
        print_json({"snapshots": listed, "unreadable": lost})
        return
    now = time.time()
    whose = {repo.keys.agent_tag(name): name for name in {s.agent for s in found}}
    if agent is not None:
        whose[repo.keys.agent_tag(agent)] = agent
    rows = [(s.created_at, _as_row(s, now)) for s in found]
    for name, _ in unreadable:
        taken = name.milliseconds / 1000
        owner = whose.get(name.tag, "?")
        hint = "unreadable: lobstertrap check"
        cells = [name.id[:8], owner, age(taken, now), "", "", "", "", hint]
        rows.append((taken, cells))
    print_table(
        ["snapshot", "agent", "taken", "files", "size", "new", "stored", "notes"],
        [row for _, row in sorted(rows)],
    )


def restore(
    context: typer.Context,
    agent: Agent,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH",
            help="With --into: only these, and all below: VOLUME/DIRECTORY/...",
            show_default=False,
        ),
    ] = None,
    *,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="TARGET",
            autocompletion=complete.targets,
            help="Onto this target.",
            show_default=False,
        ),
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Into DIR/VOLUME here; nothing that runs is touched.",
            show_default=False,
        ),
    ] = None,
    snapshot: Annotated[
        str,
        typer.Option(metavar="ID", help="The snapshot's id, its beginning, or latest."),
    ] = "latest",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would change.")
    ] = False,
    takeover: Annotated[
        bool,
        typer.Option("--takeover", help="Its home is gone for good: run it here."),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask before a takeover.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make an agent's volumes on a target, or a directory, equal to a snapshot.

    On a target, what the volumes hold now is snapshotted first, so nothing is lost.
    With --takeover the agent is moved here although its home does not answer any more:
    what it did after the snapshot is lost, which is said before.

    Examples: lobstertrap restore ada --to laptop --dry-run;
    lobstertrap restore ada --into /tmp/back state/notes.md
    """
    if (to is None) == (into is None):
        raise typer.BadParameter("give one of them", param_hint="'--to' or '--into'")
    if to is None and takeover:
        raise typer.BadParameter("only with --to", param_hint="'--takeover'")
    if into is not None:
        _restore_here(
            agent, snapshot, into, paths or [], dry_run=dry_run, as_json=as_json
        )
        return
    if paths:
        raise typer.BadParameter(
            "single paths go into a directory: --into DIR", param_hint="PATH"
        )
    assert to is not None  # noqa: S101 - one of them was given
    if dry_run:
        _plan_there(agent, snapshot, to, as_json=as_json)
        return
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


def _restore_here(
    agent: str,
    snapshot: str,
    into: Path,
    paths: list[str],
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    from lobstertrap.cli import restoring, watch  # noqa: PLC0415 - keep light

    repo = load_config().open_repository()
    found = repo.find(snapshot, agent)
    chosen = [restoring.as_path(path) for path in paths]
    with watch.shown():
        if dry_run:
            plan = restoring.plan_into(repo, found, into, chosen)
            restoring.print_plan(plan, as_json=as_json)
        else:
            result = restoring.restore_into(repo, found, into, chosen)
            print_result(result, as_json=as_json)


def _plan_there(agent: str, snapshot: str, to: str, *, as_json: bool) -> None:
    from lobstertrap.cli import restoring, watch  # noqa: PLC0415 - keep light
    from lobstertrap.cli.flow_runs import check_first  # noqa: PLC0415

    config = check_first(agent, to)
    repo = config.open_repository()
    with watch.shown():
        plan = restoring.plan_on(config, agent, to, repo, repo.find(snapshot, agent))
    restoring.print_plan(plan, as_json=as_json)


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
