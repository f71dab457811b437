"""What does not change while a Podman engine runs: its platform and its limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lobstertrap.targets.podman_api import PodmanApi


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """The facts; `notes` are for people."""

    platform: str
    rootless: bool
    limits: frozenset[str]
    notes: tuple[str, ...] = field(default=())

    @classmethod
    def ask(cls, api: PodmanApi) -> EngineFacts:
        """Return the facts of the engine behind `api`, asked once per process."""
        known = _known.get(api.url)
        if known is None:
            known = _known[api.url] = cls.of(api.get("/info"))
        return known

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> EngineFacts:
        """Return the facts in the engine's answer to /info."""
        host = info["host"]
        rootless = bool(host["security"]["rootless"])
        wanted = {"memory", "pids", "cpu"}
        limits = wanted & set(host.get("cgroupControllers") or ())
        if rootless and host.get("cgroupVersion") == "v1":
            limits = set()
        absent = ", ".join(sorted(wanted - limits))
        kind = "rootless" if rootless else "rootful"
        note = f"no limits for {absent}: {kind} on cgroup {host.get('cgroupVersion')}"
        return cls(
            platform=f"{host['os']}/{host['arch']}",
            rootless=rootless,
            limits=frozenset(limits),
            notes=(kind, note) if absent else (kind,),
        )


_known: dict[str, EngineFacts] = {}
"""By URL: asking takes an engine 0.2 s, and a target is opened for every step."""
