"""The host target's own promises: what happens when anything dies between two lines."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lobstertrap.agent import AgentSpec
from lobstertrap.errors import (
    AccessDenied,
    IntegrityError,
    InvalidInput,
    LobsterTrapError,
    NoSpace,
    NotFound,
    Permanent,
    Refused,
    TimedOut,
    Unavailable,
)
from lobstertrap.job import MoverJob
from lobstertrap.redaction import SecretValue
from lobstertrap.secret_ref import SecretRef
from lobstertrap.targets import supervisor
from lobstertrap.targets.host import HostTarget
from lobstertrap.targets.host_instance import Instance

SECRET = "a-secret-that-must-not-be-seen"
FOREVER = "import time\nprint('up', flush=True)\ntime.sleep(600)"


def spec_of(code: str, **changes: Any) -> AgentSpec:
    """Return an agent that is a few lines of Python."""
    fields: dict[str, Any] = {
        "name": "crab",
        "image": "none",
        "host": {"command": [sys.executable, "-u", "-c", textwrap.dedent(code)]},
        "volumes": [{"name": "state", "path": "/state"}],
        "env": {"STATE": "{volumes.state}"},
        "stop_timeout": 5,
        **changes,
    }
    return AgentSpec.model_validate(fields)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[HostTarget]:
    found = HostTarget("desk", tmp_path / "desk", restart_delays=(0.05, 0.05))
    yield found
    for spec in (spec_of(FOREVER), spec_of(FOREVER, name="prawn")):
        found.stop(spec)


@pytest.fixture
def instance(target: HostTarget) -> Instance:
    return target._instance(spec_of(FOREVER))


def launch(target: HostTarget, spec: AgentSpec, epoch: int = 1) -> None:
    secrets = {name: SecretValue(SECRET) for name in spec.secrets}
    target.launch(spec, epoch=epoch, image="host:none", secrets=secrets)


def until(what: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.02)
    raise TimeoutError


def up(target: HostTarget, spec: AgentSpec) -> None:
    until(lambda: "up" in list(target.logs(spec)))


def alive(pid: int) -> bool:
    return supervisor.process_table().get(pid, (0, "Z", 0))[1] != "Z"


def state(instance: Instance) -> dict[str, Any]:
    found = instance.state()
    assert found is not None
    return found


def family(instance: Instance) -> list[int]:
    """Return the supervisor and all that it has started."""
    pid = state(instance)["supervisor_pid"]
    return [pid, *supervisor.descendants(pid)]


# --- what the agent gets -------------------------------------------------------------


def test_the_agent_outlives_the_command_that_launched_it(
    target: HostTarget, tmp_path: Path
) -> None:
    code = f"""
        import sys
        from pathlib import Path
        from lobstertrap.agent import AgentSpec
        from lobstertrap.targets.host import HostTarget
        spec = AgentSpec.model_validate_json(sys.stdin.read())
        target = HostTarget("desk", Path({str(tmp_path / "desk")!r}))
        target.launch(spec, epoch=4, image="host:none", secrets={{}})
    """
    spec = spec_of(FOREVER)
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        input=spec.model_dump_json(),
        text=True,
        check=True,
        start_new_session=True,
        timeout=60,
    )

    assert target.status(spec).phase == "running"
    assert target.status(spec).epoch == 4


def test_the_environment_is_the_specs_and_not_ours(
    target: HostTarget, instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINE_ALONE", "should not be inherited")
    spec = spec_of(
        "import json, os; print(json.dumps(dict(os.environ)))",
        env={"STATE": "{volumes.state}/x", "PORT": "{ports.http}"},
        ports=[{"name": "http", "port": 80}],
        secrets={"TOKEN": SecretRef(source="env", id="TOKEN")},
        hostname="reef",
    )

    launch(target, spec, epoch=12)
    lines = until(lambda: list(target.logs(spec)))

    seen = json.loads(lines[0])
    assert seen["STATE"] == f"{instance.volumes}/state/x"
    assert seen["HOME"] == str(instance.home)
    assert seen["TOKEN"] == SECRET
    assert seen["LOBSTERTRAP_EPOCH"] == "12"
    assert seen["HOSTNAME"] == "reef"
    assert 1024 <= int(seen["PORT"]) <= 65535
    assert "MINE_ALONE" not in seen


def test_a_secret_is_in_no_file_and_no_argument(
    target: HostTarget, tmp_path: Path, instance: Instance
) -> None:
    spec = spec_of(FOREVER, secrets={"TOKEN": SecretRef(source="env", id="TOKEN")})

    launch(target, spec)
    up(target, spec)

    for path in tmp_path.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes()
    for pid in family(instance):
        assert SECRET.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_volumes_and_run_files_are_private(
    target: HostTarget, instance: Instance
) -> None:
    launch(target, spec_of(FOREVER))

    for path in (instance.volumes / "state", instance.run, instance.home):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE(instance.state_path.stat().st_mode) == 0o600


def test_what_the_agent_writes_can_be_read_as_in_a_container(
    target: HostTarget,
) -> None:
    spec = spec_of("import os; print(oct(os.umask(0)))")

    launch(target, spec)

    assert until(lambda: list(target.logs(spec))) == ["0o22"]


def test_no_descriptor_of_ours_reaches_the_agent(
    target: HostTarget, instance: Instance
) -> None:
    spec = spec_of("import os; print(sorted(os.listdir('/proc/self/fd')))")

    launch(target, spec)

    # The fourth is that of the listing itself.
    assert until(lambda: list(target.logs(spec))) == ["['0', '1', '2', '3']"]


# --- stopping -----------------------------------------------------------------------


def test_an_agent_that_ignores_sigterm_is_killed_after_its_grace(
    target: HostTarget, instance: Instance
) -> None:
    ignores = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FOREVER
    spec = spec_of(ignores, stop_timeout=0.5)
    launch(target, spec)
    up(target, spec)
    pids = family(instance)

    began = time.monotonic()
    target.stop(spec)

    assert 0.5 <= time.monotonic() - began < 60
    until(lambda: not any(alive(pid) for pid in pids), 5)
    assert target.status(spec).detail == "ended by SIGKILL"


ESCAPES = """
    import os, subprocess, sys, time
    sleeper = [sys.executable, "-c", "import signal, time; "
               "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"]
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            subprocess.Popen(sleeper)
            time.sleep(600)
        os._exit(0)
    subprocess.Popen(sleeper, start_new_session=True)
    print("up")
    time.sleep(600)
