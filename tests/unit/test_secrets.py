"""References become values, all or none; no error ever shows a value."""

import io
import json
import logging
import os
import pickle
import secrets
import subprocess
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from lobstertrap.errors import Refused, SecretMissing
from lobstertrap.redaction import REDACTED, RedactingFilter, SecretValue, redactor
from lobstertrap.secret_ref import SecretRef, SecretRefField
from lobstertrap.secrets import FileSource, look_up, resolve

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
    no_object = why_not(private(tmp_path / "c", "[1]"), "/0")
    huge = why_not(private(tmp_path / "d", b" " * (2**20 + 1)), "/a")
    nul = why_not(private(tmp_path / "e", "a\0b"), "value", "singleValue")

    assert f"there is no file {tmp_path}/absent" in absent
    assert "directory" in directory
    assert "is not a JSON object" in no_json
    assert "is not UTF-8" in no_text
    assert "is not a JSON object" in no_object
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


def test_a_link_a_pipe_and_a_shared_file_are_refused(tmp_path: Path) -> None:
    path = private(tmp_path / "f", json.dumps({"a": VALUE}))
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "pipe", 0o600)

    link = why_not(tmp_path / "link", "/a")
    pipe = why_not(tmp_path / "pipe", "/a")
    (tmp_path / "twin").hardlink_to(path)
    twin = why_not(path, "/a")

    assert "is a symbolic link" in link
    assert "is not a regular file" in pipe
    assert "another hard link" in twin


def test_a_file_that_cannot_be_read_in_time_is_missing(tmp_path: Path) -> None:
    never = threading.Event()
    source = FileSource(path=tmp_path / "f", seconds=0.05)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileSource, "_text", lambda _: str(never.wait(60)))
        found = source.read_all(["/a", "/b"])
        never.set()

    assert [str(found[i]) for i in ("/a", "/b")] == [
        f"{tmp_path}/f cannot be read within 0.05 s"
    ] * 2


def test_a_byte_order_mark_is_no_part_of_the_value(tmp_path: Path) -> None:
    path = private(tmp_path / "f", "\ufeff" + VALUE)

    assert from_file(path, "value", "singleValue") == VALUE


def test_only_the_variables_of_an_allowlist_are_read() -> None:
    providers = {"some": {"source": "env", "allowlist": ["MINE"]}}
    refs = {"A": ref("env", "MINE", "some"), "B": ref("env", "YOURS", "some")}

    with pytest.raises(SecretMissing) as caught:
        resolve(refs, providers, {"MINE": VALUE, "YOURS": VALUE})

    assert "YOURS is not in the provider's allowlist" in caught.value.message
    assert "MINE" not in caught.value.message


def test_a_prefect_reference_is_read_by_whoever_knows_prefect() -> None:
    refs = {"KEY": ref("prefect", "openai-key")}

    values = resolve(refs, {}, {}, {"prefect": lambda name: f"{VALUE} of {name}"})

    assert values["KEY"].reveal() == f"{VALUE} of openai-key"
    with pytest.raises(SecretMissing, match="cannot be read from here"):
        resolve(refs, {}, {})


def test_a_provider_is_asked_once_for_all_of_its_references() -> None:
    refs = {"A": ref("env", "ONE"), "B": ref("env", "ONE"), "C": ref("env", "TWO")}
    asked: list[str] = []

    class Counting(dict[str, str]):
        def get(self, key: str, default: object = None) -> str:
            asked.append(key)
            return VALUE

    values = resolve(refs, {}, Counting())

    assert sorted(asked) == ["ONE", "TWO"]
    assert {v.reveal() for v in values.values()} == {VALUE}


def test_one_provider_is_not_asked_for_more_than_512_values() -> None:
    def found(count: int) -> int:
        refs = {f"A{n}": ref("env", f"A{n}") for n in range(count)}
        return len(look_up(refs, {}, dict.fromkeys(refs, VALUE)).values)

    assert found(512) == 512
    assert found(513) == 0


