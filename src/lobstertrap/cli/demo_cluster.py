"""The demo's Kubernetes side: a namespace of its own, and what its pods need."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import yaml

from lobstertrap.agent import AgentSpec
from lobstertrap.cli.demo_gate import Gate
from lobstertrap.errors import (
    AccessDenied,
    InvalidInput,
    LobsterTrapError,
    NotFound,
    Refused,
    Unavailable,
)
from lobstertrap.targets.base import Target
from lobstertrap.targets.kubernetes import KubernetesTarget
from lobstertrap.targets.kubernetes_api import Access, KubernetesApi

NAMESPACE: Final = "lobstertrap-demo"
_MARK: Final = "io.lobstertrap.demo"
_RESTRICTED: Final = {"pod-security.kubernetes.io/enforce": "restricted"}
_HOSTING: Final = "/api/v1/namespaces/kube-public/configmaps/local-registry-hosting"
_GONE_SECONDS: Final = 120.0
_SECTION: Final = """
[targets.{name}]
kind = "kubernetes"
context = "{context}"
namespace = "{namespace}"
registry = "{registry}"
insecure_registry = {insecure}
engine = "{engine}"
build_args = {{ BASE = "{base}" }}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a person said of the cluster to move to."""

    context: str
    """The kubeconfig's context."""
    namespace: str = NAMESPACE
    registry: str | None = None
    """`host[:port]/path`, or what the cluster itself says (KEP-1755)."""
    address: str | None = None
    """Where pods reach this machine; found out when it is not given."""


class DemoCluster:
    """One cluster that the demo moves to; it makes a namespace there and removes it."""

    def __init__(self, wanted: Wanted, directory: Path) -> None:
        self._wanted = wanted
        self._owner = f"{socket.gethostname()}:{directory}"
        access = Access(context=wanted.context)
        self._api = KubernetesApi("server", access, wanted.namespace)

    @contextmanager
    def opened(self, endpoint: str) -> Iterator[str]:
        """Make the namespace; yield how pods, and we, reach the store at `endpoint`.

        Raises `Refused` when the namespace is there and not of this demo: nothing that
        somebody else made is ever touched.
        """
        port = urlsplit(endpoint).port or 80
        self._make_namespace()
        try:
            with Gate(self._wanted.address or self._own_address(), port) as gate:
                yield f"http://{gate.address}"
        finally:
            with contextlib.suppress(LobsterTrapError):
                self._remove_namespace()

    def leftovers(self) -> list[str]:
        """Say what is left in the cluster."""
        name = self._wanted.namespace
        try:
            return [f"namespace {name}"] if self._find() is not None else []
        except LobsterTrapError as error:
            return [f"namespace {name}, perhaps: {error.message}"]

    def section(self, name: str, *, engine: str, base: str) -> str:
        """Return the target's section of lobstertrap.toml."""
        registry = self._wanted.registry or self._own_registry()
        host = registry.partition("/")[0].rpartition(":")[0] or registry
        return _SECTION.format(
            name=name,
            context=self._wanted.context,
            namespace=self._wanted.namespace,
            registry=registry,
            # As every container engine has it: loopback speaks HTTP.
            insecure=str(host in {"localhost", "127.0.0.1"}).lower(),
            engine=engine,
            base=base,
        )

    def check(self, target: Target, agent: AgentSpec, endpoint: str) -> None:
        """Raise what is wrong with the target, before anything is launched."""
        target.inspect()
        if isinstance(target, KubernetesTarget):
            target.check_network(agent, endpoint.removeprefix("http://"))

    def _find(self) -> Any | None:
        try:
            return self._api.raw("GET", f"/api/v1/namespaces/{self._wanted.namespace}")
        except NotFound:
            return None

    def _make_namespace(self) -> None:
        name = self._wanted.namespace
        found = self._find()
        if found is not None:
            marks = found["metadata"].get("annotations") or {}
            if marks.get(_MARK) != self._owner:
                raise Refused(
                    f"namespace '{name}' of context '{self._wanted.context}' is not "
                    "this demo's, and would be removed",
                    hint="let it make one of its own: --namespace NAME",
                )
            self._remove_namespace()  # what a demo that was killed has left
        manifest = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": name,
                "labels": _RESTRICTED,
                "annotations": {_MARK: self._owner},
            },
        }
        self._api.raw("POST", "/api/v1/namespaces", manifest)

    def _remove_namespace(self) -> None:
        name = self._wanted.namespace
        with contextlib.suppress(NotFound):
            self._api.raw("DELETE", f"/api/v1/namespaces/{name}")
        gone = self._api.until(lambda: self._find() is None, seconds=_GONE_SECONDS)
        if not gone:
            raise Unavailable(f"namespace '{name}' does not go away")

    def _own_registry(self) -> str:
        """Return the registry that the cluster names, as KEP-1755 has it."""
        try:
            said = self._api.raw("GET", _HOSTING)["data"]["localRegistryHosting.v1"]
            host = yaml.safe_load(said)["host"]
        except (NotFound, AccessDenied, KeyError, TypeError, yaml.YAMLError) as error:
            raise InvalidInput(
                f"context '{self._wanted.context}' does not say which image registry "
                "it pulls from",
                hint="name one that this machine can push to: --registry HOST/PATH",
            ) from error
        return f"{host}/lobstertrap-demo"

    def _own_address(self) -> str:
        """Return the address of this machine on the network of the cluster's nodes."""
        hint = "name the address where its pods reach this machine: --address IP"
        try:
            nodes = self._api.raw("GET", "/api/v1/nodes?limit=1")["items"]
        except AccessDenied as error:
            raise AccessDenied(error.message, hint=hint) from error
        for node in nodes:
            for address in node["status"].get("addresses", ()):
                if address["type"] == "InternalIP":
                    return _address_towards(address["address"])
        raise InvalidInput(
            f"context '{self._wanted.context}' has no node with an address", hint=hint
        )


def _address_towards(host: str) -> str:
    """Return our own address on the way to `host`; nothing is sent."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        return str(probe.getsockname()[0])
