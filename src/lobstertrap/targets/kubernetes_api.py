"""One namespace of a Kubernetes API server: requests, streams, its errors as ours."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

from lobstertrap.errors import (
    AccessDenied,
    Conflict,
    InvalidInput,
    LobsterTrapError,
    NoSpace,
    NotFound,
    Permanent,
    Refused,
    TimedOut,
    Unavailable,
)

T = TypeVar("T")

FIELD_MANAGER: Final = "lobstertrap"
_CONNECT_SECONDS: Final = 10.0
_READ_SECONDS: Final = 60.0
_APPLY: Final = "application/apply-patch+yaml"
_MERGE: Final = "application/merge-patch+json"
_JSON_PATCH: Final = "application/json-patch+json"

GROUPS: Final[Mapping[str, str]] = {
    "pods": "",
    "services": "",
    "secrets": "",
    "configmaps": "",
    "serviceaccounts": "",
    "persistentvolumeclaims": "",
    "events": "",
    "deployments": "apps",
    "statefulsets": "apps",
    "networkpolicies": "networking.k8s.io",
}
"""The API group of every namespaced resource that is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How a cluster is reached: a kubeconfig's context, or from inside of it."""

    kubeconfig: Path | None = None
    """KUBECONFIG or ~/.kube/config when it is not given."""
    context: str | None = None
    """The kubeconfig's current context when it is not given."""
    in_cluster: bool = False
    """Whether to use the service account of the pod that this runs in."""


class KubernetesApi:
    """Requests to one API server, in one namespace; every error names the target."""

    def __init__(self, target: str, access: Access, namespace: str) -> None:
        self._target = target
        self._access = access
        self.namespace = namespace
        self._connection: tuple[Any, Any] | None = None

    @property
    def configuration(self) -> Any:
        """The official client's configuration, for what only that client can do."""
        return self._connected()[0]

    def get(self, resource: str, name: str = "", **query: str) -> Any:
        """Return one object, or the list of all; `NotFound` if there is none."""
        return self._json("GET", self._path(resource, name), query=query)

    def find(self, resource: str, name: str) -> Any | None:
        """Return one object, or None when there is none."""
        try:
            return self.get(resource, name)
        except NotFound:
            return None

    def select(self, resource: str, **labels: str) -> list[Any]:
        """Return the objects that have all these labels, as they are now."""
        wanted = ",".join(f"{key}={value}" for key, value in labels.items())
        items = self.get(resource, labelSelector=wanted)["items"]
        return list(items)

    def create(self, resource: str, manifest: Mapping[str, Any]) -> Any:
        """Make an object; `Conflict` when it is there already."""
        return self._json(
            "POST",
            self._path(resource),
            manifest,
            query={"fieldManager": FIELD_MANAGER},
        )

    def apply(self, resource: str, manifest: Mapping[str, Any]) -> Any:
        """Make the object what the manifest says, by server-side apply.

        With a resourceVersion in the manifest: `Conflict` when it is another one.
        """
        return self._json(
            "PATCH",
            self._path(resource, manifest["metadata"]["name"]),
            manifest,
            query={"fieldManager": FIELD_MANAGER, "force": "true"},
            content=_APPLY,
        )

    def merge(self, resource: str, name: str, change: Mapping[str, Any]) -> Any:
        """Merge `change` into an object."""
        return self._json(
            "PATCH",
            self._path(resource, name),
            change,
            query={"fieldManager": FIELD_MANAGER},
            content=_MERGE,
        )

    def patch(self, resource: str, name: str, operations: list[Any]) -> Any:
        """Apply a JSON patch; `Conflict` when one of its tests fails."""
        return self._json(
            "PATCH", self._path(resource, name), operations, content=_JSON_PATCH
        )

    def delete(
        self, resource: str, name: str, *, grace: int | None = None, uid: str = ""
    ) -> bool:
        """Delete; return False when there was no such object (or it is another one)."""
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions"}
        options["propagationPolicy"] = "Background"
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        if uid:
            options["preconditions"] = {"uid": uid}
        try:
            self._json("DELETE", self._path(resource, name), options)
        except (NotFound, Conflict):
            return False
        return True

    def raw(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request to a path that is not in the namespace."""
        return self._json(method, path, body)

    def log_lines(
        self, pod: str, *, seconds: float = _READ_SECONDS, **query: str
    ) -> Iterator[str]:
        """Yield the lines of a pod's log; `TimedOut` after so many silent seconds."""
        path = f"{self._path('pods', pod)}/log"
        with self._translated():
            answer = self._send("GET", path, query=query, seconds=seconds, stream=True)
            try:
                yield from _lines(answer)
            finally:
                answer.close()

    def until(
        self,
        check: Callable[[], bool],
        *,
        seconds: float,
        patience: float = 60.0,
        interval: float = 0.1,
    ) -> bool:
        """Wait until `check` is true; False when it is not within `seconds`.

        An API server that is away meanwhile is waited for, up to `patience`.
        """
        deadline = time.monotonic() + seconds
        lost: float | None = None
        while True:
            try:
                if check():
                    return True
                lost = None
            except (Unavailable, TimedOut):
                lost = lost or time.monotonic()
                if time.monotonic() - lost > patience:
                    raise
                deadline += interval
            if time.monotonic() > deadline:
                return False
            time.sleep(interval)
            interval = min(interval * 1.2, 0.5)

    def persist(self, call: Callable[[], T], *, seconds: float = 60.0) -> T:
        """Return what `call` returns, however often the API server is away meanwhile.

        For what must not be left undone, and may be done twice.
        """
        found: list[T] = []

        def once() -> bool:
            found.append(call())
            return True

        self.until(once, seconds=seconds, patience=seconds)
        return found[0]

    def _path(self, resource: str, name: str = "") -> str:
        group = GROUPS[resource]
        root = f"/apis/{group}/v1" if group else "/api/v1"
        path = f"{root}/namespaces/{self.namespace}/{resource}"
        return f"{path}/{name}" if name else path

    def _json(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, str] | None = None,
        content: str = "application/json",
    ) -> Any:
        with self._translated():
            answer = self._send(method, path, body, query=query, content=content)
            return json.loads(answer.data) if answer.data else None

    def _send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, str] | None = None,
        content: str = "application/json",
        seconds: float = _READ_SECONDS,
        stream: bool = False,
    ) -> Any:
        from urllib3 import Timeout  # noqa: PLC0415 - comes with the client

        configuration, pool = self._connected()
        headers = {"Accept": "application/json", "Content-Type": content}
        for auth in configuration.auth_settings().values():
            if auth["in"] == "header" and auth["value"]:
                headers[auth["key"]] = auth["value"]
        url = f"{configuration.host}{path}"
        answer = pool.request(
            method,
            f"{url}?{urlencode(query)}" if query else url,
            body=None if body is None else json.dumps(body).encode(),
            headers=headers,
            timeout=Timeout(connect=_CONNECT_SECONDS, read=seconds),
            retries=False,
            preload_content=not stream,
        )
        if answer.status >= 400:  # noqa: PLR2004 - HTTP
            said = answer.data
            answer.release_conn()
            raise self._error(answer.status, said)
        return answer

    def _connected(self) -> tuple[Any, Any]:
        if self._connection is None:
            configuration = _load(self._target, self._access)
            from kubernetes.client.rest import (  # noqa: PLC0415 - an extra, and slow
                RESTClientObject,
            )

            pool = RESTClientObject(configuration).pool_manager
            weakref.finalize(self, pool.clear)
            self._connection = configuration, pool
        return self._connection

    def _error(self, status: int, body: bytes) -> LobsterTrapError:
        try:
            said = str(json.loads(body).get("message"))
        except (ValueError, AttributeError):
            said = body.decode("utf-8", "replace")[:500] or f"HTTP {status}"
        message = f"target '{self._target}': kubernetes: {' '.join(said.split())}"
        return _error_of(status, said, message, self.namespace)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        import urllib3  # noqa: PLC0415 - comes with the client

        try:
            yield
        except LobsterTrapError:
            raise
        except (urllib3.exceptions.TimeoutError, TimeoutError) as error:
            raise TimedOut(
                f"target '{self._target}': the API server did not answer in time",
                hint="is it reachable from here? kubectl version",
            ) from error
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise Unavailable(
                f"target '{self._target}': no API server answers: {_reason(error)}",
                hint="is it reachable from here? kubectl version",
            ) from error


