"""What only a real Podman shows: hardening, secrets, images, fences, errors."""

from __future__ import annotations

import itertools
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lobstertrap.agent import AgentSpec, load_agent
from lobstertrap.errors import (
    LobsterTrapError,
    NotFound,
    Refused,
    Unavailable,
    Unhealthy,
)
from lobstertrap.redaction import SecretValue
from lobstertrap.secret_ref import SecretRef
from lobstertrap.targets import podman_status
from lobstertrap.targets.podman import PodmanTarget
from lobstertrap.targets.podman_api import PodmanApi
from lobstertrap.targets.podman_engine import PodmanEngine
from lobstertrap.targets.podman_spec import container_name, container_spec
from tests.fixtures.podman import podman_target
from tests.fixtures.tally import AGENT, TOKEN, TallyClient

pytestmark = pytest.mark.podman

SECRETS = {"TALLY_TOKEN": SecretValue(TOKEN)}
_numbers = itertools.count(1)


@pytest.fixture
def target(podman_laptop: PodmanEngine) -> PodmanTarget:
    return podman_target(podman_laptop)


@pytest.fixture
def agent(target: PodmanTarget) -> Iterator[AgentSpec]:
    spec = load_agent(AGENT / "agent.yaml")
    name = f"probe-{next(_numbers)}"
    yield spec.model_copy(update={"name": name, "stop_timeout": 2.0})
    spec = spec.model_copy(update={"name": name, "stop_timeout": 1.0})
    target.stop(spec)
    target.remove(spec, volumes=True)


def launch(target: PodmanTarget, agent: AgentSpec, epoch: int = 1) -> None:
    image = target.ensure_image(agent)
    target.bind_secrets(agent, SECRETS)
    target.launch(agent, epoch=epoch, image=image, secrets=SECRETS)


def await_phase(target: PodmanTarget, agent: AgentSpec, phase: str):
    deadline = time.monotonic() + 60
    while (status := target.status(agent)).phase != phase:
        if time.monotonic() > deadline:
            raise TimeoutError(status)
        time.sleep(0.05)
    return status


def await_ready(target: PodmanTarget, agent: AgentSpec):
    deadline = time.monotonic() + 60
    while not (status := target.status(agent)).healthy:
        if time.monotonic() > deadline:
            raise TimeoutError(status)
        time.sleep(0.05)
    return status


def inspect(engine: PodmanEngine, agent: AgentSpec):
    return json.loads(engine.run("inspect", container_name(agent)))[0]


def inside(engine: PodmanEngine, agent: AgentSpec, script: str) -> str:
    return engine.run("exec", container_name(agent), "sh", "-c", script)


