"""The container that is asked for: hardened unless the spec relaxes it."""

from __future__ import annotations

import pytest

from lobstertrap.agent import AgentSpec
from lobstertrap.errors import InvalidInput
from lobstertrap.targets.podman_api import frames, lines
from lobstertrap.targets.podman_spec import (
    container_spec,
    is_secret_of,
    secret_name,
    volume_spec,
)

ALL = frozenset({"memory", "pids", "cpu"})


def make_agent(**fields) -> AgentSpec:
    return AgentSpec.model_validate(
        {
            "name": "ada",
            "image": "localhost/ada",
            "volumes": [{"name": "state", "path": "/state"}],
            "ports": [{"name": "http", "port": 8080}],
            "env": {"WHERE": "{volumes.state}/x:{ports.http}"},
            **fields,
        }
    )


def spec_of(agent: AgentSpec, limits=ALL) -> dict:
    return container_spec(
        agent, epoch=4, image="sha256:1", secrets={}, limits=limits, target="laptop"
    )


def test_everything_is_hardened_by_default():
    spec = spec_of(make_agent())

    assert spec["user"] == "1000:1000"
    assert spec["cap_drop"] == ["ALL"]
    assert spec["cap_add"] == []
    assert spec["no_new_privileges"] is True
    assert spec["read_only_filesystem"] is True
    assert spec["image_volume_mode"] == "ignore"
    assert [m["destination"] for m in spec["mounts"]] == ["/tmp"]  # noqa: S108 - in the container
    assert spec["portmappings"][0]["host_ip"] == "127.0.0.1"
    assert spec["resource_limits"]["memory"] == {"limit": 2**30, "swap": 2**30}


def test_each_relaxation_relaxes_one_thing():
    relaxed = {
        "user": 0,
        "capabilities": ["NET_BIND_SERVICE"],
        "no_new_privileges": False,
        "read_only_root": False,
        "tmpfs": [],
    }
    spec = spec_of(make_agent(security=relaxed))

    assert spec["user"] == "0:1000"
    assert spec["cap_drop"] == ["ALL"]
    assert spec["cap_add"] == ["NET_BIND_SERVICE"]
    assert spec["no_new_privileges"] is False
    assert spec["read_only_filesystem"] is False
    assert spec["mounts"] == []


def test_it_never_starts_by_itself_after_a_reboot():
    spec = spec_of(make_agent())

    assert spec["restart_policy"] == "on-failure"


def test_a_limit_that_the_engine_cannot_enforce_is_left_out():
    spec = spec_of(make_agent(), limits=frozenset({"pids"}))

    assert spec["resource_limits"] == {"pids": {"limit": 256}}


def test_placeholders_are_replaced_and_the_epoch_is_in_the_environment():
    spec = spec_of(make_agent(command=["run", "{ports.http}"]))

    assert spec["env"] == {"WHERE": "/state/x:8080", "LOBSTERTRAP_EPOCH": "4"}
    assert spec["entrypoint"] == ["run", "8080"]


def test_our_own_variables_cannot_be_overridden():
    with pytest.raises(InvalidInput, match="LOBSTERTRAP_EPOCH"):
        spec_of(make_agent(env={"LOBSTERTRAP_EPOCH": "9"}))


def test_a_volume_belongs_to_the_agents_user_for_good():
    spec = volume_spec(make_agent(), "state", target="laptop")

    assert spec["Options"] == {"o": "uid=1000,gid=1000"}


def test_secrets_of_agents_with_similar_names_are_told_apart():
    ada, ada_b = make_agent(), make_agent(name="ada-b")

    assert is_secret_of(ada, secret_name(ada, "TOKEN"))
    assert is_secret_of(ada_b, secret_name(ada_b, "TOKEN"))
    assert not is_secret_of(ada, secret_name(ada_b, "TOKEN"))
    assert not is_secret_of(ada_b, secret_name(ada, "TOKEN"))
    assert not is_secret_of(ada, "lobstertrap-ada.fence-1-1")


@pytest.mark.parametrize("size", [1, 3, 8, 1000])
def test_frames_are_found_however_the_stream_is_cut(size):
    words = [b"one\ntw", b"", b"o\n" + b"x" * 300]
    stream = b"".join(b"\1\0\0\0" + len(w).to_bytes(4, "big") + w for w in words)
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]

    found = list(lines(frames(pieces)))

    assert found == ["one", "two", "x" * 300]
