"""Step: write what the upkeep of the repository has done, a page in the UI."""

from __future__ import annotations

from typing import Any

from lobstertrap.errors import IntegrityError
from tasks.artifacts import show_markdown
from tasks.events import tell_all
from tasks.step import step
from tasks.words import megabytes


@step(task_run_name="receipt of the upkeep")
def publish_upkeep(
    forgotten: list[dict[str, Any]], freed: dict[str, Any], checked: dict[str, Any]
) -> dict[str, Any]:
    """Return the receipt and show it; raises `IntegrityError` when data is damaged."""
    receipt = {"forgotten": forgotten, "freed": freed, "checked": checked}
    show_markdown("repository", _markdown(forgotten, freed, checked), "upkeep")
    if not checked["ok"]:
        problems = checked["problems"]
        tell_all("repository.damaged", problems=problems[:20])
        raise IntegrityError(
            "\n  ".join(["the repository is damaged", *problems[:20]]),
            hint="take a snapshot of every agent, then see `lobstertrap repair --help`",
        )
    return receipt


def _markdown(
    forgotten: list[dict[str, Any]], freed: dict[str, Any], checked: dict[str, Any]
) -> str:
    verdict = "every snapshot can be restored" if checked["ok"] else "it is damaged"
    lines = [f"# The repository: {verdict}", "", "| | |", "|---|---|"]
    read = f"{checked['packs_read']} of {checked['packs']} packs"
    waiting = freed["condemned_bytes"] + freed["waiting_bytes"]
    lines += [
        f"| Snapshots | {checked['snapshots']} |",
        f"| Read back | {read}, {megabytes(checked['bytes_read'])} |",
        f"| Freed | {megabytes(freed['deleted_bytes'])} |",
        f"| Waits out its grace | {megabytes(waiting)} |",
    ]
    lines += ["", "| agent | snapshots kept | forgotten |", "|---|---|---|"]
    lines += [
        f"| {row['agent']} | {row['kept']} | {row['forgotten']} |" for row in forgotten
    ]
    return "\n".join([*lines, "", *(f"- {p}" for p in checked["problems"])])
