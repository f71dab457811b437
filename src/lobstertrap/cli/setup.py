"""The first steps: `init` writes a configuration, `doctor` looks at all of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lobstertrap.cli.output import AsJson, print_json, print_result
from lobstertrap.cli.text import printable

if TYPE_CHECKING:
    from lobstertrap.cli.checkup import Finding

_MARKS = {
    "ok": ("ok", "green"),
    "warning": ("warning", "yellow"),
    "bad": ("bad", "red"),
}


def register(app: typer.Typer) -> None:
    """Add this module's commands to the program."""
    for command in (init, doctor):
        app.command()(command)


def init(
    directory: Annotated[
        Path, typer.Argument(metavar="DIRECTORY", help="Where; here by default.")
    ] = Path(),
    *,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="s3://bucket/prefix or file:///path; asked for by default.",
            show_default=False,
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="The address of an S3 server that is not AWS."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Ask nothing: defaults for the rest.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write lobstertrap.toml and an example agent, and make the repository.

    Nothing that is there already is changed.
    Example: lobstertrap init --store s3://my-agents --yes
    """
    from lobstertrap.cli import scaffold  # noqa: PLC0415 - not for --help

    scaffold.refuse_existing(directory)
    if store is None:
        store = scaffold.DEFAULT_STORE
        if not yes and sys.stdin.isatty() and sys.stderr.isatty():
            store = typer.prompt("store for snapshots", default=store, err=True)
    made = scaffold.make(directory, store=store, endpoint=endpoint)
    print_result(made, as_json=as_json)
    if not as_json:
        typer.echo(
            f"\nKeep a copy of {made['key']} elsewhere: without it every snapshot is "
            "noise.\nnext: lobstertrap doctor; lobstertrap launch hello --on desk",
            err=True,
        )


def doctor(as_json: AsJson = False) -> None:
    """Look at everything that a migration needs, and say how to mend what is wrong.

    Exits with 1 when something is bad. Example: lobstertrap doctor
    """
    from lobstertrap.cli.checkup import examine  # noqa: PLC0415 - not for --help
    from lobstertrap.cli.running import load_config  # noqa: PLC0415

    findings = examine(load_config)
    if as_json:
        print_json({"findings": [finding.as_object() for finding in findings]})
    else:
        for finding in findings:
            _print(finding)
    if any(finding.verdict == "bad" for finding in findings):
        raise typer.Exit(1)


def _print(finding: Finding) -> None:
    word, colour = _MARKS[finding.verdict]
    mark = typer.style(f"{word:<8}", fg=colour)
    typer.echo(f"{mark}{printable(finding.part)}: {printable(finding.found)}")
    if finding.mend:
        typer.echo(f"        -> {printable(finding.mend)}")
