"""What is in snapshots: `ls`, `cat`, `find`, `diff`, `export` and `import`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from lobstertrap.cli import complete
from lobstertrap.cli.output import AsJson, print_json, print_result, print_table
from lobstertrap.cli.running import Agent, load_config

if TYPE_CHECKING:
    from lobstertrap.repository import Repository
    from lobstertrap.repository.browse import Tree
    from lobstertrap.repository.diff import Change
    from lobstertrap.repository.entry import Row

_BROKEN_PIPE = 141

SnapshotId = Annotated[
    str,
    typer.Argument(
        metavar="SNAPSHOT",
        help="An id, its beginning, latest, or AGENT:latest.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add this module's commands to the program."""
    for command in (ls, cat, find, diff, export):
        app.command()(command)
    app.command("import")(import_)


def ls(
    snapshot: SnapshotId,
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="VOLUME/DIRECTORY/...; all volumes by default.",
            show_default=False,
        ),
    ] = "",
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="And all that is below.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List what is in a snapshot.

    Example: lobstertrap ls latest state/logs
    """
    from lobstertrap.cli.entries import entry_line, entry_object  # noqa: PLC0415 - keep light

    tree = _open(load_config().open_repository(), snapshot)
    rows = _listing(tree, _path(path), recursive=recursive)
    if as_json:
        print_json({"entries": [entry_object(row) for row in rows]})
        return
    with _while_read():
        for row in rows:
            print(entry_line(row))  # noqa: T201 - this is the command line


def cat(
    snapshot: SnapshotId,
    path: Annotated[str, typer.Argument(metavar="PATH", help="VOLUME/DIRECTORY/FILE")],
) -> None:
    """Write one file of a snapshot to the standard output.

    Example: lobstertrap cat latest state/notes.md > notes.md
    """
    pieces = _open(load_config().open_repository(), snapshot).cat(_path(path))
    with _binary_output() as out:
        for piece in pieces:
            out.write(piece)


def find(
    pattern: Annotated[
        str,
        typer.Argument(
            metavar="PATTERN", help="With * ? [...]; of whole paths if it has a /."
        ),
    ],
    agent: Annotated[
        str | None,
        typer.Option(
            metavar="AGENT",
            autocompletion=complete.agents,
            help="Only in this agent's.",
        ),
    ] = None,
    snapshot: Annotated[
        str | None, typer.Option(metavar="SNAPSHOT", help="Only in this one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find files by name in all snapshots, each version of them once.

    Example: lobstertrap find '*.sqlite' --agent ada
    """
    from lobstertrap.cli.entries import entry_object, version_cells  # noqa: PLC0415 - keep light

    repo = load_config().open_repository()
    found = _versions(repo, pattern, agent, snapshot)
    if as_json:
        versions = [
            entry_object(row) | {"snapshots": ids} for row, ids in found.items()
        ]
        print_json({"versions": versions})
        return
    columns = ["path", "kind", "size", "modified", "in snapshots"]
    print_table(columns, [version_cells(row, ids) for row, ids in found.items()])