"""


def test_a_stop_also_ends_what_forked_itself_away(
    target: HostTarget, instance: Instance
) -> None:
    spec = spec_of(ESCAPES)
    launch(target, spec)
    up(target, spec)
    pids = until(lambda: len(found := family(instance)) >= 5 and found)

    target.stop(spec)

    until(lambda: not any(alive(pid) for pid in pids), 5)
    assert instance.leftovers() == []


def test_an_agent_that_ends_by_itself_leaves_nothing_behind(
    target: HostTarget, instance: Instance
) -> None:
    spec = spec_of(ESCAPES.replace("time.sleep(600)\n", "time.sleep(1)\n"))
    launch(target, spec)

    until(lambda: target.status(spec).phase == "stopped")

    assert instance.leftovers() == []
    assert target.status(spec).detail == "ended with status 0"


def test_a_killed_supervisor_takes_the_agent_with_it(
    target: HostTarget, instance: Instance
) -> None:
    spec = spec_of(FOREVER)
    launch(target, spec)
    up(target, spec)
    agent_pid = state(instance)["agent_pid"]

    os.kill(state(instance)["supervisor_pid"], signal.SIGKILL)

    until(lambda: not alive(agent_pid))
    until(lambda: target.status(spec).phase == "stopped")
    assert target.status(spec).detail == "its supervisor was killed"


def test_what_a_killed_supervisor_left_is_not_called_absent_and_is_stopped(
    target: HostTarget, instance: Instance
) -> None:
    spec = spec_of(ESCAPES, stop_timeout=0.3)
    launch(target, spec)
    up(target, spec)
    pids = until(lambda: len(found := family(instance)) >= 5 and found)

    os.kill(pids[0], signal.SIGKILL)
    until(lambda: not alive(pids[0]))
    seen = target.status(spec)
    with pytest.raises(Refused, match="epoch 1"):
        launch(target, spec, epoch=2)
    with pytest.raises(Refused):
        target.remove(spec)
    target.stop(spec)

    assert seen.phase == "running"
    assert "its supervisor was killed" in seen.detail
    until(lambda: not any(alive(pid) for pid in pids), 5)
    assert target.status(spec).phase == "stopped"


def test_launching_again_replaces_what_a_killed_supervisor_left(
    target: HostTarget, instance: Instance
) -> None:
    spec = spec_of(ESCAPES, stop_timeout=0.3)
    launch(target, spec)
    up(target, spec)
    pids = until(lambda: len(found := family(instance)) >= 5 and found)
    os.kill(pids[0], signal.SIGKILL)
    until(lambda: not alive(pids[0]))

    launch(target, spec)

    assert target.status(spec).phase == "running"
    until(lambda: not any(alive(pid) for pid in pids), 5)


def test_an_agent_whose_files_were_deleted_is_still_found_and_stopped(
    target: HostTarget, instance: Instance
) -> None:
    spec = spec_of(FOREVER)
    launch(target, spec)
    up(target, spec)
    pids = family(instance)
    shutil.rmtree(instance.run)

    seen = target.status(spec)
    with pytest.raises(Refused):
        launch(target, spec, epoch=2)
    target.stop(spec)

    assert seen.phase == "running"
    until(lambda: not any(alive(pid) for pid in pids), 5)


def test_an_agent_whose_state_was_never_written_is_stopped_in_time(
    target: HostTarget, instance: Instance
) -> None:
    spec = spec_of(FOREVER)
    launch(target, spec)
    up(target, spec)
    pids = family(instance)
    instance.state_path.unlink()

    seen = target.status(spec)
    began = time.monotonic()
    target.stop(spec)

    assert (seen.phase, seen.epoch) == ("running", None)
    assert time.monotonic() - began < 60
    until(lambda: not any(alive(pid) for pid in pids), 5)


def test_a_supervisor_that_hangs_is_killed(
    target: HostTarget, instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lobstertrap.targets.host._FORCE_SECONDS", 0.5)
    spec = spec_of(FOREVER, stop_timeout=0.5)
    launch(target, spec)
    up(target, spec)
    pids = family(instance)
    os.kill(pids[0], signal.SIGSTOP)

    target.stop(spec)

    until(lambda: not any(alive(pid) for pid in pids), 5)


def test_a_process_id_that_belongs_to_somebody_else_now_is_left_alone(
    target: HostTarget, instance: Instance
) -> None:
    spec = spec_of("pass")
    launch(target, spec)
    until(lambda: target.status(spec).phase == "stopped")
    with subprocess.Popen(["sleep", "600"]) as innocent:
        old = {"supervisor_pid": innocent.pid, "supervisor_start": 1}
        instance.save(state(instance) | old | {"phase": "running"})

        instance.signal_supervisor(signal.SIGKILL)
        target.stop(spec)

        assert innocent.poll() is None
        innocent.kill()


# --- never two ----------------------------------------------------------------------


def test_of_many_launches_at_once_one_wins(
    target: HostTarget, tmp_path: Path, instance: Instance
) -> None:
    spec = spec_of(
        "import os\n"
        "open(os.environ['STATE'] + '/' + os.environ['LOBSTERTRAP_EPOCH'], 'w')\n"
        + FOREVER
    )
    refused = []

    def run(epoch: int) -> None:
        try:
            launch(HostTarget("desk", tmp_path / "desk"), spec, epoch=epoch)
        except Refused as error:
            refused.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    up(target, spec)

    assert len(refused) == 5
    ran = [path.name for path in (instance.volumes / "state").iterdir()]
    assert ran == [str(target.status(spec).epoch)]


def test_a_launcher_that_is_killed_before_it_asks_leaves_nothing(
    target: HostTarget, instance: Instance
) -> None:
    instance.run.mkdir(parents=True)
    claimed = instance.claim()
    assert claimed is not None
    instance.save({"phase": "starting", "epoch": 1, "boot": "another"})
    assert target.status(spec_of(FOREVER)).phase == "running"
    os.close(claimed)

    seen = target.status(spec_of(FOREVER))
    launch(target, spec_of(FOREVER), epoch=2)

    assert (seen.phase, seen.detail) == ("stopped", "the machine was restarted")


def test_a_request_that_was_cut_short_starts_nothing(
    target: HostTarget, instance: Instance, tmp_path: Path
) -> None:
    request = json.dumps({"command": ["touch", str(tmp_path / "ran")]})

    done = subprocess.run(
        [sys.executable, "-I", "-S", supervisor.__file__],
        input=request[:-5].encode(),
        capture_output=True,
        check=False,
    )

    assert done.returncode != 0
    assert not (tmp_path / "ran").exists()


def test_a_launcher_killed_at_any_moment_leaves_what_can_be_stopped(
    target: HostTarget, tmp_path: Path, instance: Instance
) -> None:
    code = f"""
        import sys
        from pathlib import Path
        from lobstertrap.agent import AgentSpec
        from lobstertrap.targets.host import HostTarget
        spec = AgentSpec.model_validate_json(sys.argv[1])
        target = HostTarget("desk", Path({str(tmp_path / "desk")!r}))
        print("go", flush=True)
        target.launch(spec, epoch=int(sys.argv[2]), image="host:none", secrets={{}})
    """
    spec = spec_of(FOREVER)
    for epoch in range(1, 9):
        command = [sys.executable, "-c", textwrap.dedent(code)]
        command += [spec.model_dump_json(), str(epoch)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as launcher:
            assert launcher.stdout is not None
            launcher.stdout.readline()
            time.sleep(epoch * 0.008)
            launcher.kill()

        target.stop(spec)

        assert target.status(spec).phase != "running"
        assert instance.leftovers() == []
        assert not instance.is_held()


def test_a_fence_that_somebody_holds_is_not_waited_for_without_end(
    target: HostTarget, instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lobstertrap.targets.host_fence._PATIENCE_SECONDS", 0.1)
    instance.directory.mkdir(parents=True)
    held = os.open(instance.directory, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)

    with pytest.raises(TimedOut, match="crab"):
        target.fence(spec_of(FOREVER), epoch=1, turn=1)

    os.close(held)
    target.fence(spec_of(FOREVER), epoch=1, turn=1)


def test_two_roots_on_one_machine_are_two_places(
    target: HostTarget, tmp_path: Path
) -> None:
    other = HostTarget("other", tmp_path / "other")
    spec = spec_of(FOREVER)
    launch(target, spec)

    assert other.status(spec).phase == "absent"
    other.stop(spec)
    assert target.status(spec).phase == "running"
    assert other.inspect().identity != target.inspect().identity


def test_a_fence_that_cannot_be_read_lets_nothing_through(
    target: HostTarget, instance: Instance
) -> None:
    target.fence(spec_of(FOREVER), epoch=1, turn=1)
    (instance.directory / "fence.json").write_text("{")

    with pytest.raises(IntegrityError, match=r"fence\.json"):
        launch(target, spec_of(FOREVER), epoch=5)


# --- crashing -----------------------------------------------------------------------


def test_an_agent_that_crashes_is_started_again_with_its_secrets(
    target: HostTarget,
) -> None:
    spec = spec_of(
        """
        import os, pathlib, sys, time
        tried = pathlib.Path(os.environ["STATE"], "tried")
        if not tried.exists():
            tried.touch()
            sys.exit(3)
        print(os.environ["TOKEN"][:8])
        time.sleep(600)
        """,
        secrets={"TOKEN": SecretRef(source="env", id="TOKEN")},
    )

    launch(target, spec)

    until(lambda: SECRET[:8] in list(target.logs(spec)))
    assert target.status(spec).phase == "running"


def test_an_agent_that_keeps_crashing_is_given_up_with_its_last_words(
    target: HostTarget,
) -> None:
    spec = spec_of("import sys\nprint('no more shrimp')\nsys.exit(7)")

    launch(target, spec)
    until(lambda: target.status(spec).phase == "stopped")

    detail = target.status(spec).detail
    assert detail.startswith("ended with status 7 after 2 restarts: ")
    assert "no more shrimp" in detail


def test_a_stop_between_two_restarts_is_final(tmp_path: Path) -> None:
    target = HostTarget("desk", tmp_path / "desk", restart_delays=(60,))
    spec = spec_of("raise SystemExit(7)", health={"command": ["true"]})
    launch(target, spec)
    until(lambda: "restart 1 follows" in target.status(spec).detail)
    seen = target.status(spec)

    target.stop(spec)

    assert (seen.phase, seen.healthy) == ("running", False)
    assert target.status(spec).phase == "stopped"


def test_a_command_that_does_not_exist_is_said_before_anything_is_made(
    target: HostTarget, instance: Instance
) -> None:
    spec = spec_of("", host={"command": ["no-such-crustacean"]})

    for step in (target.ensure_image, lambda agent: launch(target, agent)):
        with pytest.raises(NotFound, match="no-such-crustacean"):
            step(spec)

    assert not instance.directory.exists()


def test_a_command_that_cannot_run_is_a_clear_error(
    target: HostTarget, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELFnonsense")
    program.chmod(0o755)
    spec = spec_of("", host={"command": [str(program)]})

    with pytest.raises(Permanent, match="Exec format error"):
        launch(target, spec)

    assert target.status(spec).phase == "stopped"
    assert "Exec format error" in target.status(spec).detail


def test_a_spec_without_a_host_command_is_refused(target: HostTarget) -> None:
    with pytest.raises(InvalidInput, match=r"no host\.command"):
        target.ensure_image(spec_of("", host=None))


# --- the log ------------------------------------------------------------------------


def test_the_log_is_followed_to_its_end_across_rotations(tmp_path: Path) -> None:
    target = HostTarget("desk", tmp_path / "desk", log_limit=300)
    spec = spec_of(
        """
        import time
        for number in range(60):
            print(f"line {number:02d}")
            time.sleep(0.03)
        """
    )
    launch(target, spec)

    followed = list(target.logs(spec, follow=True))

    # A rotation may cut a line in two.
    numbers = [int(line[5:]) for line in followed if len(line) == len("line 00")]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 59
    assert len(numbers) >= 40


def test_the_log_does_not_grow_without_end(tmp_path: Path, instance: Instance) -> None:
    target = HostTarget("desk", tmp_path / "desk", log_limit=10_000)
    spec = spec_of("for number in range(20_000): print('lobster', number)")
    launch(target, spec)
    until(lambda: target.status(spec).phase == "stopped")

    sizes = [path.stat().st_size for path in instance.run.glob("agent.log*")]
    assert sum(sizes) < 10_000 + 2 * 65536
    assert list(target.logs(spec, lines=1)) == ["lobster 19999"]


# --- health, the machine, the disk --------------------------------------------------


def test_a_health_command_runs_beside_the_agent(target: HostTarget) -> None:
    spec = spec_of(
        "import os\nopen(os.environ['STATE'] + '/ready', 'w')\n" + FOREVER,
        health={"command": ["sh", "-c", "test -e $STATE/ready"]},
    )
    launch(target, spec)

    until(lambda: target.status(spec).healthy)


def test_a_health_command_that_hangs_is_ended_with_its_children(
    target: HostTarget, instance: Instance
) -> None:
    script = "sleep 600 & echo $! > $STATE/child; wait"
    health = {"command": ["sh", "-c", script], "timeout": "500ms"}
    spec = spec_of(FOREVER, health=health)
    launch(target, spec)
    up(target, spec)

    seen = target.status(spec)

    assert seen.healthy is False
    assert "took longer than 0.5 s" in seen.detail
    child = int((instance.volumes / "state" / "child").read_text())
    until(lambda: not alive(child))


def test_the_digest_follows_what_the_agent_is_made_of(
    target: HostTarget, tmp_path: Path
) -> None:
    directory = tmp_path / "agent"
    directory.mkdir()
    program = directory / "program"
    program.write_text("one")
    spec = spec_of(FOREVER)
    spec._directory = directory
    first = target.ensure_image(spec)

    (directory / "__pycache__").mkdir()
    assert target.ensure_image(spec) == first
    program.chmod(0o755)
    second = target.ensure_image(spec)
    program.write_text("two")
    third = target.ensure_image(spec)

    assert len({first, second, third}) == 3


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    target = HostTarget("desk", tmp_path / "file" / "desk")

    with pytest.raises(AccessDenied, match="not a directory to write to"):
        target.inspect()
    with pytest.raises(LobsterTrapError, match="desk"):
        launch(target, spec_of(FOREVER))
    assert target.status(spec_of(FOREVER)).phase == "absent"


def test_a_root_that_is_not_ours_is_refused() -> None:
    with tempfile.TemporaryDirectory() as base:  # pytest's own lets nobody else in
        Path(base).chmod(0o555)
        target = HostTarget("desk", Path(base) / "new" / "desk")
        us = os.geteuid()
        try:
            if us == 0:
                os.seteuid(65534)
            with pytest.raises(AccessDenied, match=base):
                target.inspect()
            with pytest.raises(AccessDenied, match="permission denied"):
                launch(target, spec_of("", host={"command": ["true"]}))
        finally:
            os.seteuid(us)
            Path(base).chmod(0o755)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, NoSpace),
        (errno.EDQUOT, NoSpace),
        (errno.EROFS, AccessDenied),
        (errno.EIO, Permanent),
    ],
)
def test_an_error_of_the_disk_is_one_of_ours_and_nothing_runs(
    target: HostTarget, monkeypatch: pytest.MonkeyPatch, code: int, kind: type
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code), "the-file")

    with monkeypatch.context() as patch:
        patch.setattr(Instance, "save", fail)
        with pytest.raises(kind, match=r"target 'desk': agent 'crab': the-file: "):
            launch(target, spec_of(FOREVER))

    assert target.status(spec_of(FOREVER)).phase == "absent"


# --- movers -------------------------------------------------------------------------


def job(command: Any) -> MoverJob:
    return MoverJob(command=command, agent="crab", volumes=("state",), request={})


def test_a_restore_is_refused_while_the_agent_runs(target: HostTarget) -> None:
    launch(target, spec_of(FOREVER))

    with pytest.raises(Refused, match="it runs"):
        target.run_mover(spec_of(FOREVER), job("restore"), lambda _: None)


def test_nobody_starts_the_agent_or_a_mover_while_a_restore_writes(
    target: HostTarget, instance: Instance
) -> None:
    (instance.volumes / "state").mkdir(parents=True)
    moving = instance.claim("moving")
    assert moving is not None

    for step in (
        lambda: launch(target, spec_of(FOREVER)),
        lambda: target.run_mover(spec_of(FOREVER), job("restore"), lambda _: None),
        lambda: target.run_mover(spec_of(FOREVER), job("snapshot"), lambda _: None),
    ):
        with pytest.raises(Unavailable):
            step()
    with pytest.raises(Refused):
        target.remove(spec_of(FOREVER), volumes=True)

    assert target.status(spec_of(FOREVER)).phase == "absent"
    os.close(moving)
    launch(target, spec_of(FOREVER))


def test_removed_volumes_may_have_closed_directories(
    target: HostTarget, instance: Instance
) -> None:
    closed = instance.volumes / "state" / "closed"
    (closed / "inside").mkdir(parents=True)
    (closed / "inside" / "file").touch()
    (instance.volumes / "state" / "link").symlink_to("/etc")
    closed.chmod(0)

    target.remove(spec_of(FOREVER), volumes=True)

    assert not instance.directory.exists()
    assert Path("/etc").is_dir()


def test_a_free_port_is_not_one_that_is_taken(target: HostTarget) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        port = {"name": "http", "port": 80, "publish": number}

        with pytest.raises(Refused, match=rf"port {number} cannot be had: address"):
            launch(target, spec_of(FOREVER, ports=[port]))

    launch(target, spec_of(FOREVER, ports=[port]))
    address = target.status(spec_of(FOREVER, ports=[port])).addresses["http"]
    assert address == f"127.0.0.1:{number}"


def test_looking_at_a_target_makes_nothing(target: HostTarget, tmp_path: Path) -> None:
    target.inspect()
    target.status(spec_of(FOREVER))
    target.stop(spec_of(FOREVER))
    target.remove(spec_of(FOREVER))

    assert [*tmp_path.iterdir()] == []


def test_somebody_who_looks_does_not_keep_a_launch_away(
    target: HostTarget, instance: Instance
) -> None:
    instance.run.mkdir(parents=True)
    looking = os.open(instance.run / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(looking, fcntl.LOCK_SH)
    threading.Timer(0.03, os.close, (looking,)).start()

    launch(target, spec_of(FOREVER))

    assert target.status(spec_of(FOREVER)).phase == "running"
