"""A reference to a secret: where its value is found, in the keys that OpenClaw uses.

The sources `env`, `file` and `exec` keep OpenClaw's rules, so that one reference serves
both; `prefect` (a Secret block) and `target` (a secret that is already there, and never
passes through here) are ours.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

SINGLE_VALUE: Final = "value"
"""The only id that a file which is one value has."""

_ENV: Final = r"[A-Z][A-Z0-9_]{0,127}"
_IDS: Final = {
    "env": (_ENV, "the id of an env reference is a variable: OPENAI_API_KEY"),
    "file": (
        rf"{SINGLE_VALUE}|(/([^~/]|~[01])*)+",
        f"the id of a file reference is a JSON pointer, or '{SINGLE_VALUE}'",
    ),
    "exec": (
        r"(?!(.*/)?\.{1,2}(/|$))[A-Za-z0-9][A-Za-z0-9._:/#-]{0,255}",
        "the id of an exec reference is letters, digits and . _ : / # -, without '..'",
    ),
    "prefect": (r"[a-z0-9-]+", "the id of a prefect reference is a block's name"),
    "target": (r".+", "the id names a secret on the target"),
}


class SecretRef(BaseModel):
    """Where a secret's value is found: the same three keys that OpenClaw uses."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["env", "file", "exec", "prefect", "target"]
    """`env`: a variable where the command runs; `file`, `exec`: a provider of the
    configuration; `prefect`: a Secret block; `target`: a secret that is already on the
    target and never passes through here."""
    provider: str = Field(default="default", pattern=r"^[a-z][a-z0-9_-]{0,63}$")
    """A section of `secrets.providers`; `default` needs none."""
    id: str = Field(min_length=1, max_length=256)
    """Which of the provider's secrets: a variable, a JSON pointer, a name."""

    def __str__(self) -> str:
        return f"{self.source}:{self.provider}:{self.id}"

    @model_validator(mode="after")
    def _id_of_its_source(self) -> Self:
        pattern, told = _IDS[self.source]
        if not re.fullmatch(pattern, self.id, re.DOTALL):
            raise ValueError(told)
        if self.provider != "default" and self.source in ("prefect", "target"):
            msg = f"the provider of a {self.source} reference is default"
            raise ValueError(msg)
        return self


def _shorthand(value: object) -> object:
    if isinstance(value, str):
        match = re.fullmatch(rf"\$(?:\{{({_ENV})\}}|({_ENV}))", value)
        if match is None:
            msg = "a secret is {source, provider, id} or ${NAME}, never its value"
            raise ValueError(msg)
        return {
            "source": "env",
            "provider": "default",
            "id": match[1] or match[2],
        }
    return value


SecretRefField = Annotated[SecretRef, BeforeValidator(_shorthand)]
"""A reference, or `${NAME}` (also `$NAME`) for a variable."""