def diff(
    old: Annotated[
        str,
        typer.Argument(
            metavar="OLD", help="A snapshot; alone, an agent: its last two."
        ),
    ],
    new: Annotated[
        str | None,
        typer.Argument(
            metavar="NEW", help="A snapshot, or a directory of volumes (with a /)."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what changed: + added, - removed, M changed.

    Examples: lobstertrap diff ada; lobstertrap diff 1a2b3c4d latest;
    lobstertrap diff latest ./unpacked
    """
    from lobstertrap.cli.entries import change_line, change_object  # noqa: PLC0415 - keep light

    repo = load_config().open_repository()
    changes = _changes(repo, old, new)
    if as_json:
        print_json({"changes": [change_object(change) for change in changes]})
        return
    with _while_read():
        for change in changes:
            print(change_line(change))  # noqa: T201 - this is the command line


def export(
    snapshot: SnapshotId,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH",
            help="Only these, and all below: VOLUME/DIRECTORY/...",
            show_default=False,
        ),
    ] = None,
    volume: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only this volume, from its root."),
    ] = None,
) -> None:
    """Write a snapshot as a tar to the standard output.

    Examples: lobstertrap export latest --volume state > state.tar;
    lobstertrap export latest state/notes | tar -xp -C /tmp/back
    """
    from lobstertrap.repository.export import export as write  # noqa: PLC0415

    tree = _open(load_config().open_repository(), snapshot)
    with _binary_output(refuse_terminal=True) as out:
        write(tree, out, volume=volume, paths=[_path(path) for path in paths or ()])


def import_(
    agent: Agent,
    volume: Annotated[
        str, typer.Option(metavar="NAME", help="The volume that the tar is of.")
    ],
    as_json: AsJson = False,
) -> None:
    """Take a snapshot of the tar on the standard input, as one of an agent's volumes.

    Nothing is changed on any target: `lobstertrap restore` does that. The tar is
    unpacked to a temporary directory first (TMPDIR says where).

    Example: podman volume export old | lobstertrap import ada --volume state
    """
    from lobstertrap.cli.imports import import_tar  # noqa: PLC0415 - keep light

    print_result(import_tar(load_config(), agent, volume), as_json=as_json)


def _open(repo: Repository, name: str) -> Tree:
    from lobstertrap.repository.browse import Tree  # noqa: PLC0415 - keep light

    agent, colon, prefix = name.rpartition(":")
    return Tree(repo, repo.find(prefix, agent if colon else None))


def _path(text: str) -> bytes:
    return os.fsencode(text.strip("/"))


def _listing(tree: Tree, path: bytes, *, recursive: bool) -> Iterator[Row]:
    from lobstertrap.repository.entry import DIRECTORY, TYPE  # noqa: PLC0415

    if path:
        row = tree.entry(path).row
        if row[TYPE] != DIRECTORY:
            yield row
            return
    for known in tree.below(path, recursive=recursive):
        yield known.row


def _versions(
    repo: Repository, pattern: str, agent: str | None, snapshot: str | None
) -> dict[Row, list[str]]:
    """Return the ids of the snapshots that have it, oldest first, for each version."""
    from lobstertrap.repository.browse import Finder, Tree  # noqa: PLC0415

    if snapshot is None:
        chosen = repo.snapshots(agent)
    else:
        chosen = [_open(repo, f"{agent}:{snapshot}" if agent else snapshot).snapshot]
    finder, index = Finder(pattern), repo.load_index()
    found: dict[Row, list[str]] = {}
    for one in chosen:
        for row in finder.find(Tree(repo, one, index)):
            found.setdefault(row, []).append(one.id)
    return dict(sorted(found.items(), key=lambda item: item[0][0]))


def _changes(repo: Repository, old: str, new: str | None) -> Iterator[Change]:
    from lobstertrap.errors import NotFound  # noqa: PLC0415 - keep light
    from lobstertrap.repository.browse import Tree  # noqa: PLC0415
    from lobstertrap.repository.diff import (  # noqa: PLC0415
        diff as compare,
    )
    from lobstertrap.repository.diff import diff_directories  # noqa: PLC0415

    if new is None:
        names = repo.snapshot_names(old)
        if len(names) < 2:  # noqa: PLR2004 - the last two
            raise NotFound(
                f"agent '{old}' has {len(names)} snapshots, and a difference needs two",
                hint="name two snapshots: lobstertrap diff OLD NEW",
            )
        pair = [Tree(repo, repo.read_snapshot(name)) for name in names[-2:]]
        return compare(*pair)
    tree = _open(repo, old)
    if "/" not in new and new not in (".", ".."):
        return compare(tree, _open(repo, new))
    roots = {volume: Path(new) / volume for volume in tree.snapshot.volumes}
    return diff_directories(tree, roots)


@contextmanager
def _binary_output(*, refuse_terminal: bool = False) -> Iterator[BinaryIO]:
    """Give the standard output for bytes."""
    from lobstertrap.errors import InvalidInput  # noqa: PLC0415 - keep light

    if refuse_terminal and sys.stdout.isatty():
        raise InvalidInput(
            "a tar is not for a terminal", hint="send it on: ... > snapshot.tar"
        )
    with _while_read():
        yield sys.stdout.buffer


@contextmanager
def _while_read() -> Iterator[None]:
    """End quietly when whoever reads our output goes away, as `head` does."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # What Python would flush at its end must go somewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(_BROKEN_PIPE) from None
