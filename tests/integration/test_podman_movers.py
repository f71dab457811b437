"""Movers beside real volumes: as a child, in the user's namespace, in a container."""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import json
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lobstertrap.agent import AgentSpec, load_agent
from lobstertrap.errors import LobsterTrapError, Unavailable
from lobstertrap.job import MoverJob
from lobstertrap.redaction import SecretValue
from lobstertrap.repository import Repository
from lobstertrap.stores import StoreSettings, open_store
from lobstertrap.targets import podman_python
from lobstertrap.targets.podman import PodmanTarget
from lobstertrap.targets.podman_archive import Layer
from lobstertrap.targets.podman_engine import PodmanEngine
from lobstertrap.targets.podman_spec import container_name
from tests.fixtures.podman import podman_target
from tests.fixtures.tally import AGENT, TOKEN, TallyClient

pytestmark = pytest.mark.podman

SECRETS = {"TALLY_TOKEN": SecretValue(TOKEN)}
KEY = "a passphrase for tests"
_numbers = itertools.count(1)


@pytest.fixture
def agent() -> AgentSpec:
    spec = load_agent(AGENT / "agent.yaml")
    name = f"moved-{next(_numbers)}"
    return spec.model_copy(update={"name": name, "stop_timeout": 2.0})


@contextlib.contextmanager
def cleared(agent: AgentSpec, *targets: PodmanTarget) -> Iterator[None]:
    try:
        yield
    finally:
        for target in targets:
            target.stop(agent)
            target.remove(agent, volumes=True)


def launch(target: PodmanTarget, agent: AgentSpec, epoch: int = 1) -> TallyClient:
    image = target.ensure_image(agent)
    target.bind_secrets(agent, SECRETS)
    target.launch(agent, epoch=epoch, image=image, secrets=SECRETS)
    deadline = time.monotonic() + 60
    while not (status := target.status(agent)).healthy:
        if time.monotonic() > deadline:
            raise TimeoutError(status)
        time.sleep(0.05)
    return TallyClient(address=status.addresses["http"])


def job(command, agent: AgentSpec, store: StoreSettings, **fields) -> MoverJob:
    request = {
        "store": store.to_dict(),
        "key": KEY,
        "cache": False,
        "owner": [agent.security.user, agent.security.group],
        "exclude": {"state": ["*.pid", "cache/"]},
        **fields,
    }
    return MoverJob(
        command=command, agent=agent.name, volumes=("state",), request=request
    )


def take(target: PodmanTarget, agent: AgentSpec, store: StoreSettings) -> dict:
    asked = job("snapshot", agent, store, consistency="stopped", tags={})
    return target.run_mover(agent, asked, lambda _: None)


def put_back(target, agent: AgentSpec, store: StoreSettings, snapshot: str) -> dict:
    asked = job("restore", agent, store, snapshot=snapshot, delete_extra=True)
    return target.run_mover(agent, asked, lambda _: None)


def test_state_goes_from_rootful_to_rootless_and_back_without_a_change(
    podman_laptop, podman_rootless, agent, store_settings
):
    laptop, server = podman_target(podman_laptop), podman_target(podman_rootless)
    Repository.create(open_store(store_settings), SecretValue(KEY))
    with cleared(agent, laptop, server):
        launch(laptop, agent, epoch=1).say("on the laptop")
        laptop.stop(agent)
        left = take(laptop, agent, store_settings)

        arrived = put_back(server, agent, store_settings, left["snapshot"])
        told = launch(server, agent, epoch=2).say("on the server")
        server.stop(agent)
        back = take(server, agent, store_settings)
        returned = put_back(laptop, agent, store_settings, back["snapshot"])
        again = launch(laptop, agent, epoch=3).say("home")

    assert arrived["tree_digest"] == left["tree_digest"]
    assert returned["tree_digest"] == back["tree_digest"]
    assert (told, again) == (2, 3)


