"""lobstertrap.toml: how it is found, what is refused in it, and what it opens."""

import subprocess
import sys
from pathlib import Path

import pytest

from lobstertrap.config import load
from lobstertrap.errors import InvalidInput, NotFound, SecretMissing

GOOD = """
[store]
url = "file://~/store"
[repository]
key = { source = "env", id = "KEY" }
[targets.desk]
kind = "host"
root = "desk"
[targets.laptop]
kind = "podman"
build_args = { BASE = "localhost/base" }
"""
EXEC = """id = "KEY", provider = "v" }
[secrets.providers.v]
source = "exec"
command = "/bin/true"
"""
AGENT = "image: x\nvolumes: [{name: state, path: /state}]\n"


@pytest.fixture
def project(tmp_path):
    (tmp_path / "lobstertrap.toml").write_text(GOOD)
    for name in ("ada", "bob"):
        directory = tmp_path / "agents" / name
        directory.mkdir(parents=True)
        (directory / "agent.yaml").write_text(f"name: {name}\n{AGENT}")
    return tmp_path


def mistakes(directory: Path, text: str) -> list[str]:
    (directory / "lobstertrap.toml").write_text(text)
    with pytest.raises(InvalidInput) as caught:
        load(directory, {})
    return caught.value.message.splitlines()


def test_it_is_found_from_the_working_directory_upwards(project):
    below = project / "agents" / "ada"

    assert load(below, {}).path == project / "lobstertrap.toml"


def test_the_variable_overrides_the_search(project, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    named = {"LOBSTERTRAP_CONFIG": str(project / "lobstertrap.toml")}

    assert load(elsewhere, named).path == project / "lobstertrap.toml"


def test_without_a_file_the_hint_says_what_to_do(tmp_path):
    with pytest.raises(NotFound, match=r"no lobstertrap.toml in") as caught:
        load(tmp_path, {})

    assert "lobstertrap.example.toml" in str(caught.value.hint)


def test_a_variable_that_names_no_file_is_told(tmp_path):
    with pytest.raises(NotFound, match=r"LOBSTERTRAP_CONFIG names .*gone.toml"):
        load(tmp_path, {"LOBSTERTRAP_CONFIG": "gone.toml"})


def test_the_example_file_is_valid(tmp_path):
    example = Path(__file__).parents[2] / "lobstertrap.example.toml"
    (tmp_path / "lobstertrap.toml").write_text(example.read_text())

    assert load(tmp_path, {"HOME": "/home/ada"}).target_names


def test_every_mistake_is_told_at_once_with_its_place(tmp_path):
    lines = mistakes(
        tmp_path,
        """
        agent = "x"
        [store]
        url = "ftp://somewhere"
        endpoint = "127.0.0.1:8333"
        [targets.Laptop]
        kind = "podman"
        [targets.cloud]
        kind = "nomad"
        [targets.prod]
        kind = "kubernetes"
        namespace = "Prod"
        [targets.desk]
        kind = "host"
        """,
    )

    file = tmp_path / "lobstertrap.toml"
    told = {line.split(": ")[1]: line for line in lines}
    assert all(line.startswith(f"{file}: ") for line in lines)
    assert told.keys() == {
        "agent",
        "store.url",
        "store.endpoint",
        "repository",
        "targets.Laptop.[key]",
        "targets.cloud",
        "targets.prod.namespace",
        "targets.desk.root",
    }
    assert "s3://bucket/prefix" in told["store.url"]
    assert '"host", "podman" or "kubernetes"' in told["targets.cloud"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            'id = "KEY"',
            'id = "X", provider = "gone"',
            "key: no [secrets.providers.gone]",
        ),
        ('source = "env"', 'source = "target"', "repository.key: source is env, file"),
        (
            'source = "env", id = "KEY"',
            'source = "file", provider = "vault", id = "/key"',
            "repository.key: no [secrets.providers.vault]",
        ),
        (
            'id = "KEY" }',
            EXEC,
            "repository.key: 'v' is no provider of source env",
        ),
        (
            "[repository]",
            'access_key = { source = "env", id = "A" }\n[repository]',
            "store: access_key and secret_key go together",
        ),
    ],
)
def test_what_does_not_fit_together_is_told(tmp_path, old, new, told):
    text = GOOD.replace(old, new)
    assert told in mistakes(tmp_path, text)[0]


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace('{ source = "env", id = "KEY" }', '"hunter2"'),
        GOOD.replace('{ source = "env", id = "KEY" }', '{ value = "hunter2" }'),
        GOOD.replace('{ source = "env", id = "KEY" }', '["hunter2"]'),
        GOOD.replace("[repository]", 'secret_key = "hunter2"\n[repository]'),
        GOOD.replace("[repository]", 'password = "hunter2"\n[repository]'),
        GOOD.replace("file://~/store", "s3://me:hunter2@bucket/x"),
        GOOD.replace("[repository]", 'endpoint = "http://me:hunter2@x"\n[repository]'),
        GOOD.replace('{ source = "env", id = "KEY" }', '"hunter2'),
    ],
)
def test_a_secret_written_into_it_is_refused_and_never_repeated(tmp_path, text):
    assert "hunter2" not in "\n".join(mistakes(tmp_path, text))


