"""Step: find the agents of which a snapshot can be taken now."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from lobstertrap.lease import AgentRecord, read_record
from lobstertrap.stores.base import ObjectStore
from tasks.step import load_config, log, step

_RECORDS = "agents/"


@step(task_run_name="find the agents that have a state")
def find_agents() -> list[str]:
    """Return their names; those at work now, and those without a spec, are named."""
    config = load_config()
    store, specs = config.open_store(), set(config.agent_names)
    chosen = []
    for name in sorted(specs | set(recorded(store))):
        record = read_record(store, name)
        reason = why_not(record, config.target_names, has_spec=name in specs)
        if reason is None:
            chosen.append(name)
        elif record is not None:
            log.info("no snapshot of '%s': %s", name, reason)
    return chosen


def recorded(store: ObjectStore) -> Iterable[str]:
    """Yield the name of every agent that has a record in the store."""
    for info in store.list(_RECORDS):
        name, _, rest = info.key.removeprefix(_RECORDS).partition("/")
        if rest == "record.json" and not name.startswith("_"):  # upkeep has one, too
            yield name


def why_not(
    record: AgentRecord | None, targets: Collection[str], *, has_spec: bool
) -> str | None:
    """Say why no snapshot is taken of an agent now; None when it is."""
    if record is None or record.target is None:
        return "it lives nowhere"
    if record.target not in targets:  # a worker beside that target sees to it
        return f"it lives on '{record.target}', which is no target here"
    if not has_spec:
        return f"it lives on '{record.target}', but there is no agent.yaml of it here"
    operation = record.operation
    if operation is not None and not operation.holder.is_dead():
        return f"it is held: {operation}"
    return None
