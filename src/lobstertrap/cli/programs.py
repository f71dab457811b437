"""What is not about one agent: `serve`, `schema` and `demo`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lobstertrap.cli.output import AsJson, print_json, print_result

if TYPE_CHECKING:
    from lobstertrap.cli.served import Note


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
    *,
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
    schedules: Annotated[
        bool, typer.Option(help="Run what is scheduled, besides what is asked for.")
    ] = True,
    background: Annotated[
        bool, typer.Option("--background", help="Return when it is ready.")
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Say whether one runs, and where.")
    ] = False,
    stop: Annotated[
        bool, typer.Option("--stop", help="End the one that runs.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run Prefect's server and serve the flows, until Ctrl-C.

    Examples: lobstertrap serve; lobstertrap serve --background;
    lobstertrap serve --status; lobstertrap serve --stop
    """
    if background + status + stop > 1:
        raise typer.BadParameter("one of --background, --status and --stop")
    if status or stop:
        _served(data_dir, stop=stop, as_json=as_json)
        return
    from lobstertrap.cli import serve as program  # noqa: PLC0415 - not for --help

    if background:
        note = program.serve_behind(
            host=host, port=port, data_dir=data_dir, scheduled=schedules
        )
        print_result({"state": "running", **_said(note)}, as_json=as_json)
        return
    program.serve(host=host, port=port, data_dir=data_dir, scheduled=schedules)


def _served(data_dir: Path | None, *, stop: bool, as_json: bool) -> None:
    from lobstertrap.cli import served  # noqa: PLC0415 - not for --help

    directory = data_dir or served.data_dir()
    note = served.stop(directory) if stop else served.find(directory)
    if note is None:
        print_result({"state": "not running"}, as_json=as_json)
        raise typer.Exit(0 if stop else 1)
    state = "stopped" if stop else "running"
    print_result({"state": state, **_said(note)}, as_json=as_json)


def _said(note: Note) -> dict[str, Any]:
    return {"url": note.url, "PREFECT_API_URL": note.api, "pid": note.pid}


def schema(
    of: Annotated[
        Shape, typer.Argument(help="agent.yaml or lobstertrap.toml.")
    ] = Shape.AGENT,
) -> None:
    """Print the JSON Schema of agent.yaml or lobstertrap.toml, for an editor.

    Example: lobstertrap schema config > lobstertrap.schema.json
    """
    from lobstertrap.cli import shapes  # noqa: PLC0415 - pydantic is slow

    print_json(shapes.schema(shapes.SHAPES[of.value]))


def demo(
    *,
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
    to_context: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Move to the Kubernetes cluster of this context."
        ),
    ] = None,
    namespace: Annotated[
        str, typer.Option(help="Made in that cluster, and removed at the end.")
    ] = "lobstertrap-demo",
    registry: Annotated[
        str | None,
        typer.Option(
            metavar="HOST/PATH",
            help="Where the cluster pulls images from and this machine pushes to; "
            "without it what the cluster says of its local registry.",
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="IP", help="Where the cluster's pods reach this machine."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Move an agent there and back on this machine, or to a cluster and back.

    Shows what happens, and proves that nothing was lost on the way.
    Example: lobstertrap demo --targets host
    """
    from lobstertrap.cli import demo as program  # noqa: PLC0415 - it imports Prefect
    from lobstertrap.cli.demo_cluster import Wanted  # noqa: PLC0415 - as above

    cluster = None
    if to_context:
        cluster = Wanted(
            context=to_context,
            namespace=namespace,
            registry=registry,
            address=address,
        )
    elif registry or address:
        raise typer.BadParameter("--registry and --address go with --to-context")
    program.demo(
        as_json=as_json,
        keep=keep,
        targets=targets.value,
        directory=directory,
        cluster=cluster,
    )
