"""The agent spec: what is accepted, and how mistakes are told."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lobstertrap.agent import AgentSpec, load_agent, parse_size
from lobstertrap.errors import InvalidInput, NotFound

GOOD = """
name: ada
image: docker.io/library/ada@sha256:00
volumes:
  - {name: state, path: /home/ada/state, size: 2Gi}
"""


def write(directory: Path, text: str) -> Path:
    path = directory / "agent.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(directory: Path, text: str) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        load_agent(write(directory, text))
    return caught.value.message.splitlines()


def test_a_short_spec_gets_hardened_defaults(tmp_path):
    spec = load_agent(write(tmp_path, GOOD))

    assert spec.volumes[0].size == 2 * 2**30
    assert spec.host_name == "ada"
    assert spec.security.read_only_root
    assert spec.security.no_new_privileges
    assert spec.security.capabilities == []
    assert spec.directory == tmp_path


def test_egress_is_blocks_and_ports_and_no_host_names(tmp_path):
    good = GOOD + "egress: ['0.0.0.0/0:443', 10.0.0.0/8, 'fd00::/8', 'fd00::/8:53']\n"
    bad = ["api.example.com:443", "10.0.0.1/8", "0.0.0.0/0:0", "0.0.0.0/0:x", "::1:5"]

    assert load_agent(write(tmp_path, good)).egress[-1] == "fd00::/8:53"
    told = mistakes(tmp_path, f"{GOOD}egress: {bad}\n")
    assert len(told) == len(bad)
    assert all("no host name" in line for line in told)


def test_the_spec_of_tally_is_valid():
    here = Path(__file__).parents[2]

    assert load_agent(here / "agents/tally/agent.yaml").name == "tally"


def test_a_missing_spec_is_named(tmp_path):
    with pytest.raises(NotFound, match=r"no agent spec at .*agent.yaml"):
        load_agent(tmp_path / "agent.yaml")


def test_every_mistake_is_told_at_once_with_file_field_and_value(tmp_path):
    lines = mistakes(
        tmp_path,
        """
        name: Ada
        image: x
        imagee: y
        volumes: [{name: state, path: relative, size: 2 elephants}]
        ports: [{name: http, port: 70000}]
        stop_timeout: soon
        """,
    )

    file = tmp_path / "agent.yaml"
    told = {line.split(": ")[1]: line for line in lines}
    assert all(line.startswith(f"{file}: ") for line in lines)
    assert told.keys() == {
        "name",
        "imagee",
        "volumes.0.path",
        "volumes.0.size",
        "ports.0.port",
        "stop_timeout",
    }
    assert "found 'Ada'" in told["name"]
    assert "512Mi" in told["volumes.0.size"]
    assert "65535" in told["ports.0.port"]
    assert "70000" in told["ports.0.port"]
    assert "ms, s, m, h" in told["stop_timeout"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("build: {context: .}", "exactly one of image and build"),
        ("health: {http: {port: web}}", "health.http.port: no port 'web'"),
        ("health: {}", "exactly one of http and command"),
        ("command: [run, '{volumes.stat}']", "no such placeholder: {volumes.stat}"),
        ("ports: [{name: a, port: 1}, {name: a, port: 2}]", "'a' is there twice"),
        ("env: {A: b}\nsecrets: {A: '${B}'}", "'A' is both in env and in secrets"),
    ],
)
def test_what_does_not_fit_together_is_told(tmp_path, more, told):
    assert told in "\n".join(mistakes(tmp_path, f"{GOOD}{more}\n"))


@pytest.mark.parametrize(
    "secret",
    [
        "secrets: {TOKEN: sk-hunter2}",
        "secrets: {TOKEN: {value: sk-hunter2}}",
        "secrets: {TOKEN: {source: sk-hunter2, id: A}}",
        "secrets: [sk-hunter2]",
        "secrets: sk-hunter2",
        "token: sk-hunter2",
        "health: sk-hunter2: x",
        "secrets: {TOKEN: 'sk-hunter2",
        "image: https://user:sk-hunter2@place/x\nname: Ada",
    ],
)
def test_a_secret_written_into_the_spec_is_never_repeated(tmp_path, secret):
    text = GOOD if "image" not in secret else GOOD.replace("image:", "was:")

    lines = mistakes(tmp_path, f"{text}{secret}\n")

    assert "hunter2" not in "\n".join(lines)


def test_a_secret_in_an_unreadable_file_is_not_in_the_chain_either(tmp_path):
    with pytest.raises(InvalidInput) as caught:
        load_agent(write(tmp_path, f"{GOOD}secrets: {{TOKEN: 'sk-hunter2\n"))

    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_short_secret_reference_means_the_environment(tmp_path):
    spec = load_agent(write(tmp_path, f"{GOOD}secrets: {{TOKEN: '${{MY_TOKEN}}'}}\n"))

    assert str(spec.secrets["TOKEN"]) == "env:default:MY_TOKEN"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- a\n- b\n", "a mapping is expected, not list"),
        ("", "a mapping is expected, not NoneType"),
        ("a: b: c\n", "not YAML: mapping values are not allowed here (line 1"),
        ("name: \x00\n", "not YAML: it holds bytes that are not text"),
    ],
)
def test_a_file_that_is_no_spec_at_all_is_told(tmp_path, text, told):
    assert told in mistakes(tmp_path, text)[0]


def test_bytes_that_are_not_utf8_are_told(tmp_path):
    path = tmp_path / "agent.yaml"
    path.write_bytes(b"name: \xff\n")

    with pytest.raises(InvalidInput, match="not text in UTF-8"):
        load_agent(path)


@pytest.mark.parametrize(
    ("text", "count"),
    [("1", 1), ("1K", 1000), ("1Ki", 1024), ("1.5Gi", 3 * 2**29), ("2GB", 2 * 10**9)],
)
def test_sizes_are_read(text, count):
    assert parse_size(text) == count


def test_placeholders_are_replaced_and_other_braces_stay():
    spec = AgentSpec.model_validate(
        {"name": "ada", "image": "x", "volumes": [{"name": "s", "path": "/s"}]}
    )

    text = spec.expand(
        "{volumes.s}/{agent} {other} {}", volumes={"s": "/v"}, agent="/a"
    )

    assert text == "/v//a {other} {}"


@given(path=st.text(max_size=40))
def test_a_volume_path_is_absolute_and_never_climbs(path):
    raw = {"name": "a", "image": "x", "volumes": [{"name": "s", "path": path}]}

    try:
        spec = AgentSpec.model_validate(raw)
    except ValueError:
        return

    parts = Path(spec.volumes[0].path).parts
    assert parts[0] in ("/", "//")
    assert ".." not in parts
    assert len(parts) > 1
