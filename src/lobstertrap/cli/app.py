"""The commands put together, and how an error becomes a line, a hint and a code."""

from __future__ import annotations

import io
import json
import shutil
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer

from lobstertrap.cli import (
    adopt,
    browse,
    history,
    keys,
    manifests,
    moves,
    overview,
    programs,
    reclaiming,
    repository,
    running,
    secret_commands,
    setup,
    timeline,
    usage,
)
from lobstertrap.cli.text import printable_lines

EPILOG = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage or input, "
    "3 refused because it would be unsafe, 130 interrupted."
)

_COLUMNS = shutil.get_terminal_size().columns
_BOXES_FROM = 72
_NARROW = range(24, 54)
"""Here help is as narrow as the terminal, which it never is by itself."""

_ENDED = {
    128 + signal.SIGINT: "interrupted",
    128 + signal.SIGTERM: "ended by SIGTERM",
}


def _has_room() -> bool:
    """Say whether help may be drawn in boxes; narrow ones cut off what they hold."""
    return sys.stdout.isatty() and _COLUMNS >= _BOXES_FROM


app = typer.Typer(
    name="lobstertrap",
    help="Package an AI agent, snapshot its state, and move it between targets.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if _has_room() else None,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "terminal_width": _COLUMNS - 2 if _COLUMNS in _NARROW else None,
    },
)
for group in (
    setup,
    running,
    reclaiming,
    overview,
    history,
    timeline,
    browse,
    moves,
    adopt,
    repository,
    keys,
    manifests,
    secret_commands,
    programs,
):
    group.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from lobstertrap import __version__  # noqa: PLC0415 - only here

        typer.echo(f"lobstertrap {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error.")
    ] = False,
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool,
        typer.Option(
            "--version",
            help="Show the version and exit.",
            callback=_print_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Take the options that stand before the command."""
    context.ensure_object(dict)["debug"] = debug


def prepare_process() -> None:
    """Make SIGTERM unwind, and let no character be one that cannot be printed."""
    signal.signal(signal.SIGTERM, _end)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; prints errors, raises nothing."""
    said: dict[str, Any] = {"debug": False, "json": False, "endless": False}
    try:
        code = _dispatch(arguments, said)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception as error:
        if _is_interrupt(error):
            return _tell_end(128 + signal.SIGINT)
        return explain(error, debug=said["debug"], as_json=said["json"])
    if not said["endless"]:
        _tell_end(code)
    return code


def _dispatch(arguments: Sequence[str] | None, said: dict[str, Any]) -> int:
    """Run one command line; returns its exit code, and raises what went wrong."""
    try:
        code = app(
            args=arguments, prog_name="lobstertrap", obj=said, standalone_mode=False
        )
    except typer.Abort:
        _to_stderr("ended without an answer")
        return 1
    except usage.UsageError as error:
        if usage.is_bare(error):
            return usage.show(error)
        # It is told before `--json` was read, where that stands behind the mistake.
        said["json"] |= "--json" in (sys.argv if arguments is None else arguments)
        raise usage.explained(error) from error
    return code if isinstance(code, int) else 0


def _end(number: int, _frame: object) -> NoReturn:
    """Unwind on SIGTERM, so that movers are stopped and the lease is released."""
    sys.exit(128 + number)


def _is_interrupt(error: BaseException | None) -> bool:
    """Say whether something foreign broke only because of Ctrl-C.

    Prefect's task engine turns a KeyboardInterrupt at the wrong moment into a
    ValueError. An error of ours in its wake (a rollback that failed) is no such thing.
    """
    from lobstertrap.errors import LobsterTrapError  # noqa: PLC0415 - keep light

    while error is not None and not isinstance(error, LobsterTrapError):
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _tell_end(code: int) -> int:
    if code in _ENDED:
        _to_stderr(f"{_ENDED[code]}\nhint: run the same command again to go on")
    return code


def explain(error: Exception, *, debug: bool, as_json: bool) -> int:
    """Print what went wrong to stderr, and as an object when JSON was asked for."""
    from lobstertrap.errors import LobsterTrapError  # noqa: PLC0415 - keep light
    from lobstertrap.redaction import redactor  # noqa: PLC0415 - keep light

    code, kind = 1, type(error).__name__
    if isinstance(error, LobsterTrapError):
        code, message, hint = error.exit_code, error.message, error.hint
    else:
        message = f"unexpected {kind}: {error}"
        hint = "`lobstertrap --debug ...` shows where; please report it"
    message = redactor.redact(message)
    if debug:
        trace = "".join(traceback.format_exception(error))
        _to_stderr(redactor.redact(trace))
    _to_stderr(f"error: {message}")
    if hint:
        _to_stderr(f"hint: {hint}")
    if as_json:
        told = {"kind": kind, "message": message, "hint": hint, "exit_code": code}
        print(json.dumps({"error": told}))  # noqa: T201 - this is the command line
    return code


def _to_stderr(text: str) -> None:
    print(printable_lines(text), file=sys.stderr)  # noqa: T201 - the command line
