"""What every test may use; the real parts are started by tests/fixtures/."""

import os
from collections.abc import Generator

import pytest

pytest_plugins = [
    "tests.fixtures.s3",
    "tests.fixtures.podman",
    "tests.fixtures.cluster",
    "tests.fixtures.prefect",
]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Keep what shares servers on one worker: a file, and all that use the cluster."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            cluster = item.get_closest_marker("kubernetes")
            group = "cluster" if cluster else item.path.name
            item.add_marker(pytest.mark.xdist_group(group))


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
