"""Forget: the snapshots that a policy does not keep are dropped; prune frees space."""

from __future__ import annotations

from collections.abc import Callable

from lobstertrap.lease import (
    AgentRecord,
    Holder,
    Lease,
    hold,
    read_record,
)
from lobstertrap.repository.repository import Repository
from lobstertrap.repository.retention import Decision, RetentionPolicy, decide
from lobstertrap.stores import require_conditional_writes


def plan_forget(
    repo: Repository, agent: str, policy: RetentionPolicy, *, now: float
) -> list[Decision]:
    """Return what `forget` would do, oldest snapshot first; changes nothing."""
    found = repo.snapshots(agent)
    record = read_record(repo.store, agent)  # after the list: it names what was taken
    return decide(found, policy, now, in_use=snapshots_in_use(record))


def forget(
    repo: Repository,
    agent: str,
    policy: RetentionPolicy,
    *,
    now: float,
    lease: Lease | None = None,
    holder: Holder | None = None,
) -> list[Decision]:
    """Drop the agent's snapshots that `policy` does not keep, and say which and why.

    It holds the agent, so that no restore or migration begins on a snapshot that is
    being dropped: under `lease` when an operation has it already, else under one of its
    own (`Refused` when another operation is at work).
    """
    if lease is not None:
        return _forget(repo, agent, policy, now, lease.check)
    plan = plan_forget(repo, agent, policy, now=now)
    if all(decision.kept for decision in plan):
        return plan
    require_conditional_writes(repo.store)
    with hold(repo.store, agent, "forget", holder=holder) as held:
        return _forget(repo, agent, policy, now, held.check)


def snapshots_in_use(record: AgentRecord | None) -> frozenset[str]:
    """Return the ids that an agent's record names: its last one, a restore's, a move's.

    Ids are matched whole, as the record has them.
    """
    if record is None:
        return frozenset()
    named = [record.snapshot, record.restoring]
    if record.migration is not None:
        named.append(record.migration.snapshot)
    return frozenset(name for name in named if name)


def _forget(
    repo: Repository,
    agent: str,
    policy: RetentionPolicy,
    now: float,
    check: Callable[[], None],
) -> list[Decision]:
    plan = plan_forget(repo, agent, policy, now=now)
    for decision in plan:
        if decision.kept:
            continue
        check()
        repo.delete_snapshot(decision.snapshot)
    return plan
