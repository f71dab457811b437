"""A port of a pod as a socket here: the API server's `portforward`.

Only for a person who opens an agent's page, and only with the right to it, which
deployments/kubernetes/role-open.yaml grants apart from the rest.
"""

from __future__ import annotations

import socket
from typing import cast

from lobstertrap.errors import AccessDenied, Unavailable
from lobstertrap.targets.kubernetes_api import KubernetesApi


def dial(api: KubernetesApi, pod: str, port: int, *, about: str) -> socket.socket:
    """Connect to a port of a pod; closing the socket ends the connection.

    Whether anything listens there shows only when the other side closes it at once.
    """
    from kubernetes.client import (  # noqa: PLC0415 - an extra, and slow
        ApiClient,
        ApiException,
        CoreV1Api,
    )
    from kubernetes.stream import portforward  # noqa: PLC0415 - the same

    with ApiClient(api.configuration) as client:
        try:
            made = portforward(
                CoreV1Api(client).connect_get_namespaced_pod_portforward,
                pod,
                api.namespace,
                ports=str(port),
            )
        except (ApiException, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            if "403" in reason:
                raise AccessDenied(
                    f"{about} its ports may not be forwarded",
                    hint="kubectl apply -f deployments/kubernetes/role-open.yaml",
                ) from error
            raise Unavailable(
                f"{about} its port {port} cannot be reached: {reason}"
            ) from error
    return cast("socket.socket", made.socket(port))  # it wraps one, for setsockopt