def test_the_first_launch_after_a_restore_does_not_touch_what_was_restored(
    podman_laptop, agent, tmp_path
):
    target = podman_target(podman_laptop)
    store = StoreSettings(url=f"file://{tmp_path}/store")
    Repository.create(open_store(store), SecretValue(KEY))
    # The image has this directory, and Podman likes to make a new volume equal to it.
    known = agent.volumes[0].model_copy(update={"path": "/home/agent"})
    idle = agent.model_copy(
        update={"command": ["sleep", "600"], "health": None, "volumes": [known]}
    )
    with cleared(agent, target):
        launch(target, agent)
        target.stop(agent)
        root = Path(mountpoint(podman_laptop, agent))
        root.chmod(0o710)
        os.utime(root, (1, 1_000_000_000))
        taken = take(target, agent, store)
        target.remove(agent, volumes=True)
        put_back(target, agent, store, taken["snapshot"])

        image = target.ensure_image(idle)
        target.bind_secrets(idle, SECRETS)
        target.launch(idle, epoch=2, image=image, secrets=SECRETS)
        target.stop(idle)
        after = take(target, agent, store)

        assert after["tree_digest"] == taken["tree_digest"]
        assert root.stat().st_mtime == 1_000_000_000


def mountpoint(engine: PodmanEngine, agent: AgentSpec) -> str:
    volume = f"lobstertrap-{agent.name}-state"
    return engine.run(
        "volume", "inspect", "--format", "{{.Mountpoint}}", volume
    ).strip()


@pytest.fixture
def silent_store() -> Iterator[StoreSettings]:
    """A store that takes connections and never answers: its mover hangs."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield StoreSettings(
            url="s3://bucket/x",
            endpoint=f"http://127.0.0.1:{server.getsockname()[1]}",
            region="us-east-1",
            access_key=SecretValue("a-key"),
            secret_key=SecretValue("another-secret-of-the-store"),
        )


def test_a_mover_that_is_killed_is_an_error_and_leaves_nothing(
    podman_tcp, agent, silent_store
):
    target = podman_target(podman_tcp)
    name = f"{container_name(agent)}.mover"
    errors: list[BaseException] = []

    def run() -> None:
        try:
            take(target, agent, silent_store)
        except LobsterTrapError as error:
            errors.append(error)

    with cleared(agent, target):
        launch(target, agent)
        target.stop(agent)
        thread = threading.Thread(target=run)
        thread.start()
        await_line(podman_tcp, name, "ps", "--format", "{{.Names}}")
        found = podman_tcp.run("inspect", name)
        podman_tcp.run("kill", "--signal", "KILL", name)
        thread.join(60)

        assert isinstance(errors[0], Unavailable)
        assert "137" in str(errors[0])
        assert "another-secret-of-the-store" not in found
        assert name not in podman_tcp.run("ps", "--all")
        assert name not in podman_tcp.run("secret", "ls")


def test_ctrl_c_leaves_no_mover_running(podman_tcp, agent, silent_store, tmp_path):
    target = podman_target(podman_tcp)
    name = f"{container_name(agent)}.mover"
    store = StoreSettings(url=f"file://{tmp_path}/store")
    Repository.create(open_store(store), SecretValue(KEY))

    def interrupt(_progress) -> None:
        raise KeyboardInterrupt

    with cleared(agent, target):
        launch(target, agent)
        target.stop(agent)
        asked = job("snapshot", agent, store, consistency="stopped", tags={})
        with pytest.raises(KeyboardInterrupt):
            target.run_mover(agent, asked, interrupt)

        assert name not in podman_tcp.run("ps", "--all")
        assert name not in podman_tcp.run("secret", "ls")


def test_a_mover_that_a_killed_command_left_is_ended_by_the_next(podman_tcp, agent):
    target = podman_target(podman_tcp)
    name = f"{container_name(agent)}.mover"
    image = "localhost/lobstertrap/python:test"
    podman_tcp.run("run", "--detach", "--name", name, image, "sleep", "600")

    with cleared(agent, target):
        target.fence(agent, epoch=1, turn=2)

    assert name not in podman_tcp.run("ps", "--all")


def test_an_agent_is_not_launched_while_a_forgotten_restore_writes(
    podman_laptop, podman_tcp, agent
):
    here, there = podman_target(podman_laptop), podman_target(podman_tcp)
    image = "localhost/lobstertrap/python:test"
    volume = f"lobstertrap-{agent.name}-state"
    with cleared(agent, here, there):
        for target in (here, there):
            launch(target, agent)
            target.stop(agent)
        podman_tcp.run(
            *("run", "--detach", "--name", f"{container_name(agent)}.mover"),
            *("--volume", f"{volume}:/volumes/state:rw", image, "sleep", "600"),
        )
        lock = f"{Path(mountpoint(podman_laptop, agent)).parent}.lock"
        with subprocess.Popen(["flock", lock, "sleep", "600"]) as holder:
            time.sleep(0.5)
            try:
                for target in (here, there):
                    with pytest.raises(Unavailable, match="mover"):
                        launch(target, agent, epoch=2)
            finally:
                subprocess.run(["pkill", "-P", str(holder.pid)], check=True)

        there.fence(agent, epoch=1, turn=2)
        for target in (here, there):
            launch(target, agent, epoch=2)


def await_line(engine: PodmanEngine, line: str, *command: str) -> None:
    deadline = time.monotonic() + 60
    while line not in engine.run(*command).splitlines():
        if time.monotonic() > deadline:
            raise TimeoutError(line)
        time.sleep(0.1)


PROGRAM = """
import json, sys
from pathlib import Path
from lobstertrap.agent import load_agent
from lobstertrap.job import MoverJob
from lobstertrap.targets.podman_container_mover import ContainerMover
from lobstertrap.targets.podman import PodmanTarget

