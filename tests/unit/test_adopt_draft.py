"""What is found of other tools' agents, and the spec that is made of it: pure."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from lobstertrap.adopt import Found, Mount, draft, to_yaml
from lobstertrap.adopt.found import slug, with_names_apart
from lobstertrap.adopt.host import HostOriginals
from lobstertrap.adopt.kubernetes_shape import describe as describe_deployment
from lobstertrap.adopt.podman_shape import describe as describe_container
from lobstertrap.adopt.secrecy import looks_secret
from lobstertrap.agent import AgentSpec, load_agent
from lobstertrap.errors import InvalidInput, Refused
from lobstertrap.lease import Adopted

DIGEST = "sha256:" + "0" * 64
IMAGE: dict[str, Any] = {
    "RepoDigests": [f"example.org/agent@{DIGEST}"],
    "Config": {"Entrypoint": ["serve"], "Cmd": ["--all"], "Env": ["PATH=/bin", "A=1"]},
}
SIMPLE = Found(
    original="some-container",
    made_by="podman run",
    name="some",
    running=True,
    mounts=(Mount(path="/data", source="some-data"),),
    image=f"example.org/agent@{DIGEST}",
)


def container(**config: Any) -> dict[str, Any]:
    """Return a container as Podman inspects it."""
    host = config.pop("HostConfig", {})
    top = {k: config.pop(k) for k in ("Path", "Args", "Mounts", "Name") if k in config}
    return {
        "Name": "agent-1",
        "ImageName": "example.org/agent:latest",
        "Path": "serve",
        "Args": ["--all"],
        "State": {"Status": "running", "Running": True},
        "Mounts": [mount("data", "/data")],
        "Config": {"Env": [], "Hostname": "0123456789ab", **config},
        "HostConfig": host,
        **top,
    }


def mount(name: str, path: str, **more: Any) -> dict[str, Any]:
    found = {"Type": "volume", "Name": name, "Source": f"/vol/{name}"}
    return found | {"Destination": path, "RW": True, **more}


def spec_of(found: Found, **options: Any) -> AgentSpec:
    return draft(found, "agent", **options).spec


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OPENAI_API_KEY", "anything"),
        ("GITHUB_TOKEN", "x"),
        ("DB_PASSWORD", "x"),
        ("SESSION_COOKIE", "x"),
        ("HELLO", "sk-ant-REDACTED"),
        ("HELLO", "ghp_0123456789abcdefghij"),
        ("HELLO", "xoxb-123456789-abc"),
        ("HELLO", "AKIA0123456789ABCDEF"),
        ("HELLO", "postgres://me:hunter2@db/x"),
        ("HELLO", "123456789:AAF0123456789abcdefghij0123456789a"),
        ("HELLO", "8f14e45fceea167a5a36dedd4bea2543"),
        ("HELLO", "-----BEGIN RSA PRIVATE KEY-----"),
    ],
)
def test_a_secret_is_known_by_its_name_or_by_its_shape(name, value):
    assert looks_secret(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OPENAI_API_KEY", ""),
        ("NODE_ENV", "production"),
        ("KEYBOARD", "de"),
        ("LANG", "C.UTF-8"),
        ("STATE_DIR", "/home/node/.openclaw/some/long/directory/name"),
        ("URL", "https://example.org/v1/messages"),
        ("NODE_OPTIONS", "--max-old-space-size=1536"),
    ],
)
def test_what_is_no_secret_stays_readable(name, value):
    assert not looks_secret(name, value)


def test_only_what_the_image_does_not_set_is_carried_over():
    found = describe_container(
        container(Env=["PATH=/bin", "A=1", "A=2", "MODE=x", "TERM=xterm"]), IMAGE
    )

    spec = spec_of(found)

    assert spec.env == {"A": "2", "MODE": "x"}
    assert spec.command == []
    assert spec.image == f"example.org/agent@{DIGEST}"


def test_a_command_of_its_own_is_carried_over_without_podmans_init():
    found = describe_container(
        container(Path="/run/podman-init", Args=["--", "sh", "-c", "x y"]), IMAGE
    )

    assert spec_of(found).command == ["sh", "-c", "x y"]


def test_podman_secrets_are_named_and_values_are_moved():
    config = container(
        Env=["API_TOKEN=value-1", "OTHER_KEY=value-2"],
        CreateCommand=["podman", "run", "--secret", "mine,type=env,target=API_TOKEN"],
    )
    found = describe_container(config, IMAGE, secrets=frozenset({"mine"}))

    drafted = draft(found, "agent")
    elsewhere = draft(found, "agent", keep_in="env")

    assert drafted.spec.secrets["API_TOKEN"].id == "mine"
    assert drafted.spec.secrets["OTHER_KEY"].id == "lobstertrap-agent.env-other-key"
    assert [*drafted.secrets] == ["OTHER_KEY"]
    assert {str(ref) for ref in elsewhere.spec.secrets.values()} == {
        "env:default:API_TOKEN",
        "env:default:OTHER_KEY",
    }
    text = to_yaml(drafted, found, "laptop")
    assert "value-1" not in text
    assert "value-2" not in text


def test_the_users_numbers_come_from_the_containers_own_passwd():
    passwd = "root:x:0:0::/root:/bin/sh\nnode:x:1001:1002::/home/node:/bin/sh\n"

    owners = [
        describe_container(container(User=user), IMAGE, passwd=passwd).owner
        for user in ("node", "1001", "7:8", "", "node:9")
    ]

    assert owners == [(1001, 1002), (1001, 1002), (7, 8), (0, 0), (1001, 9)]


def test_what_cannot_be_carried_over_is_told():
    config = container(
        HostConfig={
            "AutoRemove": True,
            "NetworkMode": "host",
            "PortBindings": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "80"}]},
        },
        Mounts=[mount("data", "/data"), mount("conf", "/etc/agent", RW=False)],
        WorkingDir="/srv",
    )
    changed = ["/etc", "/etc/hosts", "/data", "/opt", "/opt/tool", "/opt/tool/bin"]

    told = " | ".join(describe_container(config, IMAGE, changed=changed).warnings)

    for what in ("--rm", "host's network", "loopback only", "/etc/agent", "/srv"):
        assert what in told
    assert "outside of its volumes: /opt/tool/bin" in told
    assert "/etc/hosts" not in told


def test_ports_health_and_limits_are_carried_over():
    second = 10**9
    config = container(
        Healthcheck={"Test": ["CMD-SHELL", "curl x"], "Interval": 5 * second},
        HostConfig={
            "PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}]},
            "Memory": 2**28,
            "PidsLimit": 99,
            "NanoCpus": 5 * 10**8,
        },
        StopTimeout=7,
    )

    spec = spec_of(describe_container(config, IMAGE))

    assert (spec.ports[0].port, spec.ports[0].publish) == (80, 8080)
    assert spec.health.command == ["sh", "-c", "curl x"]
    assert spec.health.interval == 5
    assert (spec.resources.memory, spec.resources.pids) == (2**28, 99)
    assert spec.resources.cpus == 0.5
    assert spec.stop_timeout == 7


def test_openclaw_is_known_by_where_its_state_is_whatever_its_image_is_called():
    state = {"Mounts": [mount("home", "/home/node/.openclaw")]}

    assert describe_container(container(**state), IMAGE).is_openclaw
    assert not describe_container(container(), IMAGE).is_openclaw


def test_a_secret_on_the_command_line_is_refused_not_written():
    found = replace(SIMPLE, command=("serve", "--token=ghp_0123456789abcdefghij"))

    with pytest.raises(Refused, match="word 1 of its command looks like a secret") as e:
        draft(found, "agent")

    assert "ghp_" not in str(e.value)


@pytest.mark.parametrize("where", ["command", "env"])
def test_text_that_we_would_expand_is_refused(where):
    given = ("x", "{agent}") if where == "command" else {"X": "{agent}"}

    with pytest.raises(InvalidInput, match="one of our placeholders"):
        draft(replace(SIMPLE, **{where: given}), "agent")


@pytest.mark.parametrize("name", ["../x", "--help", "A", "", "a\nb", "x" * 41])
def test_an_agent_cannot_be_given_a_name_that_is_none(name):
    with pytest.raises(InvalidInput, match="name"):
        draft(SIMPLE, name)


def test_a_name_from_outside_becomes_no_line_of_the_spec(tmp_path):
    evil = "x\nsecurity: {capabilities: [ALL]}\n\x1b[2J#"
    found = replace(SIMPLE, original=evil, made_by=evil, warnings=(evil,))

    (tmp_path / "agent.yaml").write_text(to_yaml(draft(found, "agent"), found, "here"))

    text = (tmp_path / "agent.yaml").read_text()
    assert load_agent(tmp_path / "agent.yaml").security.capabilities == []
    assert "\x1b" not in text


def test_the_written_spec_is_the_drafted_one(tmp_path):
    config = container(
        Env=["MODE=x", "MY_TOKEN=y"],
        HostConfig={"ReadonlyRootfs": True, "Tmpfs": {"/run": ""}, "Memory": 2**28},
        User="1000:1000",
    )
    found = describe_container(config, IMAGE)
    drafted = draft(found, "agent")

    (tmp_path / "agent.yaml").write_text(to_yaml(drafted, found, "laptop"))

    again = load_agent(tmp_path / "agent.yaml")
    assert again.model_dump() == drafted.spec.model_dump()


def test_names_are_made_valid_and_apart():
    found = with_names_apart(
        [replace(SIMPLE, name=slug("My Agent_")) for _ in range(3)]
    )

    assert [one.name for one in found] == ["my-agent", "my-agent-2", "my-agent-3"]
    assert slug("\x1b[31m../..") == "31m"
    assert slug("---") == "agent"


# A cluster, in the shape that claw-installer makes.

CLAW = yaml.safe_load(
    """