@pytest.mark.parametrize("kind", ["podman_laptop", "podman_rootless"])
def test_the_agent_has_no_privileges_and_only_its_volume(kind, request, agent):
    engine = request.getfixturevalue(kind)
    target = podman_target(engine)
    launch(target, agent)

    status = inside(engine, agent, "cat /proc/1/status")
    writable = inside(
        engine,
        agent,
        "for d in / /usr /etc /home/tally /home/tally/state /tmp; do "
        "touch $d/mark 2>/dev/null && echo $d; done; hostname",
    )
    target.stop(agent)
    target.remove(agent, volumes=True)

    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == ["1000"] * 4
    assert fields["Gid"].split() == ["1000"] * 4
    assert {fields[f"Cap{n}"] for n in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {
        "0" * 16
    }
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"
    mine = ["/home/tally/state", "/tmp"]  # noqa: S108 - in the container
    assert writable.split() == [*mine, agent.name]


def test_limits_are_set_where_the_engine_can_and_told_where_not(
    podman_laptop, podman_rootless, target, agent
):
    launch(target, agent)
    rootless = podman_target(podman_rootless).inspect().notes

    limits = inspect(podman_laptop, agent)["HostConfig"]
    noted = " ".join(target.inspect().notes)

    assert ("memory" in noted) or limits["Memory"] == 256 * 2**20
    assert ("pids" in noted) or limits["PidsLimit"] == 64
    assert ("cpu" in noted) or limits["CpuQuota"] == 100_000
    if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        assert "no limits for cpu, memory, pids" in " ".join(rootless)


def test_ports_are_published_on_loopback_only(podman_laptop, target, agent):
    launch(target, agent)
    address = await_ready(target, agent).addresses["http"]

    published = inspect(podman_laptop, agent)["NetworkSettings"]["Ports"]["8080/tcp"]

    assert [place["HostIp"] for place in published] == ["127.0.0.1"]
    assert TallyClient(address=address).get("/healthz")


def test_a_secret_can_be_a_file_of_the_agent_alone(
    podman_laptop, target, agent, tmp_path
):
    files = {
        "EXTRA": "/etc/tally/extra",
        "THERE": "/run/secrets/there",
        "BELOW": "/run/secrets/tally/below",
    }
    (tmp_path / "value").write_text("from-there")
    podman_laptop.run("secret", "create", "ready-made", str(tmp_path / "value"))
    there = SecretRef(source="target", id="ready-made")
    env = {name: SecretRef(source="env", id=name) for name in ("EXTRA", "BELOW")}
    refs = {**env, "THERE": there}
    spec = agent.model_copy(
        update={"secrets": {**agent.secrets, **refs}, "secret_files": files}
    )
    extra, below = SecretValue("not-in-the-environment\n"), SecretValue("from-below")
    values = {**SECRETS, "EXTRA": extra, "BELOW": below}
    image = target.ensure_image(spec)
    target.bind_secrets(spec, values)
    target.launch(spec, epoch=1, image=image, secrets=values)
    await_ready(target, spec)

    def inside(*command: str) -> str:
        return podman_laptop.run("exec", container_name(spec), *command)

    assert inside("cat", files["EXTRA"]) == "not-in-the-environment\n"
    assert inside("cat", files["THERE"]) == "from-there"
    assert inside("cat", files["BELOW"]) == "from-below"
    assert inside("stat", "-c", "%u:%g %a", files["EXTRA"]).strip() == "1000:1000 400"
    environment = inside("cat", "/proc/1/environ").split("\0")
    assert f"EXTRA_FILE={files['EXTRA']}" in environment
    assert "not-in-the-environment" not in "".join(environment)
    assert inspect(podman_laptop, spec)["HostConfig"]["ReadonlyRootfs"]
    podman_laptop.run("rm", "--force", container_name(spec))
    podman_laptop.run("secret", "rm", "ready-made")


def test_the_secret_is_in_no_argument_image_or_label(podman_laptop, target, agent):
    launch(target, agent)
    await_ready(target, agent)

    commands = b"".join(
        path.read_bytes()
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if _alive(path)
    )
    found = inspect(podman_laptop, agent)
    image = podman_laptop.run("image", "inspect", found["Image"])

    assert TOKEN.encode() not in commands
    assert TOKEN not in image
    assert TOKEN not in json.dumps(found["Config"]["Labels"])
    assert TOKEN not in json.dumps(found["Config"].get("CreateCommand"))
    target.stop(agent)
    target.remove(agent)
    assert agent.name not in podman_laptop.run("secret", "ls").replace(".fence", "")


def _alive(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


def test_the_image_is_built_once_and_again_when_its_context_changed(
    podman_laptop, target, agent, tmp_path
):
    spec = copy_of_tally(tmp_path, "built-once")
    first = target.ensure_image(spec)
    images = podman_laptop.run("images", "--all", "--quiet")

    again = podman_target(podman_laptop).ensure_image(spec)
    left = podman_laptop.run("images", "--all", "--quiet")
    with (tmp_path / "tally.py").open("a") as file:
        file.write("# changed\n")
    changed = target.ensure_image(spec)

    assert again == first
    assert left == images
    assert changed != first


def copy_of_tally(directory: Path, name: str) -> AgentSpec:
    for file in ("tally.py", "Containerfile", ".containerignore"):
        (directory / file).write_bytes((AGENT / file).read_bytes())
    text = (AGENT / "agent.yaml").read_text().replace("name: tally", f"name: {name}", 1)
    (directory / "agent.yaml").write_text(text)
    return load_agent(directory / "agent.yaml")


def test_an_image_goes_to_another_engine_and_stays_the_same(
    target, podman_server, tmp_path
):
    spec = copy_of_tally(tmp_path, "carried")
    other = podman_target(podman_server, "server")
    image = target.ensure_image(spec)
    before = other.has_image(spec, image)

    carried = other.import_image(spec, target.export_image(image))

    assert not before
    assert carried == image
    assert "sha256" not in podman_server.run("images", "--format", "{{.Repository}}")
    assert other.has_image(spec, image)
    assert other.ensure_image(spec) == image
    launch(other, spec)
    try:
        assert await_ready(other, spec).image == image
    finally:
        other.stop(spec)
        other.remove(spec, volumes=True)


def test_an_image_that_is_there_by_another_name_is_found_by_digest(
    target, podman_server, tmp_path
):
    spec = copy_of_tally(tmp_path, "named-twice")
    other = podman_target(podman_server, "server")
    image = target.ensure_image(spec)
    other.import_image(spec, target.export_image(image))
    named = spec.model_copy(
        update={"image": f"localhost/from/elsewhere@{image}", "build": None}
    )

    assert other.has_image(named, image)
    assert other.ensure_image(named) == image


def test_a_name_that_means_another_image_at_the_destination_does_not_win(
    target, podman_server, tmp_path
):
    spec = copy_of_tally(tmp_path, "named-alike")
    other = podman_target(podman_server, "server")
    image = target.ensure_image(spec)
    other.import_image(spec, target.export_image(image))
    alike = spec.model_copy(update={"image": "localhost/alike:1", "build": None})
    with (tmp_path / "Containerfile").open("a") as file:
        file.write("ENV ANOTHER=1\n")
    older = other.ensure_image(load_agent(tmp_path / "agent.yaml"))
    podman_server.run("tag", older.removeprefix("sha256:"), "localhost/alike:1")

    assert older != image
    assert other.has_image(alike, image)
    assert other.ensure_image(alike) == image


def test_a_build_that_fails_shows_its_last_lines(target, tmp_path):
    spec = copy_of_tally(tmp_path, "broken")
    with (tmp_path / "Containerfile").open("a") as file:
        file.write("COPY nowhere /nowhere\n")

    with pytest.raises(LobsterTrapError) as caught:
        target.ensure_image(spec)

    assert "nowhere" in str(caught.value)
    assert "STEP 4" in str(caught.value)


def test_an_image_for_another_processor_is_refused(
    podman_laptop, target, agent, tmp_path
):
    (tmp_path / "Containerfile").write_text("FROM scratch\nCOPY Containerfile /\n")
    podman_laptop.run(
        *("build", "--platform", "linux/s390x", "-t", "localhost/other", str(tmp_path))
    )
    spec = agent.model_copy(update={"build": None, "image": "localhost/other"})

    with pytest.raises(Refused, match="s390x"):
        target.ensure_image(spec)


def test_an_image_that_nobody_has_is_not_taken_for_one(target, agent):
    spec = agent.model_copy(update={"build": None, "image": "127.0.0.1:1/none:1"})

    with pytest.raises((NotFound, Unavailable), match="none:1"):
        target.ensure_image(spec)


@pytest.mark.parametrize("program", ["/nowhere", "/etc/passwd"])
def test_a_command_that_cannot_run_is_a_clear_error(target, agent, program):
    spec = agent.model_copy(update={"command": [program]})

    with pytest.raises(Unhealthy, match=program):
        launch(target, spec)

    assert target.status(spec).phase == "absent"


def test_an_agent_that_exits_at_once_says_why(target, agent):
    words = "import sys; print('no luck today'); sys.exit(3)"
    spec = agent.model_copy(update={"command": ["python3", "-c", words]})
    launch(target, spec)

    deadline = time.monotonic() + 60  # it is started again a few times
    while time.monotonic() < deadline:
        status = target.status(spec)
        if status.phase == "stopped":
            break
    target.stop(spec)

    assert target.status(spec).detail == "exited with status 3: no luck today"


def test_a_crashed_agent_is_started_again_until_it_is_stopped(
    podman_laptop, target, agent
):
    launch(target, agent)
    await_ready(target, agent)
    first = inspect(podman_laptop, agent)["State"]["Pid"]

    os.kill(first, 9)
    await_ready(target, agent)
    second = inspect(podman_laptop, agent)["State"]["Pid"]
    os.kill(second, 9)
    target.stop(agent)  # while the restart is on its way
    time.sleep(1)

    assert second not in (0, first)
    assert target.status(agent).phase == "stopped"


def test_a_paused_agent_is_stopped_too(podman_laptop, target, agent):
    launch(target, agent)
    podman_laptop.run("pause", container_name(agent))
    paused = target.status(agent)

    target.stop(agent)

    assert (paused.phase, paused.healthy) == ("running", False)
    assert target.status(agent).phase == "stopped"


def test_a_remote_agents_health_is_asked_from_inside(target, agent, monkeypatch):
    monkeypatch.setattr(podman_status, "_is_here", lambda _found: False)
    launch(target, agent)

    healthy = await_ready(target, agent)
    lost = agent.health.model_copy(
        update={"http": agent.health.http.model_copy(update={"path": "/nothing"})}
    )
    sick = target.status(agent.model_copy(update={"health": lost}))

    assert healthy.detail == ""
    assert (sick.healthy, "404" in sick.detail) == (False, True)


def test_a_health_command_runs_in_the_container(target, agent):
    launch(target, agent)

    def status_of(*command: str):
        health = {"http": None, "command": list(command)}
        spec = agent.health.model_copy(update=health)
        return target.status(agent.model_copy(update={"health": spec}))

    well = status_of("test", "-d", "/home/tally/state")
    sick = status_of("sh", "-c", "echo not yet; exit 4")

    assert well.healthy is True
    assert (sick.healthy, "4: not yet" in sick.detail) == (False, True)


def test_a_launch_that_was_overtaken_before_its_start_never_starts(
    podman_laptop, target, agent
):
    api = PodmanApi("laptop", podman_laptop.url)
    launch(target, agent, epoch=1)
    target.stop(agent)
    target.remove(agent)
    request = container_spec(
        agent,
        epoch=2,
        image=target.ensure_image(agent),
        secrets={},
        limits=frozenset(),
        target="laptop",
    )
    suspended = api.post("/containers/create", request)["Id"]

    target.fence(agent, epoch=2, turn=1)

    with pytest.raises(NotFound):
        api.post(f"/containers/{suspended}/start")
    assert target.status(agent).phase == "absent"


def test_a_fence_does_not_touch_what_runs(target, agent):
    launch(target, agent, epoch=5)

    target.fence(agent, epoch=5, turn=9)
    target.fence(agent, epoch=4, turn=8)

    assert await_ready(target, agent).epoch == 5


def test_a_container_of_somebody_else_is_left_alone(podman_laptop, target, agent):
    name = container_name(agent)
    podman_laptop.run("create", "--name", name, "localhost/lobstertrap/python:test")

    for act in (target.status, target.stop, target.remove):
        with pytest.raises(Refused, match=name):
            act(agent)

    podman_laptop.run("rm", name)


def test_a_volume_of_another_agent_is_left_alone(podman_laptop, target, agent):
    name = f"lobstertrap-{agent.name}-state"
    podman_laptop.run("volume", "create", name)

    with pytest.raises(Refused, match=name):
        launch(target, agent)

    podman_laptop.run("volume", "rm", name)


def test_an_engine_that_is_gone_is_unavailable_with_a_hint(tmp_path, agent):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    urls = (f"unix://{tmp_path}/none.sock", f"tcp://127.0.0.1:{port}")

    for url in urls:
        gone = PodmanTarget("laptop", url)
        with pytest.raises(Unavailable, match="laptop") as caught:
            gone.status(agent)
        assert "podman.socket" in caught.value.hint


def test_a_host_that_ssh_cannot_reach_is_unavailable_at_once(agent):
    gone = PodmanTarget("cloud", "ssh://nobody@127.0.0.1:1/run/podman/podman.sock")
    began = time.monotonic()

    with pytest.raises(Unavailable, match="no ssh connection"):
        gone.status(agent)

    assert time.monotonic() - began < 60
