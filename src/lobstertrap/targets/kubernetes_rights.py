"""What a migration must be allowed to do in its namespace, and asking whether it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from lobstertrap.targets.kubernetes_api import GROUPS, KubernetesApi

RIGHTS: Final[Mapping[str, tuple[str, ...]]] = {
    "statefulsets": ("get", "create", "patch", "delete"),
    "pods": ("get", "list", "create", "patch", "delete"),
    "pods/log": ("get",),
    "persistentvolumeclaims": ("get", "list", "create", "patch", "delete"),
    "secrets": ("get", "create", "patch", "delete"),
    "configmaps": ("get", "create", "patch"),
    "services": ("create", "patch", "delete"),
    "serviceaccounts": ("create", "patch", "delete"),
    "networkpolicies": ("create", "patch", "delete"),
    "events": ("list",),
}
"""The verbs by resource: deployments/kubernetes/role.yaml grants exactly these."""


def missing_rights(api: KubernetesApi) -> list[str]:
    """Return every `VERB RESOURCE` that is not allowed, by asking the API server."""
    return [
        f"{verb} {resource}"
        for resource, verbs in RIGHTS.items()
        for verb in verbs
        if not is_allowed(api, verb, resource)
    ]


def is_allowed(
    api: KubernetesApi, verb: str, resource: str, *, in_namespace: bool = True
) -> bool:
    """Whether whoever we are may do this: a SelfSubjectAccessReview."""
    name, _, below = resource.partition("/")
    asked = {
        "verb": verb,
        "group": GROUPS.get(name, ""),
        "resource": name,
        "subresource": below,
    }
    if in_namespace:
        asked["namespace"] = api.namespace
    answer = api.raw(
        "POST",
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": asked},
        },
    )
    return bool(answer["status"]["allowed"])
