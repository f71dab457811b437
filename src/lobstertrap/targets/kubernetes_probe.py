"""A pod that finds out who reaches whom: pods an address, and this machine the pods."""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass
from typing import Any, Final

from lobstertrap.agent import AgentSpec
from lobstertrap.errors import Unavailable
from lobstertrap.targets import kubernetes_pods as pods
from lobstertrap.targets import kubernetes_spec as spec
from lobstertrap.targets.kubernetes_api import KubernetesApi

_PORT: Final = 8080
_START_SECONDS: Final = 180.0
_REACH_SECONDS: Final = 15.0
_PROGRAM: Final = f"""\
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 10).close()
except OSError as error:
    sys.exit(str(error))
with socket.create_server(("", {_PORT})) as server:
    server.settimeout(60)
    server.accept()[0].close()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Looks at the network of one namespace, with a pod of an agent's kind."""

    api: KubernetesApi
    settings: spec.Settings
    image: str

    def run(self, agent: AgentSpec, address: str) -> None:
        """Raise `Unavailable`, naming the way, unless both ways are open."""
        name = f"{spec.object_name(agent)}.probe"
        self.api.delete("pods", name, grace=0)
        self.api.until(lambda: self.api.find("pods", name) is None, seconds=60)
        self.api.create("pods", self._pod(agent, name, address))
        try:
            self._look(name, address)
        finally:
            self.api.delete("pods", name, grace=0)

    def _look(self, name: str, address: str) -> None:
        about = f"target '{self.settings.target}': the probe does not start:"
        began = time.monotonic()
        running: float | None = None
        while True:
            pod = self.api.get("pods", name)
            if pods.container_state(pod, "terminated"):
                raise Unavailable(
                    f"target '{self.settings.target}': its pods do not reach "
                    f"{address}: {pods.last_end(pod)}",
                    hint="name an address of this machine that they do reach",
                )
            now = time.monotonic()
            if pods.container_state(pod, "running"):
                running = running or now
                if _answers(pod["status"].get("podIP", "")):
                    return
            wrong = pods.trouble(pod, about)
            if wrong is not None and wrong.error is not None:
                raise wrong.error
            if running is None and now - began > _START_SECONDS:
                raise pods.cannot_start(about, wrong.text if wrong else "")
            if running is not None and now - running > _REACH_SECONDS:
                raise Unavailable(
                    f"target '{self.settings.target}': this machine does not reach "
                    f"its pods ({pod['status'].get('podIP')})",
                    hint="use a cluster on this machine, or add a route to its pods",
                )
            time.sleep(0.2)

    def _pod(self, agent: AgentSpec, name: str, address: str) -> dict[str, Any]:
        host, _, port = address.rpartition(":")
        marks = spec.labels(agent, self.settings, "probe")
        container = {
            "name": "probe",
            "image": self.image,
            "command": ["python3", "-c", _PROGRAM, host.strip("[]"), port],
            "securityContext": spec.container_security(agent, mover=True),
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "resources": {
                "limits": {"memory": "128Mi", "cpu": "1"},
                "requests": {"memory": "32Mi", "cpu": "10m"},
            },
        }
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": marks},
            "spec": {
                **spec.scheduling(self.settings),
                "restartPolicy": "Never",
                "automountServiceAccountToken": False,
                "enableServiceLinks": False,
                "securityContext": spec.pod_security(agent, self.settings),
                "containers": [container],
            },
        }


def _answers(host: str) -> bool:
    if not host:
        return False
    with contextlib.suppress(OSError):
        socket.create_connection((host, _PORT), timeout=1).close()
        return True
    return False
