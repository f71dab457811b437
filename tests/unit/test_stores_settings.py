"""Settings are checked at the edge, and what is secret in them stays so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lobstertrap.errors import AccessDenied, InvalidInput
from lobstertrap.redaction import SecretValue
from lobstertrap.stores import StoreSettings, open_store, with_credentials
from lobstertrap.stores.directory import DirectoryStore
from lobstertrap.stores.s3 import S3Store
from lobstertrap.stores.s3_client import Buffers, _protected, connect
from lobstertrap.stores.settings import S3Place, check_endpoint, parse_url

FULL = {
    "url": "s3://bucket/a/b",
    "endpoint": "https://s3.example.org",
    "region": "eu-central-1",
    "access_key": "the-access-key",
    "secret_key": "the-secret-key",
    "session_token": "the-token",
}


@pytest.fixture
def no_chain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Leave boto3's chain nothing to find."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def test_settings_survive_the_way_to_a_mover():
    settings = StoreSettings.from_dict(FULL)

    assert settings.to_dict() == FULL
    assert StoreSettings.from_dict({"url": "file:///x"}).to_dict() == {
        "url": "file:///x"
    }


def test_settings_show_no_secret():
    shown = f"{StoreSettings.from_dict(FULL)!r}"

    assert "s3://bucket/a/b" in shown
    assert not any(FULL[name] in shown for name in FULL if name[-3:] in {"key", "ken"})


def test_settings_may_be_compared_and_hashed():
    one, two = StoreSettings.from_dict(FULL), StoreSettings.from_dict(FULL)

    assert one == two
    assert hash(one) == hash(two)


@pytest.mark.parametrize(
    "values",
    [{}, {"url": ""}, {**FULL, "secret_key": 5}, {**FULL, "password": "hunter2"}],
)
def test_wrong_settings_are_refused_without_repeating_values(values):
    with pytest.raises(InvalidInput) as refused:
        StoreSettings.from_dict(values)

    assert "hunter2" not in str(refused.value)
    assert "the-secret-key" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("s3://bucket", S3Place(bucket="bucket", prefix="")),
        ("s3://bucket/", S3Place(bucket="bucket", prefix="")),
        ("s3://my.bucket-1/a/b/", S3Place(bucket="my.bucket-1", prefix="a/b")),
        ("file:///srv/store", Path("/srv/store")),
        ("file://localhost/srv", Path("/srv")),
        ("file:///with%20space", Path("/with space")),
    ],
)
def test_a_url_is_a_place(url: str, place: object):
    assert parse_url(url) == place


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "bucket",
            "/srv/store",
            "http://bucket/x",
            "memory://",
            "s3://",
            "s3:///a",
        ),
        *("s3://b/a", "s3://bucket/a//b", "s3://bucket/../b", "s3://bucket/a b"),
        *("s3://bucket/a?x=1", "s3://bucket/#x", "s3://bucket:99/x", "s3://[bucket"),
        *("file://host/srv", "file:relative", "file:///a/../b", "file:///a%00b"),
    ],
)
def test_any_other_url_is_refused_when_opened(url: str):
    with pytest.raises(InvalidInput) as refused:
        open_store(StoreSettings(url=url))

    assert refused.value.hint


def test_credentials_in_a_url_are_refused_and_not_repeated():
    with pytest.raises(InvalidInput) as refused:
        open_store(StoreSettings(url="s3://key:hunter2@bucket/x"))
    with pytest.raises(InvalidInput) as endpoint:
        open_store(
            StoreSettings(url="s3://bucket", endpoint="https://key:hunter2@host")
        )

    assert "hunter2" not in f"{refused.value!r}{endpoint.value!r}"


@pytest.mark.parametrize(
    "endpoint", ["host:9000", "ftp://host", "http://", "http://h:port", "http://h/?a=b"]
)
def test_an_endpoint_that_is_no_address_is_refused(endpoint: str):
    with pytest.raises(InvalidInput):
        check_endpoint(endpoint)


def test_a_file_url_opens_a_directory(tmp_path: Path):
    settings = StoreSettings(url=(tmp_path / "a b#c").as_uri())

    store = open_store(settings)
    store.put("key", b"x")

    assert isinstance(store, DirectoryStore)
    assert (tmp_path / "a b#c" / "key").read_bytes() == b"x"
    assert store.url == settings.url
    assert with_credentials(settings) is settings


@pytest.mark.usefixtures("no_chain")
def test_credentials_are_filled_in_from_the_chain(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from-env")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-from-env")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-from-env")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9000")

    filled = with_credentials(StoreSettings(url="s3://bucket"))

    assert filled.to_dict() == {
        "url": "s3://bucket",
        "endpoint": "http://127.0.0.1:9000",
        "region": "eu-west-1",
        "access_key": "from-env",
        "secret_key": "secret-from-env",
        "session_token": "token-from-env",
    }


@pytest.mark.usefixtures("no_chain")
def test_aws_itself_needs_no_endpoint(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from-env")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-from-env")

    filled = with_credentials(StoreSettings(url="s3://bucket", region="eu-west-1"))

    assert filled.endpoint is None


def test_given_credentials_are_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from-env")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-from-env")

    assert with_credentials(StoreSettings.from_dict(FULL)).to_dict() == FULL


@pytest.mark.usefixtures("no_chain")
def test_no_credentials_anywhere_is_access_denied():
    with pytest.raises(AccessDenied) as denied:
        with_credentials(StoreSettings(url="s3://bucket"))
    with pytest.raises(AccessDenied):
        S3Store(StoreSettings(url="s3://bucket", endpoint="http://127.0.0.1:9")).get(
            "k"
        )

    assert "AWS_ACCESS_KEY_ID" in str(denied.value.hint)


@pytest.mark.parametrize("name", ["access_key", "secret_key"])
def test_half_a_credential_is_refused(name: str):
    with pytest.raises(InvalidInput, match="half a credential for s3://bucket"):
        StoreSettings(url="s3://bucket", **{name: SecretValue("only-this")})


def test_importing_the_package_imports_no_client():
    code = "import sys, lobstertrap.stores; print(*sorted(sys.modules))"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()

    assert "lobstertrap.stores" in loaded
    assert not {"boto3", "botocore", "tenacity", "urllib3"} & set(loaded)


@pytest.mark.parametrize(
    ("endpoint", "protected"),
    [
        (None, True),
        ("https://s3.example.org", True),
        ("http://127.0.0.1:9", True),
        ("http://localhost:9", True),
        ("http://[::1]:9", True),
        ("http://10.0.0.5:9", False),
        ("http://minio.local", False),
        ("http://localhost.example.org", False),
    ],
)
def test_payloads_are_signed_where_nothing_else_protects_them(endpoint, protected):
    assert _protected(endpoint) is protected


@pytest.mark.usefixtures("no_chain")
@pytest.mark.parametrize(
    ("region", "signed_for"), [(None, "us-east-1"), ("eu-central-1", "eu-central-1")]
)
def test_a_server_that_has_no_regions_is_asked_as_the_first(region, signed_for):
    named = {key: value for key, value in FULL.items() if key != "region"}
    settings = StoreSettings.from_dict(named | ({"region": region} if region else {}))

    client = connect(settings, 5.0)

    assert client.meta.region_name == signed_for
    client.close()


def test_buffers_read_like_a_file():
    body = Buffers([b"", b"abc", b"", memoryview(b"defg"), b"x" * 600_000])
    whole = b"abcdefg" + b"x" * 600_000

    assert len(body) == body.seek(0, 2) == len(whole)
    assert body.read(10) == b""
    for start in (0, 1, 3, 6, 7, 300_000, 600_006, 600_007):
        assert body.seek(start) == body.tell() == start
        assert b"".join(iter(lambda: bytes(body.read(8192)), b"")) == whole[start:]
