"""What a flow means when a name is left out: the only one that it can be."""

from __future__ import annotations

from lobstertrap.errors import InvalidInput
from lobstertrap.lease import read_record
from tasks.step import load_config


def only_agent() -> str:
    """Return the only agent; `InvalidInput` that lists them when there are more."""
    return _only("agent", load_config().agent_names)


def only_other_target(agent: str) -> str:
    """Return the only target where the agent does not live."""
    config = load_config()
    record = read_record(config.open_store(), agent)
    if record and record.migration:
        return record.migration.destination
    home = record.target if record else None
    return _only("to", [name for name in config.target_names if name != home])


def _only(what: str, names: tuple[str, ...] | list[str]) -> str:
    if len(names) == 1:
        return names[0]
    raise InvalidInput(
        f"'{what}' has to be named: {', '.join(names) or 'there is none'}",
        hint=f"add --param {what}=NAME",
    )
