"""A flow run in this process, watched: the way every long operation is started."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, MutableMapping
from typing import Any

import typer

from lobstertrap.cli import leaving, watch
from lobstertrap.cli.flow_server import a_server
from lobstertrap.cli.running import load_config
from lobstertrap.config import Config
from lobstertrap.errors import LobsterTrapError, NotFound

_QUIET = {
    # The command line shows progress and errors itself; the run's log is in the UI.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_HANDLERS_DEBUG_LEVEL": "CRITICAL",  # events that were not sent
    "PREFECT_LOGGING_EXTRA_LOGGERS": "lobstertrap",
}
_PATIENT = {
    # For the server that Prefect starts itself where ours cannot be: up to 24 s here.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "60",
    # A server that went away is given up after 14 seconds, each time that something is
    # to be told, and not after a minute.
    "PREFECT_CLIENT_MAX_RETRIES": "3",
}


def run_flow(context: typer.Context, flow: str, **parameters: Any) -> dict[str, Any]:
    """Run `flows/<flow>.py`'s flow of the same name and return what it returns."""
    debug = bool(context.ensure_object(dict).get("debug"))
    _prepare(os.environ, debug=debug)
    logging.raiseExceptions = (
        debug  # a log line that the server does not get is no news
    )
    with a_server(os.environ) as reporting:
        try:
            module = importlib.import_module(f"flows.{flow}")
        except ModuleNotFoundError as error:
            raise _not_here(error) from error
        from lobstertrap.cli.chosen_server import explained  # noqa: PLC0415 - as above

        with explained(), reporting(), watch.shown():
            return _run(getattr(module, flow), parameters)


def _run(flow: Callable[..., Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """Run a flow; a server that went away meanwhile is named with what became of it.

    The steps are done or undone by then: Prefect only could not be told.
    """
    from lobstertrap.cli.chosen_server import (  # noqa: PLC0415 - it imports Prefect
        explained,
        is_away,
    )

    try:
        with explained():
            return dict(flow(**parameters))
    except LobsterTrapError as error:
        if not is_away(error):
            raise
        leaving.give_the_server_up()
        agent = parameters.get("agent")
        if agent is None:
            raise
        where = leaving.where_things_are(load_config(), agent)
        raise type(error)(error.message, hint=where) from error


def check_first(agent: str, *targets: str) -> Config:
    """Find what is wrong with names, spec and secrets before Prefect takes its time.

    The flow finds the same again, and more; this only says so twenty seconds earlier.
    """
    config = load_config()
    spec = config.agent(agent)
    for target in targets:
        config.require_target(target)
    config.repository_key()
    config.resolve_secrets(spec)
    return config


def _prepare(environ: MutableMapping[str, str], *, debug: bool) -> None:
    for name, value in (_PATIENT if debug else _PATIENT | _QUIET).items():
        environ.setdefault(name, value)


def _not_here(error: ModuleNotFoundError) -> NotFound:
    if error.name == "prefect":
        return NotFound(
            "Prefect is not installed, and this command runs a flow",
            hint="pip install 'lobstertrap[prefect]'",
        )
    return NotFound(
        f"the module {error.name} is not on the path, and this command runs a flow",
        hint="run it in a checkout of the project: flows/ and tasks/ are in no wheel",
    )
