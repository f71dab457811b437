"""Key slots: added, listed, removed; never so that nobody can open any more."""

import json

import pytest

from lobstertrap.errors import (
    AccessDenied,
    IntegrityError,
    InvalidInput,
    NotFound,
    Refused,
)
from lobstertrap.redaction import SecretValue
from lobstertrap.repository import Repository
from lobstertrap.repository.format import CONFIG_KEY
from lobstertrap.repository.keyring import add_key, list_keys, remove_key
from lobstertrap.repository.slots import MAX_SLOTS
from lobstertrap.stores.memory import MemoryStore
from tests.fixtures.repositories import repository
from tests.fixtures.trees import CHEAP, KEY, BrokenStore, new_repository

OLD, NEW = SecretValue(KEY), SecretValue("another passphrase")


def test_a_second_passphrase_opens_the_same_repository() -> None:
    store, repo = repository()

    slot = add_key(repo, NEW, label="laptop", cost=CHEAP)

    assert Repository.open(store, NEW).id == Repository.open(store, OLD).id
    assert [s.label for s in list_keys(repo)] == ["passphrase", "laptop"]
    assert list_keys(repo)[1] == slot


def test_a_passphrase_is_rotated_by_adding_and_removing() -> None:
    store, repo = repository()
    add_key(repo, NEW, label="new", cost=CHEAP)

    removed = remove_key(repo, list_keys(repo)[0].id, keep=NEW)

    assert removed.label == "passphrase"
    assert Repository.open(store, NEW)
    with pytest.raises(AccessDenied):
        Repository.open(store, OLD)


def test_the_last_key_is_never_removed() -> None:
    store, repo = repository()

    with pytest.raises(Refused):
        remove_key(repo, list_keys(repo)[0].id, keep=OLD)

    assert Repository.open(store, OLD)


def test_the_key_in_use_is_not_removed_though_there_is_another() -> None:
    _, repo = repository()
    add_key(repo, NEW, label="new", cost=CHEAP)

    with pytest.raises(Refused):
        remove_key(repo, list_keys(repo)[0].id, keep=OLD)

    assert len(list_keys(repo)) == 2


@pytest.mark.parametrize(
    ("prefix", "error"), [("ffffffffffff", NotFound), ("", InvalidInput)]
)
def test_a_key_must_be_named(prefix: str, error: type[Exception]) -> None:
    _, repo = repository()

    with pytest.raises(error):
        remove_key(repo, prefix, keep=OLD)


@pytest.mark.parametrize("label", ["", " ", "x" * 65, "a\nb"])
def test_odd_labels_are_refused(label: str) -> None:
    with pytest.raises(InvalidInput):
        add_key(repository()[1], NEW, label=label, cost=CHEAP)


def test_there_are_only_so_many_keys() -> None:
    store, repo = repository()
    for number in range(MAX_SLOTS - 1):
        add_key(repo, NEW, label=f"{number}", cost=CHEAP)

    with pytest.raises(InvalidInput, match="32 keys and no room"):
        add_key(repo, NEW, label="one more", cost=CHEAP)

    config = json.loads(store.get(CONFIG_KEY).data)
    config["slots"].append(config["slots"][0])
    store.put(CONFIG_KEY, json.dumps(config).encode())
    with pytest.raises(IntegrityError, match="has 33 keys"):
        Repository.open(store, OLD)


def test_an_empty_passphrase_is_refused() -> None:
    with pytest.raises(InvalidInput):
        add_key(repository()[1], SecretValue(""), label="x", cost=CHEAP)


def test_slots_of_unknown_kinds_stay() -> None:
    store, repo = repository()
    config = json.loads(store.get("repository/config").data)
    config["slots"].append({"kind": "of tomorrow", "id": "00112233", "more": [1]})
    store.put("repository/config", json.dumps(config).encode())

    add_key(repo, NEW, label="new", cost=CHEAP)

    slots = json.loads(store.get("repository/config").data)["slots"]
    assert slots[1] == {"kind": "of tomorrow", "id": "00112233", "more": [1]}
    assert [s.kind for s in list_keys(repo)] == ["argon2id", "of tomorrow", "argon2id"]


def test_a_key_that_is_added_at_the_same_time_is_not_lost() -> None:
    store = BrokenStore(MemoryStore())
    repo = new_repository(store)

    def be_faster(method: str, key: str, _number: int) -> None:
        if method == "put" and key == CONFIG_KEY:
            store.hook = lambda _method, _key, _number: None
            add_key(repo, SecretValue("faster"), label="faster", cost=CHEAP)

    store.hook = be_faster
    add_key(repo, NEW, label="slower", cost=CHEAP)

    assert Repository.open(store, NEW).id == repo.id
    assert Repository.open(store, SecretValue("faster")).id == repo.id
    assert [s.label for s in list_keys(repo)] == ["passphrase", "faster", "slower"]


def test_nothing_secret_is_shown() -> None:
    store, repo = repository()
    slot = add_key(repo, NEW, label="x", cost=CHEAP)

    shown = f"{slot!r} {list_keys(repo)!r}".encode()
    assert NEW.reveal().encode() not in shown
    assert NEW.reveal().encode() not in store.get("repository/config").data
