"""The tables by which what boto3 raises becomes one of our errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lobstertrap import errors
from lobstertrap.errors import LobsterTrapError

CONFLICT_STATUS = frozenset({409, 412})

_BY_CODE: dict[str, type[LobsterTrapError]] = {
    "NoSuchKey": errors.NotFound,
    "InvalidAccessKeyId": errors.AccessDenied,
    "SignatureDoesNotMatch": errors.AccessDenied,
    "AccessDenied": errors.AccessDenied,
    "ExpiredToken": errors.AccessDenied,
    "InvalidToken": errors.AccessDenied,
    "TokenRefreshRequired": errors.AccessDenied,
    "RequestTimeTooSkewed": errors.AccessDenied,
    "InvalidBucketName": errors.InvalidInput,
    "AuthorizationHeaderMalformed": errors.InvalidInput,
    "PermanentRedirect": errors.InvalidInput,
    "InvalidRange": errors.IntegrityError,
    "QuotaExceeded": errors.NoSpace,
    "InsufficientCapacity": errors.NoSpace,
    "InsufficientStorage": errors.NoSpace,
    "XMinioStorageFull": errors.NoSpace,
    "XMinioAdminBucketQuotaExceeded": errors.NoSpace,
    "SlowDown": errors.Unavailable,
    "Throttling": errors.Unavailable,
    "TooManyRequests": errors.Unavailable,
    "OperationAborted": errors.Unavailable,
    # The bytes were damaged on the way: sending them again is the cure.
    "BadDigest": errors.Unavailable,
    "IncompleteBody": errors.Unavailable,
    "XAmzContentSHA256Mismatch": errors.Unavailable,
    "XAmzContentChecksumMismatch": errors.Unavailable,
    "RequestTimeout": errors.TimedOut,
}
_BY_STATUS: dict[int, type[LobsterTrapError]] = {
    301: errors.InvalidInput,
    401: errors.AccessDenied,
    403: errors.AccessDenied,
    404: errors.NotFound,
    408: errors.TimedOut,
    416: errors.IntegrityError,
    429: errors.Unavailable,
    507: errors.NoSpace,
}
_HINTS: dict[str, str] = {
    "RequestTimeTooSkewed": "set this machine's clock",
    "ExpiredToken": "renew the credentials and run the same command again",
    "AuthorizationHeaderMalformed": "set the store's region",
    "PermanentRedirect": "set the store's region",
}
_HINT_BY_KIND: dict[type[LobsterTrapError], str] = {
    errors.AccessDenied: "check the store's credentials and what they may do",
    errors.NoSpace: "free space in the store or raise its quota",
    errors.Unavailable: "run the same command again when the store answers",
    errors.TimedOut: "run the same command again when the store answers",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """What the message names: the operation, the object, the bucket, the endpoint."""

    doing: str
    bucket: str
    endpoint: str
    key: str | None = None
    conditional: bool = False

    def __str__(self) -> str:
        thing = f"object {self.key!r} in " if self.key else ""
        return f"{thing}bucket {self.bucket!r} at {self.endpoint}"


@contextmanager
def translated(where: Where) -> Iterator[None]:
    """Raise one of our errors for every error of botocore in the block."""
    from botocore.exceptions import (  # noqa: PLC0415 - late: boto3 costs 0.4 s
        BotoCoreError,
        ClientError,
    )
    from urllib3.exceptions import HTTPError  # noqa: PLC0415 - late, as above

    try:
        yield
    except ClientError as error:
        raise _from_answer(error.response, where) from error
    except BotoCoreError as error:
        raise _from_client(error, where) from error
    except (OSError, HTTPError) as error:
        # Below botocore: sockets and urllib3, while a body is streamed.
        raise errors.Unavailable(
            f"connection lost while {where.doing} {where}: {type(error).__name__}",
            hint=_HINT_BY_KIND[errors.Unavailable],
        ) from error


def _from_answer(response: Any, where: Where) -> LobsterTrapError:
    """Return our error for an answer of the server that is not a success."""
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    detail = f"{status} {code}" if code not in {"", f"{status}"} else f"{status}"
    if code == "NoSuchBucket":
        return errors.NotFound(
            f"bucket {where.bucket!r} does not exist at {where.endpoint}",
            hint="create the bucket or correct the store's url",
        )
    if where.conditional:
        failed = _from_condition(code, status, where)
        if failed is not None:
            return failed
    kind = _BY_CODE.get(code) or _BY_STATUS.get(status)
    if kind is None:
        kind = errors.Unavailable if status >= 500 or not status else errors.Permanent  # noqa: PLR2004 - 5xx
    if kind is errors.NotFound:
        return kind(f"{where} does not exist")
    hint = _HINTS.get(code) or _HINT_BY_KIND.get(kind)
    return kind(f"{where.doing} {where} failed: {detail}", hint=hint)


def _from_condition(code: str, status: int, where: Where) -> LobsterTrapError | None:
    missing = code == "NoSuchKey" or status == 404  # noqa: PLR2004 - If-Match on nothing
    if status in CONFLICT_STATUS or missing:
        return errors.Conflict(f"{where} is not what the write expected ({status})")
    if status == 501:  # noqa: PLR2004 - older servers know no conditions
        return errors.Refused(
            f"the server at {where.endpoint} does not support conditional writes",
            hint="use a store that honours If-None-Match and If-Match on PUT",
        )
    return None


def _from_client(error: Exception, where: Where) -> LobsterTrapError:
    """Return our error for what failed before or after the server's answer."""
    from botocore import exceptions as boto  # noqa: PLC0415 - late, as above

    kind: type[LobsterTrapError] = errors.Permanent
    hint = None
    reason = type(error).__name__
    if isinstance(error, boto.SSLError) and "CERTIFICATE_VERIFY" in str(error):
        kind, hint = (
            errors.AccessDenied,
            "trust the endpoint's certificate (AWS_CA_BUNDLE)",
        )
        reason = "its certificate is not trusted"
    elif isinstance(error, boto.ReadTimeoutError | boto.ConnectTimeoutError):
        kind = errors.TimedOut
    elif isinstance(error, _unavailable()):
        kind = errors.Unavailable
    elif isinstance(error, _denied()):
        kind = errors.AccessDenied
        hint = "log in or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    elif isinstance(error, _invalid()):
        kind = errors.InvalidInput
        hint = "correct the store's url, endpoint, region or profile"
    return kind(
        f"{where.doing} {where} failed: {reason}", hint=hint or _HINT_BY_KIND.get(kind)
    )


def _unavailable() -> tuple[type[Exception], ...]:
    from botocore import exceptions as boto  # noqa: PLC0415 - late, as above
    from botocore.parsers import ResponseParserError  # noqa: PLC0415 - late

    return (
        boto.HTTPClientError,
        boto.ConnectionError,
        boto.IncompleteReadError,
        boto.ChecksumError,
        ResponseParserError,
    )


def _denied() -> tuple[type[Exception], ...]:
    from botocore import exceptions as boto  # noqa: PLC0415 - late, as above

    return (
        boto.NoCredentialsError,
        boto.PartialCredentialsError,
        boto.CredentialRetrievalError,
        boto.NoAuthTokenError,
        boto.TokenRetrievalError,
        boto.SSOError,
        boto.LoginError,
        boto.MetadataRetrievalError,
    )


def _invalid() -> tuple[type[Exception], ...]:
    from botocore import exceptions as boto  # noqa: PLC0415 - late, as above

    return (
        boto.ParamValidationError,
        boto.ValidationError,
        boto.BaseEndpointResolverError,
        boto.ProfileNotFound,
        boto.ConfigParseError,
        boto.InvalidRetryConfigurationError,
        boto.InvalidConfigError,
    )
