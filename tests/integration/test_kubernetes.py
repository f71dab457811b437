"""What a real cluster shows of an agent: hardening, rights, secrets, manifests."""

from __future__ import annotations

import json
import time

import pytest

from lobstertrap.agent import AgentSpec, load_agent
from lobstertrap.cli.demo_cluster import DemoCluster, Wanted
from lobstertrap.errors import (
    AccessDenied,
    InvalidInput,
    NotFound,
    Refused,
    Unavailable,
)
from lobstertrap.redaction import SecretValue
from lobstertrap.secret_ref import SecretRef
from lobstertrap.targets import kubernetes_spec as spec
from lobstertrap.targets.kubernetes_api import Access
from tests.contract.test_targets import (
    SECRETS,
    client,
    launch,
    make_repository,
    mover_job,
    ready,
    restore,
    snapshot,
)
from tests.fixtures import probe
from tests.fixtures.cluster import Namespace
from tests.fixtures.places import Place
from tests.fixtures.tally import AGENT, TOKEN

pytestmark = pytest.mark.kubernetes


@pytest.fixture
def agent() -> AgentSpec:
    return load_agent(AGENT / "agent.yaml")


@pytest.fixture
def place(namespace: Namespace, pod_store) -> Place:
    return Place(open=namespace.open, store=pod_store, publishes=False)


def inside(namespace: Namespace, agent: AgentSpec, *command: str) -> str:
    return namespace.kubectl("exec", spec.pod_name(agent), "--", *command)


def test_an_agent_is_hardened_as_seen_from_inside(namespace, agent):
    target = namespace.open()
    launch(target, agent)
    ready(target, agent)

    status = dict(
        line.split(":\t", 1)
        for line in inside(namespace, agent, "cat", "/proc/1/status").splitlines()
    )
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert set(status["Uid"].split()) == {"1000"}
    assert inside(namespace, agent, "hostname").strip() == "tally"
    with pytest.raises(Exception, match="Read-only"):
        inside(namespace, agent, "touch", "/etc/x")
    with pytest.raises(Exception, match="No such file"):
        inside(namespace, agent, "ls", "/var/run/secrets/kubernetes.io")


def test_an_agent_in_a_pod_cannot_get_out(namespace, agent):
    target = namespace.open()
    launch(target, agent)
    ready(target, agent)

    found = probe.seen(inside(namespace, agent, *probe.command()))

    mine = ["/home/tally/state", "/tmp"]  # noqa: S108 - in the pod
    probe.assert_confined(found, uid=1000, writable=mine)
    limits = {found["memory"].strip(), found["memory v1"].strip()}
    assert str(256 * 2**20) in limits


def test_an_agent_runs_under_whatever_user_the_cluster_wants(place, namespace, agent):
    target = namespace.open(user=10_777)
    make_repository(place)
    launch(target, agent)
    client(target, agent).say("as somebody else")
    ids = inside(namespace, agent, "stat", "-c", "%u:%g", "/home/tally/state")
    target.stop(agent)
    taken = snapshot(place, target, agent)
    target.remove(agent, volumes=True)

    there = namespace.open(user=10_888)
    restored = restore(place, there, agent, taken["snapshot"])
    launch(there, agent, epoch=2)

    assert ids.strip() == "10777:10777"
    assert restored["warnings"] == []
    assert restored["tree_digest"] == taken["tree_digest"]
    assert client(there, agent).say("and again") == 2
    stat = inside(namespace, agent, "stat", "-c", "%u:%g", "/home/tally/state")
    assert stat.strip() == "10888:10888"


def test_a_running_agent_is_snapshotted_beside_itself(place, namespace, agent):
    target = namespace.open()
    make_repository(place)
    launch(target, agent)
    tally = client(target, agent)
    tally.say("before")
    seen: list[str] = []

    def look(_: object) -> None:
        pod = namespace.get("pod", spec.mover_name(agent))
        secret = namespace.get("secret", spec.mover_name(agent))
        seen.append(json.dumps(pod))
        owners = secret["metadata"]["ownerReferences"]
        assert owners[0]["uid"] == pod["metadata"]["uid"]

    job = mover_job(place, agent, "snapshot", consistency="live", tags={})
    taken = target.run_mover(agent, job, look)

    assert taken["files"] > 0
    assert seen
    for value in (place.store.secret_key.reveal(), "a passphrase for tests"):
        assert value not in "".join(seen)
    namespace.kubectl("wait", "--for=delete", "pod", "-l", spec.MOVER, "--timeout=60s")
    secrets = namespace.kubectl("get", "secrets", "-o", "name")
    assert "mover" not in secrets
    assert tally.say("after") == 2