metadata: {name: openclaw, namespace: lt-ada-openclaw, labels: {}}
spec:
  replicas: 1
  template:
    spec:
      securityContext: {fsGroup: 1000}
      terminationGracePeriodSeconds: 30
      initContainers:
        - {name: init-config, image: busybox}
      containers:
        - name: gateway
          image: ghcr.io/openclaw/openclaw:latest
          command: [sh, -c, "umask 007 && exec node openclaw.mjs gateway --bind lan"]
          ports: [{name: gateway, containerPort: 18789}]
          securityContext:
            readOnlyRootFilesystem: true
            allowPrivilegeEscalation: false
            capabilities: {drop: [ALL]}
          resources: {limits: {memory: 4Gi, cpu: 500m}}
          env:
            - {name: HOME, value: /home/node}
            - name: ANTHROPIC_API_KEY
              valueFrom:
                secretKeyRef: {name: openclaw-secrets, key: ANTHROPIC_API_KEY}
          readinessProbe: {httpGet: {path: /, port: gateway}}
          volumeMounts:
            - {name: home, mountPath: /home/node}
            - {name: tmp, mountPath: /tmp}
            - {name: config, mountPath: /etc/openclaw}
      volumes:
        - {name: home, persistentVolumeClaim: {claimName: openclaw-home-pvc}}
        - {name: tmp, emptyDir: {}}
        - {name: config, configMap: {name: openclaw-installer-config}}
