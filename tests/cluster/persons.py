"""A cluster that somebody already has: tests make namespaces there, and nothing else.

LOBSTERTRAP_TEST_KUBECONFIG names its kubeconfig (kind, k3s, minikube: a cluster whose
pods this machine reaches). LOBSTERTRAP_TEST_REGISTRY names the image registry, unless
the cluster does so itself (KEP-1755, as kind and k3d have it).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from tests.cluster.binary import MissingPartError
from tests.cluster.cluster import Cluster, ClusterError

VARIABLE = "LOBSTERTRAP_TEST_KUBECONFIG"
REGISTRY = "LOBSTERTRAP_TEST_REGISTRY"
_HOME = "lobstertrap-tests"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """What `Layout` is to a cluster of our own, as far as others need it."""

    directory: str
    kube: str
    registry: str
    gateway: str

    def path(self, *parts: str) -> Path:
        return Path(self.directory, *parts)


class PersonsCluster(Cluster):
    """Looks like a cluster of ours; whatever would touch its nodes is skipped."""

    def __init__(self, directory: Path, environ: Mapping[str, str]) -> None:
        kubectl = shutil.which("kubectl")
        if kubectl is None:
            raise MissingPartError(f"{VARIABLE} is set, and there is no kubectl")
        directory.mkdir(parents=True)
        # One link calls it as `kube kubectl` calls ours.
        (directory / "kube").write_text(f'#!/bin/sh\nshift\nexec {kubectl} "$@"\n')
        (directory / "kube").chmod(0o700)
        shutil.copy(environ[VARIABLE], directory / "admin.conf")
        files = _Files(
            directory=str(directory),
            kube=str(directory / "kube"),
            registry="",
            gateway="",
        )
        super().__init__(files)  # type: ignore[arg-type] - as far as it is used
        self._name = f"{_HOME}-{os.getpid()}"
        self.operator = f"system:serviceaccount:{self._name}:operator"
        try:
            gateway = _own_address(self.get("nodes"))
            registry = environ.get(REGISTRY) or self._named_registry()
            self.kubectl("create", "namespace", self._name)
            for user in ("operator", "stranger"):
                self._add_user(directory, user)
        except ClusterError as error:
            raise MissingPartError(f"{VARIABLE}: {error}") from error
        self.layout = _Files(  # type: ignore[assignment]
            directory=str(directory),
            kube=files.kube,
            registry=registry,
            gateway=gateway,
        )

    def require_own(self) -> NoReturn:
        """Skip: only a cluster of our own may be treated like that."""
        pytest.skip(f"{VARIABLE} is somebody's cluster: its nodes are left alone")

    def pause(self, part: str) -> None:
        """Skip the test."""
        self.require_own()

    def resume(self, part: str) -> None:
        """Do nothing: nothing was paused."""

    def remove(self) -> None:
        """Remove the namespace of the tests' own users."""
        self.kubectl("delete", "namespace", self._name, "--wait=false")

    def _add_user(self, directory: Path, user: str) -> None:
        self.kubectl("-n", self._name, "create", "serviceaccount", user)
        token = self.kubectl(
            *("-n", self._name, "create", "token", user, "--duration=12h")
        )
        said = self.kubectl(
            *("config", "view", "--minify", "--raw", "--flatten", "-o", "json")
        )
        config = json.loads(said)
        config["users"][0]["user"] = {"token": token.strip()}
        (directory / f"{user}.conf").write_text(json.dumps(config))

    def _named_registry(self) -> str:
        try:
            found = self.get(
                *("-n", "kube-public", "configmap", "local-registry-hosting")
            )
        except ClusterError as error:
            raise MissingPartError(f"{VARIABLE}: {REGISTRY} is not set") from error
        hosting = yaml.safe_load(found["data"]["localRegistryHosting.v1"])
        return str(hosting["host"])


def _own_address(nodes: Any) -> str:
    """Return the address of this machine on the way to the first node."""
    addresses = nodes["items"][0]["status"]["addresses"]
    node = next(a["address"] for a in addresses if a["type"] == "InternalIP")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((node, 9))
        return str(probe.getsockname()[0])
