"""Events of agents, which automations wait for: `lobstertrap.agent.*`."""

from __future__ import annotations

from typing import Any

from prefect.events import emit_event

from tasks.step import log


def tell(agent: str, what: str, **payload: Any) -> None:
    """Emit `lobstertrap.agent.<what>`; no event is a reason to fail."""
    _emit(f"lobstertrap.agent.{what}", f"lobstertrap.agent.{agent}", agent, payload)


def tell_all(what: str, **payload: Any) -> None:
    """Emit `lobstertrap.<what>`, of no agent in particular."""
    _emit(f"lobstertrap.{what}", "lobstertrap", "lobstertrap", payload)


def _emit(event: str, resource: str, name: str, payload: dict[str, Any]) -> None:
    about = {"prefect.resource.id": resource, "prefect.resource.name": name}
    try:
        emit_event(event, about, payload=payload)
    except Exception as error:  # what it tells has happened, heard or not
        log.warning("no event %s: %s", event, error)
