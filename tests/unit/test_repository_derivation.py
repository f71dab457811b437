"""The key is derived ahead from what is remembered, and never opens more for it."""

import hashlib
import json
import time
from pathlib import Path

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.kdf import argon2

from lobstertrap.errors import AccessDenied, NotFound, Permanent
from lobstertrap.redaction import SecretValue
from lobstertrap.repository import Repository
from lobstertrap.repository.derivation import Argon2Cost, ScryptCost
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

    derive = Argon2Cost.derive

    def count(cost: Argon2Cost, passphrase: bytes, salt: bytes) -> bytes:
        salts.append(salt)
        return derive(cost, passphrase, salt)

    monkeypatch.setattr(Argon2Cost, "derive", count)
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

    known = ("kind", "salt", "iterations", "lanes", "memory_cost")
    assert json.loads(text) == {name: slot[name] for name in known}
    kek = CHEAP.derive(KEY.encode(), bytes.fromhex(slot["salt"]))
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


def remembered_argon2(salt: str, iterations: int, memory: int) -> str:
    """Return what might be remembered."""
    cost = f'"iterations": {iterations}, "lanes": 1, "memory_cost": {memory}'
    return f'{{"kind": "argon2id", "salt": {salt}, {cost}}}'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[]",
        "{}",
        '{"salt": "00", "n": 16, "r": 1, "p": 2}',
        '{"kind": "of tomorrow", "salt": "00"}',
        '{"kind": "scrypt", "salt": "zz", "n": 16, "r": 1, "p": 2}',
        '{"kind": "scrypt", "salt": "00", "n": 1e400, "r": 1, "p": 2}',
        '{"kind": "scrypt", "salt": "00", "n": 17, "r": 1, "p": 2}',
        f'{{"kind": "scrypt", "salt": "00", "n": {1 << 40}, "r": 8, "p": 2}}',
        remembered_argon2('"00"', 1, 8),
        remembered_argon2(f'"{"00" * 32}"', 1, 7),
        remembered_argon2(f'"{"00" * 32}"', -1, 8),
        remembered_argon2(f'"{"00" * 32}"', 1, 1 << 40),
        remembered_argon2(f'"{"00" * 32}"', 1 << 40, 8),
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


def test_keys_are_those_of_the_standards() -> None:
    # test.c of the reference implementation of Argon2; RFC 7914, section 12
    argon2 = Argon2Cost(memory_cost=1 << 8).derive(b"password", b"somesalt")
    scrypt = ScryptCost(n=1 << 14, r=8, p=1).derive(b"pleaseletmein", b"SodiumChloride")

    assert argon2.hex() == (
        "9dfeb910e80bad0311fee20f9c0e2b12c17987b4cac90c2ef54d5b3021c68bfe"
    )
    assert scrypt.hex() == (
        "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2"
    )


@pytest.mark.parametrize(
    "cost",
    [
        Argon2Cost(memory_cost=(1 << 20) + 1),
        Argon2Cost(iterations=17),
        Argon2Cost(lanes=17),
        ScryptCost(n=1 << 20, r=16, p=1),
        ScryptCost(n=16, r=1, p=17),
    ],
)
def test_no_slot_costs_more_than_a_reader_allows(
    cost: Argon2Cost | ScryptCost,
) -> None:
    with pytest.raises(ValueError, match="unreasonable"):
        cost.derive(b"passphrase", bytes(32))


def test_a_build_without_argon2id_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise UnsupportedAlgorithm("not by this OpenSSL")

    monkeypatch.setattr(argon2, "Argon2id", refuse)

    with pytest.raises(Permanent, match="no Argon2id") as caught:
        Repository.create(MemoryStore(), OLD)
    assert "OpenSSL 3.2" in str(caught.value.hint)