def _load(target: str, access: Access) -> Any:
    """Return the official client's configuration, credentials refreshed by it."""
    try:
        from kubernetes import client, config  # noqa: PLC0415 - an extra, and slow
    except ImportError as error:
        raise NotFound(
            f"target '{target}': the Kubernetes client is not installed",
            hint="pip install 'lobstertrap[kubernetes]'",
        ) from error
    configuration = client.Configuration()
    loader: Any = config  # has no types
    try:
        if access.in_cluster:
            loader.load_incluster_config(client_configuration=configuration)
        else:
            # The client itself reads the variable only once, when it is imported.
            file = access.kubeconfig or os.environ.get("KUBECONFIG")
            loader.load_kube_config(
                config_file=str(file) if file else None,
                context=access.context,
                client_configuration=configuration,
                persist_config=False,
            )
    except (loader.ConfigException, OSError) as error:
        raise InvalidInput(
            f"target '{target}': {_reason(error)}",
            hint="check kubeconfig and context: kubectl config get-contexts",
        ) from error
    return configuration


def _error_of(status: int, said: str, message: str, namespace: str) -> LobsterTrapError:
    """Return our error for an answer of the API server."""
    if "exceeded quota" in said:
        return NoSpace(message, hint="ask for more quota, or a smaller agent")
    if "violates PodSecurity" in said:
        return Refused(message, hint="see 'security' in the agent's agent.yaml")
    if status == 404 and "namespaces" in said:  # noqa: PLR2004 - HTTP
        return NotFound(message, hint=f"kubectl create namespace {namespace}")
    known: dict[int, tuple[type[LobsterTrapError], str | None]] = {
        400: (InvalidInput, None),
        401: (AccessDenied, "the credentials are wrong or expired: log in again"),
        403: (AccessDenied, "deployments/kubernetes has the Role that is needed"),
        404: (NotFound, None),
        409: (Conflict, None),
        422: (InvalidInput, None),
        429: (Unavailable, "it is busy: run the same command again"),
    }
    if status >= 500:  # noqa: PLR2004 - HTTP
        return Unavailable(message, hint="run the same command again")
    kind, hint = known.get(status, (Permanent, None))
    return kind(message, hint=hint)


def _lines(answer: Any) -> Iterator[str]:
    buffer = b""
    while piece := answer.read1(1 << 16):
        *whole, buffer = (buffer + piece).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "replace")
    if buffer:
        yield buffer.decode("utf-8", "replace")


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    # urllib3's objects are shown with their address in memory: of no use to a person.
    return re.sub(r"<[^>]*>: |\w+\(host=[^)]*\): ", "", text) or type(error).__name__
