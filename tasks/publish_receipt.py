"""Step: write the receipt of a migration, a Markdown page in the UI."""

from __future__ import annotations

from typing import Any

from prefect.artifacts import create_markdown_artifact

from lobstertrap.migration import Plan
from tasks.step import log, step
from tasks.words import megabytes


@step(task_run_name="receipt")
def publish_receipt(
    plan: Plan,
    *,
    image: str,
    epoch: int,
    copied: list[dict[str, Any]],
    moved: dict[str, Any],
    downtime_seconds: float,
    seconds: float,
) -> dict[str, Any]:
    """Return the receipt and show it in the UI."""
    parts = [part for part in (*copied, moved) if part]
    receipt = {
        "agent": plan.agent,
        "source": plan.source,
        "destination": plan.destination,
        "kinds": list(plan.kinds),
        "epoch": epoch,
        "image": image,
        "snapshot": moved["snapshot"]["snapshot"] if moved else None,
        "tree_digest": moved["snapshot"]["tree_digest"] if moved else None,
        "digest_equal": bool(moved) and moved["restore"]["verified"],
        "files": moved["snapshot"]["files"] if moved else 0,
        "bytes": moved["snapshot"]["bytes"] if moved else 0,
        "bytes_uploaded": sum(part["snapshot"]["uploaded_bytes"] for part in parts),
        "bytes_restored": sum(part["restore"]["bytes_written"] for part in parts),
        "rounds": len(copied),
        "bytes_in_cutover": moved["restore"]["bytes_written"] if moved else 0,
        "warnings": moved["snapshot"]["warnings"] if moved else [],
        "downtime_seconds": downtime_seconds,
        "seconds": seconds,
    }
    try:
        create_markdown_artifact(
            _markdown(receipt),
            key=f"migration-{plan.agent}",
            description=f"{plan.agent}: {plan.source} -> {plan.destination}",
        )
    except Exception as error:  # the agent has moved; a page is no reason to fail
        log.warning("the receipt could not be shown in Prefect: %s", error)
    return receipt


def _markdown(receipt: dict[str, Any]) -> str:
    agent, source = receipt["agent"], receipt["source"]
    lines = [f"# {agent} moved to {receipt['destination']}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in _rows(receipt).items()]
    lines += ["", *(f"- warning: {warning}" for warning in receipt["warnings"])]
    lines += ["", f"The way back: `lobstertrap migrate {agent} --to {source}`"]
    return "\n".join(lines)


def _rows(receipt: dict[str, Any]) -> dict[str, str]:
    kinds = " → ".join(receipt["kinds"])
    rows = {
        "Moved": f"`{receipt['source']}` → `{receipt['destination']}` ({kinds})",
        "Downtime": f"{receipt['downtime_seconds']:.1f} s of "
        f"{receipt['seconds']:.1f} s in all",
    }
    if receipt["snapshot"]:  # a migration that was continued may have copied before
        rows |= {
            "State": f"{receipt['files']:,} files, {megabytes(receipt['bytes'])}",
            "Sent to the store": megabytes(receipt["bytes_uploaded"]),
            "Written at the destination": f"{megabytes(receipt['bytes_restored'])}, of "
            f"which {megabytes(receipt['bytes_in_cutover'])} while the agent was down",
            "Copied while it ran": f"{receipt['rounds']} times",
            "Tree digest, source and destination": f"`{receipt['tree_digest']}`",
            "Snapshot": f"`{receipt['snapshot']}`",
        }
    return rows | {"Image": f"`{receipt['image']}`", "Epoch": str(receipt["epoch"])}
