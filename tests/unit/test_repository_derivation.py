"""The key is derived ahead from what is remembered, and never opens more for it."""

import hashlib
import json
import time
from pathlib import Path

import pytest

from lobstertrap.errors import AccessDenied, NotFound
from lobstertrap.redaction import SecretValue
from lobstertrap.repository import Repository, derivation
from lobstertrap.repository.derivation import ScryptCost, scrypt
from lobstertrap.repository.keyring import add_key, list_keys, remove_key
from lobstertrap.stores.base import StoredObject
from lobstertrap.stores.memory import MemoryStore
from tests.fixtures.repositories import repository
from tests.fixtures.trees import CHEAP, KEY, new_repository

OLD, NEW = SecretValue(KEY), SecretValue("another passphrase")


@pytest.fixture
def derived(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The salts that a key was derived for, in order."""
    salts: list[bytes] = []

    def count(passphrase: SecretValue, salt: bytes, cost: ScryptCost) -> bytes:
        salts.append(salt)
        return scrypt(passphrase, salt, cost)

    monkeypatch.setattr(derivation, "scrypt", count)
    return salts


def remembered(directory: Path) -> Path:
    """Return the one file that holds a slot's salt and cost."""
    (found,) = directory.glob("slot-*")
    return found


class AnswersLate(MemoryStore):
    """Answers when the key is derived, or after so long that it never will be."""

    def __init__(self, derived: list[bytes]) -> None:
        super().__init__()
        self._derived = derived
        self.waited_in_vain = False

    def get(self, key: str) -> StoredObject:
        """Wait up to ten seconds, then answer."""
        for _ in range(1000):
            if self._derived:
                break
            time.sleep(0.01)
        else:
            self.waited_in_vain = True
        return super().get(key)


def test_the_slot_that_opened_is_derived_while_the_store_is_asked(
    tmp_path: Path, derived: list[bytes]
) -> None:
    store = AnswersLate(derived)
    derived.append(b"so that it answers at once")
    made = new_repository(store)
    Repository.open(store, OLD, cache_dir=tmp_path)
    derived.clear()

    opened = Repository.open(store, OLD, cache_dir=tmp_path)

    assert not store.waited_in_vain
    assert opened.keys.master == made.keys.master
    assert len(derived) == 1


def test_what_is_remembered_is_a_salt_and_a_cost_and_no_more(tmp_path: Path) -> None:
    store, repo = repository()
    Repository.open(store, OLD, cache_dir=tmp_path)
    slot = json.loads(store.get("repository/config").data)["slots"][0]

    text = remembered(tmp_path).read_text()

    assert json.loads(text) == {name: slot[name] for name in ("salt", "n", "r", "p")}
    kek = scrypt(OLD, bytes.fromhex(slot["salt"]), CHEAP)
    for secret in (KEY, slot["wrapped"], repo.keys.master.hex(), kek.hex()):
        assert secret not in text


def test_of_several_slots_the_remembered_one_is_tried_first(
    tmp_path: Path, derived: list[bytes]
) -> None:
    store, repo = repository()
    add_key(repo, NEW, label="new", cost=CHEAP)
    Repository.open(store, NEW, cache_dir=tmp_path)
    derived.clear()

    assert Repository.open(store, NEW, cache_dir=tmp_path).id == repo.id

    assert len(derived) == 1


def test_a_removed_slot_opens_nothing_though_it_is_remembered(tmp_path: Path) -> None:
    store, repo = repository()
    Repository.open(store, OLD, cache_dir=tmp_path)
    add_key(repo, NEW, label="new", cost=CHEAP)
    remove_key(repo, list_keys(repo)[0].id, keep=NEW)

    with pytest.raises(AccessDenied):
        Repository.open(store, OLD, cache_dir=tmp_path)
    assert Repository.open(store, NEW, cache_dir=tmp_path).id == repo.id


def test_a_wrong_passphrase_opens_nothing_and_is_not_remembered(tmp_path: Path) -> None:
    store, _ = repository()
    with pytest.raises(AccessDenied):
        Repository.open(store, NEW, cache_dir=tmp_path)
    assert not [*tmp_path.iterdir()]

    Repository.open(store, OLD, cache_dir=tmp_path)

    with pytest.raises(AccessDenied):
        Repository.open(store, NEW, cache_dir=tmp_path)


def test_another_repository_at_the_same_place_is_opened(tmp_path: Path) -> None:
    first, second = MemoryStore(), MemoryStore()
    new_repository(first)
    other = new_repository(second)
    Repository.open(first, OLD, cache_dir=tmp_path)
    before = remembered(tmp_path).read_text()
    assert first.url == second.url

    assert Repository.open(second, OLD, cache_dir=tmp_path).id == other.id

    assert remembered(tmp_path).read_text() != before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[]",
        "{}",
        '{"salt": "zz", "n": 16, "r": 1, "p": 2}',
        '{"salt": "00", "n": 1e400, "r": 1, "p": 2}',
        '{"salt": "00", "n": 17, "r": 1, "p": 2}',
        f'{{"salt": "00", "n": {1 << 40}, "r": 8, "p": 2}}',
        "[" * 5000,
    ],
)
def test_damage_costs_time_and_nothing_else(tmp_path: Path, text: str) -> None:
    store, repo = repository()
    Repository.open(store, OLD, cache_dir=tmp_path)
    whole = remembered(tmp_path).read_text()
    remembered(tmp_path).write_text(text)

    assert Repository.open(store, OLD, cache_dir=tmp_path).id == repo.id

    assert remembered(tmp_path).read_text() == whole


def test_a_cache_that_takes_no_file_changes_nothing(tmp_path: Path) -> None:
    store, repo = repository()
    (tmp_path / "file").touch()

    opened = Repository.open(store, OLD, cache_dir=tmp_path / "file" / "below")

    assert opened.id == repo.id


def test_nothing_is_remembered_of_a_place_without_a_repository(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        Repository.open(MemoryStore(), OLD, cache_dir=tmp_path)
    assert not [*tmp_path.iterdir()]


def test_the_name_says_nothing_of_the_place(tmp_path: Path) -> None:
    store, _ = repository()
    Repository.open(store, OLD, cache_dir=tmp_path)

    digest = hashlib.sha256(store.url.encode()).hexdigest()[:32]

    assert remembered(tmp_path).name == f"slot-{digest}"
