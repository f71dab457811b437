"""Every store keeps the promises of lobstertrap.stores.base."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from lobstertrap.errors import (
    Conflict,
    IntegrityError,
    InvalidInput,
    NotFound,
    Refused,
)
from lobstertrap.stores import ObjectStore, open_store, require_conditional_writes
from lobstertrap.stores.conditions import PROBE_PREFIX
from lobstertrap.stores.counting import Counting
from lobstertrap.stores.directory import DirectoryStore
from lobstertrap.stores.memory import MemoryStore
from lobstertrap.stores.retrying import Retrying

S3 = pytest.mark.s3
CONDITIONAL = ["memory", "directory", pytest.param("seaweedfs", marks=S3), "wrapped"]
ALL = [*CONDITIONAL, pytest.param("rclone", marks=S3)]

BAD_KEYS = [
    *("", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "a/.", "./a", "a b", "a\nb"),
    *("a\\b", "ä", "~lock", "a/~tmp", "a+b", "a%2fb", "a\0b", "a" * 256, "a/" * 500),
    *("a\n", "a/b\n"),
]
ODD_KEYS = ["...", "..a", "a..", "-", "_", "=", ".hidden", "A=1/b-2/c_3.x", "a" * 255]


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """The store whose name is the parameter, fresh and empty."""
    name = request.param
    if name == "memory":
        return MemoryStore()
    if name == "directory":
        return DirectoryStore(tmp_path / "store")
    if name == "wrapped":
        return Retrying(Counting(MemoryStore()))
    s3 = request.getfixturevalue("s3_store")(name)
    # rclone's server drops readers of an object that is being replaced.
    return Retrying(s3) if name == "rclone" else s3


every_store = pytest.mark.parametrize("store", ALL, indirect=True)
every_conditional_store = pytest.mark.parametrize("store", CONDITIONAL, indirect=True)


def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return [info.key for info in store.list(prefix)]


def race(contender: Callable[[int], object], *, contenders: int = 12) -> Counter[str]:
    """Run all at once; count the outcomes by `won` or the error's name."""
    barrier = threading.Barrier(contenders)

    def run(number: int) -> str:
        barrier.wait(120)
        try:
            contender(number)
        except Conflict:
            return "conflict"
        return "won"

    with ThreadPoolExecutor(contenders) as pool:
        return Counter(pool.map(run, range(contenders)))


@every_store
def test_what_was_put_is_read_back(store: ObjectStore):
    etag = store.put("agents/ada/record.json", b"one")

    assert store.get("agents/ada/record.json").data == b"one"
    assert store.get("agents/ada/record.json").etag == etag
    assert keys(store) == ["agents/ada/record.json"]


@every_store
def test_an_empty_object_is_an_object(store: ObjectStore):
    store.put("empty", b"")
    store.put("none", [])

    assert store.get("empty").data == b""
    assert store.head("none").size == 0
    assert store.get_range("empty", 0, 0) == b""


@every_store
def test_head_and_list_say_the_same(store: ObjectStore):
    etag = store.put("a/b", b"12345")

    head = store.head("a/b")
    assert (head.key, head.size, head.etag) == ("a/b", 5, etag)
    assert [(i.key, i.size, i.etag) for i in store.list("a")] == [("a/b", 5, etag)]
    assert 1.7e9 < head.modified < 4e9


@every_store
def test_a_put_replaces_and_changes_the_etag(store: ObjectStore):
    first = store.put("key", b"long old content")
    second = store.put("key", b"new")

    assert store.get("key").data == b"new"
    assert store.head("key").etag == second != first


@every_store
def test_many_buffers_are_one_object(store: ObjectStore):
    buffers = [bytes([n]) * 1_000_003 for n in range(20)]
    buffers[3:3] = [b"", b"x"]

    store.put("pack", buffers)

    whole = b"".join(buffers)
    assert store.get("pack").data == whole
    assert store.get_range("pack", 999_999, 2_000_010) == whole[999_999:3_000_009]
    assert store.head("pack").size == len(whole)


@every_store
def test_other_kinds_of_buffers_are_taken(store: ObjectStore):
    store.put("key", [bytearray(b"ab"), memoryview(b"cdef")[1:3]])  # type: ignore[list-item]

    assert store.get("key").data == b"abde"


@every_store
@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [(0, 10, b"0123456789"), (3, 4, b"3456"), (9, 1, b"9"), (0, 0, b""), (10, 0, b"")],
)
def test_a_range_is_exactly_that(
    store: ObjectStore, start: int, length: int, expected: bytes
):
    store.put("key", b"0123456789")

    assert store.get_range("key", start, length) == expected


