"""The mover against a real S3 server, with everything switched on."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lobstertrap import job
from lobstertrap.errors import AccessDenied, LobsterTrapError
from lobstertrap.redaction import SecretValue
from lobstertrap.repository import Repository, restore
from lobstertrap.repository.check import check
from lobstertrap.stores import StoreSettings, open_store
from tests.fixtures.doomed import run_and_kill
from tests.fixtures.repositories import bring_back, contents, fill, reopened
from tests.fixtures.trees import OWNERS, describe, make_everything, new_repository

pytestmark = pytest.mark.s3

MOVER = [sys.executable, "-m", "lobstertrap.mover"]
KEY = "a-repository-key-nobody-knows"


def ask(
    settings: StoreSettings, command: str, root: Path, **more: Any
) -> dict[str, Any]:
    return {
        "version": 1,
        "command": command,
        "agent": "ada",
        "volumes": {"state": str(root)},
        "local_owner": [os.getuid(), os.getgid()],
        "owner": [1000, 1000],
        "store": settings.to_dict(),
        "key": KEY,
        "cache": False,
        "exclude": {},
        **more,
    }


def run(request: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        MOVER,
        input=json.dumps(request) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    for secret in (KEY, request["store"].get("secret_key") or KEY):
        assert secret not in done.stdout + done.stderr
    return job.read_events(done.stdout.splitlines(), lambda _: None)


def test_a_volume_travels_through_s3(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    make_everything(tmp_path / "in")
    chance = random.Random(3)  # noqa: S311 - test data
    (tmp_path / "in" / "big").write_bytes(chance.randbytes(40 << 20))

    first = run(ask(store_settings, "snapshot", tmp_path / "in"))
    with (tmp_path / "in" / "big").open("r+b") as file:
        file.seek(20 << 20)
        file.write(b"changed")
    second = run(ask(store_settings, "snapshot", tmp_path / "in"))
    back = run(ask(store_settings, "restore", tmp_path / "out", snapshot="latest"))

    assert describe(tmp_path / "out") == describe(tmp_path / "in")
    assert first["uploaded_bytes"] > 40 << 20
    assert second["uploaded_bytes"] < 1 << 20
    assert back["tree_digest"] == second["tree_digest"]
    repo = Repository.open(open_store(store_settings), SecretValue(KEY))
    assert [s.id for s in repo.snapshots("ada")] == [
        first["snapshot"],
        second["snapshot"],
    ]


def test_killed_anywhere_and_run_again(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    make_everything(root)
    chance = random.Random(4)  # noqa: S311 - test data
    for number in range(4):
        (root / f"big{number}").write_bytes(chance.randbytes(10 << 20))
    snapshot = ""
    for request in ("snapshot", "restore"):
        more = {"snapshot": snapshot} if snapshot else {}
        body = json.dumps(ask(store_settings, request, root if not snapshot else out))
        body = json.dumps(json.loads(body) | more) + "\n"
        for _ in range(4):
            with subprocess.Popen(
                MOVER, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
            ) as process:
                assert process.stdin is not None
                process.stdin.write(body)
                process.stdin.flush()
                time.sleep(chance.uniform(0.6, 2.0))
                process.kill()
        snapshot = run(json.loads(body))["snapshot"]

    assert describe(out) == describe(root)
    repo = Repository.open(open_store(store_settings), SecretValue(KEY))
    for found in repo.snapshots():
        whole = tmp_path / found.id
        restore(repo, found, roots={"state": whole}, owners=OWNERS)


@pytest.mark.parametrize(
    "rounds",
    [
        pytest.param(12, id="some rounds"),
        pytest.param(200, marks=pytest.mark.long, id="200 rounds"),
    ],
)
def test_sigkill_at_random_moments_loses_nothing(
    store_settings: StoreSettings, tmp_path: Path, rounds: int
) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    chance = random.Random(rounds)  # noqa: S311 - a test
    store = open_store(store_settings)
    repo = new_repository(store)
    known: dict[str, dict[str, bytes]] = {}
    longest = dict.fromkeys(("snapshot", "restore", "prune"), 0.2)
    killed = dict.fromkeys(longest, 0)

    for number in range(rounds):
        what = ("snapshot", "restore", "snapshot", "prune")[number % 4]
        if what == "snapshot":
            names = chance.sample("abcdefghijkl", 5)
            fill(root, dict.fromkeys(names, 400_000), seed=number)
        job = (what, store_settings.to_dict(), repo.keys.master)
        after = chance.uniform(0, longest[what])
        early = number > 0 and run_and_kill(
            after, *job, out if what == "restore" else root
        )
        if number == 0:
            run_and_kill(None, *job, root)
        # About half of them shall be killed.
        longest[what] = min(20.0, longest[what] * (0.6 if not early else 1.4))
        killed[what] += early
        known |= {
            taken.id: contents(root)
            for taken in repo.snapshots()
            if taken.id not in known
        }
        for old in repo.snapshots()[:-3]:
            repo.delete_snapshot(old)
            del known[old.id]
        assert check(reopened(store)).ok

    run_and_kill(None, "prune", *job[1:], root)
    run_and_kill(None, "restore", *job[1:], out)
    assert contents(out) == known[repo.find("latest").id]
    assert check(reopened(store), sample=100).ok
    for number, (taken, files) in enumerate(known.items()):
        bring_back(repo, repo.find(taken), tmp_path / f"{number}")
        assert contents(tmp_path / f"{number}") == files
    print(f"killed {killed} of {rounds} rounds")  # noqa: T201 - with -s
    assert sum(killed.values()) >= rounds // 8


def test_wrong_credentials_are_one_clear_error(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    request = ask(store_settings, "snapshot", tmp_path / "in")
    request["store"]["secret_key"] = "not-the-secret-key"

    with pytest.raises(LobsterTrapError) as refused:
        run(request)

    assert isinstance(refused.value, AccessDenied)
