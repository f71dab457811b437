"""From target to target: `migrate` and `drain`."""

from __future__ import annotations

from typing import Annotated

import typer

from lobstertrap.cli import complete
from lobstertrap.cli.output import AsJson, print_json, print_result, print_table
from lobstertrap.cli.running import Agent, load_config
from lobstertrap.cli.text import duration, printable


def register(app: typer.Typer) -> None:
    """Add this module's commands to the program."""
    for command in (migrate, drain):
        app.command()(command)


def migrate(
    context: typer.Context,
    agent: Agent,
    *,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="TARGET",
            autocompletion=complete.targets,
            help="The new home.",
        ),
    ] = None,
    abort: Annotated[
        bool, typer.Option("--abort", help="Undo the migration that is open.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check, and show the plan.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Move an agent with its state to another target.

    Whatever fails before the new home is healthy, the agent runs again where it was.
    A migration that was killed is finished by the same command, or undone by --abort.
    Example: lobstertrap migrate tally --to cluster --dry-run
    """
    from lobstertrap.cli.flow_runs import check_first, run_flow  # noqa: PLC0415

    if to is None and not abort:
        raise typer.BadParameter("name the new home", param_hint="'--to'")
    if dry_run:
        if to is None or abort:
            raise typer.BadParameter("goes with --to alone", param_hint="'--dry-run'")
        _preview(agent, to, as_json=as_json)
        return
    check_first(agent, *([to] if to is not None else []))
    result = run_flow(context, "migrate_agent", agent=agent, to=to, abort=abort)
    print_result(result, as_json=as_json)
    if abort and not as_json and not result.get("rolled_back_to"):
        typer.echo("no migration was open", err=True)


def _preview(agent: str, to: str, *, as_json: bool) -> None:
    from lobstertrap.cli.preview import preview  # noqa: PLC0415 - not for --help

    plan = preview(load_config(), agent, to)
    if as_json:
        print_json(plan.as_object())
        return
    print_table(
        ["step", "what", "the agent"],
        [(step.name, step.what, step.meanwhile) for step in plan.steps],
    )
    for line in plan.lines():
        typer.echo(printable(line))


def drain(
    context: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            autocompletion=complete.targets,
            help="The target to be emptied.",
        ),
    ],
    *,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="TARGET",
            autocompletion=complete.targets,
            help="The new home of them all.",
        ),
    ],
    label: Annotated[
        str | None,
        typer.Option("--label", help="Only agents whose agent.yaml has this label."),
    ] = None,
    parallel: Annotated[
        int, typer.Option("--parallel", min=1, help="How many at the same time.")
    ] = 2,
    as_json: AsJson = False,
) -> None:
    """Move every agent that lives on a target to another one.

    One that cannot be moved stays where it is, running, and stops no other; the same
    command goes on with those that are left.
    Example: lobstertrap drain laptop --to cluster
    """
    from lobstertrap.cli.flow_runs import run_flow  # noqa: PLC0415 - not for --help

    config = load_config()
    for name in (target, to):
        config.require_target(name)
    asked = {"source": target, "to": to, "label": label, "parallel": parallel}
    result = run_flow(context, "migrate_fleet", **asked)
    if as_json:
        print_json(result)
        return
    rows = [
        (row["agent"], "moved", duration(row["downtime_seconds"] or 0.0))
        for row in result["agents"]
    ]
    print_table(["agent", "outcome", "downtime"], rows)
