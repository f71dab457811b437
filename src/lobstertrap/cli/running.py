"""Whether an agent runs: `launch`, `stop` and `remove`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lobstertrap.cli import complete
from lobstertrap.cli.output import AsJson, print_result

if TYPE_CHECKING:
    from lobstertrap.config import Config

Agent = Annotated[
    str,
    typer.Argument(
        metavar="AGENT",
        autocompletion=complete.agents,
        help="An agent in the agents directory.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add this module's commands to the program."""
    for command in (launch, stop, remove):
        app.command()(command)


def load_config() -> Config:
    """Load the lobstertrap.toml that rules here."""
    from lobstertrap.config import load  # noqa: PLC0415 - not for --help

    return load(Path.cwd(), os.environ, {"prefect": _read_block})


def _read_block(name: str) -> str:
    from tasks.secret_blocks import read_block  # noqa: PLC0415 - Prefect starts slowly

    return read_block(name)


def launch(
    context: typer.Context,
    agent: Agent,
    on: Annotated[
        str,
        typer.Option(
            "--on",
            metavar="TARGET",
            autocompletion=complete.targets,
            help="Where to run it.",
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Run an agent on a target and wait until it is healthy.

    Example: lobstertrap launch tally --on laptop
    """
    from lobstertrap.cli.flow_runs import check_first, run_flow  # noqa: PLC0415

    check_first(agent, on)
    result = run_flow(context, "launch_agent", agent=agent, on=on)
    print_result(result, as_json=as_json)


def stop(
    agent: Agent,
    on: Annotated[
        str | None,
        typer.Option(
            "--on",
            metavar="TARGET",
            autocompletion=complete.targets,
            help="Where; its home by default.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Stop an agent where it lives.

    It gets the grace that its spec gives it, and is then stopped by force. With --on, a
    copy that should not be there is stopped and the agent's record is left alone.
    Example: lobstertrap stop tally
    """
    from lobstertrap import lifecycle  # noqa: PLC0415 - not for --help
    from lobstertrap.cli import watch  # noqa: PLC0415

    config = load_config()
    config.agent(agent)
    if on:
        config.require_target(on)
    with watch.shown(), config.hold(agent, "stop", repository=False) as handle:
        if handle.record().migration is not None:
            lifecycle.refuse_unfinished(handle)
        target = on or handle.home()
        if handle.record().target == target:
            lifecycle.stop(handle, target)
        else:  # a stray copy: the record speaks of another target
            lifecycle.prove_stopped(handle, target)
    print_result(
        {"agent": agent, "target": target, "state": "stopped"}, as_json=as_json
    )


def remove(
    agent: Agent,
    on: Annotated[
        str | None,
        typer.Option(
            "--on",
            metavar="TARGET",
            autocompletion=complete.targets,
            help="Where; its home by default.",
        ),
    ] = None,
    volumes: Annotated[
        bool, typer.Option("--volumes", help="Remove the volumes as well.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask before volumes are removed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove a stopped agent from a target.

    Its volumes stay, unless --volumes is given; then a snapshot of them is taken first.
    Example: lobstertrap remove tally --on laptop
    """
    from lobstertrap import lifecycle  # noqa: PLC0415 - not for --help
    from lobstertrap.cli import watch  # noqa: PLC0415

    config = load_config()
    config.agent(agent)
    if on:
        config.require_target(on)
    if volumes and not yes:
        _ask(f"remove the volumes of agent '{agent}'?")
    with watch.shown(), config.hold(agent, "remove", repository=volumes) as handle:
        target = on or handle.home()
        saved = lifecycle.remove(handle, target, volumes=volumes)
    removed: dict[str, object] = {"agent": agent, "target": target}
    removed |= {"volumes_removed": volumes, "snapshot": saved}
    print_result(removed, as_json=as_json)


def _ask(question: str) -> None:
    from lobstertrap.errors import InvalidInput, Refused  # noqa: PLC0415 - keep light

    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise InvalidInput(
            "volumes are removed only with --yes where nobody can be asked",
            hint="add --yes; a snapshot of them is taken first",
        )
    if not typer.confirm(question, err=True):
        raise Refused("nothing was removed", hint="answer y, or add --yes")
