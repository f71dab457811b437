"""Inference providers: what an agent needs to use each, known by name.

A preset says which variable the agent reads its key from, which hosts it talks to, and
one cheap request by which a key can be tried. Nothing here talks to anybody.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One provider's API, as its own documentation describes it."""

    name: str
    env: str
    """The variable that agents read the key from."""
    url: str
    """The base of its API, without a slash at the end."""
    trial: str = "/models"
    """A path below `url` that answers only with a key, for nothing."""
    header: str = "Authorization"
    scheme: str = "Bearer "
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent with every request."""

    @property
    def hosts(self) -> tuple[str, ...]:
        """Return the `host:port` that the agent must be able to reach."""
        return (f"{urlsplit(self.url).hostname}:{self.port}",)

    @property
    def port(self) -> int:
        """Return the TCP port that it listens on."""
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def block(self) -> str | None:
        """Return its `CIDR:PORT` when its URL has an address; None when it has a name.

        A NetworkPolicy knows addresses only, and those of a name change.
        """
        try:
            address = ipaddress.ip_address(urlsplit(self.url).hostname or "")
        except ValueError:
            return None
        return f"{address}/{address.max_prefixlen}:{self.port}"


PRESETS: Final[Mapping[str, Preset]] = {
    preset.name: preset
    for preset in (
        Preset(
            name="anthropic",
            env="ANTHROPIC_API_KEY",
            url="https://api.anthropic.com/v1",
            header="x-api-key",
            scheme="",
            headers={"anthropic-version": "2023-06-01"},
        ),
        Preset(
            name="google",
            env="GEMINI_API_KEY",
            url="https://generativelanguage.googleapis.com/v1beta",
            header="x-goog-api-key",
            scheme="",
        ),
        Preset(name="openai", env="OPENAI_API_KEY", url="https://api.openai.com/v1"),
        Preset(
            name="openrouter",
            env="OPENROUTER_API_KEY",
            url="https://openrouter.ai/api/v1",
            trial="/key",  # its /models answers without a key
        ),
    )
}


def base_url_name(env: str) -> str:
    """Return the variable for another base URL: OPENAI_BASE_URL of OPENAI_API_KEY."""
    return re.sub(r"_(API_KEY|KEY|TOKEN)$", "", env) + "_BASE_URL"
