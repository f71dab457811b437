"""An agent's secrets on one engine: Podman secrets, found again by their names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lobstertrap.agent import AgentSpec
from lobstertrap.errors import InvalidInput, SecretMissing
from lobstertrap.targets.base import Secrets
from lobstertrap.targets.podman_api import PodmanApi
from lobstertrap.targets.podman_spec import is_secret_of, secret_name

_LARGEST = 512_000  # bytes; Podman's own limit


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundSecrets:
    """The secrets of agents on the engine behind `api`."""

    api: PodmanApi
    target: str

    def bind(self, agent: AgentSpec, secrets: Secrets) -> None:
        """Replace the agent's values by these; checks all before it changes one."""
        own = [n for n, ref in agent.secrets.items() if ref.source != "target"]
        without = [name for name in own if name not in secrets]
        self._refuse(agent, [*without, *self._not_on_target(agent)])
        values = {name: secrets[name].reveal().encode() for name in own}
        wrong = [n for n, v in values.items() if not 0 < len(v) <= _LARGEST]
        if wrong:
            raise InvalidInput(
                f"agent '{agent.name}': secret {', '.join(wrong)} is empty or larger "
                f"than {_LARGEST} bytes"
            )
        self.remove(agent)
        for name, value in values.items():
            secret = secret_name(agent, name)
            self.api.post("/secrets/create", data=value, name=secret)

    def names(self, agent: AgentSpec) -> dict[str, str]:
        """Return the Podman secret's name by environment name; all are there."""
        bound = set(self._of(agent))
        names = {
            env: ref.id if ref.source == "target" else secret_name(agent, env)
            for env, ref in agent.secrets.items()
        }
        unbound = [
            env
            for env, ref in agent.secrets.items()
            if ref.source != "target" and names[env] not in bound
        ]
        self._refuse(agent, [*unbound, *self._not_on_target(agent)])
        return names

    def present(self, agent: AgentSpec) -> list[str]:
        """Return the environment names of the secrets that are on the engine."""
        bound, lacking = set(self._of(agent)), self._not_on_target(agent)
        return [
            env
            for env, ref in agent.secrets.items()
            if (
                env not in lacking
                if ref.source == "target"
                else secret_name(agent, env) in bound
            )
        ]

    def remove(self, agent: AgentSpec) -> None:
        """Remove every value of the agent."""
        for name in self._of(agent):
            self.api.delete(f"/secrets/{name}")

    def _of(self, agent: AgentSpec) -> list[str]:
        names = [s["Spec"]["Name"] for s in self.api.get("/secrets/json") or []]
        return [name for name in names if is_secret_of(agent, name)]

    def _not_on_target(self, agent: AgentSpec) -> list[str]:
        return [
            env
            for env, ref in agent.secrets.items()
            if ref.source == "target" and not self.api.find(f"/secrets/{ref.id}/json")
        ]

    def _refuse(self, agent: AgentSpec, missing: Iterable[str]) -> None:
        named = [f"{env} ({agent.secrets[env]})" for env in missing]
        if named:
            raise SecretMissing(
                f"agent '{agent.name}': secrets not on target '{self.target}': "
                + ", ".join(named),
                hint="for source target, there: podman secret create ID FILE",
            )
