"""What needs a right of its own in an agent's pod; what a team applies."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from lobstertrap import config
from lobstertrap.agent import load_agent
from lobstertrap.errors import AccessDenied, NotFound, TimedOut
from lobstertrap.redaction import SecretValue
from tests.fixtures.cluster import DEPLOYMENTS, Namespace
from tests.fixtures.tally import AGENT, TOKEN, TallyClient

pytestmark = [
    pytest.mark.kubernetes,
    pytest.mark.podman,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]
CONFIG = """
agents = {agents}
[store]
url = "file://{directory}/store"
[repository]
key = "${{KEY}}"
[targets.there]
kind = "kubernetes"
kubeconfig = {kubeconfig}
namespace = "{namespace}"
"""


@pytest.fixture
def project(tmp_path: Path, namespace: Namespace, monkeypatch) -> Path:
    """Return a directory whose lobstertrap.toml names the namespace, tally's home."""
    kubeconfig = namespace.cluster.layout.path("operator.conf")
    text = CONFIG.format(
        agents=json.dumps(str(AGENT.parent)),
        directory=tmp_path,
        kubeconfig=json.dumps(str(kubeconfig)),
        namespace=namespace.name,
    )
    (tmp_path / config.FILE_NAME).write_text(text)
    monkeypatch.delenv(config.VARIABLE, raising=False)
    monkeypatch.setenv("TALLY_TOKEN", TOKEN)
    loaded = config.load(tmp_path, os.environ)
    with loaded.hold("tally", "launch", repository=False) as handle:
        handle.lease.update(lambda now: replace(now, target="there", state="running"))
    return tmp_path


@contextmanager
def opened(project: Path) -> Iterator[subprocess.Popen[str]]:
    """Run `lobstertrap open` until the end of the block."""
    with subprocess.Popen(
        [Path(sys.executable).with_name("lobstertrap"), "open", "tally", "--print"],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        try:
            yield command
        finally:
            command.kill()


def test_commands_and_ports_of_the_pod_need_rights_of_their_own(
    namespace: Namespace, project: Path
) -> None:
    spec = load_agent(AGENT / "agent.yaml")
    target = namespace.open()
    secrets = {"TALLY_TOKEN": SecretValue(TOKEN)}
    assert not target.inspect().commands
    with pytest.raises(NotFound, match="does not run on 'there'"):
        target.run_command(spec, ["true"], seconds=60)
    with pytest.raises(NotFound, match="does not run on 'there'"):
        target.dial(spec, 8080)
    image = target.ensure_image(spec)
    target.bind_secrets(spec, secrets)
    target.launch(spec, epoch=1, image=image, secrets=secrets)
    pod = "pod/lobstertrap-tally-0"
    namespace.kubectl("wait", "--for=condition=Ready", pod, "--timeout=240s")

    with pytest.raises(AccessDenied, match="commands may not be run") as denied:
        target.run_command(spec, ["true"], seconds=60)
    namespace.allow("commands")
    said = target.run_command(spec, ["sh", "-c", "id -u; exit 3"], seconds=60)
    with pytest.raises(TimedOut, match="sleep did not end within"):
        target.run_command(spec, ["sleep", "60"], seconds=0.5)
    gc.collect()  # a connection that was left open would be found now

    with opened(project) as refused:
        _, why = refused.communicate(timeout=240)
    namespace.allow("open")
    with opened(project) as forwarding:
        url = forwarding.stdout.readline().strip()
        tally = TallyClient(address=url.removeprefix("http://"))
        numbers = [tally.say("hello"), tally.say("and on")]
        forwarding.send_signal(signal.SIGINT)
        _, told = forwarding.communicate(timeout=120)
    target.stop(spec)
    target.remove(spec, volumes=True)

    assert "role-commands.yaml" in str(denied.value.hint)
    assert said == (3, "1000\n")
    assert refused.returncode == 1
    assert "its ports may not be forwarded\nhint: " in why
    assert "role-open.yaml" in why
    assert url.startswith("http://127.0.0.1:")
    assert numbers == [1, 2]
    assert forwarding.returncode == 130
    assert "Traceback" not in told


def test_a_teams_server_and_worker_are_what_a_cluster_takes(
    namespace: Namespace,
) -> None:
    """Every manifest, and every pod that comes of one, under Pod Security."""
    kinds = []
    for file in sorted((DEPLOYMENTS.parent / "team").glob("*er.yaml")):
        for manifest in yaml.safe_load_all(file.read_text()):
            manifest["metadata"]["namespace"] = namespace.name
            namespace.would_take(manifest)
            kinds.append(f"{file.stem}: {manifest['kind']}")
            if manifest["kind"] == "Deployment":
                pod = {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {"name": "it", "namespace": namespace.name},
                    "spec": manifest["spec"]["template"]["spec"],
                }
                namespace.would_take(pod)
    worker = f"--as=system:serviceaccount:{namespace.name}:lobstertrap"
    may = namespace.kubectl("auth", "can-i", "create", "statefulsets.apps", worker)

    assert kinds == [
        "server: Deployment",
        "server: Deployment",
        "server: Service",
        "worker: Deployment",
    ]
    assert may.strip() == "yes"