def test_an_unknown_agent_gets_a_suggestion_and_the_known_ones(project):
    with pytest.raises(NotFound, match=r"no agent 'adda'.*known: ada, bob") as caught:
        load(project, {}).agent("adda")

    assert caught.value.hint == "did you mean 'ada'?"


def test_an_unknown_target_gets_a_suggestion_and_the_known_ones(project):
    with pytest.raises(NotFound, match=r"'desc'.*known: desk, laptop") as caught:
        load(project, {}).target("desc")

    assert caught.value.hint == "did you mean 'desk'?"


@pytest.mark.parametrize("name", ["../agents/ada", "", ".", "/etc", "ada/"])
def test_an_agent_is_never_looked_for_outside_the_agents_directory(project, name):
    with pytest.raises(NotFound, match="no agent"):
        load(project, {}).agent(name)


def test_an_agent_has_the_name_of_its_directory(project):
    (project / "agents/ada/agent.yaml").write_text(f"name: eve\n{AGENT}")

    with pytest.raises(InvalidInput, match="found 'eve'"):
        load(project, {}).agent("ada")


def test_all_agents_are_loaded_by_name(project):
    assert [spec.name for spec in load(project, {}).agents()] == ["ada", "bob"]


def test_paths_start_at_the_file_or_at_home(project):
    config = load(project / "agents", {"HOME": "/home/ada lovelace", "KEY": "k"})

    assert config.resolve_path("desk") == project / "desk"
    assert config.resolve_path("~/x") == Path("/home/ada lovelace/x")
    assert config.store_settings().url == "file:///home/ada%20lovelace/store"


def test_a_missing_repository_key_is_named(project):
    with pytest.raises(SecretMissing, match="KEY"):
        load(project, {}).repository_key()


def test_the_repository_key_comes_from_where_the_file_says(project):
    assert load(project, {"KEY": "hunter2"}).repository_key().reveal() == "hunter2"


def test_the_repository_key_comes_from_a_file_too(project):
    (project / "key").write_text("hunter2\n")
    (project / "key").chmod(0o600)
    provider = (
        '[secrets.providers.vault]\nsource="file"\npath="key"\nmode="singleValue"'
    )
    text = GOOD.replace(
        'source = "env", id = "KEY"', 'source="file",provider="vault",id="value"'
    )
    (project / "lobstertrap.toml").write_text(f"{text}{provider}\n")

    assert load(project, {}).repository_key().reveal() == "hunter2"


def test_a_configuration_never_shows_the_environment(project):
    assert "hunter2" not in repr(load(project, {"KEY": "hunter2"}))


def test_loading_imports_no_sdk(project):
    """A command that only reads names starts quickly."""
    code = (
        "import sys; from pathlib import Path; from lobstertrap.config import load; "
        f"load(Path({str(project)!r}), {{}}).agents(); "
        "print({'botocore', 'podman', 'prefect', 'zstandard'} & set(sys.modules))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "set()"


def test_providers_have_openclaws_own_keys(tmp_path):
    program = tmp_path / "bin" / "resolver"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable} -IS\nimport json, os\n"
        "value = os.environ['PASSED'] + os.environ['MORE']\n"
        'print(json.dumps({"protocolVersion": 1, "values": {"a/b": value}}))\n'
    )
    program.chmod(0o700)
    providers = """
[secrets.providers.vault]
source = "exec"
command = "bin/resolver"
args = ["--profile", "prod"]
passEnv = ["PASSED"]
env = { MORE = " and more" }
timeoutMs = 30000
noOutputTimeoutMs = 30000
maxOutputBytes = 1000
jsonOnly = true
trustedDirs = ["bin"]
"""
    text = GOOD.replace(
        'source = "env", id = "KEY"', 'source="exec",provider="vault",id="a/b"'
    )
    relative = mistakes(tmp_path, text + providers)
    text += providers.replace('"bin/resolver"', f'"{program}"')

    (tmp_path / "lobstertrap.toml").write_text(text)
    config = load(tmp_path, {"PASSED": "hunter2"})

    assert "command: String should match" in relative[0]
    assert config.repository_key().reveal() == "hunter2 and more"