"""
)
CLAIM = {
    "metadata": {"name": "openclaw-home-pvc"},
    "spec": {"resources": {"requests": {"storage": "10Gi"}}},
}
POD = {
    "metadata": {"name": "openclaw-5d8-x"},
    "status": {
        "containerStatuses": [
            {"name": "gateway", "imageID": f"ghcr.io/openclaw/openclaw@{DIGEST}"}
        ]
    },
}


def describe(deployment: Any = CLAW, **more: Any) -> Found:
    given = {"pods": [POD], "claims": [CLAIM], "config_maps": [], "secret_keys": {}}
    return describe_deployment(deployment, made_by="claw-installer", **given | more)


def test_claw_installers_deployment_becomes_a_spec():
    found = describe()
    drafted = draft(found, "ada")
    spec = drafted.spec

    assert (found.original, found.name) == ("lt-ada-openclaw/openclaw", "lt-ada")
    assert spec.image == f"ghcr.io/openclaw/openclaw@{DIGEST}"
    assert drafted.sources == {"home": "lt-ada-openclaw/openclaw-home-pvc"}
    assert (spec.volumes[0].path, spec.volumes[0].size) == ("/home/node", 10 * 2**30)
    assert "/.openclaw/cache/" in spec.volumes[0].exclude
    assert spec.health.http.path == "/readyz"  # theirs asks /, which always answers
    assert (spec.resources.memory, spec.resources.cpus) == (4 * 2**30, 0.5)
    assert drafted.secrets == {
        "ANTHROPIC_API_KEY": ("lobstertrap-ada.env-anthropic-api-key", None)
    }
    told = " | ".join(drafted.warnings)
    assert "may overwrite its state: init-config" in told
    assert "/etc/openclaw" in told


def test_arguments_without_a_command_are_refused():
    container = {**CLAW["spec"]["template"]["spec"]["containers"][0]}
    container["args"] = container.pop("command")
    deployment = yaml.safe_load(yaml.safe_dump(CLAW))
    deployment["spec"]["template"]["spec"]["containers"] = [container]

    found = describe(deployment)  # it is listed, beside those that can be adopted

    with pytest.raises(Refused, match="a program that only its image knows"):
        draft(found, "ada")


def test_a_secret_given_as_a_whole_is_taken_key_by_key():
    deployment = yaml.safe_load(yaml.safe_dump(CLAW))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    container["envFrom"] = [{"secretRef": {"name": "more"}}]

    found = describe(deployment, secret_keys={"more": ["A_KEY", "B_KEY"]})

    assert found.held["A_KEY"] == "more/A_KEY"
    assert len(draft(found, "ada").secrets) == 3


# OpenClaw in a home directory.


@pytest.fixture
def home(tmp_path: Path) -> Path:
    state = tmp_path / ".openclaw"
    state.mkdir()
    (state / "openclaw.json").write_text(
        '{"meta": {"lastTouchedVersion": "2026.9.6"}, "models": {"key": '
        '{"source": "env", "provider": "default", "id": "OPENAI_API_KEY"}, '
        '"other": "${MISTRAL_KEY}", "odd": {"source": "env", "id": "a b"}}}'
    )
    return tmp_path


def test_openclaw_in_a_home_directory_is_found_with_the_secrets_it_names(home):
    (found,) = HostOriginals(home=home, target="desk").find()

    spec = draft(found, "claw").spec

    assert spec.image == "ghcr.io/openclaw/openclaw:2026.9.6"
    assert {str(ref) for ref in spec.secrets.values()} == {
        "env:default:OPENAI_API_KEY",
        "env:default:MISTRAL_KEY",
    }
    assert spec.host.command[:2] == ["openclaw", "gateway"]
    assert (found.running, spec.volumes[0].name) == (False, "openclaw")


def test_a_home_directory_in_use_is_not_switched(home):
    originals = HostOriginals(home=home, target="desk")
    state = home / ".openclaw"
    adopted = Adopted(
        target="desk", original=str(state), sources={"openclaw": str(state)}
    )

    with (state / "openclaw.json").open():
        with pytest.raises(Refused, match=f"process {os.getpid()}"):
            originals.stop(adopted, seconds=1)
        assert originals.find()[0].running
    originals.stop(adopted, seconds=1)
    originals.retire(adopted)
    originals.retire(adopted)

    assert not state.exists()
    assert (home / ".openclaw.adopted" / "openclaw.json").exists()


def test_a_broken_configuration_hides_no_state(home):
    (home / ".openclaw" / "openclaw.json").write_text("{" * 100_000)

    (found,) = HostOriginals(home=home, target="desk").find()

    assert draft(found, "claw").spec.secrets == {}
