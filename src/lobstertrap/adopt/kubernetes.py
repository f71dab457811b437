"""Originals in a cluster: claw-installer's Deployments, and others beside our own."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from lobstertrap.adopt.found import Found, refuse_other_sources, with_names_apart
from lobstertrap.adopt.kubernetes_shape import (
    claims_of,
    describe,
    main_container,
    mounts_of,
)
from lobstertrap.errors import AccessDenied, NotFound, Refused
from lobstertrap.lease import Adopted
from lobstertrap.redaction import SecretValue, redactor
from lobstertrap.targets.kubernetes_api import KubernetesApi

MANAGED: Final = "app.kubernetes.io/managed-by"
_INSTALLER: Final = "openclaw-installer"
_KEPT_BY: Final = "io.lobstertrap.adopted"
_SETTLE_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOriginals:
    """The Deployments of one cluster that are not ours; see `Originals`."""

    open_namespace: Callable[[str], KubernetesApi]
    namespace: str
    """Ours, where the agent will be."""
    target: str

    def find(self) -> list[Found]:
        """Return the Deployments that keep state in claims."""
        return with_names_apart(
            found
            for namespace, installed in self._namespaces().items()
            for found in self._in_namespace(namespace, installed=installed)
        )

    def keep_secret(
        self, found: Found, *, env: str, secret: str, value: SecretValue | None
    ) -> None:
        """Make a Secret in our namespace, with the variable's name as its key."""
        plain = value.reveal() if value is not None else self._held(found, env)
        api = self.open_namespace(self.namespace)
        manifest = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": secret, "labels": {MANAGED: "lobstertrap"}},
            "type": "Opaque",
            "stringData": {env: plain},
        }
        api.apply("secrets", manifest)

    def confirm(self, adopted: Adopted) -> None:
        """Compare with the Deployment; one that is gone had claims in its namespace."""
        api, name = self._of(adopted)
        found = api.find("deployments", name)
        claims = api.get("persistentvolumeclaims")["items"]
        if found is not None:
            spec = found["spec"]["template"]["spec"]
            container = main_container(spec)
            mounts = mounts_of(spec, container, api.namespace, claims)
            own = [mount.source for mount in mounts]
        else:
            own = [f"{api.namespace}/{claim['metadata']['name']}" for claim in claims]
        refuse_other_sources(adopted, own)

    def users(self, adopted: Adopted) -> list[str]:
        """Return the pods that have its claims mounted, ending ones too."""
        namespace = adopted.original.partition("/")[0]
        claims = {source.split("/")[1] for source in adopted.sources.values()}
        pods = self.open_namespace(namespace).get("pods")["items"]
        return sorted(
            f"pod {pod['metadata']['name']}"
            for pod in pods
            if claims & {*claims_of(pod["spec"]).values()}
            and pod["status"].get("phase") not in ("Succeeded", "Failed")
        )

    def has_state(self, adopted: Adopted) -> bool:
        """Whether the claims are there."""
        pairs = [source.split("/")[:2] for source in adopted.sources.values()]
        return all(
            self.open_namespace(namespace).find("persistentvolumeclaims", claim)
            for namespace, claim in pairs
        )

    def refuse_lasting(self, adopted: Adopted) -> None:
        """Raise `Refused` when something else sets the number of its replicas."""
        api, name = self._of(adopted)
        found = api.find("deployments", name)
        owners = (found or {}).get("metadata", {}).get("ownerReferences") or ()
        if owners:
            raise Refused(
                f"deployment {adopted.original} on '{self.target}' is made by "
                f"{owners[0]['kind']} {owners[0]['name']}, which would start it again",
                hint="scale it to zero there, then the same command again",
            )

    def stop(self, adopted: Adopted, *, seconds: float) -> None:
        """Scale the Deployment to zero and wait until no pod has the claims."""
        api, name = self._of(adopted)
        if api.find("deployments", name) is not None:
            api.merge("deployments", name, {"spec": {"replicas": 0}})
        if not api.until(
            lambda: not self.users(adopted), seconds=seconds + _SETTLE_SECONDS
        ):
            left = ", ".join(self.users(adopted))
            raise Refused(
                f"the state of {adopted.original} on '{self.target}' is in use: {left}",
                hint=f"kubectl -n {api.namespace} get pods; a pod of another workload "
                "has to be ended there, one on a lost node needs its node back",
            )

    def start(self, adopted: Adopted) -> None:
        """Scale it to one again."""
        api, name = self._of(adopted)
        api.merge("deployments", name, {"spec": {"replicas": 1}})

    def retire(self, adopted: Adopted) -> None:
        """Leave it at zero, with a note why."""
        api, name = self._of(adopted)
        if api.find("deployments", name) is not None:
            note = {"metadata": {"annotations": {_KEPT_BY: self.target}}}
            api.merge("deployments", name, note | {"spec": {"replicas": 0}})

    def _of(self, adopted: Adopted) -> tuple[KubernetesApi, str]:
        namespace, _, name = adopted.original.partition("/")
        return self.open_namespace(namespace), name

    def _held(self, found: Found, env: str) -> str:
        namespace = found.original.partition("/")[0]
        name, _, key = found.held[env].partition("/")
        secret = self.open_namespace(namespace).find("secrets", name)
        encoded = ((secret or {}).get("data") or {}).get(key)
        if encoded is None:
            raise NotFound(f"{found.original}: Secret {name} has no {key} for {env}")
        plain = base64.b64decode(encoded).decode()
        redactor.add(SecretValue(plain))
        return plain

    def _namespaces(self) -> dict[str, bool]:
        """Return where to look: whether claw-installer made it, by namespace."""
        api = self.open_namespace(self.namespace)
        try:
            path = f"/api/v1/namespaces?labelSelector={MANAGED}%3D{_INSTALLER}"
            listed = api.raw("GET", path)["items"]
        except AccessDenied:  # only a cluster's administrator sees all of them
            listed = []
        own = {self.namespace: False}
        return own | {one["metadata"]["name"]: True for one in listed}

    def _in_namespace(self, namespace: str, *, installed: bool) -> Iterator[Found]:
        api = self.open_namespace(namespace)
        try:
            here = {
                resource: api.get(resource)["items"]
                for resource in (
                    "deployments",
                    "pods",
                    "persistentvolumeclaims",
                    "configmaps",
                )
            }
        except (AccessDenied, NotFound):
            return
        for deployment in here["deployments"]:
            marks = deployment["metadata"].get("labels") or {}
            spec = deployment["spec"]["template"]["spec"]
            if marks.get(MANAGED) == "lobstertrap" or not claims_of(spec):
                continue
            found = describe(
                deployment,
                pods=here["pods"],
                claims=here["persistentvolumeclaims"],
                config_maps=here["configmaps"],
                secret_keys=_secret_keys(api, main_container(spec)),
                made_by="claw-installer" if installed else "a Deployment",
            )
            if found.mounts:
                yield found


def _secret_keys(
    api: KubernetesApi, container: Mapping[str, Any]
) -> dict[str, list[str]]:
    """Return the keys of the Secrets that the container gets as a whole."""
    names = [
        s["secretRef"]["name"]
        for s in container.get("envFrom") or ()
        if "secretRef" in s
    ]
    return {
        name: sorted((api.find("secrets", name) or {}).get("data") or {})
        for name in names
    }
