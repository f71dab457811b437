"""`lobstertrap demo`: an agent moves there and back, and nothing is lost on the way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lobstertrap import lifecycle
from lobstertrap.cli.checkout import find_checkout
from lobstertrap.cli.demo_cluster import Wanted
from lobstertrap.cli.demo_runs import run_deployment
from lobstertrap.cli.demo_stage import AGENT, DESTINATION, SOURCE, TOKEN, Kinds, Stage
from lobstertrap.cli.demo_watch import Talker, Tally, Watcher
from lobstertrap.errors import IntegrityError, LobsterTrapError

MEGABYTES = 20


@dataclass(slots=True, kw_only=True)
class Report:
    """What the demo measured and proved."""

    kinds: list[str] = field(default_factory=list)
    messages_before: int = 0
    messages_after: int = 0
    receipts: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    proofs: dict[str, bool] = field(default_factory=dict)
    left_behind: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        return {
            "ok": bool(self.proofs) and all(self.proofs.values()),
            "source": SOURCE,
            "destination": DESTINATION,
            "kinds": self.kinds,
            "messages_before": self.messages_before,
            "messages_after": self.messages_after,
            "digest_equal": self.proofs.get("tree digests equal", False),
            "downtime_seconds": max(self._of("downtime_seconds"), default=0.0),
            "bytes_uploaded": sum(self._of("bytes_uploaded")),
            "bytes_restored": sum(self._of("bytes_restored")),
            "seconds": self.seconds,
            "proofs": self.proofs,
            "left_behind": self.left_behind,
            "tree_digests": self._of("tree_digest"),
        }

    def _of(self, name: str) -> list[Any]:
        return [receipt[name] for receipt in self.receipts]


def demo(
    *,
    as_json: bool = False,
    keep: bool | None = None,
    targets: Kinds = "auto",
    directory: Path | None = None,
    cluster: Wanted | None = None,
) -> None:
    """Launch tally, talk to it, move it there and back, and prove what is promised.

    With a `cluster` the destination is a namespace there.

    With `keep` Prefect's UI stays until Enter or Ctrl-C; on a terminal it does so by
    itself. Raises `IntegrityError` when something could not be proved.
    """
    report = Report()
    if keep is None:
        keep = sys.stdout.isatty() and sys.stdin.isatty()
    place = directory or find_checkout() / ".demo"
    with Stage(place, targets, cluster) as stage:
        try:
            perform(stage, report)
        except LobsterTrapError as error:
            if keep:
                _say(f"failed: {error.message}\nPrefect's UI: {stage.server.url}/runs")
                _wait_for_enter()
            raise
        if keep:
            _wait_for_enter()
    if as_json:
        _say(json.dumps(report.to_dict()))
    if not report.to_dict()["ok"]:
        failed = [what for what, shown in report.proofs.items() if not shown]
        raise IntegrityError(f"the demo could not prove: {', '.join(failed)}")


def perform(stage: Stage, report: Report) -> None:
    """Play on the stage, prove, tell; then only Prefect's server is left."""
    with _cleaned(stage):
        _play(stage, report)
    report.left_behind = stage.close_all_but_the_ui()
    report.proofs["nothing left behind"] = not report.left_behind
    report.seconds = round(time.monotonic() - stage.began, 1)
    _summarise(report, stage)


def _play(stage: Stage, report: Report) -> None:
    _introduce(stage, report)
    with _timed("1. launch tally on laptop"):
        launched = run_deployment("launch-agent/default", agent=AGENT, on=SOURCE)
    tally = _at(next(iter(launched["addresses"].values())))
    with _timed(f"2. talk to it, and let its state grow to {MEGABYTES} MB"):
        for text in ("hello", "remember the lobsters", "see you on the other side"):
            reply = tally.say(text)["reply"]
        tally.grow(MEGABYTES)
    _say(f"     it says: {reply}")
    before = tally.transcript()
    report.messages_before = before.count(b"\n")
    with Watcher(stage.config, AGENT) as watcher:
        watcher.once()
        with Talker(watcher, os.environ[TOKEN]) as talker:
            _move(
                report,
                DESTINATION,
                "3. migrate laptop -> server, while it is talked to",
            )
            _move(report, SOURCE, "4. and back, server -> laptop")
        watcher.once()
        tally = _at(watcher.address)
        _prove(report, before, tally, talker, watcher)


