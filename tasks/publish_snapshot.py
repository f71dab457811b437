"""Step: write the receipt of a snapshot: what the agent changed since the last one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lobstertrap.errors import LobsterTrapError
from lobstertrap.repository.changes import Changes, changes_since_last
from tasks.artifacts import show_markdown
from tasks.events import tell
from tasks.step import load_config, log, step
from tasks.words import megabytes

_SIGNS = {"added": "+", "changed": "M", "removed": "-"}


@step(task_run_name="receipt of {agent}'s snapshot")
def publish_snapshot(agent: str, target: str, taken: dict[str, Any]) -> dict[str, Any]:
    """Return the receipt, show it in the UI, and tell automations of the snapshot."""
    changes = _changes(agent, str(taken["snapshot"]))
    receipt = {"agent": agent, "target": target, **taken}
    if changes is not None:
        receipt["changes"] = asdict(changes)
        log.info("%s", _summary(changes))
    page = _markdown(receipt, changes)
    show_markdown(f"snapshot-{agent}", page, f"{agent} on {target}")
    tell(agent, "snapshotted", target=target, snapshot=taken["snapshot"])
    return receipt


def _changes(agent: str, snapshot: str) -> Changes | None:
    try:
        repository = load_config().open_repository()
        return changes_since_last(repository, repository.find(snapshot, agent))
    except LobsterTrapError as error:  # the snapshot is taken all the same
        log.warning("what changed could not be found out: %s", error)
        return None


def _summary(changes: Changes) -> str:
    return (
        f"since {changes.since}: {changes.added:,} added, {changes.changed:,} changed, "
        f"{changes.removed:,} removed"
    )


def _markdown(receipt: dict[str, Any], changes: Changes | None) -> str:
    agent, warnings = receipt["agent"], receipt.get("warnings", [])
    lines = [f"# A snapshot of {agent}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in _rows(receipt).items()]
    lines += ["", *(f"- warning: {_code(warning)}" for warning in warnings), ""]
    if changes is None:
        lines.append("There is no earlier one to compare it with.")
    else:
        lines += [f"## What {agent} changed", "", _summary(changes), ""]
        lines += ["| | path | size |", "|---|---|---|"] if changes.top else []
        lines += [
            f"| {_SIGNS[t.kind]} | {_code(t.path)} | {megabytes(t.bytes)} |"
            for t in changes.top
        ]
    lines += [
        "",
        f"Back to it: `{_way_back(receipt)}`",
    ]
    return "\n".join(lines)


def _way_back(receipt: dict[str, Any]) -> str:
    return (
        f"lobstertrap restore {receipt['agent']} --to {receipt['target']} "
        f"--snapshot {str(receipt['snapshot'])[:8]}"
    )


def _rows(receipt: dict[str, Any]) -> dict[str, str]:
    return {
        "Taken on": f"`{receipt['target']}`",
        "Snapshot": f"`{receipt['snapshot']}`",
        "State": f"{receipt.get('files', 0):,} files, "
        f"{megabytes(receipt.get('bytes', 0))}",
        "New": megabytes(receipt.get("new_bytes", 0)),
        "Sent to the store": megabytes(receipt.get("uploaded_bytes", 0)),
        "Time": f"{receipt.get('seconds', 0):.1f} s",
        "Tree digest": f"`{receipt.get('tree_digest')}`",
    }


def _code(name: str) -> str:
    """Return a name that an agent has chosen so that it is only text in a page."""
    plain = "".join(c if c.isprintable() and c not in "`|" else "?" for c in name)
    return f"`{plain}`"
