"""Step: drop the snapshots that no rule keeps."""

from __future__ import annotations

import time
from typing import Any

from lobstertrap.errors import Held
from lobstertrap.repository.forget import forget
from lobstertrap.repository.retention import RetentionPolicy
from tasks.step import load_config, log, step


@step(task_run_name="forget what no rule keeps")
def forget_snapshots(rules: dict[str, int]) -> list[dict[str, Any]]:
    """Return for each agent how many were kept and dropped; held ones are skipped."""
    repository, policy = load_config().open_repository(), RetentionPolicy(**rules)
    agents = sorted({snapshot.agent for snapshot in repository.snapshots()})
    rows = []
    for agent in agents:
        try:
            decisions = forget(repository, agent, policy, now=time.time())
        except Held as error:  # its turn comes next week
            log.info("nothing of '%s' is forgotten: %s", agent, error)
            continue
        kept = sum(decision.kept for decision in decisions)
        dropped = len(decisions) - kept
        rows.append({"agent": agent, "kept": kept, "forgotten": dropped})
        log.info("%s: %d snapshots kept, %d forgotten", agent, kept, dropped)
    return rows
