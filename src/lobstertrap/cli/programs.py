"""What is not about one agent: `serve`, `schema` and `demo`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from lobstertrap.cli.output import AsJson, print_json


class Shape(str, Enum):  # noqa: UP042 - typer shows the values of a plain str enum
    """The files whose fields `schema` prints."""

    AGENT = "agent"
    CONFIG = "config"


class Kinds(str, Enum):  # noqa: UP042 - typer shows the values of a plain str enum
    """The targets that `demo` plays on."""

    AUTO = "auto"
    HOST = "host"
    PODMAN = "podman"


def register(app: typer.Typer) -> None:
    """Add this module's commands to the program."""
    for command in (serve, schema, demo):
        app.command()(command)


def serve(
    host: Annotated[
        str, typer.Option(help="The address that Prefect's server listens on.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="The port of Prefect's server.")
    ] = 4200,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Where its database and log go.", show_default=False),
    ] = None,
) -> None:
    """Run Prefect's server and serve the flows, until Ctrl-C."""
    from lobstertrap.cli import serve as program  # noqa: PLC0415 - it imports Prefect

    program.serve(host=host, port=port, data_dir=data_dir)


def schema(
    of: Annotated[
        Shape, typer.Argument(help="agent.yaml or lobstertrap.toml.")
    ] = Shape.AGENT,
) -> None:
    """Print the JSON Schema of agent.yaml or lobstertrap.toml."""
    from lobstertrap.agent import AgentSpec  # noqa: PLC0415 - pydantic is slow
    from lobstertrap.config_file import ConfigFile  # noqa: PLC0415

    model = AgentSpec if of is Shape.AGENT else ConfigFile
    print_json(model.model_json_schema(mode="validation"))


def demo(
    targets: Annotated[
        Kinds, typer.Option(help="What stands for the two machines.")
    ] = Kinds.AUTO,
    keep: Annotated[
        bool | None,
        typer.Option(
            "--keep/--no-keep",
            help="Keep Prefect's UI until Enter; on a terminal it is kept.",
            show_default=False,
        ),
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option(help="Where everything is, for as long as it runs."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Move an agent there and back on this machine.

    Shows what happens, and proves that nothing was lost on the way.
    """
    from lobstertrap.cli import demo as program  # noqa: PLC0415 - it imports Prefect

    program.demo(as_json=as_json, keep=keep, targets=targets.value, directory=directory)
