"""What every test may use; the real parts are started by tests/fixtures/."""

import os
import signal
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

from tests.fixtures.rounds import SEED

pytest_plugins = [
    "tests.fixtures.s3",
    "tests.fixtures.podman",
    "tests.fixtures.cluster",
    "tests.fixtures.prefect",
    "tests.fixtures.openclaw",
]

# A busy machine is no fault of a test's.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

# A shell ignores Ctrl-C for what it starts in the background, and for all below that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    """Say how to repeat what chance decides."""
    return f"LOBSTERTRAP_SEED={SEED}"


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Leave the long proof out, unless `-m` names it: `make chaos` does."""
    if "long" in config.option.markexpr:
        return
    long = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in set(long)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI every part is there: whatever skips, fails."""
    report = yield
    if report.skipped and os.environ.get("LOBSTERTRAP_NO_SKIP"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report
