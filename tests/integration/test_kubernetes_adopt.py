"""An agent that claw-installer deployed to a real cluster: adopted, and switched."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import yaml

from lobstertrap import adopt, lifecycle
from lobstertrap.adopt.kubernetes import ClusterOriginals
from lobstertrap.agent import AgentSpec, load_agent
from lobstertrap.errors import Refused
from lobstertrap.lease import acquire
from lobstertrap.lifecycle import AgentHandle
from lobstertrap.stores import StoreSettings
from lobstertrap.stores.memory import MemoryStore
from lobstertrap.targets.kubernetes import KubernetesTarget
from lobstertrap.targets.kubernetes_api import Access, KubernetesApi
from tests.cluster.cluster import Cluster
from tests.contract.test_targets import KEY, make_repository
from tests.fixtures.cluster import Namespace
from tests.fixtures.places import Place
from tests.fixtures.tally import AGENT, TOKEN, TallyClient

pytestmark = [
    pytest.mark.kubernetes,
    pytest.mark.podman,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]

DEPLOYED = """
apiVersion: v1
kind: Namespace
metadata:
  name: {name}
  labels: {{app.kubernetes.io/managed-by: openclaw-installer}}
---
apiVersion: v1
kind: Secret
metadata: {{name: openclaw-secrets, namespace: {name}}}
stringData: {{TALLY_TOKEN: {token}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: openclaw-home-pvc, namespace: {name}}}
spec:
  accessModes: [ReadWriteOnce]
  resources: {{requests: {{storage: 1Gi}}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: openclaw, namespace: {name}}}
