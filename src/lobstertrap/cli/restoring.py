"""Restores that need no flow: into a directory here, and the plan of any."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import typer

from lobstertrap import progress
from lobstertrap.cli.output import print_json, print_result
from lobstertrap.cli.text import printable, size
from lobstertrap.config import Config
from lobstertrap.lease import Lease
from lobstertrap.lifecycle import plan_restore as plan_on_target
from lobstertrap.repository import Owners, Repository, Snapshot, restore
from lobstertrap.repository.browse import Tree
from lobstertrap.repository.diff import plan_restore
from lobstertrap.repository.partial import restore_paths
from lobstertrap.repository.planned import planned

_SIGNS = {"added": "+", "removed": "-", "changed": "M"}


def restore_into(
    repo: Repository, snapshot: Snapshot, directory: Path, paths: Sequence[bytes]
) -> dict[str, Any]:
    """Restore a snapshot, or some paths of it, below a directory of this machine."""
    roots = {volume: directory / volume for volume in snapshot.volumes}
    report = partial(progress.report, f"restore {snapshot.agent} into {directory}")
    options: dict[str, Any] = {"roots": roots, "owners": _owners(snapshot)}
    options |= {"on_progress": report}
    if paths:
        result = restore_paths(repo, snapshot, paths=paths, **options)
    else:
        result = restore(repo, snapshot, **options)
    shown = asdict(result) | {"warnings": list(result.warnings), "verified": True}
    return {"agent": snapshot.agent, "into": str(directory), **shown}


def plan_into(
    repo: Repository, snapshot: Snapshot, directory: Path, paths: Sequence[bytes]
) -> dict[str, Any]:
    """Return what `restore_into` would do."""
    roots = {volume: directory / volume for volume in snapshot.volumes}
    plan = _planned(repo, snapshot, roots, paths)
    return {"snapshot": snapshot.id, "into": str(directory), **plan}


def plan_on(
    config: Config, agent: str, to: str, repo: Repository, snapshot: Snapshot
) -> dict[str, Any]:
    """Return what a restore onto a target would do there; the agent may run."""
    handle = config.handle(agent, Lease(config.open_store(), agent, "nobody"))
    plan = plan_on_target(handle, to, snapshot=snapshot.id)
    if plan is None:
        plan = _planned(repo, snapshot, {})
    return {"snapshot": snapshot.id, "target": to, **plan}


def _planned(
    repo: Repository,
    snapshot: Snapshot,
    roots: Mapping[str, Path],
    paths: Sequence[bytes] = (),
) -> dict[str, Any]:
    tree = Tree(repo, snapshot)
    return planned(plan_restore(tree, roots, _owners(snapshot), paths=paths))


def print_plan(plan: Mapping[str, Any], *, as_json: bool) -> None:
    """Print what would change: a line for each path, then the counts."""
    if as_json:
        print_json({"dry_run": True, **plan})
        return
    for change in plan["changes"]:
        what = f"  ({', '.join(change['what'])})" if change["what"] else ""
        line = f"{_SIGNS[change['kind']]} {change['path']}{what}"
        typer.echo(printable(line))
    counts = {name: plan[name] for name in ("added", "changed", "removed")}
    unnamed = sum(counts.values()) - len(plan["changes"])
    if unnamed:
        typer.echo(f"and {unnamed} more")
    would = {**counts, "to be written": size(plan["bytes"])}
    print_result({"snapshot": plan["snapshot"], **would}, as_json=False)


def as_path(text: str) -> bytes:
    """Return VOLUME/DIRECTORY/... as snapshots have it."""
    return os.fsencode(text.strip("/"))


def _owners(snapshot: Snapshot) -> Owners:
    """Return who owns the agent's files here: whoever restores them."""
    me = (os.geteuid(), os.getegid())
    return Owners(local=me, canonical=snapshot.owners.canonical)
