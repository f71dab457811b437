"""Which platforms a cluster's nodes are, as far as we may look at them."""

from __future__ import annotations

from lobstertrap.errors import AccessDenied
from lobstertrap.targets.kubernetes_api import KubernetesApi


def node_platforms(api: KubernetesApi) -> frozenset[str]:
    """Return what the nodes are, `linux/amd64`; none when we may not list nodes.

    The Role that deployments/kubernetes ships is for one namespace, and no node is in
    it; an administrator, and most people with a cluster of their own, may look.
    """
    try:
        found = api.raw("GET", "/api/v1/nodes?limit=500")
    except AccessDenied:
        return frozenset()
    told = [node["status"].get("nodeInfo") or {} for node in found["items"]]
    each = {f"{n.get('operatingSystem')}/{n.get('architecture')}" for n in told}
    return frozenset(p for p in each if all(p.split("/")) and "None" not in p)
