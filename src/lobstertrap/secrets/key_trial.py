"""One cheap request by which an inference provider says whether a key is good."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from lobstertrap.inference import Preset
from lobstertrap.redaction import SecretValue

_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyTrial:
    """What the provider answered, in words, without the key."""

    accepted: bool
    said: str


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to whoever is named there."""

    def redirect_request(self, *_: object, **__: object) -> None:
        """Follow nothing."""


def try_key(preset: Preset, key: SecretValue, *, seconds: float = _SECONDS) -> KeyTrial:
    """Send one GET with the key to the provider; raises nothing."""
    where = f"{preset.url}{preset.trial}"
    value = f"{preset.scheme}{key.reveal()}"
    try:
        value.encode("latin-1")
        headers = {**preset.headers, preset.header: value, "accept": "application/json"}
        request = urllib.request.Request(where, headers=headers)  # noqa: S310 - the spec allows http and https only
        opener = urllib.request.build_opener(_NoRedirect)
        with opener.open(request, timeout=seconds):
            return KeyTrial(accepted=True, said=f"{where} accepts it")
    except urllib.error.HTTPError as error:
        with error:
            if error.code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                return KeyTrial(accepted=False, said=f"{where} refuses it")
            return KeyTrial(accepted=False, said=f"{where} answers {error.code}")
    except ValueError:  # its text would show the header
        return KeyTrial(accepted=False, said="it cannot stand in an HTTP header")
    except (OSError, http.client.HTTPException) as error:
        reason = type(getattr(error, "reason", error)).__name__
        return KeyTrial(accepted=False, said=f"{where} does not answer: {reason}")