spec:
  replicas: 1
  strategy: {{type: Recreate}}
  selector: {{matchLabels: {{app: openclaw}}}}
  template:
    metadata: {{labels: {{app: openclaw}}}}
    spec:
      securityContext: {{runAsUser: 1000, runAsGroup: 1000, fsGroup: 1000}}
      terminationGracePeriodSeconds: 5
      initContainers:
        - name: init-config
          image: {image}
          command: [sh, -c, "mkdir -p /home/node/.openclaw && echo installed >
            /home/node/.openclaw/openclaw.json"]
          volumeMounts: [{{name: home, mountPath: /home/node}}]
      containers:
        - name: gateway
          image: {image}
          ports: [{{containerPort: 18789}}]
          resources: {{limits: {{memory: 256Mi, cpu: "1"}}, requests: {{cpu: 10m}}}}
          securityContext: {{readOnlyRootFilesystem: true}}
          env:
            - {{name: TALLY_STATE, value: /home/node/.openclaw}}
            - {{name: TALLY_PORT, value: "18789"}}
            - name: TALLY_TOKEN
              valueFrom:
                secretKeyRef: {{name: openclaw-secrets, key: TALLY_TOKEN}}
          readinessProbe: {{httpGet: {{path: /, port: 18789}}, periodSeconds: 1}}
          volumeMounts:
            - {{name: home, mountPath: /home/node}}
            - {{name: tmp, mountPath: /tmp}}
      volumes:
        - name: home
          persistentVolumeClaim: {{claimName: openclaw-home-pvc}}
        - {{name: tmp, emptyDir: {{}}}}
"""
SECONDS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """What claw-installer made."""

    cluster: Cluster
    namespace: str

    def pod(self) -> dict[str, Any]:
        """Wait for its one running pod and return it."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            for pod in self.cluster.get("-n", self.namespace, "pods")["items"]:
                statuses = pod["status"].get("containerStatuses") or ()
                running = any("running" in status["state"] for status in statuses)
                if running and "deletionTimestamp" not in pod["metadata"]:
                    return dict(pod)
            time.sleep(0.5)
        raise TimeoutError(self.cluster.kubectl("-n", self.namespace, "describe", "po"))

    def tally(self) -> TallyClient:
        """Talk to it."""
        return TallyClient(address=f"{self.pod()['status']['podIP']}:18789").wait(60)


@pytest.fixture
def target(namespace: Namespace) -> KubernetesTarget:
    """Return our own target, with rights in the other namespace too."""
    return namespace.open(access=Access(kubeconfig=namespace.cluster.kubeconfig))


@pytest.fixture
def deployed(namespace: Namespace, target: KubernetesTarget) -> Iterator[Deployed]:
    image = target.ensure_image(load_agent(AGENT / "agent.yaml"))
    name, cluster = f"{namespace.name}-ada-openclaw", namespace.cluster
    text = DEPLOYED.format(name=name, image=image, token=TOKEN)
    for document in yaml.safe_load_all(text):
        cluster.kubectl("apply", "-f", "-", stdin=document)
    yield Deployed(cluster=cluster, namespace=name)
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def originals(namespace: Namespace) -> ClusterOriginals:
    access = Access(kubeconfig=namespace.cluster.kubeconfig)
    return ClusterOriginals(
        open_namespace=lambda name: KubernetesApi("there", access, name),
        namespace=namespace.name,
        target="there",
    )


def handle_of(
    target: KubernetesTarget, spec: AgentSpec, store: StoreSettings
) -> AgentHandle:
    return AgentHandle(
        spec=spec,
        lease=acquire(MemoryStore(), spec.name, "test"),
        target=lambda _: target,
        secrets=dict,
        mover_request=lambda: {"store": store.to_dict(), "key": KEY, "cache": False},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Adoption:
    """An agent of claw-installer that is adopted, and still runs there."""

    target: KubernetesTarget
    handle: AgentHandle
    originals: ClusterOriginals
    found: adopt.Found
    drafted: adopt.Draft
    pod: str
    """Its uid before."""


@pytest.fixture
def adopted(
    target: KubernetesTarget,
    deployed: Deployed,
    originals: ClusterOriginals,
    pod_store: StoreSettings,
) -> Adoption:
    make_repository(Place(open=lambda: target, store=pod_store))
    deployed.tally().say("in the Deployment")
    pod = deployed.pod()["metadata"]["uid"]
    (found,) = [
        one for one in originals.find() if one.original.startswith(deployed.namespace)
    ]
    drafted = adopt.draft(found, "ada")
    spec = drafted.spec.model_copy(update={"stop_timeout": 5.0})
    handle = handle_of(target, spec, pod_store)
    adopt.begin(handle, originals, found, drafted, target="there")
    return Adoption(
        target=target,
        handle=handle,
        originals=originals,
        found=found,
        drafted=drafted,
        pod=pod,
    )


def test_claw_installers_agent_is_adopted_and_runs_on(
    namespace: Namespace, deployed: Deployed, adopted: Adoption
) -> None:
    record = adopted.handle.record()
    kept = namespace.get("secret", "lobstertrap-ada.env-tally-token")

    with pytest.raises(Refused, match=r"openclaw.*still has its place"):
        lifecycle.launch(adopted.handle, "there")

    assert deployed.pod()["metadata"]["uid"] == adopted.pod
    assert "@sha256:" in (adopted.drafted.spec.image or "")
    assert [*kept["data"]] == ["TALLY_TOKEN"]
    assert record.snapshot is not None
    assert record.adopted is not None
    adopted.originals.confirm(record.adopted)
    with pytest.raises(Refused, match="is no state of"):
        adopted.originals.confirm(
            replace(record.adopted, sources={"home": "kube-system/secrets"})
        )


@pytest.mark.long
def test_its_place_is_taken_with_its_state_and_its_claim_is_kept(
    deployed: Deployed, adopted: Adoption
) -> None:
    target, spec = adopted.target, adopted.handle.spec
    record = adopted.handle.record()
    deployed.tally().say("after the first snapshot")

    done = adopt.switch(adopted.handle, adopted.originals)
    status = target.status(spec)
    ours = TallyClient(address=status.addresses["gateway"]).wait(60)
    number = ours.say("in the StatefulSet")

    assert (done["state"], number) == ("running", 3)
    claims = deployed.cluster.get("-n", deployed.namespace, "pvc")["items"]
    assert [claim["metadata"]["name"] for claim in claims] == ["openclaw-home-pvc"]
    left = deployed.cluster.get("-n", deployed.namespace, "deployment", "openclaw")
    assert left["spec"]["replicas"] == 0
    assert record.adopted is not None
    assert adopted.originals.users(record.adopted) == []
    target.stop(spec)
