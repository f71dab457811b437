"""What goes wrong in a real cluster: told clearly, and set right by trying again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lobstertrap.agent import AgentSpec, Resources, load_agent
from lobstertrap.errors import LobsterTrapError, NoSpace, NotFound, Unavailable
from lobstertrap.targets import kubernetes_mover
from lobstertrap.targets import kubernetes_spec as spec
from lobstertrap.targets.kubernetes import KubernetesTarget
from tests.cluster.layout import NODE
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
from tests.fixtures.cluster import Gate, Namespace
from tests.fixtures.places import Place
from tests.fixtures.tally import AGENT

pytestmark = pytest.mark.kubernetes


@pytest.fixture
def agent() -> AgentSpec:
    return load_agent(AGENT / "agent.yaml")


@pytest.fixture
def place(namespace: Namespace, pod_store) -> Place:
    return Place(open=namespace.open, store=pod_store, publishes=False)


@pytest.fixture
def cordoned(cluster) -> Iterator[Callable[[], None]]:
    cluster.require_own()
    yield lambda: cluster.kubectl("cordon", NODE)
    cluster.kubectl("uncordon", NODE)


def told(target: KubernetesTarget, agent: AgentSpec, words: str) -> str:
    """Return the status' detail when it has `words`, within a while."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        status = target.status(agent)
        if words.lower() in status.detail.lower():
            assert status.healthy is False
            return status.detail
        time.sleep(0.2)
    raise AssertionError(status)


def run_until_it_works(action: Callable[[], Any], tries: int = 4) -> Any:
    """Do what a task's retries do: again after something transient."""
    for _ in range(tries):
        try:
            return action()
        except Unavailable as error:
            last = error
            time.sleep(1)
    raise last


def test_an_image_that_cannot_be_pulled_is_named(namespace, agent):
    target = namespace.open()
    target.bind_secrets(agent, SECRETS)
    image = f"{namespace.cluster.registry}/tests/gone@sha256:{'0' * 64}"

    target.launch(agent, epoch=1, image=image, secrets=SECRETS)

    told(target, agent, "tests/gone")
    target.stop(agent)
    assert target.status(agent).phase == "stopped"


def test_a_mover_image_that_cannot_be_pulled_ends_the_step(place, namespace, agent):
    image = f"{namespace.cluster.registry}/tests/gone@sha256:{'0' * 64}"
    target = namespace.open(mover_image=image)

    with pytest.raises(NotFound, match="ImagePullBackOff"):
        restore(place, target, agent, "0" * 32)

    assert namespace.kubectl("get", "pods,secrets", "-o", "name").strip() == ""


def test_an_agent_that_fits_on_no_node_says_why(namespace, agent):
    target = namespace.open()
    huge = agent.model_copy(update={"resources": Resources(memory=2**45)})
    launch(target, huge)

    assert "Insufficient memory" in told(target, huge, "unschedulable")


def test_a_quota_that_is_full_is_named(place, namespace, agent):
    namespace.kubectl("create", "quota", "small", "--hard=pods=0")
    target = namespace.open()
    make_repository(place)
    launch(target, agent)

    assert "small" in told(target, agent, "exceeded quota")
    with pytest.raises(NoSpace, match="exceeded quota"):
        snapshot(place, target, agent)


def test_a_claim_without_a_storage_class_says_so(place, namespace, agent, monkeypatch):
    target = namespace.open(storage_class="fast-and-nowhere")
    launch(target, agent)

    told(target, agent, "fast-and-nowhere")
    target.stop(agent)
    movers = target._movers
    monkeypatch.setattr(
        type(target),
        "_movers",
        property(
            lambda _: type(movers)(
                api=movers.api, settings=movers.settings, start_seconds=5
            )
        ),
    )
    with pytest.raises(Unavailable, match="fast-and-nowhere") as error:
        restore(place, target, agent, "0" * 32)
    assert "storage_class" in error.value.hint
    target.remove(agent, volumes=True)
    assert target.status(agent).volumes == ()


def test_a_cordoned_node_still_lets_the_agent_out(place, namespace, agent, cordoned):
    target = namespace.open()
    make_repository(place)
    launch(target, agent)
    client(target, agent).say("hello")
    cordoned()

    job = mover_job(place, agent, "snapshot", consistency="live", tags={})
    assert target.run_mover(agent, job, lambda _: None)["files"] > 0
    target.stop(agent)
    taken = snapshot(place, target, agent)
    assert restore(place, target, agent, taken["snapshot"])["verified"]
    launch(target, agent, epoch=2)
    told(target, agent, "unschedulable")


def test_an_agent_that_crashes_says_how(namespace, agent):
    target = namespace.open()
    broken = agent.model_copy(update={"command": ["python3", "-c", "exit('no luck')"]})
    launch(target, broken)

    detail = told(target, broken, "restarting after a crash")

    assert "exited with status 1" in detail


def test_an_agent_that_is_killed_for_its_memory_says_so(namespace, agent):
    target = namespace.open()
    hungry = agent.model_copy(
        update={
            "command": ["python3", "-c", "x = bytearray(10**9); print(len(x))"],
            "resources": Resources(memory=48 * 2**20),
        }
    )
    launch(target, hungry)

    told(target, hungry, "out of memory")


def grown(place: Place, target: KubernetesTarget, agent: AgentSpec) -> str:
    """Return a snapshot of an agent with enough state to be in the middle of it."""
    make_repository(place)
    launch(target, agent)
    client(target, agent).post("/grow", {"megabytes": 40})
    target.stop(agent)
    return str(snapshot(place, target, agent)["snapshot"])


