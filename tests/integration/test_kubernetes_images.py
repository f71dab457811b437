"""Images on their way to a real cluster: private registries, other platforms."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lobstertrap.agent import AgentSpec, load_agent
from lobstertrap.errors import AccessDenied, InvalidInput, Refused
from lobstertrap.targets.kubernetes_api import Access
from tests.contract.test_targets import SECRETS, client
from tests.fixtures.cluster import Namespace
from tests.fixtures.registry import (
    PASSWORD,
    USER,
    login,
    private_registry,
    push_empty_image,
)
from tests.fixtures.tally import AGENT

pytestmark = pytest.mark.kubernetes


@pytest.fixture
def agent() -> AgentSpec:
    return load_agent(AGENT / "agent.yaml")


@pytest.fixture
def arm_node(cluster) -> Iterator[str]:
    """Register a node with another processor; nothing ever answers there."""
    cluster.require_own()
    name = "an-arm"
    labels = {"kubernetes.io/arch": "arm64", "kubernetes.io/os": "linux"}
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": {"unschedulable": True},
    }
    cluster.kubectl("create", "-f", "-", stdin=node)
    info = {"operatingSystem": "linux", "architecture": "arm64"}
    names = "machineID systemUUID bootID kernelVersion osImage kubeletVersion"
    names += " containerRuntimeVersion kubeProxyVersion"
    rest = dict.fromkeys(names.split(), "")
    change = json.dumps({"status": {"nodeInfo": info | rest}})
    cluster.kubectl("patch", "node", name, "--subresource=status", "-p", change)
    yield name
    cluster.kubectl("delete", "node", name)


def test_a_private_registry_wants_a_login_to_push_and_a_secret_to_pull(
    namespace: Namespace, agent: AgentSpec, tmp_path: Path
) -> None:
    with private_registry(tmp_path) as host:
        place = {"registry": f"{host}/team", "insecure_registry": True}
        stranger = namespace.open(**place)
        wrong = login(tmp_path / "wrong.json", host, password="no")
        right = login(tmp_path / "auth.json", host)
        target = namespace.open(**place, auth_files=[right], pull_secret="registry")

        with pytest.raises(AccessDenied, match="credentials") as told:
            stranger.ensure_image(agent)
        assert "podman login" in told.value.hint
        with pytest.raises(AccessDenied):
            namespace.open(**place, auth_files=[wrong]).ensure_image(agent)

        namespace.kubectl(
            *("create", "secret", "docker-registry", "registry"),
            *(f"--docker-server={host}", f"--docker-username={USER}"),
            f"--docker-password={PASSWORD}",
        )
        image = target.ensure_image(agent)
        target.bind_secrets(agent, SECRETS)
        target.launch(agent, epoch=1, image=image, secrets=SECRETS)

        assert image.startswith(f"{host}/team/tally@sha256:")
        assert client(target, agent).say("pulled with a secret") == 1
        target.stop(agent)


def test_an_image_for_another_processor_is_refused_even_by_its_digest(
    namespace: Namespace, agent: AgentSpec
) -> None:
    image = push_empty_image(namespace.cluster.registry, "tests/foreign", "arm64")
    named = agent.model_copy(update={"image": image, "build": None})

    with pytest.raises(Refused, match=r"is for linux/arm64, target .* linux/amd64"):
        namespace.open(platform="linux/amd64").ensure_image(named)

    assert namespace.open(platform="linux/arm64").ensure_image(named) == image


def test_a_platform_that_no_node_has_is_named_to_whoever_may_look(
    namespace: Namespace, request: pytest.FixtureRequest
) -> None:
    admin = Access(kubeconfig=namespace.cluster.kubeconfig)
    arm = {"access": admin, "platform": "linux/arm64"}

    with pytest.raises(InvalidInput, match="no node is linux/arm64") as told:
        namespace.open(**arm).inspect()
    assert "platform" in told.value.hint

    request.getfixturevalue("arm_node")
    assert namespace.open(**arm).inspect().platform == "linux/arm64"


_INSIDE = """
import os, sys
from pathlib import Path
from lobstertrap import config
info = config.load(Path(sys.argv[1]), os.environ).target("cluster").inspect()
print(info.identity)
"""


def test_inside_of_a_cluster_the_pods_own_account_is_used(
    namespace: Namespace, tmp_path: Path
) -> None:
    """As the ServiceAccount that deployments/kubernetes ships, with its rights."""
    namespace.cluster.require_own()
    account = tmp_path / "account"
    account.mkdir()
    token = namespace.kubectl("create", "token", "lobstertrap")
    (account / "token").write_text(token.strip())
    ca = namespace.cluster.layout.path("pki", "ca.crt")
    (account / "ca.crt").write_bytes(ca.read_bytes())
    (tmp_path / "lobstertrap.toml").write_text(
        f"""
        [store]
        url = "s3://unused"
        [repository]
        key = "${{UNUSED}}"
        [targets.cluster]
        kind = "kubernetes"
        namespace = "{namespace.name}"
        """
    )
    place = "/run/secrets/kubernetes.io/serviceaccount"
    mount = f'mount -t tmpfs none /run && mkdir -p {place} && mount --bind "$1" {place}'
    inside = ["unshare", "--mount", "sh", "-ec", f'{mount}; shift; exec "$@"', "sh"]
    done = subprocess.run(
        [*inside, str(account), sys.executable, "-c", _INSIDE, str(tmp_path)],
        env={
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(tmp_path),
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(namespace.cluster.layout.api_port),
        },
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == namespace.open().inspect().identity
