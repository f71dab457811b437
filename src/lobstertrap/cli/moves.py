"""From target to target: `migrate`."""

from __future__ import annotations

from typing import Annotated

import typer

from lobstertrap.cli.output import AsJson, print_result
from lobstertrap.cli.running import Agent


def register(app: typer.Typer) -> None:
    """Add this module's commands to the program."""
    app.command()(migrate)


def migrate(
    context: typer.Context,
    agent: Agent,
    to: Annotated[
        str | None, typer.Option("--to", metavar="TARGET", help="The new home.")
    ] = None,
    abort: Annotated[
        bool, typer.Option("--abort", help="Undo the migration that is open.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Move an agent with its state to another target.

    Whatever fails before the new home is healthy, the agent runs again where it was.
    A migration that was killed is finished by the same command, or undone by --abort.
    """
    from lobstertrap.cli.flow_runs import check_first, run_flow  # noqa: PLC0415

    if to is None and not abort:
        raise typer.BadParameter("name the new home", param_hint="'--to'")
    check_first(agent, *([to] if to is not None else []))
    result = run_flow(context, "migrate_agent", agent=agent, to=to, abort=abort)
    print_result(result, as_json=as_json)
    if abort and not as_json and not result.get("rolled_back_to"):
        typer.echo("no migration was open", err=True)
