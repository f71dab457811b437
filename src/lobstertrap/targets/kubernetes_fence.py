"""The fence of a Kubernetes target: who may no longer act on an agent there.

Two numbers in a ConfigMap that outlives the agent; both only ever rise, by
compare-and-swap. What looks at them goes on only if the object that it acts on is
still the version which it saw *before* it looked; so `raise_to` touches that object
after it has written the numbers.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from lobstertrap.agent import AgentSpec
from lobstertrap.errors import Conflict, IntegrityError, NotFound, Refused
from lobstertrap.targets import kubernetes_spec as spec
from lobstertrap.targets.kubernetes_api import KubernetesApi

_FENCED = "io.lobstertrap.fenced"
_TRIES = 20
_HINT = "another operation went on without this one: look at `lobstertrap status`"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFence:
    """Launches up to an epoch and movers below a turn are refused."""

    api: KubernetesApi
    agent: AgentSpec
    settings: spec.Settings

    def raise_to(self, *, epoch: int, turn: int) -> tuple[int, int]:
        """Refuse launches up to `epoch` and movers of a lower `turn` from now on.

        Returns the two numbers as they are kept now.
        """
        fenced = self._write(epoch, turn)
        mark = {"metadata": {"annotations": {_FENCED: f"{fenced[0]}.{fenced[1]}"}}}
        with contextlib.suppress(NotFound):
            # A launch between its look and its act meets another version now.
            self.api.merge("statefulsets", spec.object_name(self.agent), mark)
        for pod in self.api.select("pods", **{spec.MOVER: self.agent.name}):
            gated = pod["spec"].get("schedulingGates")
            if gated and int(pod["metadata"]["labels"].get(spec.TURN, 0)) < fenced[1]:
                self.api.delete("pods", pod["metadata"]["name"], grace=0)
        return fenced

    def admit_launch(self, epoch: int) -> None:
        """Raise `Refused` when `epoch` is fenced off."""
        fenced, _ = self._numbers(self._read())
        if epoch <= fenced:
            raise Refused(
                f"{self._about} epoch {epoch} is fenced off, as all up to {fenced}",
                hint=_HINT,
            )

    def admit_mover(self, turn: int | None) -> None:
        """Raise `Refused` for a mover whose turn is over."""
        _, fenced = self._numbers(self._read())
        if turn is not None and turn < fenced:
            raise Refused(
                f"{self._about} a mover of turn {turn} comes too late, it is turn "
                f"{fenced} here",
                hint=_HINT,
            )

    @property
    def _about(self) -> str:
        return f"target '{self.settings.target}': agent '{self.agent.name}':"

    def _write(self, epoch: int, turn: int) -> tuple[int, int]:
        name = spec.fence_name(self.agent)
        for _ in range(_TRIES):
            found = self._read()
            now = self._numbers(found)
            after = (max(now[0], epoch), max(now[1], turn))
            data = {"epoch": str(after[0]), "turn": str(after[1])}
            try:
                if found is None:
                    self.api.create("configmaps", self._manifest(data))
                elif after != now:
                    version = {"resourceVersion": found["metadata"]["resourceVersion"]}
                    change = {"metadata": version, "data": data}
                    self.api.merge("configmaps", name, change)
            except Conflict:
                continue  # somebody else has raised it meanwhile
            return after
        raise Conflict(f"{self._about} others change {name} all the time")

    def _manifest(self, data: dict[str, str]) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": spec.fence_name(self.agent),
                "labels": spec.labels(self.agent, self.settings, "fence"),
            },
            "data": data,
        }

    def _read(self) -> Any | None:
        return self.api.find("configmaps", spec.fence_name(self.agent))

    def _numbers(self, found: Any | None) -> tuple[int, int]:
        if found is None:
            return 0, 0
        try:
            return int(found["data"]["epoch"]), int(found["data"]["turn"])
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(
                f"{self._about} {spec.fence_name(self.agent)} cannot be read",
                hint="make sure that the agent runs nowhere, then delete the ConfigMap",
            ) from error
