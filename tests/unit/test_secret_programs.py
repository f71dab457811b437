"""A program that answers for secrets, by OpenClaw's exec protocol."""

from __future__ import annotations

import json
import sys
import time
import traceback
from pathlib import Path

import pytest

from lobstertrap.errors import SecretMissing
from lobstertrap.secrets.exec_source import ExecSource

VALUE = "hunter2-and-more"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return tmp_path / "resolver"


def source(program: Path, body: str, **fields: object) -> ExecSource:
    program.write_text(
        f"#!{sys.executable} -IS\nimport json, os, sys, time\n"
        f"def say(**answer): print(json.dumps(answer))\n{body}\n"
    )
    program.chmod(0o700)
    fields = {"seconds": 30.0, "silent_seconds": 30.0, **fields}
    return ExecSource(provider="vault", command=program, **fields)


def why_not(asked: ExecSource, *ids: str) -> str:
    found = asked.read_all(ids or ["one"])
    reasons = {str(reason) for reason in found.values()}
    for reason in found.values():
        assert isinstance(reason, SecretMissing)
        assert VALUE not in "".join(traceback.format_exception(reason))
    assert len(reasons) == 1
    return reasons.pop()


def test_it_is_asked_once_for_all_ids_and_answers_each(program: Path) -> None:
    asked = source(
        program,
        "asked = json.load(sys.stdin)\n"
        "values = {i: f'{i} of {json.dumps(asked)}' for i in asked['ids']}\n"
        "say(protocolVersion=1, values=values)",
    )

    found = asked.read_all(["one", "two"])

    request = {"protocolVersion": 1, "provider": "vault", "ids": ["one", "two"]}
    assert found["one"].reveal() == f"one of {json.dumps(request)}"
    assert found["two"].reveal().startswith("two of ")


def test_an_id_that_fails_does_not_take_the_others_along(program: Path) -> None:
    asked = source(
        program,
        f"say(protocolVersion=1, values={{'good': '{VALUE}', 'number': 5}}, errors={{"
        f"'gone': {{'code': 'NOT_FOUND', 'message': '{VALUE}'}},"
        f"'odd': {{'code': '{VALUE}'}}}})",
    )

    found = asked.read_all(["good", "number", "gone", "odd", "absent"])

    assert found["good"].reveal() == VALUE
    assert str(found["gone"]) == "resolver failed for it: NOT_FOUND"
    assert str(found["odd"]) == "resolver failed for it"
    assert str(found["absent"]) == "resolver answered no value for it"
    assert str(found["number"]) == "resolver answered a value that is no text for it"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("pass", "resolver answered nothing"),
        (f"print('{VALUE}')", "the answer of resolver is not a JSON object"),
        (f"print(json.dumps('{VALUE}'))", "the answer of resolver is not a JSON"),
        (f"say(protocolVersion=2, values={{'one': '{VALUE}'}})", "does not speak"),
        (f"say(values={{'one': '{VALUE}'}})", "does not speak protocolVersion 1"),
        ("say(protocolVersion=1)", "the answer of resolver has no values"),
        ("say(protocolVersion=1, values={'one': ''})", "its value is empty"),
        ("os.write(1, b'\\xff')", "the answer of resolver is not UTF-8 text"),
        (f"sys.exit('{VALUE}')", "resolver ended with status 1"),
        ("os.kill(os.getpid(), 9)", "resolver ended with status -9"),
    ],
)
def test_an_answer_that_is_none_is_told_without_it(
    program: Path, body: str, reason: str
) -> None:
    assert reason in why_not(source(program, body), "one")


def test_plain_text_is_an_answer_only_where_that_is_said(program: Path) -> None:
    asked = source(program, f"print('{VALUE}')", json_only=False)

    assert asked.read_all(["one"])["one"].reveal() == VALUE
    assert "is not a JSON object" in why_not(asked, "one", "two")


def test_a_program_that_does_not_answer_in_time_is_ended(
    program: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "alive"
    body = f"time.sleep(2)\nopen('{mark}', 'w')"
    began = time.monotonic()

    told = why_not(source(program, body, seconds=0.3))
    silent = why_not(source(program, body, silent_seconds=0.3))

    assert told == "resolver did not answer within 0.3 s"
    assert silent == "resolver printed nothing for 0.3 s"
    time.sleep(max(0.0, began + 3 - time.monotonic()))
    assert not mark.exists()


def test_a_program_that_closes_its_output_and_stays_is_ended(program: Path) -> None:
    asked = source(program, "os.close(1); os.close(2); time.sleep(60)", seconds=0.5)

    assert why_not(asked) == "resolver did not answer within 0.5 s"


def test_a_program_that_prints_too_much_is_ended(program: Path) -> None:
    asked = source(program, "while True: print('x' * 1000)", largest=10_000)

    assert why_not(asked) == "resolver printed more than 10000 bytes"


def test_a_program_need_not_read_what_it_is_asked(program: Path) -> None:
    ids = [f"id-{number}" for number in range(15_000)]
    asked = source(
        program,
        f"os.close(0); say(protocolVersion=1, values={{'id-1': '{VALUE}'}})",
    )

    assert asked.read_all(ids)["id-1"].reveal() == VALUE


def test_a_request_of_more_than_256_kib_is_not_made(program: Path) -> None:
    ids = [f"{number:0250}" for number in range(1100)]

    assert why_not(source(program, "pass"), *ids) == "more is asked than 262144 bytes"


def test_it_gets_only_the_variables_that_it_is_given(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOT_PASSED", VALUE)
    asked = source(
        program,
        "say(protocolVersion=1, values={'one': json.dumps(dict(os.environ))})",
        environ={"PASSED": "1"},
    )

    seen = json.loads(asked.read_all(["one"])["one"].reveal())

    assert seen["PASSED"] == "1"
    assert "NOT_PASSED" not in seen


def test_only_a_program_that_nobody_else_can_change_is_run(
    program: Path, tmp_path: Path
) -> None:
    good = f"say(protocolVersion=1, values={{'one': '{VALUE}'}})"
    asked = source(program, good)
    link = tmp_path / "link"
    link.symlink_to(program)

    def other(**fields: object) -> ExecSource:
        return ExecSource(provider="vault", **fields)

    assert "is a symbolic link" in why_not(other(command=link))
    assert "is not an absolute path" in why_not(other(command=Path("resolver")))
    assert "is not a regular file" in why_not(other(command=tmp_path))
    assert "no such file" in why_not(other(command=tmp_path / "absent"))
    elsewhere = other(command=program, trusted=[tmp_path / "bin"])
    assert "is outside the provider's trustedDirs" in why_not(elsewhere)
    program.chmod(0o720)
    assert "can be changed by others" in why_not(asked)
    program.chmod(0o600)
    assert "permission denied" in why_not(asked)


def test_a_program_in_a_trusted_directory_is_run(program: Path) -> None:
    good = f"say(protocolVersion=1, values={{'one': '{VALUE}'}})"

    found = source(program, good, trusted=[program.parent]).read_all(["one"])

    assert found["one"].reveal() == VALUE
