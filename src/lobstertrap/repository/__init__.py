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

from lobstertrap.repository.archiver import take_snapshot
from lobstertrap.repository.derivation import ScryptCost
from lobstertrap.repository.repository import Repository
from lobstertrap.repository.restorer import RestoreResult, restore
from lobstertrap.repository.snapshot import Owners, Snapshot
from lobstertrap.repository.tree_digest import tree_digest

__all__ = [
    "Owners",
    "Repository",
    "RestoreResult",
    "ScryptCost",
    "Snapshot",
    "restore",
    "take_snapshot",
    "tree_digest",
]
