"""Step: find the agents that live on a target."""

from __future__ import annotations

from lobstertrap import fleet
from lobstertrap.errors import InvalidInput
from lobstertrap.lease import read_record
from tasks.step import load_config, log, step


@step(task_run_name="find what lives on {source}")
def find_fleet(source: str, to: str) -> list[str]:
    """Return their names; one on its way elsewhere is left alone, and named."""
    config = load_config()
    for target in (source, to):
        config.require_target(target)
    if source == to:
        raise InvalidInput(
            f"'{source}' cannot be emptied onto itself", hint="name another target"
        )
    store = config.open_store()
    records = {name: read_record(store, name) for name in config.agent_names}
    for name in fleet.left_out(records, source, to):
        log.warning("'%s' is left alone: another migration of it is open", name)
    found = fleet.members(records, source, to)
    log.info("on %s: %s", source, ", ".join(found) or "nobody")
    return found
