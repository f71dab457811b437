"""Agents that another tool deployed: `adopt`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lobstertrap.cli import complete
from lobstertrap.cli.output import AsJson, print_json, print_result, print_table
from lobstertrap.cli.running import load_config
from lobstertrap.cli.text import printable

if TYPE_CHECKING:
    from lobstertrap.adopt import Draft, Found, Originals
    from lobstertrap.config import Config
    from lobstertrap.repository import Repository

KeepIn = Literal["target", "env"]
_CONFIG = "openclaw.json"


def register(app: typer.Typer) -> None:
    """Add this module's command to the program."""
    app.command()(adopt)


def adopt(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            autocompletion=complete.targets,
            help="Where the agents are.",
        ),
    ],
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Adopt this one; all are listed without."),
    ] = None,
    *,
    original: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="ORIGINAL",
            help="Adopt this one, as NAME; by default the one called NAME.",
        ),
    ] = None,
    secrets: Annotated[
        KeepIn,
        typer.Option(
            help="Where its secrets shall be: kept by the target, or in variables "
            "where lobstertrap runs."
        ),
    ] = "target",
    switch: Annotated[
        bool,
        typer.Option(
            "--switch", help="Stop the original for good and run ours in its place."
        ),
    ] = False,
    abort: Annotated[
        bool, typer.Option("--abort", help="Undo a switch that was interrupted.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Take over an agent that another tool deployed, state and all.

    Without NAME, lists what runs on the target and could be adopted. With NAME, writes
    its agent.yaml and takes a first snapshot; the original runs on, and nothing of ours
    is launched beside it. Only --switch stops it, and puts ours in its place.

    Example: lobstertrap adopt laptop ada
    """
    if name is None and (switch or abort or original):
        raise typer.BadParameter("name the agent", param_hint="'NAME'")
    if switch and abort:
        raise typer.BadParameter("not with --switch", param_hint="'--abort'")
    config = load_config()
    originals = config.originals(target)
    if name is None:
        _list(originals.find(), as_json=as_json)
    elif switch or abort:
        _finish(config, originals, name, undo=abort, as_json=as_json)
    else:
        _begin(
            config,
            originals,
            target,
            name,
            original=original,
            secrets=secrets,
            as_json=as_json,
        )


def _list(found: list[Found], *, as_json: bool) -> None:
    if as_json:
        print_json({"originals": [_as_object(one) for one in found]})
        return
    rows = [
        (
            one.name,
            one.original,
            one.made_by,
            "running" if one.running else "stopped",
            ", ".join(mount.path for mount in one.mounts),
            one.image or "-",
        )
        for one in found
    ]
    print_table(["name", "original", "made by", "state", "keeps", "image"], rows)


def _as_object(found: Found) -> dict[str, Any]:
    return {
        "name": found.name,
        "original": found.original,
        "made_by": found.made_by,
        "running": found.running,
        "image": found.image,
        "volumes": [mount.path for mount in found.mounts],
        "warnings": [*found.warnings],
    }


def _begin(
    config: Config,
    originals: Originals,
    target: str,
    name: str,
    *,
    original: str | None,
    secrets: KeepIn,
    as_json: bool,
) -> None:
    from lobstertrap import adopt as adoption  # noqa: PLC0415 - not for --help
    from lobstertrap.cli import watch  # noqa: PLC0415

    found = _choose(originals.find(), target, name, original)
    keep_in = "env" if config.require_target(target).kind == "host" else secrets
    drafted = adoption.draft(found, name, keep_in=keep_in)
    path = config.agents_directory / name / "agent.yaml"
    _write(path, adoption.to_yaml(drafted, found, target), drafted)
    with watch.shown(), config.hold(name, "adopt") as handle:
        taken = adoption.begin(handle, originals, found, drafted, target=target)
    for warning in drafted.warnings:
        typer.echo(f"not carried over: {printable(warning)}", err=True)
    repository = config.open_repository()
    result = {
        "agent": name,
        "original": found.original,
        "spec": str(path),
        "secrets": {k: str(v) for k, v in drafted.spec.secrets.items()},
        "openclaw_agents": _openclaw_agents(repository, taken["snapshot"], drafted),
        **{key: taken[key] for key in ("snapshot", "tree_digest", "files", "bytes")},
        "not_carried_over": [*drafted.warnings] if as_json else [],
        "warnings": taken["warnings"],
    }
    print_result(result, as_json=as_json)
    if not as_json:
        typer.echo(
            f"the original runs on; look at {printable(path)}, then: "
            f"lobstertrap adopt {target} {name} --switch",
            err=True,
        )


def _finish(
    config: Config, originals: Originals, name: str, *, undo: bool, as_json: bool
) -> None:
    from lobstertrap import adopt as adoption  # noqa: PLC0415 - not for --help
    from lobstertrap.cli import watch  # noqa: PLC0415

    with watch.shown(), config.hold(name, "adopt") as handle:
        done = (adoption.abort if undo else adoption.switch)(handle, originals)
    print_result({"agent": name, **done}, as_json=as_json)


def _choose(found: list[Found], target: str, name: str, original: str | None) -> Found:
    from lobstertrap.errors import NotFound  # noqa: PLC0415 - not for --help

    for one in found:
        if original in (None, one.original) and (original or name == one.name):
            return one
    names = ", ".join(f"{one.name} ({one.original})" for one in found)
    raise NotFound(
        f"nothing called '{original or name}' to be adopted on '{target}'; "
        f"there is: {names or 'nothing'}",
        hint="another name for one of them: lobstertrap adopt "
        f"{target} {name} --from ORIGINAL",
    )


def _write(path: Path, text: str, drafted: Draft) -> None:
    """Write the spec, unless a person has made it theirs already."""
    from lobstertrap.agent import load_agent  # noqa: PLC0415 - not for --help
    from lobstertrap.errors import Refused  # noqa: PLC0415

    if path.exists():
        if load_agent(path).volumes != drafted.spec.volumes:
            raise Refused(
                f"{path} is there already, and of another agent",
                hint="give the adopted one another name, with --from ORIGINAL",
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    try:
        load_agent(fresh)
        fresh.rename(path)
    finally:
        fresh.unlink(missing_ok=True)


def _openclaw_agents(
    repository: Repository, snapshot: str, drafted: Draft
) -> list[str]:
    """Return the agents' ids as OpenClaw's own configuration has them.

    Its installers make them up in different ways, so they are only ever read.
    """
    from lobstertrap.errors import LobsterTrapError  # noqa: PLC0415 - not for --help
    from lobstertrap.repository.browse import Tree  # noqa: PLC0415

    tree = Tree(repository, repository.find(snapshot))
    for volume in drafted.spec.volumes:
        for place in (_CONFIG, f".openclaw/{_CONFIG}"):
            try:
                text = b"".join(tree.cat(f"{volume.name}/{place}".encode()))
                listed = json.loads(text)["agents"]["list"]
                return [str(one["id"]) for one in listed]
            except (LobsterTrapError, ValueError, KeyError, TypeError):
                continue
    return []
