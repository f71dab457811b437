"""How an agent's port is reached from here."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from lobstertrap.config_file import PodmanSection
from lobstertrap.errors import NotFound, Refused
from lobstertrap.lease import read_record
from lobstertrap.targets.base import Forwarder

if TYPE_CHECKING:
    from lobstertrap.agent import AgentSpec
    from lobstertrap.config import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Through:
    """A port that is reached only through the agent's target."""

    dial: Callable[[], socket.socket]
    port: int


def way_to(config: Config, agent: str, port: str | None) -> str | Through:
    """Return the URL of an agent's port, or what leads there.

    An error says how it is made reachable.
    """
    spec = config.agent(agent)
    number = _port_number(spec, port)
    name = port or spec.ports[0].name
    record = read_record(config.open_store(), agent)
    if record is None or record.target is None:
        raise NotFound(
            f"agent '{agent}' has never been launched",
            hint=f"lobstertrap launch {agent} --on TARGET",
        )
    home = record.target
    section = config.require_target(home)
    target = config.target(home)
    if isinstance(target, Forwarder):
        return Through(dial=partial(target.dial, spec, number), port=number)
    status = target.status(spec)
    if status.phase != "running" or name not in status.addresses:
        raise NotFound(
            f"agent '{agent}' does not listen on '{home}': it is {status.phase}",
            hint=f"lobstertrap launch {agent} --on {home}",
        )
    address = status.addresses[name]
    if isinstance(section, PodmanSection) and section.url:
        there = urlsplit(section.url)
        if there.scheme == "ssh":
            raise Refused(
                f"'{home}' is another machine, where it listens on {address}",
                hint=f"ssh -L {number}:{address} {there.netloc}, then "
                f"http://127.0.0.1:{number}",
            )
    return f"http://{address}"


def _port_number(spec: AgentSpec, name: str | None) -> int:
    for port in spec.ports:
        if name in (None, port.name):
            return port.port
    known = ", ".join(port.name for port in spec.ports)
    raise NotFound(
        f"agent '{spec.name}' has no port '{name}'"
        if known
        else f"agent '{spec.name}' has no ports",
        hint=f"known: {known}" if known else "name them in its agent.yaml",
    )
