"""Commands run where an agent runs on a cluster: the API server's `exec`.

Only for specs that ask for it (`verify`, or a snapshot by hook), and only with the
right to it, which deployments/kubernetes/role-commands.yaml grants apart from the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lobstertrap.errors import AccessDenied, LobsterTrapError, TimedOut, Unavailable
from lobstertrap.targets.kubernetes_api import KubernetesApi
from lobstertrap.targets.kubernetes_rights import is_allowed

_ENDED = 3  # the channel on which the API server says how the command ended

RIGHTS = ("get", "create")
"""The verbs on `pods/exec`: API servers ask for either, by their version."""


def may_run_commands(api: KubernetesApi) -> bool:
    """Whether whoever we are may run a command in a pod of the namespace."""
    return all(is_allowed(api, verb, "pods/exec") for verb in RIGHTS)


def execute(
    api: KubernetesApi,
    pod: str,
    container: str,
    command: Sequence[str],
    *,
    seconds: float,
    about: str,
) -> tuple[int, str]:
    """Run a command in a container; return its exit status and what it printed.

    Raises `TimedOut` when it does not end in time; it may then go on in the pod.
    """
    from kubernetes.client import (  # noqa: PLC0415 - an extra, and slow
        ApiClient,
        ApiException,
        CoreV1Api,
    )
    from kubernetes.stream import stream  # noqa: PLC0415 - the same

    with ApiClient(api.configuration) as client:
        try:
            session = stream(
                CoreV1Api(client).connect_get_namespaced_pod_exec,
                pod,
                api.namespace,
                container=container,
                command=list(command),
                stdin=False,
                stdout=True,
                stderr=True,
                _preload_content=False,
            )
        except (ApiException, OSError) as error:
            raise _error(about, str(error)) from error
        return _outcome(session, command, seconds, about)


def _outcome(
    session: Any, command: Sequence[str], seconds: float, about: str
) -> tuple[int, str]:
    from websocket import WebSocketException  # noqa: PLC0415 - comes with the client

    lost = Unavailable(f"{about} the connection to {command[0]} was lost")
    try:
        session.run_forever(timeout=seconds)
        if session.is_open():
            raise TimedOut(
                f"{about} {command[0]} did not end within {seconds:g} s",
                hint="give it more time: its timeout in the agent's agent.yaml",
            )
        if not session.peek_channel(_ENDED):
            raise lost
        return int(session.returncode), str(session.read_all())
    except (WebSocketException, OSError) as error:
        raise lost from error
    finally:
        session.close()
        session.sock.shutdown()  # close() leaves it open when the other side was first


def _error(about: str, said: str) -> LobsterTrapError:
    reason = " ".join(said.split())[:300]
    if "403" in reason:
        return AccessDenied(
            f"{about} commands may not be run in its pod",
            hint="kubectl apply -f deployments/kubernetes/role-commands.yaml",
        )
    return Unavailable(f"{about} no command could be run in its pod: {reason}")
