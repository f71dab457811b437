"""`reclaim`: what a person does when the store has forgotten where an agent lives."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from lobstertrap.cli import complete
from lobstertrap.cli.output import AsJson, print_result
from lobstertrap.cli.running import Agent, load_config

_QUESTION = "is no other store in use for '{agent}', and is its newest state on '{on}'?"


def register(app: typer.Typer) -> None:
    """Add this module's command to the program."""
    app.command()(reclaim)


def reclaim(
    agent: Agent,
    on: Annotated[
        str,
        typer.Option(
            "--on",
            metavar="TARGET",
            autocompletion=complete.targets,
            help="Where its newest state is.",
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Raise the record of an agent to what its targets know, after the store was lost.

    Every target is asked. The agent is neither started nor stopped: the record then
    says that it lives on TARGET, and runs there if it does.
    Example: lobstertrap reclaim tally --on laptop
    """
    from lobstertrap.cli import watch  # noqa: PLC0415 - not for --help
    from lobstertrap.errors import InvalidInput, Refused  # noqa: PLC0415
    from lobstertrap.reclaim import reclaim as reclaim_agent  # noqa: PLC0415

    config = load_config()
    config.agent(agent)
    config.require_target(on)
    if not yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise InvalidInput(
                "an agent is reclaimed only with --yes where nobody can be asked",
                hint=f"add --yes if its newest state is on '{on}'",
            )
        if not typer.confirm(_QUESTION.format(agent=agent, on=on), err=True):
            raise Refused("nothing was changed", hint="answer y, or add --yes")
    with watch.shown(), config.hold(agent, "reclaim", repository=False) as handle:
        record = reclaim_agent(handle, on, config.target_names)
    told = {"agent": agent, "target": on, "state": record.state, "epoch": record.epoch}
    print_result(told, as_json=as_json)
