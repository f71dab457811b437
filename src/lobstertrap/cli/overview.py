"""What is the case: `status`, `logs` and `open`."""

from __future__ import annotations

import re
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from lobstertrap.cli import complete
from lobstertrap.cli.output import AsJson, print_json, print_table
from lobstertrap.cli.running import Agent, load_config
from lobstertrap.cli.text import printable

if TYPE_CHECKING:
    from lobstertrap.config import Config

_WATCH_SECONDS = 2.0
_COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")


def register(app: typer.Typer) -> None:
    """Add this module's commands to the program."""
    for command in (status, logs):
        app.command()(command)
    app.command("open")(open_agent)


def status(
    context: typer.Context,
    agent: Annotated[
        str | None,
        typer.Argument(
            metavar="AGENT",
            autocompletion=complete.agents,
            help="Only this one.",
            show_default=False,
        ),
    ] = None,
    *,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again and again until Ctrl-C.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show where agents run, and where that is not what it should be.

    Exits with 1 when a target or the store did not answer; the rows say which.
    Example: lobstertrap status --watch
    """
    config = load_config()
    if agent is not None:
        config.agent(agent)  # asked for by name, a wrong one is an error and no row
    context.ensure_object(dict)["endless"] = watch
    while watch:
        _clear_terminal()
        _show_status(config, agent, as_json=as_json)
        sys.stdout.flush()
        time.sleep(_WATCH_SECONDS)
    if not _show_status(config, agent, as_json=as_json):
        raise typer.Exit(1)


def _clear_terminal() -> None:
    from rich.console import Console  # noqa: PLC0415 - not for --help

    Console(file=sys.stdout).clear()  # nothing where there is no terminal


def _show_status(config: Config, agent: str | None, *, as_json: bool) -> bool:
    """Print the survey once; says whether everything gave an answer."""
    from lobstertrap.cli.rows import COLUMNS, agent_cells, target_cells  # noqa: PLC0415
    from lobstertrap.survey import survey  # noqa: PLC0415 - not for --help
    from lobstertrap.whereabouts import agent_rows, target_rows  # noqa: PLC0415

    found = survey(config, [agent] if agent else config.agent_names)
    agents, targets = agent_rows(found), target_rows(found)
    if as_json:
        print_json(
            {
                "agents": [row.as_object() for row in agents],
                "targets": [row.as_object() for row in targets],
                "store": {"url": config.file.store.url, "problem": found.bad_store},
            }
        )
    else:
        now = time.time()
        rows = [agent_cells(row, now) for row in agents]
        rows += [target_cells(row) for row in targets if row.problem]
        print_table(COLUMNS, rows)
        if found.bad_store:
            print(f"store: {printable(found.bad_store)}", file=sys.stderr)  # noqa: T201
    return found.complete


def logs(
    context: typer.Context,
    agent: Agent,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on until Ctrl-C.")
    ] = False,
    lines: Annotated[
        int | None, typer.Option("-n", "--lines", min=0, help="Only the last ones.")
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            "--on",
            metavar="TARGET",
            autocompletion=complete.targets,
            help="Where; its home by default.",
        ),
    ] = None,
) -> None:
    """Print what an agent printed, oldest first.

    Example: lobstertrap logs tally -f -n 20
    """
    from lobstertrap.errors import NotFound  # noqa: PLC0415 - not for --help
    from lobstertrap.lease import read_record  # noqa: PLC0415
    from lobstertrap.targets.base import LogSource  # noqa: PLC0415

    config = load_config()
    spec = config.agent(agent)
    if on is None:
        record = read_record(config.open_store(), agent)
        on = record.target if record else None
    if on is None:
        raise NotFound(
            f"agent '{agent}' has never been launched",
            hint=f"lobstertrap launch {agent} --on TARGET",
        )
    target = config.target(on)
    if not isinstance(target, LogSource):
        raise NotFound(f"target '{on}' keeps no logs")
    context.ensure_object(dict)["endless"] = follow
    harmless = _harmless if sys.stdout.isatty() else str
    for line in target.logs(spec, follow=follow, lines=lines):
        print(harmless(line.rstrip("\n")), flush=follow)  # noqa: T201 - the output


def open_agent(
    context: typer.Context,
    agent: Agent,
    port: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of the spec's ports; the first by default."),
    ] = None,
    print_only: Annotated[
        bool, typer.Option("--print", help="Print the URL and open no browser.")
    ] = False,
) -> None:
    """Open an agent's page in the browser, and print where it is.

    In a cluster its port is forwarded to one of this machine's, until Ctrl-C.
    Example: lobstertrap open tally --port http
    """
    from lobstertrap.cli.forward import Forward  # noqa: PLC0415 - not for --help
    from lobstertrap.cli.reach import Through, way_to  # noqa: PLC0415

    way = way_to(load_config(), agent, port)
    forward = Forward(way.dial, wanted=way.port) if isinstance(way, Through) else None
    url = forward.url if forward else str(way)
    print(url, flush=True)  # noqa: T201 - the output
    if not print_only and sys.stdout.isatty():
        typer.launch(url)
    if forward is not None:
        context.ensure_object(dict)["endless"] = True
        print("forwarded until Ctrl-C", file=sys.stderr)  # noqa: T201
        forward.serve()


def _harmless(line: str) -> str:
    """Keep colours and tabs, and escape what else would move a terminal's cursor."""
    parts = _COLOUR.split(line.expandtabs())
    return "".join(p if _COLOUR.fullmatch(p) else printable(p) for p in parts)