def test_what_can_be_resolved_is_found_beside_what_cannot() -> None:
    refs = {"A": ref("env", "ONE"), "B": ref("env", "TWO")}

    found = look_up(refs, {}, {"ONE": VALUE})

    assert [*found.values] == ["A"]
    assert found.problems == {"B": "the variable TWO is not set"}
    assert VALUE not in repr(found)


@pytest.mark.parametrize(
    ("source", "secret_id"),
    [
        ("env", "A"),
        ("env", "OPENAI_API_KEY"),
        ("file", "value"),
        ("file", "/"),
        ("file", "/providers/openai/key"),
        ("file", "/a~1b/~0c"),
        ("exec", "providers/openai/apiKey#value"),
        ("exec", "a..b/c.d"),
        ("prefect", "openai-key"),
        ("target", "models/openai"),
    ],
)
def test_an_id_is_of_the_form_that_its_source_has(source: str, secret_id: str) -> None:
    assert str(ref(source, secret_id)) == f"{source}:default:{secret_id}"


@pytest.mark.parametrize(
    ("source", "secret_id"),
    [
        ("env", "lower"),
        ("env", "1A"),
        ("env", "A-B"),
        ("env", "A\n"),
        ("env", "A" * 129),
        ("file", "key"),
        ("file", "/a~2b"),
        ("file", "/a~"),
        ("exec", "/absolute"),
        ("exec", "a/../b"),
        ("exec", "a/."),
        ("exec", ".."),
        ("exec", "with space"),
        ("prefect", "Upper"),
        ("prefect", "a/b"),
    ],
)
def test_an_id_of_another_form_is_refused(source: str, secret_id: str) -> None:
    with pytest.raises(ValidationError):
        ref(source, secret_id)


@pytest.mark.parametrize("provider", ["Default", "1a", "", "a b", "a" * 65])
def test_a_provider_has_openclaws_form(provider: str) -> None:
    with pytest.raises(ValidationError):
        ref("env", "A", provider)


@pytest.mark.parametrize("text", ["${OPENAI_API_KEY}", "$OPENAI_API_KEY"])
def test_the_shorthand_is_a_variable(text: str) -> None:
    short = TypeAdapter(SecretRefField).validate_python(text)

    assert short == ref("env", "OPENAI_API_KEY")


@pytest.mark.parametrize("text", ["hunter2", "${lower}", "$", "x${A}", "${A", "$A}"])
def test_a_value_in_place_of_a_reference_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="never its value"):
        TypeAdapter(SecretRefField).validate_python(text)


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


def test_an_error_is_cleaned_with_all_that_is_behind_it() -> None:
    guard = RedactingFilter()
    guard.add(SecretValue(VALUE))
    cause = subprocess.CalledProcessError(1, ["x"], output=VALUE, stderr=VALUE.encode())
    error = Refused(f"it said {VALUE}", hint=f"not {VALUE}")
    error.__cause__, cause.__context__ = cause, KeyError(VALUE)
    cause.__context__.__context__ = error  # a loop is no trouble

    guard.clean(error)

    assert error.message == f"it said {REDACTED}"
    assert error.hint == f"not {REDACTED}"
    assert VALUE not in "".join(traceback.format_exception(error))
    assert (cause.output, cause.stderr) == (REDACTED, REDACTED.encode())


def test_what_any_of_our_loggers_says_is_redacted_where_it_is_kept() -> None:
    """Prefect's handler is on `lobstertrap`; what is said there is said below it."""
    guard, said = RedactingFilter(), io.StringIO()
    guard.add(SecretValue(VALUE))
    parent = logging.getLogger(f"test-{secrets.token_hex(4)}")
    handler = logging.StreamHandler(said)
    parent.addHandler(handler)
    parent.setLevel(logging.DEBUG)

    guard.watch_loggers(parent.name)
    parent.getChild("child").debug("sent %s", VALUE)
    parent.warning(VALUE)

    assert said.getvalue() == f"sent {REDACTED}\n{REDACTED}\n"
