"""Prefect's pages, drawn by a real browser: what a person sees after a migration."""

from __future__ import annotations

import shutil

import pytest

from deployments.chromium import Page, browser
from tests.fixtures.needs import missing

pytestmark = [
    pytest.mark.prefect,
    pytest.mark.s3,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def page():
    """Return the page of a headless Chromium."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        missing("Chromium is not installed")
    with browser(chromium) as made:
        yield made


@pytest.fixture(scope="module")
def receipt(shared_world, prefect_api):
    """Return the receipt of a migration of tally from `laptop` to `server`."""
    from flows.launch_agent import launch_agent  # noqa: PLC0415 - prefect_api first
    from flows.migrate_agent import migrate_agent  # noqa: PLC0415

    launch_agent(agent="tally", on="laptop")
    return migrate_agent(agent="tally", to="server")


def ask(path: str, **body: object):
    from prefect.client.orchestration import get_client  # noqa: PLC0415

    with get_client(sync_client=True) as client:
        return client.request("POST", path, json=body).json()


@pytest.fixture(scope="module")
def shown(receipt) -> dict:
    """Return the artifact of that receipt: other tests' runs have the same names."""
    key = {"artifacts": {"key": {"any_": ["migration-tally"]}}}
    [latest] = ask("/artifacts/latest/filter", **key)
    return latest


def test_the_receipt_of_a_migration_is_on_its_page(
    page: Page, receipt, shown, prefect_server
):
    page.open(f"{prefect_server.url}/artifacts/artifact/{shown['latest_id']}")

    text = page.wait_for("The way back")
    assert "tally moved to server" in text
    assert f"{receipt['downtime_seconds']:.1f} s of" in text
    assert receipt["tree_digest"] in text


def test_the_run_of_a_migration_shows_its_name_and_its_state(
    page: Page, shown, prefect_server
):
    page.open(f"{prefect_server.url}/runs/flow-run/{shown['flow_run_id']}")

    page.wait_for("migrate tally -> server")
    page.wait_for("Completed")
    page.wait_for("Task Runs")
