"""Where an agent's port is reached from here."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from lobstertrap.config_file import KubernetesSection, PodmanSection
from lobstertrap.errors import NotFound, Refused
from lobstertrap.lease import read_record

if TYPE_CHECKING:
    from lobstertrap.agent import AgentSpec
    from lobstertrap.config import Config


def url_of(config: Config, agent: str, port: str | None) -> str:
    """Return the URL of an agent's port; an error says how it is made reachable."""
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
    if isinstance(section, KubernetesSection):
        chosen = f" --context {section.context}" if section.context else ""
        raise Refused(
            f"'{home}' is a cluster: its services are reached from inside",
            hint=f"kubectl{chosen} -n {section.namespace} port-forward "
            f"statefulset/lobstertrap-{agent} {number}, then http://127.0.0.1:{number}",
        )
    status = config.target(home).status(spec)
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
