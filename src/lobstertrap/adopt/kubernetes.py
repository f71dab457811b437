"""Originals in a cluster: claw-installer's Deployments, and others beside our own."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from lobstertrap.adopt.found import (
    Found,
    Mount,
    refuse_other_sources,
    slug,
    with_names_apart,
)
from lobstertrap.agent import parse_size
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
            container = _main_container(spec)
            mounts = _mounts(spec, container, api.namespace, claims)
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
            if claims & {*_claims(pod["spec"]).values()}
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
            if marks.get(MANAGED) == "lobstertrap" or not _claims(spec):
                continue
            found = describe(
                deployment,
                pods=here["pods"],
                claims=here["persistentvolumeclaims"],
                config_maps=here["configmaps"],
                secret_keys=_secret_keys(api, _main_container(spec)),
                made_by="claw-installer" if installed else "a Deployment",
            )
            if found.mounts:
                yield found


def describe(
    deployment: Mapping[str, Any],
    *,
    pods: list[Any],
    claims: list[Any],
    config_maps: list[Any],
    secret_keys: Mapping[str, list[str]],
    made_by: str,
) -> Found:
    """Return what a Deployment is, beside what its namespace has.

    `secret_keys` has the keys of every Secret that is given to it as a whole.
    """
    metadata, spec = deployment["metadata"], deployment["spec"]["template"]["spec"]
    container = _main_container(spec)
    namespace = metadata["namespace"]
    installed = made_by == "claw-installer"
    limits = (container.get("resources") or {}).get("limits") or {}
    security = (spec.get("securityContext") or {}) | (
        container.get("securityContext") or {}
    )
    env, held, told = _environment(container, config_maps, secret_keys)
    user = security.get("runAsUser", 1000)
    name = namespace.removesuffix("-openclaw") if installed else metadata["name"]
    return Found(
        original=f"{namespace}/{metadata['name']}",
        made_by=made_by,
        name=slug(name),
        running=bool(deployment["spec"].get("replicas", 1)),
        mounts=tuple(_mounts(spec, container, namespace, claims)),
        image=_pinned(container, metadata["name"], pods),
        command=_command(deployment, container),
        env=env,
        held=held,
        ports=tuple((p["containerPort"], None) for p in container.get("ports") or ()),
        health=_health(container),
        owner=(user, security.get("runAsGroup", security.get("fsGroup", user))),
        memory=_bytes(limits.get("memory")),
        cpus=_cpus(limits.get("cpu")),
        read_only_root=bool(security.get("readOnlyRootFilesystem")),
        capabilities=tuple((security.get("capabilities") or {}).get("add") or ()),
        tmpfs=tuple(_scratch(spec, container)),
        stop_seconds=spec.get("terminationGracePeriodSeconds"),
        is_openclaw=installed or "openclaw" in container["image"],
        warnings=(*told, *_warnings(deployment, spec, container)),
    )


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


def _main_container(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the container that is meant: the one with a claim, else the first."""
    claims = _claims(spec)
    for container in spec["containers"]:
        mounts = container.get("volumeMounts") or ()
        if any(m["name"] in claims for m in mounts):
            return dict(container)
    return dict(spec["containers"][0])


def _claims(spec: Mapping[str, Any]) -> dict[str, str]:
    """Return the claim by the pod's name of the volume."""
    return {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in spec.get("volumes") or ()
        if "persistentVolumeClaim" in volume
    }


def _mounts(
    spec: Mapping[str, Any],
    container: Mapping[str, Any],
    namespace: str,
    claims: list[Any],
) -> Iterator[Mount]:
    used = _claims(spec)
    sizes = {
        one["metadata"]["name"]: one["spec"]["resources"]["requests"].get("storage")
        for one in claims
    }
    for mount in container.get("volumeMounts") or ():
        claim = used.get(mount["name"])
        if claim is None or mount.get("readOnly"):
            continue
        inside = [mount["subPath"]] if mount.get("subPath") else []
        source = "/".join([namespace, claim, *inside])
        path = mount["mountPath"]
        yield Mount(path=path, source=source, size=_bytes(sizes.get(claim)))


def _scratch(spec: Mapping[str, Any], container: Mapping[str, Any]) -> Iterator[str]:
    empty = {v["name"] for v in spec.get("volumes") or () if "emptyDir" in v}
    for mount in container.get("volumeMounts") or ():
        if mount["name"] in empty:
            yield mount["mountPath"]


