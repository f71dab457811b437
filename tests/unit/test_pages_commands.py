"""Every command on a page is one that there is, with options that it has."""

from __future__ import annotations

import ast
import re

import pytest
import yaml

from deployments.reference import commands
from lobstertrap.prefect_plugin import DEPLOYMENTS
from tests.fixtures.pages import ROOT, Command, fenced, pages, spans, split

COMMANDS = commands()
FENCED = [command for page in pages() for command in fenced(page)]
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
OTHERS = {
    *("prefect work-pool create", "prefect deploy", "prefect worker start"),
    *("prefect flow-run retry", "prefect server start", "prefect work-pool pause"),
}
ELSEWHERE = {
    "make demo": "tests/flows/test_demo.py",
    "prefect deployment run": "tests/flows/test_serve.py",
    "lobstertrap manifests": "tests/integration/test_kubernetes_commands.py",
    "lobstertrap adopt": "tests/integration/test_adopt.py",
    "lobstertrap secrets": "tests/unit/test_cli.py",
    "python deployments/automations.py": "tests/flows/test_automations.py",
}
"""What a test of its own runs. The tutorial's commands are run by
tests/flows/test_tutorial.py."""

GLOBAL = {"--debug", "--version", "--help", "--install-completion"}
NAMES = {"lobstertrap slot 1", "agents/_repository/record.json"}
"""What only looks like a command or a path: names inside of stores and ciphers."""

PARSED_ONLY = {
    "git clone": "the repository's own host; the reader's checkout is this one",
    "make venv": "what runs the tests has run it",
    ". .venv/bin/activate": "as before",
    "kubectl apply": "an administrator's cluster; the tests' own apply the same files",
    "kubectl create": "as before",
    "export PREFECT_API_URL=http://127.0.0.1:4200/api": "of the reader's shell",
}


def parse(words: tuple[str, ...]) -> None:
    """Parse the words after `lobstertrap` as the program does."""
    words = tuple(word for word in words if word != "--debug")
    name = next(n for n in (" ".join(words[:2]), words[0]) if n in COMMANDS)
    rest = [*words[len(name.split()) :]]
    COMMANDS[name].make_context(name, rest, obj={})


@pytest.mark.parametrize(
    "command", [c for c in FENCED if c.words[0] == "lobstertrap"], ids=str
)
def test_a_command_of_ours_is_taken_by_its_own_parser(command: Command) -> None:
    parse(command.words[1:])


def test_what_is_no_command_or_option_is_noticed() -> None:
    for line in ("lunch x --on y", "launch x --at y", "launch x", "forget x y"):
        with pytest.raises(Exception):  # noqa: B017, PT011 - typer's are private
            parse(tuple(line.split()))


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_what_a_sentence_says_of_commands_is_so(page) -> None:
    for span in spans(page):
        if not span.startswith(("lobstertrap ", "make ", "prefect ")) or span in NAMES:
            continue
        plain = re.sub(r"[][]|\\\|[\w-]+|\.\.\.", "", span)
        for words in split(plain):
            check_words(words, span)


def check_words(words: tuple[str, ...], span: str) -> None:
    program, *rest = words
    if program == "make":
        named = [w for w in rest if re.fullmatch(r"[a-z-]+", w) and w != "-s"]
        assert set(named) <= TARGETS, span
    elif program == "prefect":
        check_prefect(words, span)
    elif program == "lobstertrap" and rest != ["COMMAND", "--help"]:
        rest = [w for w in rest if w not in GLOBAL]
        if not rest or rest[0] == "COMMAND":
            return
        name = next((n for n in (" ".join(rest[:2]), rest[0]) if n in COMMANDS), None)
        assert name is not None or rest[0] == "key", span
        if name is not None:
            known = {
                o for p in COMMANDS[name].params for o in (*p.opts, *p.secondary_opts)
            }
            used = {w for w in rest if re.fullmatch(r"--?[a-z][a-z-]*", w)}
            assert used <= known, span


@pytest.mark.parametrize(
    "command", [c for c in FENCED if c.words[0] in ("make", "prefect")], ids=str
)
def test_a_target_of_make_and_a_deployment_are_there(command: Command) -> None:
    check_words(command.words, command.line)
    for word in command.words:
        if word.startswith("ARGS="):
            parse((command.words[1], *word.removeprefix("ARGS=").split()))


def check_prefect(words: tuple[str, ...], span: str) -> None:
    rest = [w for w in words if not w.startswith("--no-prompt")]
    if rest[1:3] != ["deployment", "run"]:
        assert any(" ".join(rest).startswith(known) for known in OTHERS), span
        return
    if len(rest) == 3:
        return
    name = rest[3] if "/" in rest[3] else f"{rest[3]}/{DEPLOYMENTS[rest[3]]}"
    given = [w.partition("=")[0] for w in rest[4:] if "=" in w]
    assert set(given) <= parameters(name), span


def parameters(deployment: str) -> set[str]:
    """Return the parameters of a deployment's flow, as its file has them."""
    made = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    [path] = [
        d["entrypoint"] for d in made if f"{d['flow_name']}/{d['name']}" == deployment
    ]
    file, _, function = path.partition(":")
    tree = ast.parse((ROOT / file).read_text())
    [flow] = [
        n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function
    ]
    return {a.arg for a in (*flow.args.args, *flow.args.kwonlyargs)}


def test_a_command_is_run_by_a_test_or_listed_with_the_reason() -> None:
    run = {c.key for c in FENCED if c.page == "tutorial.md"}
    shown = {c.key for c in FENCED if c.page != "commands.md"}  # parsed, above

    assert shown - run - PARSED_ONLY.keys() == ELSEWHERE.keys()
    assert shown >= PARSED_ONLY.keys()
    assert all((ROOT / path).exists() for path in ELSEWHERE.values())


def test_paths_of_the_checkout_that_a_page_names_are_there() -> None:
    rooms = r"(?:src|flows|tasks|tests|deployments|docs|agents|benchmarks)/[\w./-]*"
    for page in pages():
        named = {s for s in spans(page) if re.fullmatch(rooms, s)} - NAMES
        named = {s for s in named if not re.search("[A-Z]{3}", s.split("/", 1)[1])}
        assert {s for s in named if not (ROOT / s).exists()} == set(), page.name

    for command in FENCED:
        for word in command.words:
            if word.startswith("deployments/"):
                assert (ROOT / word).exists(), command
