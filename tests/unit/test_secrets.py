"""References become values, all or none; no error ever shows a value."""

import json
import logging
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from lobstertrap.agent import SecretRef
from lobstertrap.errors import SecretMissing
from lobstertrap.redaction import REDACTED, RedactingFilter, SecretValue, redactor
from lobstertrap.secrets import resolve

VALUE = "hunter2-and-more"


@pytest.fixture(autouse=True)
def fresh_redactor() -> Iterator[None]:
    before = set(redactor._values)
    yield
    redactor._values.clear()
    redactor._values.update(before)


def ref(source: str, secret_id: str, provider: str = "default") -> SecretRef:
    return SecretRef.model_validate(
        {"source": source, "provider": provider, "id": secret_id}
    )


def private(path: Path, content: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


def from_file(path: Path, secret_id: str, mode: str = "json") -> str:
    providers = {"main": {"source": "file", "path": str(path), "mode": mode}}
    values = resolve({"KEY": ref("file", secret_id, "main")}, providers, {})
    return values["KEY"].reveal()


def why_not(path: Path, secret_id: str, mode: str = "json") -> str:
    with pytest.raises(SecretMissing) as caught:
        from_file(path, secret_id, mode)
    assert VALUE not in caught.value.message
    return caught.value.message


def test_a_variable_is_read_from_the_environment_that_is_given() -> None:
    values = resolve({"KEY": ref("env", "MINE")}, {}, {"MINE": VALUE})

    assert values["KEY"].reveal() == VALUE


def test_every_failure_is_in_one_error_with_names_and_no_values(
    tmp_path: Path,
) -> None:
    file = private(tmp_path / "f", json.dumps({"a": VALUE, "n": 5}))
    refs = {
        "GOOD": ref("env", "GOOD"),
        "UNSET": ref("env", "UNSET"),
        "EMPTY": ref("env", "EMPTY"),
        "NOWHERE": ref("file", "/a", "nowhere"),
        "NUMBER": ref("file", "/n", "main"),
    }
    providers = {"main": {"source": "file", "path": str(file), "mode": "json"}}

    with pytest.raises(SecretMissing) as caught:
        resolve(refs, providers, {"GOOD": VALUE, "EMPTY": ""})

    assert caught.value.message.splitlines() == [
        "secret UNSET (env:default:UNSET): the variable UNSET is not set",
        "secret EMPTY (env:default:EMPTY): the variable EMPTY is empty",
        "secret NOWHERE (file:nowhere:/a): there is no provider 'nowhere'",
        f"secret NUMBER (file:main:/n): no string is at /n in {file}",
    ]


def test_a_secret_of_the_target_is_left_to_the_target() -> None:
    assert resolve({"KEY": ref("target", "there")}, {}, {}) == {}


def test_every_resolved_value_is_redacted_from_then_on() -> None:
    resolve({"KEY": ref("env", "MINE")}, {}, {"MINE": VALUE})

    assert redactor.redact(f"token={VALUE}!") == f"token={REDACTED}!"


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        ("/plain", "one"),
        ("/nested/deep/0", "two"),
        ("/with~1slash", "three"),
        ("/with~0tilde", "four"),
        ("/~01", "five"),
    ],
)
def test_a_json_pointer_finds_its_string(
    tmp_path: Path, pointer: str, value: str
) -> None:
    document = {
        "plain": "one",
        "nested": {"deep": ["two"]},
        "with/slash": "three",
        "with~tilde": "four",
        "~1": "five",
    }

    assert from_file(private(tmp_path / "f", json.dumps(document)), pointer) == value


@pytest.mark.parametrize(
    "pointer", ["/no", "/list/7", "/list/-1", "/list/x", "/plain/x", "/empty"]
)
def test_a_pointer_to_nothing_is_missing(tmp_path: Path, pointer: str) -> None:
    document = {"plain": VALUE, "list": [VALUE], "empty": ""}

    assert pointer in why_not(private(tmp_path / "f", json.dumps(document)), pointer)


def test_a_single_value_file_is_the_value_without_its_last_line_end(
    tmp_path: Path,
) -> None:
    path = private(tmp_path / "f", " spaces stay \n")

    assert from_file(path, "value", "singleValue") == " spaces stay "
    assert "the id must be 'value'" in why_not(path, "/other", "singleValue")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_file_that_others_can_open_is_refused(tmp_path: Path, mode: int) -> None:
    path = private(tmp_path / "f", json.dumps({"a": VALUE}), mode)

    assert "chmod 600" in why_not(path, "/a")


def test_a_file_that_is_not_what_it_should_be_is_named_not_quoted(
    tmp_path: Path,
) -> None:
    absent = why_not(tmp_path / "absent", "/a")
    directory = why_not(tmp_path, "/a")
    no_json = why_not(private(tmp_path / "a", f"{VALUE}="), "/a")
    no_text = why_not(private(tmp_path / "b", b"\xff\xfe"), "/a")
    no_pointer = why_not(private(tmp_path / "c", "{}"), "a")
    huge = why_not(private(tmp_path / "d", b" " * (2**20 + 1)), "/a")
    nul = why_not(private(tmp_path / "e", "a\0b"), "value", "singleValue")

    assert f"there is no file {tmp_path}/absent" in absent
    assert "directory" in directory
    assert "is not JSON" in no_json
    assert "is not UTF-8" in no_text
    assert "must be a JSON pointer" in no_pointer
    assert "is larger than" in huge
    assert "NUL" in nul


def test_a_file_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = private(tmp_path / "f", json.dumps({"a": VALUE}))
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
    else:  # only root can give a file away
        monkeypatch.setattr(os, "geteuid", lambda: 12345)

    assert "belongs to another user" in why_not(path, "/a")


def test_a_provider_of_another_source_is_refused(tmp_path: Path) -> None:
    providers = {"main": {"source": "file", "path": str(tmp_path)}}

    with pytest.raises(SecretMissing, match="provider 'main' is not of source env"):
        resolve({"KEY": ref("env", "MINE", "main")}, providers, {"MINE": VALUE})


@pytest.mark.parametrize("end", [b"", b"\xff"])
def test_an_error_does_not_carry_a_value_in_its_chain(
    tmp_path: Path, end: bytes
) -> None:
    path = private(tmp_path / "f", f'{{"a": "{VALUE}"'.encode() + end)

    with pytest.raises(SecretMissing) as caught:
        from_file(path, "/a")

    seen: BaseException | None = caught.value
    while seen is not None:
        assert VALUE not in "".join(repr(getattr(seen, name)) for name in dir(seen))
        seen = seen.__context__


def test_a_value_shows_itself_only_when_asked() -> None:
    value = SecretValue(VALUE)

    assert VALUE not in f"{value} {value!r}"
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(value)
    with pytest.raises(TypeError, match="not compared"):
        _ = value == SecretValue(VALUE)


def test_a_log_line_and_a_traceback_are_redacted() -> None:
    guard = RedactingFilter()
    guard.add(SecretValue(VALUE))
    try:
        raise ValueError(VALUE)
    except ValueError as error:
        record = logging.LogRecord(
            "x", logging.INFO, "x", 1, "sent %s", (VALUE,), (ValueError, error, None)
        )

    assert guard.filter(record)

    assert record.getMessage() == f"sent {REDACTED}"
    assert VALUE not in (record.exc_text or "")