def _pinned(container: Mapping[str, Any], workload: str, pods: list[Any]) -> str:
    """Return the image by the digest that a node has pulled, if one tells it."""
    image = str(container["image"])
    for pod in pods:
        if not pod["metadata"]["name"].startswith(f"{workload}-"):
            continue
        for status in pod["status"].get("containerStatuses") or ():
            pulled = str(status.get("imageID", "")).rpartition("://")[2]
            if status["name"] == container["name"] and "@sha256:" in pulled:
                return pulled
    return image


def _command(
    deployment: Mapping[str, Any], container: Mapping[str, Any]
) -> tuple[str, ...]:
    command, words = container.get("command") or (), container.get("args") or ()
    if words and not command:
        name = deployment["metadata"]["name"]
        raise Refused(
            f"deployment {name} has arguments for a program that only its image knows",
            hint="set its command too, or write the agent.yaml by hand",
        )
    return (*map(str, command), *map(str, words))


def _environment(
    container: Mapping[str, Any],
    config_maps: list[Any],
    secret_keys: Mapping[str, list[str]],
) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Return the plain values, the references to Secrets, and what is neither."""
    maps = {one["metadata"]["name"]: one.get("data") or {} for one in config_maps}
    env: dict[str, str] = {}
    held: dict[str, str] = {}
    told: list[str] = []
    for source in container.get("envFrom") or ():
        if "configMapRef" in source:
            env |= maps.get(source["configMapRef"]["name"], {})
            continue
        name, prefix = source["secretRef"]["name"], source.get("prefix", "")
        for key in secret_keys.get(name, ()):
            held[f"{prefix}{key}"] = f"{name}/{key}"
    for one in container.get("env") or ():
        name, given = one["name"], one.get("valueFrom") or {}
        if "secretKeyRef" in given:
            ref = given["secretKeyRef"]
            held[name] = f"{ref['name']}/{ref['key']}"
        elif "configMapKeyRef" in given:
            ref = given["configMapKeyRef"]
            env[name] = maps.get(ref["name"], {}).get(ref["key"], "")
        elif given:
            told.append(f"the variable {name}, which the cluster makes up")
        else:
            env[name] = one.get("value", "")
    return env, held, told


def _health(container: Mapping[str, Any]) -> dict[str, Any] | None:
    for kind in ("readinessProbe", "startupProbe", "livenessProbe"):
        probe = container.get(kind)
        if not probe or "tcpSocket" in probe or "grpc" in probe:
            continue
        health: dict[str, Any] = {"timeout": float(probe.get("timeoutSeconds", 1))}
        if "httpGet" in probe:
            port = _port_number(container, probe["httpGet"]["port"])
            health["http"] = {"port": port, "path": probe["httpGet"].get("path", "/")}
        else:
            health["command"] = [*probe["exec"]["command"]]
        tried = probe.get("failureThreshold", 3) * probe.get("periodSeconds", 10)
        health["start"] = float(max(60, tried + probe.get("initialDelaySeconds", 0)))
        return health
    return None


def _port_number(container: Mapping[str, Any], port: object) -> int:
    named = {p.get("name"): p["containerPort"] for p in container.get("ports") or ()}
    return int(named.get(str(port), port))


def _bytes(text: str | None) -> int | None:
    found = parse_size(text) if text else None
    return found if isinstance(found, int) else None


def _cpus(text: str | None) -> float | None:
    if not text:
        return None
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def _warnings(
    deployment: Mapping[str, Any],
    spec: Mapping[str, Any],
    container: Mapping[str, Any],
) -> Iterator[str]:
    others = [c["name"] for c in spec["containers"] if c["name"] != container["name"]]
    if others:
        yield f"the containers beside it: {', '.join(others)}"
    first = [c["name"] for c in spec.get("initContainers") or ()]
    if first:
        # claw-installer's overwrites openclaw.json and MEMORY.md at every start.
        yield f"what runs before it and may overwrite its state: {', '.join(first)}"
    kept = {
        *_claims(spec),
        *(v["name"] for v in spec.get("volumes") or () if "emptyDir" in v),
    }
    for mount in container.get("volumeMounts") or ():
        if mount["name"] not in kept:
            yield f"what is mounted at {mount['mountPath']}"
    if deployment["spec"].get("replicas", 1) > 1:
        yield "all but one of its replicas"
