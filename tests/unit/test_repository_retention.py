"""Which snapshots a policy keeps, and why."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as some

from lobstertrap.errors import InvalidInput
from lobstertrap.repository.retention import RetentionPolicy, decide
from tests.fixtures.repositories import DAY, made_up, repository

HOUR = 3600.0
NOON = datetime(2026, 3, 10, 12, tzinfo=UTC).timestamp()


def kept(decisions) -> list[float]:
    return [d.snapshot.created_at for d in decisions if d.kept]


def reasons(decisions) -> dict[float, tuple[str, ...]]:
    return {d.snapshot.created_at: d.reasons for d in decisions}


def test_the_last_ones_are_kept() -> None:
    snapshots = [made_up(NOON + n) for n in range(5)]

    decisions = decide(snapshots, RetentionPolicy(last=2), NOON)

    assert kept(decisions) == [NOON + 3, NOON + 4]
    assert reasons(decisions)[NOON + 3] == ("last 2",)


def test_of_every_hour_the_last_snapshot_counts() -> None:
    at = [NOON, NOON + 10, NOON + HOUR, NOON + HOUR + 10, NOON + 2 * HOUR]

    decisions = decide(map(made_up, at), RetentionPolicy(hourly=2), NOON)

    assert kept(decisions) == [NOON + HOUR + 10, NOON + 2 * HOUR]


@pytest.mark.parametrize(
    ("rule", "days"),
    [("daily", 1), ("weekly", 7), ("monthly", 31), ("yearly", 366)],
)
def test_one_of_each_period_is_kept(rule: str, days: int) -> None:
    at = [NOON + n * days * DAY for n in range(6)]

    decisions = decide(map(made_up, at), RetentionPolicy(**{rule: 4}), NOON)

    assert kept(decisions) == at[2:]
    assert reasons(decisions)[at[2]] == (f"{rule} 4",)


def test_periods_without_a_snapshot_do_not_count() -> None:
    at = [NOON, NOON + 100 * DAY]

    assert kept(decide(map(made_up, at), RetentionPolicy(daily=2), NOON)) == at


def test_a_week_at_the_turn_of_the_year_is_one_week() -> None:
    at = [datetime(2025, 12, 30, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)]
    moments = [moment.timestamp() for moment in at]

    decisions = decide(map(made_up, moments), RetentionPolicy(weekly=5), NOON)

    assert kept(decisions) == moments[1:]


def test_what_is_young_is_kept() -> None:
    at = [NOON - 3 * DAY, NOON - DAY, NOON - 10]

    decisions = decide(map(made_up, at), RetentionPolicy(within=2 * DAY), NOON)

    assert kept(decisions) == at[1:]


def test_the_newest_and_the_last_complete_one_always_stay() -> None:
    torn = {"status": "complete_with_warnings", "warnings": ("x",)}
    snapshots = [made_up(1.0), made_up(2.0), made_up(3.0, **torn), made_up(4.0, **torn)]

    decisions = decide(snapshots, RetentionPolicy(within=1), NOON)

    assert kept(decisions) == [2.0, 4.0]
    assert reasons(decisions)[2.0] == ("last complete",)
    assert reasons(decisions)[4.0] == ("newest",)


def test_a_snapshot_in_use_stays() -> None:
    snapshots = [made_up(float(n)) for n in range(1, 4)]

    decisions = decide(
        snapshots, RetentionPolicy(last=1), NOON, in_use={snapshots[0].id}
    )

    assert reasons(decisions)[1.0] == ("in use",)


def test_a_pre_copy_counts_for_nothing_once_there_is_a_later_snapshot() -> None:
    pre = {"tags": {"purpose": "pre-copy"}}
    snapshots = [made_up(1.0), made_up(2.0, **pre), made_up(3.0)]

    decisions = decide(snapshots, RetentionPolicy(last=2, within=NOON), NOON)

    assert kept(decisions) == [1.0, 3.0]


def test_a_pre_copy_that_is_the_newest_stays() -> None:
    pre = {"tags": {"purpose": "pre-copy"}}
    snapshots = [made_up(1.0, **pre), made_up(2.0, **pre)]

    assert kept(decide(snapshots, RetentionPolicy(last=5), NOON)) == [2.0]


@pytest.mark.parametrize("policy", [{}, {"last": -1}, {"within": -1.0}])
def test_a_policy_that_keeps_nothing_or_less_is_refused(policy: dict) -> None:
    with pytest.raises(InvalidInput):
        RetentionPolicy(**policy)


def test_two_agents_at_once_are_refused() -> None:
    with pytest.raises(InvalidInput):
        decide([made_up(1.0), made_up(2.0, agent="bob")], RetentionPolicy(last=1), 3.0)


counts = some.integers(0, 4)
policies = some.builds(
    dict,
    last=counts,
    hourly=counts,
    daily=counts,
    weekly=counts,
    monthly=counts,
    yearly=counts,
    within=some.floats(0, 1e7),
).filter(lambda policy: any(policy.values()))
histories = some.lists(
    some.builds(
        made_up,
        some.integers(0, 40_000_000).map(lambda s: NOON - s),
        status=some.sampled_from(["complete", "complete_with_warnings"]),
        tags=some.sampled_from([{}, {"purpose": "pre-copy"}]),
    ),
    max_size=30,
)


@given(histories, policies)
def test_something_complete_stays_and_forgetting_again_forgets_nothing(
    snapshots: list, policy: dict
) -> None:
    decisions = decide(snapshots, RetentionPolicy(**policy), NOON)

    stay = [d.snapshot for d in decisions if d.kept]
    assert len(decisions) == len(snapshots)
    assert bool(stay) == bool(snapshots)
    complete = [s for s in snapshots if s.status == "complete"]
    assert not complete or any(s.status == "complete" for s in stay)
    again = decide(stay, RetentionPolicy(**policy), NOON)
    assert [d.snapshot for d in again if d.kept] == stay


@given(histories, policies, policies)
def test_a_more_generous_policy_keeps_at_least_as_much(
    snapshots: list, policy: dict, more: dict
) -> None:
    generous = {name: max(policy[name], more[name]) for name in policy}

    few = decide(snapshots, RetentionPolicy(**policy), NOON)
    many = decide(snapshots, RetentionPolicy(**generous), NOON)

    assert {d.snapshot.id for d in few if d.kept} <= {
        d.snapshot.id for d in many if d.kept
    }
    counted = [s for s in snapshots if s.tags.get("purpose") != "pre-copy"]
    extra = sum(count for name, count in policy.items() if name != "within")
    old = [d for d in few if d.kept and d.snapshot.created_at < NOON - policy["within"]]
    assert len(old) <= min(extra, len(counted)) + 2


def test_the_latest_is_not_what_an_abandoned_destination_wrote() -> None:
    _, repo = repository()
    home = made_up(1.0)
    away = made_up(2.0, tags={"purpose": "rolled-back"})
    for snapshot in (home, away):
        repo.put_snapshot(snapshot)

    assert repo.find("latest", "ada").id == home.id
    assert repo.find(away.id, "ada").id == away.id
    repo.delete_snapshot(home)
    assert repo.find("latest", "ada").id == away.id
