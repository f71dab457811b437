"""The repository's upkeep: `check`, `repair`, `forget`, `prune` and `copy`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lobstertrap.cli import complete
from lobstertrap.cli.output import AsJson, print_json, print_result, print_table
from lobstertrap.cli.running import load_config
from lobstertrap.cli.text import age, printable

if TYPE_CHECKING:
    from lobstertrap.config import Config
    from lobstertrap.job import Progress
    from lobstertrap.repository import Repository
    from lobstertrap.repository.check import CheckReport, SnapshotVerdict
    from lobstertrap.repository.retention import Decision
    from lobstertrap.stores.base import ObjectStore

_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}
_SHOWN_FILES = 20

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only show what would be done.")
]
Count = Annotated[int, typer.Option(min=0, metavar="N", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add this module's commands to the program."""
    for command in (check, repair, forget, prune, copy):
        app.command()(command)


def check(
    read_data: Annotated[
        bool, typer.Option("--read-data", help="Read and verify every pack.")
    ] = False,
    sample: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=100,
            metavar="PERCENT",
            help="Read and verify this part of the packs, chosen by chance.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that every snapshot can be restored; name the files that cannot.

    Without options it reads all metadata and no data. It changes nothing. The exit code
    is 1 when something is damaged. Example: lobstertrap check --sample 5
    """
    from lobstertrap.repository.check import check as examine  # noqa: PLC0415

    percent = 100.0 if read_data else sample or 0.0
    with _progress("check") as on_progress:
        repository = load_config().open_repository()
        report = examine(repository, sample=percent, on_progress=on_progress)
    if as_json:
        snapshots = [
            asdict(verdict) | {"ok": verdict.ok} for verdict in report.snapshots
        ]
        print_json(asdict(report) | {"ok": report.ok, "snapshots": snapshots})
    else:
        _print_report(report)
    if not report.ok:
        raise typer.Exit(1)


def repair(
    read_data: Annotated[
        bool,
        typer.Option("--read-data", help="Read every pack, to find damaged data too."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Rebuild the index, and drop from snapshots what is lost.

    Each damaged snapshot is replaced by one without the lost files, which names them.
    Run `lobstertrap check` first. Example: lobstertrap repair --read-data
    """
    from lobstertrap.repository.repair import repair as mend  # noqa: PLC0415

    with _progress("repair") as on_progress:
        repository = load_config().open_repository()
        report = mend(repository, read_data=read_data, on_progress=on_progress)
    if as_json:
        print_json(asdict(report))
        return
    for problem in report.problems:
        typer.echo(printable(problem))
    for mended in report.snapshots:
        _print_verdict(mended.verdict)
        by = mended.replaced_by[:8] if mended.replaced_by else "nothing: all was lost"
        typer.echo(f"  replaced by {by}")
    counts = {"packs": report.packs, "replaced snapshots": len(report.snapshots)}
    print_result(counts, as_json=False)


def forget(
    agent: Annotated[
        str,
        typer.Argument(
            metavar="AGENT", autocompletion=complete.agents, help="Whose snapshots."
        ),
    ],
    *,
    keep_last: Count = 0,
    keep_hourly: Count = 0,
    keep_daily: Count = 0,
    keep_weekly: Count = 0,
    keep_monthly: Count = 0,
    keep_yearly: Count = 0,
    keep_within: Annotated[
        str,
        typer.Option(metavar="TIME", help="Such as 12h, 30d, 8w.", show_default=False),
    ] = "",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Drop an agent's snapshots that no rule keeps; `prune` frees the space.

    The newest snapshot, the last complete one and those in use always stay.
    Example: lobstertrap forget tally --keep-daily 7 --keep-weekly 4 --dry-run
    """
    from lobstertrap.repository import forget as forgetting  # noqa: PLC0415
    from lobstertrap.repository.retention import RetentionPolicy  # noqa: PLC0415

    policy = RetentionPolicy(
        last=keep_last,
        hourly=keep_hourly,
        daily=keep_daily,
        weekly=keep_weekly,
        monthly=keep_monthly,
        yearly=keep_yearly,
        within=seconds(keep_within) if keep_within else 0.0,
    )
    run = forgetting.plan_forget if dry_run else forgetting.forget
    now = time.time()
    decisions = run(_open(load_config()), agent, policy, now=now)
    if as_json:
        rows = [_as_object(decision) for decision in decisions]
        print_json({"agent": agent, "dry_run": dry_run, "snapshots": rows})
        return
    verb = "would be forgotten" if dry_run else "forgotten"
    print_table(
        ["snapshot", "taken", "kept because"],
        [
            [
                decision.snapshot.short_id,
                age(decision.snapshot.created_at, now),
                ", ".join(decision.reasons) or verb,
            ]
            for decision in decisions
        ],
    )


def prune(
    grace: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="From condemning to deleting, such as 12h, 2d."
        ),
    ] = "1d",
    repack: Annotated[
        bool, typer.Option(help="Rewrite packs that are mostly waste.")
    ] = True,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Free the space that no snapshot needs, beside any work that goes on.

    What is found is deleted by a later run, when the grace is over: run it daily.
    Example: lobstertrap prune --dry-run
    """
    from lobstertrap.repository.prune import prune as clean  # noqa: PLC0415

    with _progress("prune") as on_progress:
        result = clean(
            _open(load_config()),
            grace=seconds(grace),
            repack=repack,
            dry_run=dry_run,
            on_progress=on_progress,
        )
    print_result({"dry_run": dry_run, **asdict(result)}, as_json=as_json)


def copy(
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="STORE_URL", help="s3://bucket/prefix or file:///path."
        ),
    ],
    agent: Annotated[
        str | None,
        typer.Option(
            help="Only this agent's snapshots.",
            metavar="AGENT",
            autocompletion=complete.agents,
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Another S3 server than the store's."),
    ] = None,
    region: Annotated[
        str | None, typer.Option(metavar="REGION", help="Its region.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring all snapshots into another store; only what is missing is sent.

    The same key opens the copy. With --endpoint or --region the credentials are those
    that boto3 finds, otherwise the configured store's.
    Example: lobstertrap copy --to s3://second-bucket/agents
    """
    from lobstertrap.repository.copy import copy as bring  # noqa: PLC0415

    config = load_config()
    destination = _destination(config, to, endpoint, region)
    with _progress("copy") as on_progress:
        result = bring(_open(config), destination, agent=agent, on_progress=on_progress)
    print_result({"to": destination.url, **asdict(result)}, as_json=as_json)


def seconds(text: str) -> float:
    """Return a time such as `90m`, `12h`, `30d`, `8w` or `1y` in seconds."""
    from lobstertrap.errors import InvalidInput  # noqa: PLC0415 - not for --help

    match = re.fullmatch(r"([1-9][0-9]{0,5})([mhdwy])", text)
    if match is None:
        raise InvalidInput(
            f"not a time: '{text}'", hint="write a number and m, h, d, w or y: 12h"
        )
    return float(int(match[1]) * _UNITS[match[2]])


def _open(config: Config) -> Repository:
    from lobstertrap.repository.cache import user_cache  # noqa: PLC0415 - not for --help

    repository = config.open_repository()
    repository.use_cache(user_cache())
    return repository


def _destination(
    config: Config, to: str, endpoint: str | None, region: str | None
) -> ObjectStore:
    from lobstertrap.stores import StoreSettings, open_store  # noqa: PLC0415

    settings = StoreSettings(url=to, endpoint=endpoint, region=region)
    own = not (endpoint or region)
    if own and to.startswith("s3:") and config.file.store.url.startswith("s3:"):
        settings = replace(config.store_settings(), url=to)
    return open_store(settings)


@contextmanager
def _progress(label: str) -> Iterator[Callable[[Progress], None]]:
    from lobstertrap import progress  # noqa: PLC0415 - not for --help
    from lobstertrap.cli import watch  # noqa: PLC0415

    with watch.shown():
        yield partial(progress.report, label)


def _print_report(report: CheckReport) -> None:
    for problem in report.problems:
        typer.echo(printable(problem))
    for verdict in report.snapshots:
        if not verdict.ok:
            _print_verdict(verdict)
    for note in report.notes:
        typer.echo(printable(f"note: {note}"))
    damaged = sum(not verdict.ok for verdict in report.snapshots)
    result = {
        "snapshots": len(report.snapshots),
        "damaged snapshots": damaged or None,
        "packs": report.packs,
        "packs read": report.packs_read,
        "bytes_read": report.bytes_read,
        "verdict": "good" if report.ok else "damaged: see `lobstertrap repair --help`",
    }
    print_result(result, as_json=False)


def _print_verdict(verdict: SnapshotVerdict) -> None:
    typer.echo(printable(f"snapshot {verdict.id[:8]} of {verdict.agent}:"))
    lines = [f"lost: {path}" for path in verdict.lost_files[:_SHOWN_FILES]]
    if verdict.lost > _SHOWN_FILES:
        lines.append(f"and {verdict.lost - _SHOWN_FILES} more files (--json has them)")
    for line in (*verdict.problems, *lines):
        typer.echo(printable(f"  {line}"))


def _as_object(decision: Decision) -> dict[str, Any]:
    return {
        "id": decision.snapshot.id,
        "created_at": decision.snapshot.created_at,
        "kept": decision.kept,
        "reasons": decision.reasons,
    }
