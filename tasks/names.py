"""Names of agents and targets as parameters: drop-downs in the form of a deployment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from lobstertrap.errors import LobsterTrapError
from tasks.step import load_config


@dataclass(frozen=True, slots=True)
class Known:
    """Lists in a field's schema what lobstertrap.toml knows when it is deployed.

    Without a lobstertrap.toml, as on a machine that only deploys, any name may be
    typed; the flow itself says when it is a wrong one.
    """

    what: Literal["agents", "targets"]

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return the schema of a string, as a choice where the choices are known."""
        schema = handler(core)
        names = known_names(self.what)
        return {**schema, "enum": names} if names else schema


def known_names(what: Literal["agents", "targets"]) -> list[str]:
    """Return the names, or none where there is no valid lobstertrap.toml."""
    try:
        config = load_config()
    except LobsterTrapError:
        return []
    return [*(config.agent_names if what == "agents" else config.target_names)]


AgentName = Annotated[str, Known("agents")]
TargetName = Annotated[str, Known("targets")]
