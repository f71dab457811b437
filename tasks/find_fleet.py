"""Step: find the agents that are to move together."""

from __future__ import annotations

from lobstertrap import fleet
from lobstertrap.errors import InvalidInput
from lobstertrap.lease import read_record
from tasks.step import load_config, log, step


@step(task_run_name="find what is to move to {to}")
def find_fleet(source: str | None, to: str, label: str | None = None) -> list[str]:
    """Return the names of those that live on `source`, have the label, or both.

    One on its way elsewhere is left alone, and named.
    """
    config = load_config()
    for target in (source, to):
        if target is not None:
            config.require_target(target)
    if source == to:
        raise InvalidInput(
            f"'{source}' cannot be emptied onto itself", hint="name another target"
        )
    if source is None and label is None:
        raise InvalidInput(
            "nothing says which agents are to move", hint="name a source or a label"
        )
    store = config.open_store()
    records = {
        name: read_record(store, name)
        for name in config.agent_names
        if label is None or label in config.agent(name).labels
    }
    for name in fleet.left_out(records, source, to):
        log.warning("'%s' is left alone: another migration of it is open", name)
    found = fleet.members(records, source, to)
    log.info("to move: %s", ", ".join(found) or "nobody")
    return found