@every_store
@pytest.mark.parametrize(
    ("start", "length"), [(0, 11), (9, 2), (10, 1), (50, 5), (11, 0)]
)
def test_a_range_behind_the_end_is_an_integrity_error(
    store: ObjectStore, start: int, length: int
):
    store.put("key", b"0123456789")

    with pytest.raises(IntegrityError):
        store.get_range("key", start, length)


@every_store
@pytest.mark.parametrize(("start", "length"), [(-1, 2), (0, -1)])
def test_a_negative_range_is_refused(store: ObjectStore, start: int, length: int):
    store.put("key", b"0123456789")

    with pytest.raises(InvalidInput):
        store.get_range("key", start, length)


@every_store
def test_what_is_absent_is_not_found(store: ObjectStore):
    store.put("dir/present", b"x")

    for key in ("absent", "dir", "dir/absent", "dir/present/below"):
        for read in (
            store.get,
            store.head,
            partial(store.get_range, start=0, length=1),
        ):
            with pytest.raises(NotFound, match=re.escape(key)):
                read(key)
    assert keys(store, "absent") == []
    assert keys(store, "dir/absent/deep") == []


@every_store
def test_delete_removes_and_may_be_repeated(store: ObjectStore):
    store.put("a/b/c", b"x")
    store.put("a/d", b"x")

    store.delete("a/b/c")
    store.delete("a/b/c")
    store.delete("never")

    assert keys(store) == ["a/d"]
    with pytest.raises(NotFound):
        store.get("a/b/c")
    store.put("a/b", b"a name that was a directory is free again")
    assert keys(store) == ["a/b", "a/d"]


@every_store
def test_listing_is_in_the_order_of_keys(store: ObjectStore):
    names = ["a/b", "a-b", "a.b", "a0", "a/b-c/d", "a/b.c", "A", "a/c", "b/x/y", "a_"]
    for name in names:
        store.put(name if name != "a/b" else "a/b/e", b"x")

    assert keys(store) == sorted({*names, "a/b/e"} - {"a/b"})


@every_store
def test_a_prefix_is_the_beginning_of_a_key(store: ObjectStore):
    for key in ("packs/ab/1", "packs/ab/2", "packs/ac/1", "packs-old/1", "pack"):
        store.put(key, b"x")

    assert keys(store, "packs/") == ["packs/ab/1", "packs/ab/2", "packs/ac/1"]
    assert keys(store, "packs/a") == ["packs/ab/1", "packs/ab/2", "packs/ac/1"]
    assert keys(store, "packs/ab/2") == ["packs/ab/2"]
    assert keys(store, "packs-") == ["packs-old/1"]
    assert keys(store, "pack") == sorted(keys(store))
    assert keys(store, "packs/ab/1/") == []


@every_store
def test_more_objects_than_a_page_are_listed(store: ObjectStore):
    names = [f"many/{n:04}" for n in range(1030)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: store.put(name, b""), names))

    assert keys(store, "many/") == names


@every_store
@pytest.mark.parametrize("key", BAD_KEYS, ids=lambda key: repr(key[:12]))
def test_an_odd_key_is_refused(store: ObjectStore, key: str):
    for use in (
        lambda: store.put(key, b"x"),
        lambda: store.get(key),
        lambda: store.get_range(key, 0, 1),
        lambda: store.head(key),
        lambda: store.delete(key),
    ):
        with pytest.raises(InvalidInput):
            use()


@every_store
@pytest.mark.parametrize("prefix", ["/", "a//", "../", "a/../b", "a b", "~", "a/\n"])
def test_an_odd_prefix_is_refused(store: ObjectStore, prefix: str):
    with pytest.raises(InvalidInput):
        list(store.list(prefix))


@every_store
def test_every_valid_key_is_taken(store: ObjectStore):
    for key in ODD_KEYS:
        store.put(key, key.encode())

    assert keys(store) == sorted(ODD_KEYS)
    assert all(store.get(key).data == key.encode() for key in ODD_KEYS)


@every_store
def test_two_conditions_at_once_are_refused(store: ObjectStore):
    with pytest.raises(InvalidInput):
        store.put("key", b"x", if_absent=True, if_match="etag")


