"""The agent's record and the lease on it, in a store in memory and in a directory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lobstertrap.errors import (
    Held,
    InvalidInput,
    LeaseLost,
    NotFound,
    Refused,
    Unavailable,
)
from lobstertrap.lease import (
    AgentRecord,
    Holder,
    Journal,
    Lease,
    Operation,
    acquire,
    hold,
    read_record,
    record_key,
)
from lobstertrap.stores.base import ObjectStore
from lobstertrap.stores.directory import DirectoryStore
from lobstertrap.stores.memory import MemoryStore
from lobstertrap.stores.retrying import Retrying

ELSEWHERE = Holder(host="elsewhere", pid=1, started=1, kernel="another machine")
KEY = record_key("ada")


@pytest.fixture(params=["memory", "directory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    return MemoryStore() if request.param == "memory" else DirectoryStore(tmp_path)


def take(store: ObjectStore, ttl: float = 0.2, **more: Any) -> Lease:
    """Take the lease with a short time to live, as a process of another machine."""
    return acquire(store, "ada", "test", **{"ttl": ttl, "holder": ELSEWHERE, **more})


class Silence:
    """A sleep that takes no time, and does something at each turn."""

    def __init__(self, at_each: Any = None) -> None:
        self.slept = 0.0
        self._at_each = at_each

    def __call__(self, seconds: float) -> None:
        """Sleep."""
        self.slept += seconds
        if self._at_each:
            self._at_each()


def test_of_many_threads_that_ask_at_once_exactly_one_gets_the_agent(
    store: ObjectStore,
) -> None:
    start, won, refused = threading.Barrier(12), [], []

    def ask() -> None:
        start.wait()
        try:
            with hold(store, "ada", "race", ttl=8, holder=ELSEWHERE) as lease:
                won.append(lease)
                time.sleep(4)  # renews meanwhile, so nobody takes it for abandoned
                assert len(won) == 1
        except Refused as error:
            refused.append(error)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert len(won) == 1
    assert len(refused) == 11
    assert "ada" in refused[0].message
    assert read_record(store, "ada").operation is None


ASK = """
import sys
from pathlib import Path
from lobstertrap.lease import acquire
from lobstertrap.stores.directory import DirectoryStore
sys.stdin.readline()
acquire(DirectoryStore(Path(sys.argv[1])), "ada", "race", ttl=600)
print("won", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.wait(120)
        process.stdin.close()
        process.stdout.close()


def ask_in_a_process(
    processes: list[subprocess.Popen[str]], root: Path
) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", ASK, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    processes.append(process)
    return process


def go(process: subprocess.Popen[str]) -> None:
    process.stdin.write("go\n")
    process.stdin.flush()


def test_of_several_processes_exactly_one_gets_the_agent(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    for _ in range(4):
        ask_in_a_process(processes, tmp_path)
    winners: list[int] = []

    def listen(process: subprocess.Popen[str]) -> None:
        if process.stdout.readline() == "won\n":
            winners.append(process.pid)

    ears = [threading.Thread(target=listen, args=(it,)) for it in processes]
    for ear in ears:
        ear.start()
    for process in processes:
        go(process)
    deadline = time.monotonic() + 60
    while not winners and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    seen = list(winners)
    record = read_record(DirectoryStore(tmp_path), "ada")
    for process in processes:
        process.kill()
    for ear in ears:
        ear.join(20)

    assert len(seen) == 1
    assert record.operation.holder.pid == seen[0]


def test_a_killed_holder_on_this_machine_is_replaced_at_once(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    store = DirectoryStore(tmp_path)
    holder = ask_in_a_process(processes, tmp_path)
    go(holder)
    assert holder.stdout.readline() == "won\n"
    silence = Silence()
    os.kill(holder.pid, signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # dead, not yet reaped

    lease = acquire(store, "ada", "next", ttl=600, sleep=silence)

    assert silence.slept == 0
    lease.check()


def test_a_living_holder_on_this_machine_is_not_taken_for_dead() -> None:
    me = Holder.this_process()

    assert not me.is_dead()
    assert replace(me, started=me.started + 1).is_dead()
    assert not replace(me, started=me.started + 1, kernel="another").is_dead()
    assert not replace(me, started=me.started + 1, kernel="").is_dead()


def test_a_holder_that_cannot_be_seen_is_not_taken_for_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lobstertrap.lease._started", lambda pid: None)  # hidepid=2
    me = Holder.this_process()

    assert not replace(me, started=5).is_dead()
    assert replace(me, pid=2**22 - 1, started=5).is_dead()


def test_an_abandoned_lease_is_taken_over_after_its_silence_and_not_before(
    store: ObjectStore,
) -> None:
    first = take(store)
    silence = Silence()

    second = take(store, ttl=30, sleep=silence)

    assert silence.slept == pytest.approx(30)
    with pytest.raises(LeaseLost, match="no longer holds agent 'ada'"):
        first.check()
    second.check()


@pytest.mark.parametrize("turns", [0, 5, 9])
def test_a_holder_that_beats_during_the_watch_is_left_alone(
    store: ObjectStore, turns: int
) -> None:
    first, silence = take(store), Silence()
    silence._at_each = lambda: silence.slept > 3 * turns and first.renew()

    with pytest.raises(Refused, match=r"agent 'ada' is held: test by elsewhere"):
        take(store, ttl=30, sleep=silence)

    first.check()


def test_a_holder_that_ends_during_the_watch_is_followed_at_once(
    store: ObjectStore,
) -> None:
    first, silence = take(store), Silence()
    silence._at_each = first.release

    second = take(store, ttl=30, sleep=silence)

    assert silence.slept == pytest.approx(0.5)
    second.check()


def test_who_comes_too_late_for_an_abandoned_lease_is_refused(
    store: ObjectStore,
) -> None:
    take(store)
    winner: list[Lease] = []

    def somebody_is_faster() -> None:
        if len(winner) < 1 and silence.slept > 29:
            winner.append(take(store, ttl=1, sleep=Silence()))

    silence = Silence(somebody_is_faster)

    with pytest.raises(Refused):
        take(store, ttl=30, sleep=silence)
    winner[0].check()


@pytest.mark.parametrize("since", [0.0, 1e12, -5.0])
def test_a_clock_that_is_wrong_changes_nothing(
    store: ObjectStore, since: float
) -> None:
    first = take(store)
    first.update(
        lambda record: replace(record, operation=replace(record.operation, since=since))
    )

    with pytest.raises(Refused):
        take(store, ttl=30, sleep=Silence(first.renew))
    silence = Silence()
    take(store, ttl=30, sleep=silence)

    assert silence.slept == pytest.approx(30)


def test_a_lost_lease_changes_nothing_any_more(store: ObjectStore) -> None:
    first = take(store)
    second = take(store, sleep=Silence())
    before = store.get(KEY)

    for act in (
        first.renew,
        first.check,
        first.read,
        lambda: first.update(lambda record: replace(record, epoch=99)),
    ):
        with pytest.raises(LeaseLost):
            act()
    first.release()

    assert store.get(KEY) == before
    second.check()


def test_a_lease_lost_between_its_look_and_its_write_changes_nothing(
    store: ObjectStore,
) -> None:
    first = take(store)

    def overtaken(record: AgentRecord) -> AgentRecord:
        take(store, sleep=Silence())
        return replace(record, epoch=record.epoch + 1)

    with pytest.raises(LeaseLost):
        first.update(overtaken)
    assert read_record(store, "ada").epoch == 0


def test_two_that_share_an_operation_lose_none_of_their_changes(
    store: ObjectStore,
) -> None:
    first = take(store)
    same = Lease(store, "ada", first.operation_id)

    def raise_epoch(lease: Lease) -> None:
        for _ in range(20):
            lease.update(lambda record: replace(record, epoch=record.epoch + 1))

    threads = [
        threading.Thread(target=raise_epoch, args=(lease,))
        for lease in (first, same, same)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert read_record(store, "ada").epoch == 60


def test_the_epoch_never_shrinks(store: ObjectStore) -> None:
    lease = take(store)
    lease.update(lambda record: replace(record, epoch=7))

    with pytest.raises(Refused, match="only grows"):
        lease.update(lambda record: replace(record, epoch=6))
    assert read_record(store, "ada").epoch == 7


def test_release_keeps_the_record_and_each_holder_has_a_higher_turn(
    store: ObjectStore,
) -> None:
    for turn in (1, 2, 3):
        lease = take(store)
        lease.update(lambda record: replace(record, epoch=record.epoch + 1))
        lease.release()

        record = read_record(store, "ada")
        assert (record.turn, record.epoch, record.operation) == (turn, turn, None)


def test_a_block_that_fails_gives_the_agent_free(store: ObjectStore) -> None:
    with pytest.raises(ZeroDivisionError), hold(store, "ada", "test"):
        raise ZeroDivisionError

    assert read_record(store, "ada").operation is None


def test_a_record_that_vanished_is_a_lost_lease(store: ObjectStore) -> None:
    lease = take(store)
    store.delete(KEY)

    with pytest.raises(LeaseLost, match="gone"):
        lease.check()
    with pytest.raises(LeaseLost, match="gone"):
        lease.renew()
    assert read_record(store, "ada") is None


def test_a_record_reads_back_as_it_was_written() -> None:
    record = AgentRecord(
        agent="ada",
        epoch=3,
        turn=4,
        target="server",
        state="running",
        operation=Operation(id="o", kind="migrate", holder=ELSEWHERE, since=1.5),
        migration=Journal(
            id="m",
            source="laptop",
            destination="server",
            step="launching",
            was_running=True,
            started=1.0,
            launched=True,
            stopped_at=2.0,
            snapshot="s",
        ),
        snapshot="s",
        restoring="r",
    )

    assert AgentRecord.from_json(record.to_json()) == record


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b"\xff",
        b'{"version": 1}',
        b'{"version": 1, "agent": "ada", "operation": 5, "migration": null}',
        AgentRecord(agent="ada").to_json().replace(b"epoch", b"what"),
    ],
)
def test_a_record_that_is_garbage_is_an_error_that_says_so(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="the agent record cannot be read"):
        AgentRecord.from_json(data)


def test_a_record_of_a_newer_version_is_refused_and_left_alone(
    store: ObjectStore,
) -> None:
    newer = json.loads(AgentRecord(agent="ada").to_json())
    newer["version"], newer["something"] = 2, "new"
    store.put(KEY, json.dumps(newer).encode())
    before = store.get(KEY)

    with pytest.raises(InvalidInput, match="version 2"):
        take(store)
    with pytest.raises(InvalidInput, match="version 2"):
        read_record(store, "ada")
    assert store.get(KEY) == before


class Doubtful(MemoryStore):
    """Does every write, and then loses the answer `times` times."""

    def __init__(self, times: int = 0) -> None:
        super().__init__()
        self.times = times

    def put(self, *args: Any, **kwargs: Any) -> str:
        """Store."""
        etag = super().put(*args, **kwargs)
        if self.times:
            self.times -= 1
            raise Unavailable("the answer was lost")
        return etag


def test_a_write_whose_answer_was_lost_counts_as_done() -> None:
    doubtful = Doubtful()
    store = Retrying(doubtful, first_wait=0.001)

    doubtful.times = 1
    lease = take(store, sleep=Silence())
    doubtful.times = 1
    lease.update(lambda record: replace(record, epoch=record.epoch + 1))
    doubtful.times = 1
    lease.renew()
    assert read_record(store, "ada").epoch == 1
    doubtful.times = 1
    lease.release()

    assert read_record(store, "ada").turn == 1
    assert read_record(store, "ada").operation is None


class Impatient(MemoryStore):
    """A client that tries again by itself, and is told `Conflict` by its own write."""

    def put(self, *args: Any, **kwargs: Any) -> str:
        """Store."""
        super().put(*args, **kwargs)
        return super().put(*args, **kwargs)


def test_a_conflict_with_ones_own_write_is_not_a_rival() -> None:
    store, silence = Impatient(), Silence()

    lease = take(store, sleep=silence)

    assert silence.slept == 0
    lease.check()


def test_an_answer_lost_for_good_leaves_a_lease_that_lapses() -> None:
    store = Doubtful(times=1)

    with pytest.raises(Unavailable):
        take(store)
    silence = Silence()
    take(store, ttl=30, sleep=silence).check()

    assert silence.slept == pytest.approx(30)


def test_a_store_that_is_gone_at_the_end_does_not_make_the_work_a_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Doubtful()

    with hold(store, "ada", "test"):
        store.times = 1

    assert "left to lapse" in caplog.text


def test_a_holder_is_renewed_in_the_background_through_short_failures(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Doubtful()

    with hold(store, "ada", "test", ttl=0.3) as lease:
        store.times = 2
        deadline = time.monotonic() + 120
        while lease.read().operation.beat < 5 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert lease.read().operation.beat >= 5

    assert "could not renew" in caplog.text


def test_renewing_ends_quietly_when_the_lease_is_lost(
    store: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    before = threading.active_count()

    with suppress(NotFound), hold(store, "ada", "test", ttl=0.3, holder=ELSEWHERE):
        thief, deadline = None, time.monotonic() + 120
        while thief is None and time.monotonic() < deadline:
            with suppress(Held):  # it may be renewed while it is watched
                thief = acquire(store, "ada", "theft", ttl=0, holder=ELSEWHERE)
        while threading.active_count() > before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert threading.active_count() == before

    assert thief is not None
    thief.check()
    assert "no longer holds" in caplog.text
