"""The local cache of immutable metadata objects: an accelerator and nothing more.

It holds objects as they are in the store, encrypted and authenticated, named by their
keys. What is damaged or of another repository fails to open and is fetched again.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from pathlib import Path

from lobstertrap.repository.format import INDEX_PREFIX, PACK_PREFIX, SNAPSHOT_PREFIX

CROWDED = 512
_STORED = tuple(
    p.replace("/", "_") for p in (INDEX_PREFIX, PACK_PREFIX, SNAPSHOT_PREFIX)
)


def user_cache() -> Path:
    """Return the directory of this user's caches of repositories."""
    from platformdirs import user_cache_path  # noqa: PLC0415 - only when needed

    return user_cache_path("lobstertrap") / "repositories"


class ObjectCache:
    """A directory of one repository; every failure of the disk is a miss."""

    def __init__(self, directory: Path, repository_id: bytes) -> None:
        self._directory = directory / repository_id.hex()

    def get(self, key: str) -> bytes | None:
        """Return the object's bytes, or None."""
        try:
            return self._path(key).read_bytes()
        except OSError:
            return None

    def put(self, key: str, data: bytes) -> None:
        """Remember an object."""
        path = self._path(key)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary.write_bytes(data)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)

    def drop(self, key: str) -> None:
        """Forget an object."""
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError:
            return

    def crowded(self) -> bool:
        """Say whether there is so much that it is time for `keep_only`."""
        try:
            return sum(1 for _ in self._directory.iterdir()) > CROWDED
        except OSError:
            return False

    def keep_only(self, keys: Collection[str]) -> None:
        """Forget every object of the store that is not among `keys`."""
        wanted = {self._path(key).name for key in keys}
        try:
            for path in self._directory.iterdir():
                stored = path.name.startswith(_STORED)
                if stored and path.name not in wanted:
                    path.unlink(missing_ok=True)
        except OSError:
            return

    def _path(self, key: str) -> Path:
        return self._directory / key.replace("/", "_")
