"""Step: free the space that no snapshot needs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lobstertrap.errors import IntegrityError
from lobstertrap.repository.prune import prune
from tasks.live_progress import live_progress, reporting
from tasks.step import load_config, log, step
from tasks.words import megabytes


@step(task_run_name="prune the repository")
def prune_repository(grace_hours: int) -> dict[str, Any]:
    """Return what was condemned, and what was deleted of what had been before.

    Nothing is touched when something that a snapshot needs is lost: the check, which
    comes next, says what.
    """
    repository = load_config().open_repository()
    try:
        with live_progress("prune"):
            done = prune(
                repository,
                grace=grace_hours * 3600.0,
                on_progress=reporting("prune"),
            )
    except IntegrityError as error:
        log.error("nothing is pruned: %s", error)
        return {"deleted_bytes": 0, "condemned_bytes": 0, "waiting_bytes": 0}
    log.info(
        "%s freed; %s more in %d hours",
        megabytes(done.deleted_bytes),
        megabytes(done.condemned_bytes + done.waiting_bytes),
        grace_hours,
    )
    return asdict(done)