class Once:
    """Does something when progress is told for the first time."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act
        self.done = False

    def __call__(self, _: object) -> None:  # noqa: D102 - an on_progress
        if not self.done:
            self.done = True
            self.act()


def kill_mover(namespace: Namespace, agent: AgentSpec, gate: Gate) -> Once:
    """Return what deletes the mover's pod by force, once, before it can be done."""

    def kill() -> None:
        with gate.closed():
            pod = ("pod", spec.mover_name(agent))
            namespace.kubectl("delete", *pod, "--grace-period=0", "--force")

    return Once(kill)


def tried_again(action: Callable[[], Any]) -> tuple[Any, list[LobsterTrapError]]:
    """Return what the step gives in the end, and how it failed before."""
    failures: list[LobsterTrapError] = []

    def step() -> Any:
        try:
            return action()
        except LobsterTrapError as error:
            failures.append(error)
            raise

    return run_until_it_works(step), failures


@pytest.mark.slow
def test_a_restore_that_is_killed_in_the_middle_is_tried_again_and_ends_right(
    place, namespace, agent, gate_to_s3
):
    target = namespace.open()
    taken = grown(place, target, agent)
    target.remove(agent, volumes=True)
    kill = kill_mover(namespace, agent, gate_to_s3)
    job = mover_job(place, agent, "restore", snapshot=taken, delete_extra=True)

    with gate_to_s3.slow():
        result, failures = tried_again(lambda: target.run_mover(agent, job, kill))

    assert result["verified"]
    assert [type(error) for error in failures] == [Unavailable]
    assert "gone" in failures[0].message
    launch(target, agent, epoch=2)
    assert client(target, agent).say("goes on") == 1


@pytest.mark.slow
def test_a_snapshot_that_is_killed_in_the_middle_is_tried_again_and_ends_right(
    place, namespace, agent, gate_to_s3
):
    target = namespace.open()
    before = grown(place, target, agent)
    launch(target, agent, epoch=2)
    client(target, agent).post("/grow", {"megabytes": 80})
    target.stop(agent)
    kill = kill_mover(namespace, agent, gate_to_s3)
    job = mover_job(place, agent, "snapshot", consistency="stopped", tags={})

    with gate_to_s3.slow():
        taken, failures = tried_again(lambda: target.run_mover(agent, job, kill))

    assert [type(error) for error in failures] == [Unavailable]
    assert taken["snapshot"] != before
    back = restore(place, target, agent, taken["snapshot"])
    assert back["tree_digest"] == taken["tree_digest"]
    assert back["bytes_written"] == 0  # it is what the volume holds


@pytest.mark.slow
def test_an_api_server_that_is_away_for_half_a_minute_is_waited_for(
    place, namespace, agent, cluster, gate_to_s3
):
    target = namespace.open()
    taken = grown(place, target, agent)
    target.remove(agent, volumes=True)
    back: list[threading.Timer] = []

    def away() -> None:
        cluster.pause("kube-apiserver")
        back.append(threading.Timer(30, cluster.resume, ["kube-apiserver"]))
        back[0].start()

    job = mover_job(place, agent, "restore", snapshot=taken, delete_extra=True)
    try:
        with gate_to_s3.slow():
            result = target.run_mover(agent, job, Once(away))
    finally:
        for timer in back:
            timer.join()

    assert result["verified"]
    assert back


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a node that does not answer up after seconds, not minutes."""
    monkeypatch.setattr(kubernetes_mover, "_SILENCE_SECONDS", 5.0)
    monkeypatch.setattr(kubernetes_mover, "_LOST_SECONDS", 10.0)
    monkeypatch.setattr(kubernetes_mover, "_END_SECONDS", 5.0)


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("command", ["snapshot", "restore"])
def test_a_node_that_is_away_in_the_middle_of_a_mover_ends_it_in_time(
    command, place, agent, cluster, gate_to_s3
):
    target = place.open()
    taken = grown(place, target, agent)
    if command == "restore":
        target.remove(agent, volumes=True)
        fields = {"snapshot": taken, "delete_extra": True}
    else:
        launch(target, agent, epoch=2)
        client(target, agent).post("/grow", {"megabytes": 80})
        target.stop(agent)
        fields = {"consistency": "stopped", "tags": {}}
    job = mover_job(place, agent, command, **fields)
    away = Once(lambda: cluster.pause("kubelet"))
    try:
        with gate_to_s3.slow(), pytest.raises(Unavailable, match=f"node '{NODE}'"):
            target.run_mover(agent, job, away)
    finally:
        cluster.resume("kubelet")

    result = run_until_it_works(
        lambda: target.run_mover(agent, job, lambda _: None), tries=12
    )
    back = restore(place, target, agent, result["snapshot"])
    assert back["tree_digest"] == result["tree_digest"]
    assert back["bytes_written"] == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_that_stops_answering_is_refused_and_comes_back(
    place, namespace, agent, cluster
):
    quick = agent.model_copy(update={"stop_timeout": 1.0})
    target = namespace.open()
    launch(target, quick)
    ready(target, quick)
    cluster.pause("kubelet")
    try:
        with pytest.raises(LobsterTrapError, match=f"node '{NODE}'") as error:
            target.stop(quick)
        assert "--force" in error.value.hint
        assert target.status(quick).phase == "running"
    finally:
        cluster.resume("kubelet")

    target.stop(quick)
    assert target.status(quick).phase == "stopped"