@every_store
def test_readers_see_the_old_or_the_new_object_never_a_mix(store: ObjectStore):
    versions = [bytes([n]) * 200_000 for n in range(1, 9)]
    store.put("key", versions[0])
    stop = threading.Event()

    def read() -> set[int]:
        seen: set[int] = set()
        while not stop.is_set():
            data = store.get("key").data
            assert len(data) == 200_000
            seen |= set(data) if len(set(data)) > 1 else {0}
        return seen

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            for version in versions * 3:
                store.put("key", version)
        finally:
            stop.set()

    assert [reader.result(30) <= {0} for reader in readers] == [True, True]


@every_conditional_store
def test_if_absent_wins_once(store: ObjectStore):
    store.put("key", b"first", if_absent=True)

    with pytest.raises(Conflict, match="key"):
        store.put("key", b"second", if_absent=True)
    assert store.get("key").data == b"first"


@every_conditional_store
def test_if_match_wins_with_the_present_etag_only(store: ObjectStore):
    first = store.put("key", b"first")
    second = store.put("key", b"secnd", if_match=first)

    with pytest.raises(Conflict, match="key"):
        store.put("key", b"third", if_match=first)
    assert store.head("key").etag == second
    assert store.get("key").data == b"secnd"


@every_conditional_store
def test_if_match_conflicts_where_nothing_is(store: ObjectStore):
    etag = store.put("key", b"first")
    store.delete("key")

    with pytest.raises(Conflict):
        store.put("key", b"second", if_match=etag)
    assert keys(store) == []


@every_conditional_store
def test_a_deleted_key_is_absent_again(store: ObjectStore):
    store.put("key", b"first", if_absent=True)
    store.delete("key")

    store.put("key", b"second", if_absent=True)

    assert store.get("key").data == b"second"


@every_conditional_store
@pytest.mark.parametrize("attempt", range(3))
def test_of_twelve_writers_of_an_absent_key_one_wins(store: ObjectStore, attempt: int):
    outcome = race(lambda n: store.put("lease", f"writer {n}".encode(), if_absent=True))

    assert outcome == {"won": 1, "conflict": 11}


@every_conditional_store
@pytest.mark.parametrize("attempt", range(3))
def test_of_twelve_writers_of_one_etag_one_wins(store: ObjectStore, attempt: int):
    etag = store.put("lease", b"writer ..")

    outcome = race(
        lambda n: store.put("lease", f"writer {n:02}".encode(), if_match=etag)
    )

    assert outcome == {"won": 1, "conflict": 11}


@every_conditional_store
def test_compare_and_swap_counts_without_losing_any(store: ObjectStore):
    store.put("counter", b"0")

    def increment(_: int) -> None:
        for _attempt in range(200):
            found = store.get("counter")
            value = str(int(found.data) + 1).encode()
            try:
                store.put("counter", value, if_match=found.etag)
            except Conflict:
                continue
            return
        pytest.fail("never won in 200 tries")

    assert race(increment, contenders=6) == {"won": 6}
    assert store.get("counter").data == b"6"


@every_conditional_store
def test_conditions_are_found_to_hold(store: ObjectStore):
    require_conditional_writes(store)

    assert keys(store) == []


@S3
@pytest.mark.parametrize("store", ["rclone"], indirect=True)
def test_a_server_that_ignores_conditions_is_refused(store: ObjectStore):
    with pytest.raises(Refused, match="ignores its if-match condition") as refused:
        require_conditional_writes(store)

    assert store.url in refused.value.message
    assert "If-None-Match" in str(refused.value.hint)
    assert keys(store, PROBE_PREFIX) == []


@pytest.mark.parametrize("ignored", ["if_absent", "if_match"])
def test_a_store_that_ignores_one_condition_is_refused(ignored: str):
    class Careless(MemoryStore):
        def put(self, key, data, **conditions):
            if conditions.get(ignored) != "0123456789abcdef0123456789abcdef":
                conditions.pop(ignored)
            return super().put(key, data, **conditions)

    store = Careless()

    with pytest.raises(Refused, match=r"ignores its if-(none-)?match condition"):
        require_conditional_writes(store)
    assert keys(store) == []


def test_a_store_that_refuses_every_condition_is_refused():
    class Suspicious(MemoryStore):
        def put(self, key, data, **conditions):
            raise Conflict("never")

    with pytest.raises(Refused, match="refuses a write whose condition holds"):
        require_conditional_writes(Suspicious())


@S3
def test_an_opened_store_is_the_settings_store(store_settings):
    store = open_store(store_settings)

    store.put("key", b"x")

    assert isinstance(store, Retrying)
    assert keys(open_store(store_settings)) == ["key"]
    assert store.url == store_settings.url