def test_a_second_restore_writes_only_what_differs(place, namespace, agent):
    target = namespace.open()
    make_repository(place)
    launch(target, agent)
    tally = client(target, agent)
    tally.post("/grow", {"megabytes": 8})
    target.stop(agent)
    first = snapshot(place, target, agent)
    launch(target, agent, epoch=2)
    client(target, agent).say("only this is new")
    target.stop(agent)
    second = snapshot(place, target, agent)

    back = restore(place, target, agent, first["snapshot"])
    again = restore(place, target, agent, second["snapshot"])

    assert second["uploaded_bytes"] < first["uploaded_bytes"] / 4
    assert 0 < back["bytes_written"] < 2**20
    assert 0 < again["bytes_written"] < 2**20
    assert again["tree_digest"] == second["tree_digest"]


def test_no_secret_is_in_any_object_but_the_secret(namespace, agent):
    target = namespace.open()
    launch(target, agent)
    ready(target, agent)

    shown = namespace.kubectl(
        "get", "statefulsets,pods,configmaps,services,events", "-o", "json"
    )
    assert TOKEN not in shown
    target.stop(agent)
    target.remove(agent)
    assert "secrets" not in namespace.kubectl("get", "secrets", "-o", "name")


def test_a_secret_that_is_on_the_target_never_passes_through_here(namespace, agent):
    namespace.kubectl(
        "create", "secret", "generic", "ours", f"--from-literal=token={TOKEN}"
    )
    elsewhere = SecretRef(source="target", id="ours/token")
    agent = agent.model_copy(update={"secrets": {"TALLY_TOKEN": elsewhere}})
    target = namespace.open()

    target.bind_secrets(agent, {})
    image = target.ensure_image(agent)
    target.launch(agent, epoch=1, image=image, secrets={})

    assert client(target, agent).say("hello") == 1


def test_rights_that_are_missing_are_named_one_by_one(cluster, namespace):
    stranger = Access(kubeconfig=cluster.layout.path("stranger.conf"))
    namespace.kubectl("delete", "role", "lobstertrap")
    admin = Access(kubeconfig=cluster.kubeconfig)

    with pytest.raises(AccessDenied, match=r"patch statefulsets.*get pods/log") as told:
        namespace.open(access=stranger).inspect()

    assert "deployments/kubernetes" in told.value.hint
    assert namespace.open(access=admin).inspect().version.startswith("v1.")


def test_expired_credentials_are_told_from_missing_rights(cluster, namespace, tmp_path):
    config = json.loads(cluster.layout.path("operator.conf").read_text())
    config["users"][0]["user"] = {"token": "expired"}
    (tmp_path / "config").write_text(json.dumps(config))

    with pytest.raises(AccessDenied) as told:
        namespace.open(access=Access(kubeconfig=tmp_path / "config")).inspect()

    assert "expired" in told.value.hint


def test_a_wrong_context_is_named(cluster, namespace):
    access = Access(kubeconfig=cluster.kubeconfig, context="moon")

    with pytest.raises(InvalidInput, match="moon"):
        namespace.open(access=access).inspect()


def test_a_namespace_that_is_missing_is_made_if_that_is_allowed(
    cluster, namespace, agent
):
    admin = Access(kubeconfig=cluster.kubeconfig)
    name = f"{namespace.name}-new"

    with pytest.raises(AccessDenied):
        namespace.open(namespace=name).inspect()

    target = namespace.open(namespace=name, access=admin)
    assert any("will be made" in note for note in target.inspect().notes)
    target.bind_secrets(agent, SECRETS)
    made = cluster.get("namespace", name)
    assert made["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == (
        "restricted"
    )
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def test_a_namespace_of_somebody_else_is_never_the_demos(
    namespace, tmp_path, monkeypatch
):
    monkeypatch.setenv("KUBECONFIG", str(namespace.cluster.kubeconfig))
    context = namespace.cluster.kubectl("config", "current-context").strip()
    wanted = Wanted(context=context, namespace=namespace.name)

    with (
        pytest.raises(Refused, match="not this demo's"),
        DemoCluster(wanted, tmp_path).opened("http://127.0.0.1:1"),
    ):
        pytest.fail("opened")

    assert namespace.get("namespace", namespace.name)["status"]["phase"] == "Active"


def test_a_store_that_pods_do_not_reach_is_named(namespace, agent):
    address = f"{namespace.cluster.gateway}:1"

    with pytest.raises(Unavailable, match=r"its pods do not reach .*refused"):
        namespace.open().check_network(agent, address)

    assert "probe" not in namespace.kubectl("get", "pods", "-o", "name")


