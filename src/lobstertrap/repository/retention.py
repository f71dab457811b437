"""Retention: which snapshots of one agent are kept, and why; a pure function."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, fields
from datetime import UTC, datetime

from lobstertrap.errors import InvalidInput
from lobstertrap.repository.snapshot import PRE_COPY, Snapshot

_Bucket = Callable[[datetime], tuple[int, ...]]
_BUCKETS: tuple[tuple[str, _Bucket], ...] = (
    ("hourly", lambda t: (t.year, t.month, t.day, t.hour)),
    ("daily", lambda t: (t.year, t.month, t.day)),
    ("weekly", lambda t: (*t.isocalendar()[:2],)),
    ("monthly", lambda t: (t.year, t.month)),
    ("yearly", lambda t: (t.year,)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPolicy:
    """How many snapshots of an agent to keep; a snapshot that any rule keeps stays.

    `hourly` to `yearly` keep the last snapshot of each of that many of the most recent
    hours, days, ISO weeks, months, years (UTC) that have one.
    """

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within: float = 0.0
    """Everything younger than this many seconds."""

    def __post_init__(self) -> None:
        """Refuse a policy that says nothing, or nonsense."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        wrong = sorted(name for name, value in values.items() if not value >= 0)
        if wrong:
            raise InvalidInput(f"a retention policy counts from 0: {', '.join(wrong)}")
        if not any(values.values()):
            raise InvalidInput(
                "the retention policy keeps nothing",
                hint="give at least one rule, such as --keep-daily 7",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What happens to one snapshot; without a reason it is forgotten."""

    snapshot: Snapshot
    reasons: tuple[str, ...]

    @property
    def kept(self) -> bool:
        """Whether the snapshot stays."""
        return bool(self.reasons)


def decide(
    snapshots: Iterable[Snapshot],
    policy: RetentionPolicy,
    now: float,
    *,
    in_use: Collection[str] = (),
) -> list[Decision]:
    """Return a decision for each of one agent's snapshots, oldest first.

    The newest snapshot and the newest that is complete without a warning always stay,
    and so do those `in_use` (ids). Pre-copies count for nothing once there is a later
    snapshot.
    """
    ordered = sorted(snapshots, key=_age_order, reverse=True)
    if len({snapshot.agent for snapshot in ordered}) > 1:
        raise InvalidInput("a retention policy is applied to one agent at a time")
    reasons: dict[str, list[str]] = {snapshot.id: [] for snapshot in ordered}
    if ordered:
        reasons[ordered[0].id].append("newest")
    for snapshot in ordered:
        if snapshot.status == "complete":
            reasons[snapshot.id].append("last complete")
            break
    for snapshot in ordered:
        if snapshot.id in in_use:
            reasons[snapshot.id].append("in use")
    for snapshot, reason in _by_rules(ordered, policy, now):
        reasons[snapshot.id].append(reason)
    return [
        Decision(snapshot=snapshot, reasons=tuple(reasons[snapshot.id]))
        for snapshot in reversed(ordered)
    ]


def _by_rules(
    newest_first: list[Snapshot], policy: RetentionPolicy, now: float
) -> Iterable[tuple[Snapshot, str]]:
    counted = [
        snapshot
        for place, snapshot in enumerate(newest_first)
        if place == 0 or snapshot.tags.get("purpose") != PRE_COPY
    ]
    for number, snapshot in enumerate(counted[: policy.last], 1):
        yield snapshot, f"last {number}"
    if policy.within:
        for snapshot in counted:
            if snapshot.created_at >= now - policy.within:
                yield snapshot, "within"
    for name, bucket in _BUCKETS:
        yield from _by_bucket(counted, name, bucket, getattr(policy, name))


def _by_bucket(
    newest_first: list[Snapshot], name: str, bucket: _Bucket, count: int
) -> Iterable[tuple[Snapshot, str]]:
    seen: set[tuple[int, ...]] = set()
    for snapshot in newest_first:
        if len(seen) >= count:
            return
        here = bucket(datetime.fromtimestamp(snapshot.created_at, tz=UTC))
        if here not in seen:
            seen.add(here)
            yield snapshot, f"{name} {len(seen)}"


def _age_order(snapshot: Snapshot) -> tuple[float, str]:
    return (snapshot.created_at, snapshot.id)
