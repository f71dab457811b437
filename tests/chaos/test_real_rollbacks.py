"""A real tally comes back from a destination that was no good, and nothing is lost.

The destination runs, and is talked to, before it is given up: what it acknowledged is
in a snapshot of its own, and what the source had acknowledged is where it was.
"""

from __future__ import annotations

import json

import pytest

from lobstertrap.repository import Repository, Snapshot
from lobstertrap.repository.browse import Tree
from tests.chaos.conftest import Place, wait_for_messages
from tests.fixtures.tally import AGENT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROGRAM, SPEC = "tally.py", "agent.yaml"
READY = 'elif self.path == "/readyz":\n'
ILL_ON_SERVER = (
    """\
elif self.path == "/readyz" and "/server/tally/" in os.environ["TALLY_STATE"]:
            self.answer(HTTPStatus.SERVICE_UNAVAILABLE, {"ready": False})
        """
    + READY
)
VERIFY = """
verify:
  commands:
    - - sh
      - -c
      - >-
        until grep -q '"epoch": 2' "$TALLY_STATE/transcript.jsonl"; do sleep 0.05; done;
        echo it is not as it was; exit 3
"""
"""Fails when somebody has talked to the destination, whose epoch is 2."""


def never_ready(place: Place) -> None:
    """Let tally answer on `server`, but never say there that it is ready."""
    change(place, PROGRAM, READY, ILL_ON_SERVER)
    change(place, SPEC, "start: 30s", "start: 5s")


def not_verified(place: Place) -> None:
    """Let what the spec verifies be false."""
    change(place, SPEC, "stop_timeout:", VERIFY.lstrip() + "stop_timeout:")


def change(place: Place, file: str, old: str, new: str) -> None:
    """Change what is installed of tally."""
    path = place.directory / "agents" / "tally" / file
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")


def mend(place: Place) -> None:
    """Make tally as it was."""
    for file in (PROGRAM, SPEC):
        there = place.directory / "agents" / "tally" / file
        there.write_bytes((AGENT / file).read_bytes())


@pytest.mark.parametrize(
    ("spoil", "told", "is_talked_to"),
    [
        (never_ready, "on 'server': not ready after 5 s", False),
        (not_verified, "sh ended with status 3: it is not as it was", True),
    ],
)
def test_a_destination_that_is_no_good_is_left_with_every_message(
    place: Place, spoil, told: str, is_talked_to: bool
) -> None:
    spoil(place)
    wait_for_messages(place.talker)

    failed = place.driver.migrate("server")

    assert failed.status != 0
    assert told in place.driver.errors()
    wait_for_messages(place.talker)
    assert place.record.moves[-1].outcome == "rolled-back"
    given_up = [said for said in place.talker.acknowledged if said[1] == 2]
    assert given_up or not is_talked_to
    assert_kept(place, given_up)
    place.talker.forget(2)
    place.assert_sound("laptop")
    assert {2} & epochs(place, "server") or not given_up, "nothing to be overwritten"

    mend(place)
    moved = place.driver.migrate("server")

    assert moved.status == 0, place.driver.errors()
    wait_for_messages(place.talker)
    place.assert_sound("server")
    assert epochs(place, "server") == {1, 3, 4}  # not what was given up


def assert_kept(place: Place, given_up: list[tuple[str, int, int]]) -> None:
    """Check that the one snapshot of the rollback has all that was acknowledged."""
    repository = place.talker.loaded.open_repository()
    kept = [it for it in snapshots(repository) if it.tags["purpose"] == "rolled-back"]
    assert len(kept) == 1
    assert place.record.snapshot != kept[0].id
    said = transcript(
        b"".join(Tree(repository, kept[0]).cat(b"state/transcript.jsonl"))
    )
    assert set(given_up) <= set(said)


def snapshots(repository: Repository) -> list[Snapshot]:
    """Return all of tally's."""
    return [repository.read_snapshot(n) for n in repository.snapshot_names("tally")]


def transcript(lines: bytes) -> list[tuple[str, int, int]]:
    """Return text, epoch and sequence number of every message."""
    entries = map(json.loads, lines.splitlines())
    return [(it["text"], it["epoch"], it["sequence"]) for it in entries]


def epochs(place: Place, target: str) -> set[int]:
    """Return under which epochs the state on a target was written."""
    lines = (place.state(target) / "transcript.jsonl").read_bytes()
    return {epoch for _, epoch, _ in transcript(lines)}
