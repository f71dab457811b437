"""The import of a tar on the standard input as a snapshot of an agent's volume."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lobstertrap.agent import AgentSpec
from lobstertrap.config import Config
from lobstertrap.errors import InvalidInput, NotFound
from lobstertrap.repository import Owners, take_snapshot
from lobstertrap.repository.directories import remove_tree
from lobstertrap.repository.import_tar import unpack


def import_tar(config: Config, agent: str, volume: str) -> dict[str, Any]:
    """Unpack the tar aside, take a snapshot of it and return what came of it."""
    spec = config.agent(agent)
    excludes = {one.name: one.exclude for one in spec.volumes}
    if volume not in excludes:
        raise NotFound(
            f"agent '{agent}' has no volume '{volume}'",
            hint=f"it has: {', '.join(excludes) or 'none'}",
        )
    if sys.stdin.isatty():
        raise InvalidInput("there is no tar on the standard input", hint="... < x.tar")
    repo = config.open_repository(create=True)
    with _aside() as directory:
        unpacked = unpack(sys.stdin.buffer, directory)
        snapshot = take_snapshot(
            repo,
            agent=agent,
            roots={volume: directory},
            owners=_owners(spec),
            exclude={volume: excludes[volume]},
            tags={"purpose": f"import of volume {volume}"},
        )
    return {
        "snapshot": snapshot.id,
        "agent": agent,
        "volume": volume,
        "files": snapshot.files,
        "bytes": snapshot.bytes,
        "tree_digest": snapshot.tree_digest,
        "warnings": [*unpacked.warnings, *snapshot.warnings],
    }


def _owners(spec: AgentSpec) -> Owners:
    """Return who the agent is in what was unpacked.

    Root gives files the tar's own numbers, which are those inside the container, as in
    the spec. Anybody else owns all of them, and gives them to the agent.
    """
    agent = (spec.security.user, spec.security.group)
    local = agent if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    return Owners(local=local, canonical=agent)


@contextmanager
def _aside() -> Iterator[Path]:
    """Give a private empty directory, removed whatever modes are in it."""
    base = Path(tempfile.mkdtemp(prefix="lobstertrap-import-"))
    try:
        inside = base / "volume"
        inside.mkdir(mode=0o700)
        yield inside
    finally:
        parent = os.open(base.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            remove_tree(os.fsencode(base.name), parent)
        finally:
            os.close(parent)
