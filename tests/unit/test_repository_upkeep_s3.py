"""Upkeep on a real S3 server: its clock, its conditions, its listings."""

from dataclasses import replace
from pathlib import Path

import pytest

from lobstertrap.redaction import SecretValue
from lobstertrap.repository.check import check
from lobstertrap.repository.copy import copy
from lobstertrap.repository.forget import forget
from lobstertrap.repository.keyring import add_key, list_keys, remove_key
from lobstertrap.repository.prune import GRACE, prune
from lobstertrap.repository.repair import repair
from lobstertrap.repository.retention import RetentionPolicy
from lobstertrap.stores import StoreSettings, open_store
from lobstertrap.stores.base import ObjectInfo
from tests.fixtures.repositories import fill, keys, reopened, snap
from tests.fixtures.trees import CHEAP, KEY, new_repository


class Aged:
    """A store in which everything but what is written now is older by `ahead`."""

    def __init__(self, store) -> None:
        self._store = store
        self.ahead = 0.0

    def __getattr__(self, name: str):
        return getattr(self._store, name)

    def list(self, prefix: str):
        """List with older times."""
        for info in self._store.list(prefix):
            yield self._older(info)

    def _older(self, info: ObjectInfo) -> ObjectInfo:
        return replace(info, modified=info.modified - self.ahead)


@pytest.mark.s3
def test_all_of_upkeep_on_a_real_server(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    url = store_settings.url.rstrip("/")
    store = Aged(open_store(replace(store_settings, url=f"{url}/upkeep/here")))
    there = open_store(replace(store_settings, url=f"{url}/upkeep/there"))
    repo = new_repository(store)
    root = tmp_path / "in"
    for number in range(3):
        fill(root, {"file": 300_000, f"{number}": 1000}, seed=number)
        last = snap(repo, root)

    decisions = forget(repo, "ada", RetentionPolicy(last=1), now=last.created_at)
    store.ahead = 2 * GRACE
    condemned = prune(repo)
    deleted = prune(repo)  # the mark is old enough too, as this store tells it
    brought = copy(reopened(store), there)
    mended = repair(reopened(store), read_data=True)
    new = SecretValue("another")
    add_key(repo, new, label="new", cost=CHEAP)
    remove_key(repo, list_keys(repo)[0].id, keep=new)

    assert [d.kept for d in decisions] == [False, False, True]
    assert condemned.condemned_packs > 0
    assert deleted.deleted_packs == condemned.condemned_packs
    assert brought.snapshots == 1
    assert mended.problems == ()
    assert check(repo, sample=100).ok
    assert check(reopened(there), sample=100).ok
    assert KEY not in repr(keys(there))
