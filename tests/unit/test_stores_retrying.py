"""Failures that may pass are tried again, and others are reported at once."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from lobstertrap.errors import (
    AccessDenied,
    Conflict,
    IntegrityError,
    InvalidInput,
    LobsterTrapError,
    NoSpace,
    NotFound,
    Permanent,
    Refused,
    TimedOut,
    Unavailable,
)
from lobstertrap.stores.counting import Counting
from lobstertrap.stores.memory import MemoryStore
from lobstertrap.stores.retrying import Retrying
from lobstertrap.stores.s3 import S3Store
from tests.fixtures.flaky_s3 import FlakyS3, flaky_s3


@pytest.fixture
def server() -> Iterator[FlakyS3]:
    with flaky_s3() as running:
        yield running


@pytest.fixture
def once(server: FlakyS3) -> S3Store:
    return S3Store(server.settings, answer_seconds=0.5)


@pytest.fixture
def store(once: S3Store) -> Retrying:
    return Retrying(once, first_wait=0.001, longest_wait=0.01)


PASSING = [
    *((500, "InternalError"), (502, ""), (503, "SlowDown"), (503, ""), (504, "")),
    *((429, "TooManyRequests"), (400, "RequestTimeout"), (400, "BadDigest"), "reset"),
]


@pytest.mark.parametrize("fault", PASSING)
def test_what_may_pass_is_tried_again(store, server, fault):
    server.faults = [fault, fault]

    store.put("key", b"data")
    server.faults = [fault]
    assert store.get("key").data == b"data"
    server.faults = [fault] if fault[0] != 400 else []  # HEAD tells no code
    assert store.head("key").size == 4
    server.faults = [fault]
    store.delete("key")

    assert server.objects == {}
    assert server.requests.count("PUT prefix/key") == 3


@pytest.mark.parametrize("fault", [(503, "SlowDown"), "reset", "truncate"])
def test_a_read_that_was_cut_short_is_read_again(store, server, fault):
    server.objects["prefix/key"] = bytes(range(256)) * 4000
    server.faults = [fault, None, fault, None]

    assert store.get("key").data == server.objects["prefix/key"]
    assert store.get_range("key", 256, 256) == bytes(range(256))


def test_a_body_that_is_cut_short_is_never_returned(once, server):
    server.objects["prefix/key"] = b"0123456789" * 1000
    server.faults = ["truncate", "truncate"]

    with pytest.raises(Unavailable):
        once.get("key")
    with pytest.raises(Unavailable):
        once.get_range("key", 5, 4000)


def test_a_range_that_the_server_ignores_is_cut_out(once, server):
    server.objects["prefix/key"] = b"0123456789"
    server.faults = ["ignore-range", "ignore-range"]

    assert once.get_range("key", 3, 4) == b"3456"
    with pytest.raises(IntegrityError):
        once.get_range("key", 8, 4)


def test_a_silent_server_is_timed_out(once, server):
    server.faults = ["slow"]
    server.slow_seconds = 1.5

    with pytest.raises(TimedOut):
        once.get("key")


def test_a_proxys_page_is_no_listing(once, server):
    server.faults = ["html"]

    with pytest.raises(Unavailable):
        list(once.list(""))


ANSWERS = [
    ((403, "AccessDenied"), AccessDenied),
    ((403, "InvalidAccessKeyId"), AccessDenied),
    ((403, "SignatureDoesNotMatch"), AccessDenied),
    ((400, "ExpiredToken"), AccessDenied),
    ((403, "RequestTimeTooSkewed"), AccessDenied),
    ((401, ""), AccessDenied),
    ((404, "NoSuchBucket"), NotFound),
    ((400, "AuthorizationHeaderMalformed"), InvalidInput),
    ((400, "InvalidBucketName"), InvalidInput),
    ((507, "InsufficientStorage"), NoSpace),
    ((507, "XMinioStorageFull"), NoSpace),
    ((403, "QuotaExceeded"), NoSpace),
    ((400, "Unheard"), Permanent),
]


@pytest.mark.parametrize(("fault", "kind"), ANSWERS)
def test_what_does_not_pass_is_reported_at_once(store, server, fault, kind):
    server.faults = [fault]

    with pytest.raises(LobsterTrapError) as raised:
        store.put("key", b"data")

    assert type(raised.value) is kind
    assert len(server.requests) == 1
    assert "'bucket'" in raised.value.message
    assert str(server.settings.endpoint) in raised.value.message
    assert "secret-key-value" not in f"{raised.value!r} {raised.value.hint}"


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ((412, "PreconditionFailed"), Conflict),
        ((409, "ConditionalRequestConflict"), Conflict),
        ((404, "NoSuchKey"), Conflict),
        ((404, "NoSuchBucket"), NotFound),
        ((501, "NotImplemented"), Refused),
        ((403, "AccessDenied"), AccessDenied),
    ],
)
def test_answers_to_a_condition_are_told_apart(once, server, fault, kind):
    server.faults = [fault, fault]

    with pytest.raises(LobsterTrapError) as absent:
        once.put("key", b"data", if_absent=True)
    with pytest.raises(LobsterTrapError) as match:
        once.put("key", b"data", if_match="etag")

    assert (type(absent.value), type(match.value)) == (kind, kind)


def test_it_gives_up_after_six_tries(store, server):
    server.faults = [(503, "SlowDown")] * 20

    with pytest.raises(Unavailable, match="SlowDown"):
        store.put("key", b"data")
    assert len(server.requests) == 6


def test_it_gives_up_when_the_time_is_over(once, server):
    server.faults = [(503, "SlowDown")] * 100_000
    store = Retrying(
        once, attempts=100_000, seconds=0.3, first_wait=0.001, longest_wait=0.01
    )

    start = time.monotonic()
    with pytest.raises(Unavailable):
        store.get("key")
    assert time.monotonic() - start < 60


def test_a_server_that_is_not_there_is_unavailable(server):
    with flaky_s3() as gone:
        pass

    with pytest.raises(Unavailable, match=r"EndpointConnectionError|ConnectionClosed"):
        S3Store(gone.settings).get("key")


@pytest.mark.parametrize("condition", ["absent", "match"])
def test_a_write_that_was_done_but_not_answered_is_no_conflict(
    store, server, condition
):
    etag = store.put("key", b"old")
    how = {"if_match": etag}
    if condition == "absent":
        store.delete("key")
        how = {"if_absent": True}
    server.faults = ["reset-after-doing"]

    new = store.put("key", [b"written ", b"by me"], **how)

    assert new == store.head("key").etag
    assert server.objects == {"prefix/key": b"written by me"}


def test_a_write_that_was_not_done_and_lost_the_race_is_a_conflict(store, server):
    server.faults = ["reset"]
    server.objects["prefix/key"] = b"another's"

    with pytest.raises(Conflict, match="written by another"):
        store.put("key", b"mine", if_absent=True)
    assert server.objects == {"prefix/key": b"another's"}


def test_a_write_that_is_still_going_on_is_waited_for(store, server):
    conflict = (409, "ConditionalRequestConflict")
    server.faults = ["reset", conflict, None, None]

    store.put("key", b"mine", if_absent=True)

    assert server.objects == {"prefix/key": b"mine"}
    assert server.requests == [
        *("PUT prefix/key", "PUT prefix/key"),
        *("GET prefix/key", "PUT prefix/key"),
    ]


def test_a_match_that_is_still_going_on_is_waited_for(store, server):
    etag = store.put("key", b"old")
    server.faults = ["reset", (409, "ConditionalRequestConflict"), None, None]

    store.put("key", b"mine", if_match=etag)

    assert server.objects == {"prefix/key": b"mine"}


def test_a_match_in_doubt_whose_object_was_deleted_is_a_conflict(store, server):
    server.faults = ["reset"]

    with pytest.raises(Conflict, match="deleted"):
        store.put("key", b"mine", if_match="0" * 32)


def test_a_plain_conflict_reads_nothing(store, server):
    server.objects["prefix/key"] = b"mine"

    with pytest.raises(Conflict):
        store.put("key", b"mine", if_absent=True)
    assert server.requests == ["PUT prefix/key"]


def test_a_listing_goes_on_where_it_failed(store, server):
    server.objects = {f"prefix/{n}": b"x" for n in range(7)}
    server.faults = [None, (503, "SlowDown"), None, "reset"]

    assert [info.key for info in store.list("")] == [str(n) for n in range(7)]


def test_a_listing_that_failed_halfway_repeats_nothing():
    memory = MemoryStore()
    for n in range(5):
        memory.put(f"k{n}", b"x")

    class Halting(MemoryStore):
        failures = 3

        def list(self, prefix):
            for count, info in enumerate(memory.list(prefix)):
                if count == 2 and self.failures:
                    self.failures -= 1
                    raise Unavailable("told to")
                yield info

    store = Retrying(Halting(), first_wait=0.001)
    assert [info.key for info in store.list("")] == [f"k{n}" for n in range(5)]


def test_an_interrupt_passes_at_once():
    class Interrupted(MemoryStore):
        calls = 0

        def get(self, key):
            self.calls += 1
            raise KeyboardInterrupt

    inner = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        Retrying(inner).get("key")
    assert inner.calls == 1


def test_an_interrupt_ends_the_waiting():
    class Down(MemoryStore):
        def get(self, key):
            raise Unavailable("down")

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    store = Retrying(Down())
    store._retrying.sleep = interrupt

    with pytest.raises(KeyboardInterrupt):
        store.get("key")


@pytest.mark.parametrize(("size", "header"), [(10, "Content-MD5"), (70_000, "crc32")])
def test_a_body_carries_a_digest_that_the_server_checks(once, server, size, header):
    once.put("key", [b"x" * (size - 1), b"y"])

    names = " ".join(server.headers[0])
    assert header in names
    assert server.objects["prefix/key"] == b"x" * (size - 1) + b"y"


def test_a_payload_is_not_hashed_on_loopback(once, server):
    once.put("key", b"x" * 100_000)

    assert server.headers[0]["X-Amz-Content-SHA256"] == "UNSIGNED-PAYLOAD"


def test_counting_tells_tries_from_calls(once, server):
    inner = Counting(once)
    outer = Counting(Retrying(inner, first_wait=0.001))
    server.faults = ["reset", "reset"]

    outer.put("key", [b"12", b"345"])
    outer.get("key")
    outer.get_range("key", 1, 2)
    list(outer.list(""))

    assert outer.traffic.requests == {"put": 1, "get": 1, "get_range": 1, "list": 1}
    assert inner.traffic.requests == {"put": 3, "get": 1, "get_range": 1, "list": 1}
    assert (outer.traffic.bytes_up, outer.traffic.bytes_down) == (5, 7)
