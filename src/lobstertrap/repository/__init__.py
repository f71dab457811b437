"""The snapshot engine: encrypted, deduplicated, verified copies of an agent's volumes.

The nouns, from small to large (docs/repository-format.md has every byte):

- *chunk*: a piece of a file; *page*: a piece of metadata; both are *blobs*, named by a
  keyed hash of what is in them, stored once;
- *segment*: about 1 MiB of blobs, compressed and encrypted together;
- *pack*: the object that holds segments; *index*: the object that says where blobs are;
- *entry*: a file, directory, link of the tree; *group*, *branch*: entries in a row;
- *snapshot*: the manifest of one complete copy, with its *tree digest*;
- *repository*: all of it, in one object store, under one master key;
- *archiver* and *restorer*: from disk to repository and back.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lobstertrap.repository.archiver import take_snapshot
    from lobstertrap.repository.derivation import Argon2Cost
    from lobstertrap.repository.repository import Repository
    from lobstertrap.repository.restorer import RestoreResult, restore
    from lobstertrap.repository.snapshot import Owners, Snapshot

__all__ = [
    "Argon2Cost",
    "Owners",
    "Repository",
    "RestoreResult",
    "Snapshot",
    "restore",
    "take_snapshot",
]

_HOMES = {
    "Argon2Cost": "derivation",
    "Owners": "snapshot",
    "Repository": "repository",
    "RestoreResult": "restorer",
    "Snapshot": "snapshot",
    "restore": "restorer",
    "take_snapshot": "archiver",
}


def __getattr__(name: str) -> object:
    """Import a name when it is asked for: a mover needs half of them, and is short."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