def must_not(*_, **__):
    raise AssertionError("a container was used")

ContainerMover.run = must_not
url, command, spec, request = sys.argv[1], sys.argv[2], sys.argv[3], sys.stdin.read()
agent = load_agent(Path(spec))
job = MoverJob(
    command=command, agent=agent.name, volumes=("state",), request=json.loads(request)
)
target = PodmanTarget("mine", url)
if command == "restore":
    target.remove(agent, volumes=True)
print(json.dumps(target.run_mover(agent, job, lambda _: None)))
"""


def test_the_user_of_a_rootless_engine_moves_inside_the_namespace(
    podman_rootless, agent
):
    target = podman_target(podman_rootless)
    with cleared(agent, target), a_python_for_everybody() as root:
        (root / "agent.yaml").write_text(agent.model_dump_json(exclude_none=True))
        store = StoreSettings(url=f"file://{root}/store")
        (root / "store").mkdir()
        Repository.create(open_store(store), SecretValue(KEY))
        give(root / "store", podman_rootless)
        launch(target, agent).say("here")
        target.stop(agent)

        taken = as_its_user(podman_rootless, root, job_of("snapshot", agent, store))
        restore = job_of("restore", agent, store, snapshot=taken["snapshot"])
        restored = as_its_user(podman_rootless, root, restore)
        again = launch(target, agent, epoch=2).say("again")

    assert restored["tree_digest"] == taken["tree_digest"]
    assert again == 2


def job_of(command, agent, store, **fields) -> MoverJob:
    if command == "snapshot":
        fields = {"consistency": "stopped", "tags": {}}
    else:
        fields |= {"delete_extra": True}
    return job(command, agent, store, **fields)


def as_its_user(engine: PodmanEngine, root: Path, asked: MoverJob) -> dict:
    program = [root / "usr/local/bin/python3", "-c", PROGRAM, engine.url]
    identity = engine._identity()
    identity["env"]["PYTHONPATH"] = str(root) + podman_python.APPLICATION
    done = subprocess.run(
        [*program, asked.command, root / "agent.yaml"],
        input=json.dumps(dict(asked.request)),
        capture_output=True,
        text=True,
        check=False,
        **identity,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def give(directory: Path, engine: PodmanEngine) -> None:
    if engine.user:
        for path in (directory, *directory.rglob("*")):
            os.chown(path, engine.user.pw_uid, engine.user.pw_gid)


@contextlib.contextmanager
def a_python_for_everybody() -> Iterator[Path]:
    """Unpack what a mover image is made of where the other user may run it."""

    def client_layer(layer: Layer) -> None:
        needs = ("requests", "urllib3", "idna", "charset-normalizer", "certifi")
        for name in ("podman", *needs):
            for file in importlib.metadata.files(name) or ():
                if ".." not in file.parts and file.suffix in {".py", ".so", ".pem"}:
                    place = f"{podman_python.APPLICATION}/{file}"
                    layer.file(place, Path(str(file.locate())))

    root = Path(tempfile.mkdtemp(prefix="lt-python-"))
    root.chmod(0o755)
    layers = (
        podman_python.python_layer,
        podman_python.packages_layer,
        podman_python.own_layer,
        client_layer,
    )
    try:
        for fill in layers:
            with tempfile.TemporaryFile() as file:
                with tarfile.open(fileobj=file, mode="w") as archive:
                    fill(Layer(archive))
                file.seek(0)
                with tarfile.open(fileobj=file) as archive:
                    archive.extractall(root, filter="tar")
        yield root
    finally:
        shutil.rmtree(root)