def test_two_namespaces_are_two_places_and_two_names_are_one(namespace, new_namespace):
    here = namespace.open("one").inspect()

    assert here.identity == namespace.open("other").inspect().identity
    assert here.identity != new_namespace().open("one").inspect().identity


def test_what_somebody_else_made_is_not_taken_over(namespace, agent):
    target = namespace.open()
    image = target.ensure_image(agent)
    foreign = spec.skeleton(agent, spec.Settings(target="x"), image)
    foreign["metadata"]["labels"] = {}
    namespace.kubectl("create", "-f", "-", stdin=foreign)

    with pytest.raises(Refused, match="is not agent 'tally's"):
        target.launch(agent, epoch=1, image=image, secrets=SECRETS)
    with pytest.raises(Refused, match="is not agent 'tally's"):
        target.stop(agent)


def test_the_printed_manifests_are_what_the_cluster_accepts(namespace, agent):
    target = namespace.open()
    image = target.ensure_image(agent)

    for manifest in target.manifests(agent, image=image):
        told = namespace.kubectl("apply", "--dry-run=server", "-f", "-", stdin=manifest)
        assert "server dry run" in told
    assert TOKEN not in json.dumps(target.manifests(agent, image=image))


def test_what_somebody_else_has_changed_is_named_until_the_next_launch(
    namespace, agent
):
    target = namespace.open()
    launch(target, agent)
    assert ready(target, agent).detail == ""
    change = '{"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 3}}}}'

    namespace.kubectl(
        *("patch", "statefulset", spec.object_name(agent), "--type=merge"),
        *("--field-manager=somebody", "-p", change),
    )

    field = "spec.template.spec.terminationGracePeriodSeconds"
    assert f"somebody has changed {field}" in target.status(agent).detail
    target.stop(agent)
    launch(target, agent, epoch=2)
    assert "somebody" not in target.status(agent).detail


def test_a_launch_suspended_before_its_last_step_is_fenced_off(namespace, agent):
    late, other = namespace.open(), namespace.open()
    image = late.ensure_image(agent)
    late.bind_secrets(agent, SECRETS)
    start = late._start

    def suspended(*args: object) -> None:
        other.fence(agent, epoch=1, turn=1)
        assert other.status(agent).phase != "running"
        start(*args)

    late._start = suspended  # type: ignore[method-assign]

    with pytest.raises(Refused, match="fenced off"):
        late.launch(agent, epoch=1, image=image, secrets=SECRETS)

    assert other.status(agent).phase != "running"


def test_a_secret_can_be_a_file_of_the_agent_alone(namespace, agent):
    namespace.kubectl("create", "secret", "generic", "ours", "--from-literal=key=there")
    files = {"EXTRA": "/etc/tally/extra", "THERE": "/run/secrets/there"}
    refs = {
        "EXTRA": SecretRef(source="env", id="EXTRA"),
        "THERE": SecretRef(source="target", id="ours/key"),
    }
    agent = agent.model_copy(
        update={"secrets": {**agent.secrets, **refs}, "secret_files": files}
    )
    values = {**SECRETS, "EXTRA": SecretValue("not-in-the-environment\n")}
    target = namespace.open(user=10_777)
    target.bind_secrets(agent, values)
    image = target.ensure_image(agent)
    target.launch(agent, epoch=1, image=image, secrets=values)
    ready(target, agent)

    assert inside(namespace, agent, "cat", files["EXTRA"]) == "not-in-the-environment\n"
    assert inside(namespace, agent, "cat", files["THERE"]) == "there"
    environment = inside(namespace, agent, "cat", "/proc/1/environ").split("\0")
    assert f"EXTRA_FILE={files['EXTRA']}" in environment
    assert "not-in-the-environment" not in "".join(environment)


def test_a_value_that_is_no_longer_named_is_gone_from_the_secret(namespace, agent):
    target = namespace.open()
    target.bind_secrets(agent, SECRETS)
    fewer = agent.model_copy(update={"secrets": {}})

    target.bind_secrets(fewer, {"TALLY_TOKEN": SecretValue(TOKEN)})

    found = namespace.get("secret", spec.secret_name(agent))
    assert not found.get("data")


def test_the_log_is_followed_until_the_agent_ends(namespace, agent):
    target = namespace.open()
    with pytest.raises(NotFound):
        target.logs(agent)
    launch(target, agent)
    ready(target, agent)
    lines = target.logs(agent, follow=True)

    assert "ready" in next(lines)
    began = time.monotonic()
    target.stop(agent)
    assert "stopped" in [*lines][-1]
    assert time.monotonic() - began < 60