def _move(report: Report, to: str, title: str) -> None:
    with _timed(title):
        receipt = run_deployment(
            "migrate-agent/default", agent=AGENT, to=to, on_step=_say_step
        )
    report.receipts.append(receipt)
    _say(
        f"     down for {receipt['downtime_seconds']:.1f} s; "
        f"{receipt['files']} files, {_mb(receipt['bytes'])}; "
        f"to S3 {_mb(receipt['bytes_uploaded'])}, "
        f"written at the destination {_mb(receipt['bytes_restored'])}"
    )


def _prove(
    report: Report, before: bytes, tally: Tally, talker: Talker, watcher: Watcher
) -> None:
    so_far = tally.transcript()
    entries = [json.loads(line) for line in so_far.splitlines()]
    texts = {entry["text"] for entry in entries}
    epochs = [entry["epoch"] for entry in entries]
    next_one = tally.say("and now the next message")
    report.messages_after = next_one["sequence"]
    receipts = report.receipts
    report.proofs |= {
        "same transcript": so_far.startswith(before),
        "no acknowledged message lost": texts.issuperset(talker.acknowledged),
        "numbered without a gap": [e["sequence"] for e in entries]
        == list(range(1, len(entries) + 1)),
        "next message continues": next_one["sequence"] == len(entries) + 1,
        "tree digests equal": all(r["digest_equal"] for r in receipts),
        "epochs never interleave": epochs == sorted(epochs),
        "never two running": watcher.asked > 0 and not watcher.twice,
    }
    _say(
        f"5. somebody said {len(talker.acknowledged)} things meanwhile, and waited "
        f"{talker.longest_silence:.1f} s at most; both targets were asked "
        f"{watcher.asked} times"
    )


@contextmanager
def _cleaned(stage: Stage) -> Iterator[None]:
    """Stop and remove the agent on both targets, however the block ends."""
    try:
        yield
    finally:
        with _uninterrupted(), contextlib.suppress(LobsterTrapError):
            config = stage.config
            with config.hold(AGENT, "demo's end", repository=False) as handle:
                for name in (SOURCE, DESTINATION):
                    lifecycle.prove_stopped(handle, name)
                    handle.target(name).remove(handle.spec, volumes=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let nobody end the cleaning up half-way with another Ctrl-C."""
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _introduce(stage: Stage, report: Report) -> None:
    config = stage.config
    found = [config.target(name).inspect() for name in (SOURCE, DESTINATION)]
    report.kinds = [info.kind for info in found]
    if stage.note:
        _say(f"Podman cannot be used here, so both targets are host ones: {stage.note}")
    for info in found:
        _say(f"  {info.name:8} {info.kind} {info.version}, {info.platform}")
    _say(f"  store    {config.open_store().url}, encrypted before it gets there")
    _say(f"  Prefect  {stage.server.url}")


def _summarise(report: Report, stage: Stage) -> None:
    for what, shown in report.proofs.items():
        _say(f"  {'proved' if shown else 'NOT SO'}  {what}")
    for what in report.left_behind:
        _say(f"          left: {what}")
    _say(
        f"{report.messages_after} messages, there and back in {report.seconds:.0f} s; "
        f"Prefect's UI: {stage.server.url}/runs"
    )


def _wait_for_enter() -> None:
    _say("Look at it; Enter (or Ctrl-C) ends it.")
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        sys.stdin.readline()


@contextmanager
def _timed(title: str) -> Iterator[None]:
    _say(title)
    began = time.monotonic()
    yield
    _say(f"     {time.monotonic() - began:.1f} s")


def _at(address: str) -> Tally:
    return Tally(address=address, token=os.environ[TOKEN])


def _say_step(name: str, seconds: float) -> None:
    _say(f"     - {name} ({seconds:.1f} s)")


def _mb(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - this is the command line
