"""Step: find out whether every snapshot can be restored."""

from __future__ import annotations

from typing import Any

from lobstertrap.repository.check import check
from tasks.live_progress import live_progress, reporting
from tasks.step import load_config, log, step
from tasks.words import megabytes


@step(task_run_name="check the repository")
def check_repository(sample_percent: float) -> dict[str, Any]:
    """Return what was looked at, and every problem; nothing is changed."""
    with live_progress("check"):
        report = check(
            load_config().open_repository(),
            sample=sample_percent,
            on_progress=reporting("check"),
        )
    damaged = [verdict for verdict in report.snapshots if not verdict.ok]
    problems = [
        *report.problems,
        *(f"{v.agent}: snapshot {v.id[:8]}: {v.lost} files lost" for v in damaged),
    ]
    for problem in problems:
        log.error("%s", problem)
    log.info(
        "%d snapshots, %s of data read: %s",
        len(report.snapshots),
        megabytes(report.bytes_read),
        "good" if report.ok else "damaged",
    )
    return {
        "ok": report.ok,
        "snapshots": len(report.snapshots),
        "packs": report.packs,
        "packs_read": report.packs_read,
        "bytes_read": report.bytes_read,
        "problems": problems,
    }
